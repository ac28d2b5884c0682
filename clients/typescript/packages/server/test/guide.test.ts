/**
 * The guides in docs/guide, step by step as they stand there but for the ports, with the real binary. It is the one that
 * cargo built, or `EVENKEEL_BIN`; without any these tests have nothing to try and say so.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { atEnd, until } from "./farm.js";

const root = fileURLToPath(new URL("../../../../../", import.meta.url));
const binary = process.env.EVENKEEL_BIN ?? join(root, "target/debug/evenkeel");
const PORTS = ["8080", "9900", "9001", "9002"];

async function freePorts(): Promise<Map<string, string>> {
  const servers = await Promise.all(
    PORTS.map(async () => {
      const server = createServer();
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
      return server;
    }),
  );
  const ports = servers.map((server) => String((server.address() as AddressInfo).port));
  for (const server of servers) server.close();
  return new Map(PORTS.map((port, index) => [port, ports[index] as string]));
}

/** A guide in a folder of its own. */
class Guide {
  readonly #folder: string;
  readonly #text: string;
  readonly #processes: ChildProcess[] = [];
  /** What each command said. */
  readonly said = new Map<string, string>();

  constructor(name: string, ports: Map<string, string>) {
    let text = readFileSync(join(root, "docs/guide", name), "utf8");
    for (const [from, to] of ports) text = text.replaceAll(new RegExp(`\\b${from}\\b`, "g"), to);
    this.#text = text;
    // Inside the package, so that imports resolve as in a user's folder.
    this.#folder = fileURLToPath(new URL(`../dist/guide-${name}-${process.pid}`, import.meta.url));
    mkdirSync(this.#folder, { recursive: true });
    for (const [, file, code] of text.matchAll(/```\w+ name=(\S+)\n([\s\S]*?)```/g)) {
      writeFileSync(join(this.#folder, file as string), code as string);
    }
    atEnd(() => {
      for (const process of this.#processes.reverse()) process.kill("SIGKILL");
      rmSync(this.#folder, { recursive: true, force: true });
    });
  }

  /** The commands of the guide, in order. */
  get commands(): string[] {
    return [...this.#text.matchAll(/```sh\n([\s\S]*?)```/g)].map(([, command]) => (command as string).trim());
  }

  /** Starts one of its commands. */
  run(command: string): Promise<number | null> {
    const [program, ...args] = command.split(" ") as [string, ...string[]];
    const env = { ...process.env, PATH: `${dirname(binary)}${delimiter}${process.env.PATH}` };
    const child = spawn(program, args, { cwd: this.#folder, env });
    this.#processes.push(child);
    const add = (data: Buffer) => this.said.set(command, (this.said.get(command) ?? "") + String(data));
    child.stdout.on("data", add);
    child.stderr.on("data", add);
    return new Promise((resolve) => child.on("close", resolve));
  }

  exists = (file: string) => existsSync(join(this.#folder, file));
  lines = (command: string) => (this.said.get(command) ?? "").split("\n").filter(Boolean);
}

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

describe.skipIf(!existsSync(binary))("the guide", () => {
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
