/** docs/guide/redirect.md, step by step: what it says comes of its commands does. */
import { expect, it } from "vitest";
import { WebSocket } from "ws";
import { freePorts, Guide } from "../../server/test/guide.js";
import { until } from "../../server/test/farm.js";
import { eventually } from "./world.js";

/** Whether a URL is as the guide shows it, `…` standing for anything. */
const like = (shown: string) => {
  const parts = shown.split("…").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return expect.stringMatching(new RegExp(`^${parts.join("[\\w.-]+")}$`));
};

/** What comes of a connection to this URL: the echo of a text, or the status and body of a refusal. */
const dial = (url: string) =>
  new Promise<string>((resolve) => {
    const socket = new WebSocket(url);
    socket.on("open", () => socket.send("hello"));
    socket.on("message", (data) => {
      resolve(String(data));
      socket.close();
    });
    socket.on("unexpected-response", (_, response) => {
      let body = "";
      response.on("data", (chunk) => (body += chunk));
      response.on("end", () => resolve(`${response.statusCode} ${body}`));
    });
    socket.on("error", (error) => resolve(String(error)));
  });

it("asking by hand is answered as the guide shows", async () => {
  const guide = new Guide("redirect.md", await freePorts());
  const [serve, echo, post, get, handshake] = guide.commands as [string, string, string, string, string];
  expect(guide.commands).toHaveLength(5);
  void guide.run(serve);
  await until("there is a token", () => guide.exists("admin.token"));
  void guide.run(echo);

  const shown = JSON.parse(/```json name=answer\n([\s\S]*?)```/.exec(guide.text)?.[1] ?? "");
  const expected = { ...shown, url: like(shown.url), proxy: like(shown.proxy), sid: like("…"), ticket: like("…") };
  const ask = async (command: string) => {
    guide.said.delete(command);
    expect(await guide.run(command)).toBe(0);
    return guide.said.get(command) ?? "";
  };
  let answer = { url: "", proxy: "" };
  await eventually("the gateway knows the server", async () => {
    answer = JSON.parse(await ask(post));
    return answer.url !== undefined && !answer.url.startsWith(shown.proxy.split("/chat")[0]);
  });
  expect(answer).toEqual(expected);
  expect(await dial(answer.url)).toBe("hello");
  expect(await dial(answer.url)).toBe('401 {"why":"replayed"}');
  expect(await dial(answer.proxy)).toBe("hello");
  expect(JSON.parse(await ask(get))).toEqual(expected);

  const [status, ...fields] = (await ask(handshake)).trim().split("\r\n");
  expect(guide.text).toContain(`\`${status}\``);
  const location = fields.find((field) => field.startsWith("Location: ")) ?? "";
  expect(location).toEqual(like(/`(Location: .*?)`/.exec(guide.text)?.[1] ?? ""));
  expect(await dial(location.replace("Location: ", ""))).toBe("hello");
});
