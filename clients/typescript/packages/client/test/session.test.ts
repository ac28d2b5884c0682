import { createServer } from "node:http";
import { afterEach, describe, expect, it, vi } from "vitest";
import { NegotiateError, negotiator } from "../src/session.js";
import { gateway, listen, nobody, token } from "./kit.js";

const offer = (url: string, more: object = {}) => ({
  json: { v: 1, url, connect_ms: 10_000, sid: "s1", ticket: "t1", alt: [], proxy: null, retry: { base_ms: 1, cap_ms: 2 }, ...more },
});

afterEach(() => void vi.restoreAllMocks());

describe("a negotiator", () => {
  it("asks the gateway of the route and hands out what it says", async () => {
    const { host, questions } = await gateway(() => offer("ws://127.0.0.1:1/chat?room=7&_ek=x"));
    const ek = negotiator(`http://${host}/chat?room=7`, { key: "room:7" });
    expect(await ek()).toBe("ws://127.0.0.1:1/chat?room=7&_ek=x");
    expect(questions).toEqual([
      { v: 1, path: "/chat?room=7", caps: ["move"], cause: "start", avoid: [], key: "room:7" },
    ]);
  });

  it("carries session and ticket over, and asks with the cause of what happened", async () => {
    const { host, questions } = await gateway((question) =>
      offer(`ws://127.0.0.1:1/?_ek=${token(question.cause === "start" ? "a" : "b")}`, { ticket: `t${questions.length}` }),
    );
    const ek = negotiator(`ws://${host}/`);
    ek.session.refused(await ek());
    ek.session.refused(await ek());
    await ek();
    ek.session.opened();
    ek.session.ended(1);
    await ek();
    await ek.session.assign("move", "m1");
    expect(questions.map(({ cause, sid, ticket, avoid }) => [cause, sid, ticket, avoid])).toEqual([
      ["start", undefined, undefined, []],
      ["refused", "s1", "t1", ["a"]],
      ["refused", "s1", "t2", ["b", "a"]],
      ["lost", "s1", "t3", []],
      ["move", "s1", "m1", []],
    ]);
  });

  it("comes back within the window that a refusal names", async () => {
    let refusals = 2;
    const { host, at } = await gateway(() =>
      refusals-- > 0
        ? { status: refusals > 0 ? 503 : 429, json: { retry: { wait_ms: 150, window_ms: 50 }, why: "capacity" } }
        : offer("ws://127.0.0.1:1/"),
    );
    await negotiator(`http://${host}/`)();
    expect(at).toHaveLength(3);
    // Never sooner; how much later is up to the machine.
    expect(at[1]! - at[0]!).toBeGreaterThanOrEqual(149);
    expect(at[2]! - at[1]!).toBeGreaterThanOrEqual(149);
  });

  it("tries again where the gateway is away, and gives up where it says no", async () => {
    const away = await nobody();
    vi.spyOn(Math, "random").mockReturnValue(0);
    const asked = vi.spyOn(globalThis, "fetch");
    void negotiator(`http://${away}/`)().catch(() => {});
    await vi.waitFor(() => expect(asked.mock.calls.length).toBeGreaterThan(3), 5_000);

    const { host } = await gateway(() => ({ status: 403, json: { why: "origin" } }));
    const refusal = await negotiator(`http://${host}/`)().catch((error: unknown) => error);
    expect(refusal).toBeInstanceOf(NegotiateError);
    expect(refusal).toMatchObject({ why: "origin", status: 403, isPassing: false });
  });

  it("follows a gateway that points to another, five at most", async () => {
    const last = await gateway(() => offer("ws://127.0.0.1:1/end"));
    const first = await gateway(() => ({ json: { v: 1, negotiate: `http://${last.host}/ask` } }));
    expect(await negotiator(`http://${first.host}/`)()).toBe("ws://127.0.0.1:1/end");

    const round: { host: string; questions: unknown[] } = await gateway(() => ({ json: { negotiate: `http://${round.host}/` } }));
    const session = negotiator(`http://${round.host}/`).session;
    await expect(session.assign("move", "t")).rejects.toMatchObject({ why: "too_many_hops" });
    expect(round.questions).toHaveLength(5);
  });

  it("dials no host that is not allowed, and asks none", async () => {
    const asks = async (answer: object, allowedHosts?: string[]) => {
      const { host } = await gateway(() => ({ json: answer }));
      const options = allowedHosts ? { allowedHosts } : {};
      return negotiator(`http://${host}/`, options)().catch((error: NegotiateError) => error.why);
    };
    const hosts = ["ws.example.com", "*.farm.example.com"];
    expect(await asks({ url: "wss://ws.example.com/" }, hosts)).toBe("wss://ws.example.com/");
    expect(await asks({ url: "wss://a.farm.example.com/" }, hosts)).toBe("wss://a.farm.example.com/");
    for (const url of [
      "wss://evil.example.com/",
      "wss://ws.example.com.evil.com/",
      "wss://evilfarm.example.com/",
      "wss://ws.example.com:8443/",
      "wss://user@ws.example.com/",
      "javascript:alert(1)",
      "//ws.example.com/",
    ]) {
      expect(await asks({ url }, hosts), url).toBe("forbidden_host");
    }
    expect(await asks({ url: "wss://ws.example.com/", alt: [{ url: "wss://evil.com/" }] }, hosts)).toBe("forbidden_host");
    expect(await asks({ negotiate: "https://evil.com/" }, hosts)).toBe("forbidden_host");
    expect(await asks({ url: "file:///etc/passwd" })).toBe("forbidden_host");
  });

  it("treats an answer that is none as a gateway that is away", async () => {
    vi.spyOn(Math, "random").mockReturnValue(0);
    const answers = [{ json: [] }, { json: {} }, { json: { url: 7, alt: "x" } }, { json: { url: null, alt: [null, {}] } }];
    const { host } = await gateway(() => answers.shift() ?? offer("ws://127.0.0.1:1/ok", { retry: null, connect_ms: "x" }));
    expect(await negotiator(`http://${host}/`)()).toBe("ws://127.0.0.1:1/ok");
  });

  it("sends what the application adds to its questions", async () => {
    let authorization: string | undefined;
    const { host } = await gateway((_, request) => {
      authorization = request.headers.authorization;
      return offer("ws://127.0.0.1:1/");
    });
    await negotiator(`http://${host}/`, { request: { headers: { authorization: "Bearer me" } } })();
    expect(authorization).toBe("Bearer me");
  });

  it("gives a silent gateway up", async () => {
    const silent = await listen(createServer(() => {}));
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "Date"] });
    const session = negotiator(`http://${silent}/`).session;
    const asked = expect(session.assign("move", "t")).rejects.toMatchObject({ why: "unreachable" });
    await vi.advanceTimersByTimeAsync(10_000);
    vi.useRealTimers();
    await asked;
  });
});
