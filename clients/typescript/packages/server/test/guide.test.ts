/** The guides in docs/guide, step by step. */
import { describe, expect, it } from "vitest";
import { until } from "./farm.js";
import { freePorts, Guide } from "./guide.js";

/** Follows a guide up to where its client talks to a server, drains that one, and waits until the other answers. */
async function follow(name: string): Promise<string[]> {
  const guide = new Guide(name, await freePorts());
  const [serve, first, second, client, drain] = guide.commands as [string, string, string, string, string];
  expect(guide.commands).toHaveLength(5);
  void guide.run(serve);
  await until("there is a token", () => guide.exists("admin.token"));
  for (const server of [first, second]) void guide.run(server);
  await until("both joined", () => (guide.said.get(serve)?.match(/agent linked/g) ?? []).length === 2);
  void guide.run(client);
  await until("somebody answers", () => guide.lines(client).some((line) => /^chat-\d /.test(line))).catch((error: unknown) => {
    throw new Error([...guide.said.entries()].join("\n"), { cause: error });
  });
  const [source] = /^chat-\d/.exec(guide.lines(client).find((line) => /^chat-\d /.test(line)) ?? "") ?? [];
  expect(await guide.run(drain.replace("chat-1", source as string)), guide.said.get(drain)).toBe(0);
  const after = () => guide.lines(client).filter((line) => /^chat-\d /.test(line) && !line.startsWith(source as string));
  await until("the other answers", () => after().length > 10);
  return guide.lines(client);
}

/** The numbers behind `hello`, in order. */
const hellos = (lines: string[]) => lines.flatMap((line) => /hello (\d+)$/.exec(line)?.[1] ?? []).map(Number);

describe("the guide", () => {
  it("for ws moves a client without a message missing", async () => {
    const lines = await follow("ws.md");
    const answers = lines.filter((line) => line.startsWith("chat-"));
    answers.forEach((line, index) => expect(line).toMatch(new RegExp(`^chat-\\d counts ${index + 1}: hello ${index + 1}$`)));
    const rest = lines.filter((line) => !line.startsWith("chat-"));
    expect(rest).toEqual([expect.stringMatching(/^moved in \d+ ms$/)]);
  });

  it("for socket.io has a stock client reconnect with every message acknowledged", async () => {
    const lines = await follow("socket-io.md");
    const numbers = hellos(lines);
    expect(numbers).toEqual(numbers.map((_, index) => index + 1));
    const rest = lines.filter((line) => !line.startsWith("chat-"));
    expect(rest).toEqual(["disconnected: transport close"]);
  });
});
