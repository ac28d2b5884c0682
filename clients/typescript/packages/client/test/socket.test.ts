import { createServer } from "node:http";
import { describe, expect, it, vi } from "vitest";
import { WebSocket } from "ws";
import { EvenkeelSocket, negotiator, type EvenkeelOptions } from "../src/index.js";
import { atEnd, echo, gateway, listen, next, nobody, server, token, until } from "./kit.js";

const Socket = EvenkeelSocket.with({ WebSocket });

/** A socket whose events are written down. */
function open(url: string, options: EvenkeelOptions = {}, protocols: string[] = []) {
  const socket = new EvenkeelSocket(url, protocols, { WebSocket, ...options });
  atEnd(() => socket.close());
  const events: string[] = [];
  for (const type of ["open", "error", "lost", "reopened"] as const) {
    socket.addEventListener(type, () => events.push(type));
  }
  socket.addEventListener("message", ({ data }) => events.push(`message ${data}`));
  socket.addEventListener("gap", ({ detail }) => events.push(`gap ${detail.why}`));
  socket.addEventListener("unsent", ({ detail }) => events.push(`unsent ${detail.message}`));
  socket.addEventListener("close", ({ code, reason, wasClean }) =>
    events.push(`close ${code} ${reason}${wasClean ? "" : " unclean"}`),
  );
  return { socket, events };
}

describe("as a WebSocket, it", () => {
  it("has the constants on class and instance", async () => {
    const { host } = await echo();
    const socket = new Socket(`ws://${host}`);
    for (const where of [EvenkeelSocket, Socket, socket]) {
      expect([where.CONNECTING, where.OPEN, where.CLOSING, where.CLOSED]).toEqual([0, 1, 2, 3]);
    }
    socket.close();
    await next(socket, "close");
  });

  it("opens, echoes text and binary, closes", async () => {
    const { host } = await echo({ handleProtocols: () => "chat.v2" });
    const { socket, events } = open(`ws://${host}/chat?room=7#part`, {}, ["chat.v1", "chat.v2"]);
    expect([socket.readyState, socket.protocol, socket.binaryType]).toEqual([0, "", "blob"]);
    await next(socket, "open");
    expect([socket.readyState, socket.protocol, socket.url]).toEqual([1, "chat.v2", `ws://${host}/chat?room=7`]);
    socket.send("grüße");
    expect((await next<MessageEvent>(socket, "message")).data).toBe("grüße");
    for (const data of [new Uint8Array([1, 2]), new Uint8Array([1, 2]).buffer, new DataView(new Uint8Array([1, 2]).buffer)]) {
      socket.binaryType = "arraybuffer";
      socket.send(data);
      expect(new Uint8Array((await next<MessageEvent<ArrayBuffer>>(socket, "message")).data)).toEqual(new Uint8Array([1, 2]));
    }
    socket.binaryType = "blob";
    socket.send(new Uint8Array([3]));
    const { data, origin } = await next<MessageEvent<Blob>>(socket, "message");
    expect([data instanceof Blob, data.size, origin]).toEqual([true, 1, `ws://${host}`]);
    socket.close(4321, "enough");
    expect(socket.readyState).toBe(2);
    await next(socket, "close");
    expect(socket.readyState).toBe(3);
    expect(events.filter((event) => !event.startsWith("message"))).toEqual(["open", "close 4321 enough"]);
  });

  it("dials with a new ctl each time and leaves the application's query alone", async () => {
    const urls: string[] = [];
    const { host } = await server((_, request) => urls.push(request.url ?? ""));
    for (let time = 0; time < 2; time++) await next(open(`ws://${host}/chat?room=7&x=%20`).socket, "open");
    const ctls = urls.map((url) => /^\/chat\?room=7&x=%20&_ekm=([\w-]{22})&_eks=[\w-]{22}$/.exec(url)?.[1]);
    expect(new Set(ctls).size).toBe(2);
    expect(ctls).not.toContain(undefined);
  });

  it("takes an assignment in its URL along, once", async () => {
    const urls: string[] = [];
    const { host } = await server((socket, request) => {
      urls.push(request.url ?? "");
      if (urls.length === 1) socket.terminate();
    });
    const { socket } = open(`ws://${host}/chat?room=7&_ek=t.o.k&_ekm=old`, { reconnect: true });
    await next(socket, "reopened");
    expect(urls[0]).toMatch(/^\/chat\?room=7&_ek=t\.o\.k&_ekm=[\w-]{22}&_eks=[\w-]{22}$/);
    expect(urls[1]).toMatch(/^\/chat\?room=7&_ekm=[\w-]{22}&_eks=[\w-]{22}$/);
    expect(socket.url).toBe(`ws://${host}/chat?room=7`);
  });

  it("tells the server the code and reason of the application, or none", async () => {
    const closes: string[] = [];
    const { host } = await server((socket) => socket.on("close", (code, reason) => closes.push(`${code} ${reason}`)));
    for (const close of [[], [1000], [1000, "bye"], [4999, "é".repeat(61)]] as [number?, string?][]) {
      const { socket } = open(`ws://${host}`);
      await next(socket, "open");
      socket.close(...close);
      await next(socket, "close");
    }
    await until("all are closed", () => closes.length === 4);
    expect(closes).toEqual(["1005 ", "1000 ", "1000 bye", `4999 ${"é".repeat(61)}`]);
  });

  it("refuses codes, reasons, URLs and protocols that a WebSocket refuses", async () => {
    const { host } = await echo();
    const { socket } = open(`ws://${host}`);
    const named = (name: string) => expect.objectContaining({ name });
    expect(() => socket.send("early")).toThrow(named("InvalidStateError"));
    for (const code of [0, 999, 1001, 1005, 1006, 2999, 5000]) {
      expect(() => socket.close(code)).toThrow(named("InvalidAccessError"));
    }
    expect(() => socket.close(1000, "é".repeat(62))).toThrow(named("SyntaxError"));
    for (const url of ["", "nonsense", "ftp://x/", "ws://", "//x"]) {
      expect(() => new Socket(url), url).toThrow(named("SyntaxError"));
    }
    for (const protocols of ["", "a b", "a,b", ["a", "a"], ["é"]]) {
      expect(() => new Socket(`ws://${host}`, protocols)).toThrow(named("SyntaxError"));
    }
    await next(socket, "open");
  });

  it("fails without opening where nobody listens, or where the server refuses", async () => {
    const refusing = await listen(createServer().on("upgrade", (_, socket) => socket.end("HTTP/1.1 503 No\r\n\r\n")));
    for (const host of [await nobody(), refusing]) {
      const { socket, events } = open(`ws://${host}`);
      await next(socket, "close");
      expect(events).toEqual(["error", "close 1006  unclean"]);
    }
  });

  it("fails when it is closed while connecting", async () => {
    const silent = await listen(createServer().on("upgrade", () => {}));
    const { socket, events } = open(`ws://${silent}`);
    socket.close();
    expect([socket.readyState, events]).toEqual([2, []]);
    socket.close();
    await next(socket, "close");
    expect([socket.readyState, events]).toEqual([3, ["error", "close 1006  unclean"]]);
  });

  it("tells how the server closed, and of a gap where it was no goodbye", async () => {
    const closes: [number, string, string[]][] = [
      [1000, "bye", ["close 1000 bye"]],
      [1008, "no", ["close 1008 no"]],
      [1008, "ek:stale", ["gap lost", "close 1008 ek:stale"]],
      [1012, "ek:draining", ["gap lost", "close 1012 ek:draining"]],
      [4000, "", ["gap lost", "close 4000 "]],
    ];
    for (const [code, reason, told] of closes) {
      const { host } = await server((socket) => socket.close(code, reason));
      const { socket, events } = open(`ws://${host}`);
      await next(socket, "close");
      expect(events).toEqual(["open", ...told]);
    }
    const { host } = await server((socket) => socket.terminate());
    const { socket, events } = open(`ws://${host}`);
    await next(socket, "close");
    expect(events).toEqual(["open", "gap lost", "error", "close 1006  unclean"]);
  });

  it("hands over what comes right behind the handshake", async () => {
    const { host } = await server((socket) => {
      for (let n = 0; n < 100; n++) socket.send(String(n));
    });
    const { socket, events } = open(`ws://${host}`);
    await until("all have come", () => events.length === 101);
    expect(events).toEqual(["open", ...Array.from({ length: 100 }, (_, n) => `message ${n}`)]);
    expect(socket.bufferedAmount).toBe(0);
  });

  it("ignores what is sent after its close, and delivers nothing then", async () => {
    const got: string[] = [];
    const { host } = await server((socket) => {
      socket.on("message", (data) => {
        got.push(String(data));
        socket.send("late");
      });
    });
    const { socket, events } = open(`ws://${host}`);
    await next(socket, "open");
    socket.send("1");
    socket.close();
    socket.send("2");
    await next(socket, "close");
    expect([got, events]).toEqual([["1"], ["open", "close 1005 "]]);
  });

  it("takes handlers and listeners in the order they were set, with itself as this", async () => {
    const { host } = await echo();
    const socket = new Socket(`ws://${host}`);
    const calls: unknown[] = [];
    expect(socket.onopen).toBeNull();
    socket.onopen = () => calls.push("replaced");
    const handler = function (this: unknown) {
      calls.push(this === socket ? "handler" : "stranger");
    };
    socket.onopen = handler;
    expect(socket.onopen).toBe(handler);
    socket.addEventListener("open", { handleEvent: () => void calls.push("listener") });
    const removed = () => calls.push("removed");
    socket.addEventListener("open", removed);
    socket.removeEventListener("open", removed);
    socket.onmessage = () => calls.push("never");
    socket.onmessage = null;
    await next(socket, "open");
    socket.send("x");
    socket.onclose = (event) => calls.push(event.code);
    socket.close(1000);
    await next(socket, "close");
    expect(calls).toEqual(["handler", "listener", 1000]);
    expect("onerror" in socket).toBe(true);
  });

  it("says what is missing where the platform has no WebSocket", () => {
    vi.stubGlobal("WebSocket", undefined);
    expect(() => new EvenkeelSocket("ws://127.0.0.1:1")).toThrow(/options.WebSocket/);
    vi.unstubAllGlobals();
  });
});

describe("with reconnect, it", () => {
  it("makes a new connection, tells of the gap, and sends what was held back", async () => {
    const got: string[] = [];
    let accepted = 0;
    const { host } = await server((socket) => {
      accepted += 1;
      socket.on("message", (data) => got.push(String(data)));
      if (accepted === 1) setTimeout(() => socket.terminate(), 20);
    });
    const { socket, events } = open(`ws://${host}`, { reconnect: true });
    socket.addEventListener("lost", () => {
      expect(socket.readyState).toBe(1);
      for (const message of ["1", "2", "3"]) socket.send(message);
      expect(socket.bufferedAmount).toBe(3);
    });
    await until("the held back ones came", () => got.length === 3);
    expect(got).toEqual(["1", "2", "3"]);
    expect(events).toEqual(["open", "lost", "gap lost", "reopened"]);
    expect(socket.bufferedAmount).toBe(0);
  });

  it("goes on trying where the first dial fails", async () => {
    let refusals = 2;
    const http = createServer();
    const { WebSocketServer } = await import("ws");
    const wss = new WebSocketServer({ noServer: true });
    http.on("upgrade", (request, socket, head) => {
      if (refusals-- > 0) socket.end("HTTP/1.1 503 No\r\n\r\n");
      else wss.handleUpgrade(request, socket, head, () => {});
    });
    const { socket, events } = open(`ws://${await listen(http)}`, { reconnect: true });
    await next(socket, "open");
    expect([refusals, events]).toEqual([-1, ["open"]]);
  });

  it("refuses what is too much to hold back, and gives back what is held at its end", async () => {
    const { host, wss } = await server(() => {});
    const { socket, events } = open(`ws://${host}`, { reconnect: true, buffer: { messages: 2, bytes: 10 } });
    await next(socket, "open");
    vi.spyOn(Math, "random").mockReturnValue(0.999);
    for (const client of wss.clients) client.terminate();
    await next(socket, "lost");
    vi.restoreAllMocks();
    socket.send("12345678");
    const full = expect.objectContaining({ name: "QuotaExceededError" });
    expect(() => socket.send("901")).toThrow(full);
    socket.send("90");
    expect(() => socket.send("")).toThrow(full);
    socket.close(4000, "enough");
    await next(socket, "close");
    expect(events).toEqual(["open", "lost", "gap lost", "unsent 12345678", "unsent 90", "close 4000 enough"]);
  });

  it("ends where the server says goodbye", async () => {
    const { host } = await server((socket) => socket.close(1000, "bye"));
    const { socket, events } = open(`ws://${host}`, { reconnect: true });
    await next(socket, "close");
    expect(events).toEqual(["open", "close 1000 bye"]);
  });
});

describe("with negotiate, it", () => {
  const offer = (url: string, alt: string[] = [], proxy: string | null = null) => ({
    v: 1,
    url,
    connect_ms: 10_000,
    sid: "s1",
    ticket: "t1",
    alt: alt.map((url) => ({ url })),
    proxy,
    retry: { base_ms: 1, cap_ms: 5 },
  });

  it("goes where the gateway sends it, else to the alternative, else through the gateway", async () => {
    const dead = await nobody();
    const urls: string[] = [];
    const { host } = await server((_, request) => urls.push(request.url ?? ""));
    const offers = [
      offer(`ws://${host}/first`),
      offer(`ws://${dead}/`, [`ws://${host}/alt`], `ws://${host}/proxy`),
      offer(`ws://${dead}/`, [`ws://${dead}/`], `ws://${host}/proxy`),
    ];
    const ask = await gateway(() => ({ json: offers.shift() }));
    for (let time = 0; time < 3; time++) await next(open(`ws://${ask.host}/chat`, { negotiate: true }).socket, "open");
    expect(urls.map((url) => url.split("?")[0])).toEqual(["/first", "/alt", "/proxy"]);
    expect(urls[0]).toMatch(/^\/first\?_ekm=[\w-]{22}$/);
  });

  it("says which servers refused when it asks again", async () => {
    const dead = await nobody();
    const { host } = await echo();
    const ask = await gateway(({ cause }) => ({
      json: cause === "start" ? offer(`ws://${dead}/?_ek=${token("a")}`) : offer(`ws://${host}/?_ek=${token("b")}`),
    }));
    const { socket, events } = open(`ws://${ask.host}/`, { negotiate: true, reconnect: true });
    await next(socket, "open");
    expect(ask.questions.map(({ cause, avoid }) => [cause, avoid])).toEqual([["start", []], ["refused", ["a"]]]);
    expect(events).toEqual(["open"]);
  });

  it("waits as long as a refusal asks for", async () => {
    const { host } = await echo();
    let first = true;
    const ask = await gateway(() => {
      const refusal = { status: 503, json: { retry: { wait_ms: 120, window_ms: 10 }, why: "capacity" } };
      const answer = first ? refusal : { json: offer(`ws://${host}/`) };
      first = false;
      return answer;
    });
    await next(open(`ws://${ask.host}/`, { negotiate: true, reconnect: true }).socket, "open");
    expect(ask.at[1]! - ask.at[0]!).toBeGreaterThanOrEqual(119);
  });

  it("fails as a WebSocket fails where the gateway refuses, and its class waits before the next", async () => {
    const ask = await gateway(() => ({ status: 403, json: { why: "origin" } }));
    const Class = EvenkeelSocket.with({ WebSocket, negotiate: true });
    const random = vi.spyOn(Math, "random").mockReturnValue(0.4);
    for (let time = 0; time < 2; time++) {
      const socket = new Class(`ws://${ask.host}/?time=${time}`);
      await next(socket, "close");
    }
    random.mockRestore();
    // The range of the first wait is half a second.
    expect(ask.at[1]! - ask.at[0]!).toBeGreaterThanOrEqual(199);
    expect(ask.questions.map(({ path }) => path)).toEqual(["/?time=0", "/?time=1"]);
  });

  it("without reconnect has its class wait as long as the gateway asks", async () => {
    const { host } = await echo();
    let first = true;
    const ask = await gateway(() => {
      const refusal = { status: 429, json: { retry: { wait_ms: 700, window_ms: 1 }, why: "rate" } };
      const answer = first ? refusal : { json: offer(`ws://${host}/`) };
      first = false;
      return answer;
    });
    const Class = EvenkeelSocket.with({ WebSocket, negotiate: true });
    await next(new Class(`ws://${ask.host}/`), "close");
    const socket = new Class(`ws://${ask.host}/`);
    await next(socket, "open");
    expect(ask.at[1]! - ask.at[0]!).toBeGreaterThanOrEqual(699);
    socket.close();
  });

  it("finds the session of a URL that a negotiator gave out, and takes a negotiator for a URL", async () => {
    const { host } = await server((socket) => setTimeout(() => socket.terminate(), 5));
    const dead = await nobody();
    const ask = await gateway(() => ({ json: offer(`ws://${dead}/`, [`ws://${host}/alt`]) }));
    const ek = negotiator(`ws://${ask.host}/chat`);
    const { socket } = open(await ek());
    await next(socket, "open");
    await next(socket, "close");
    const again = new EvenkeelSocket(ek, [], { WebSocket });
    await next(again, "open");
    again.close();
    expect(again.url).toBe(`ws://${ask.host}/chat`);
    expect(ask.questions.map(({ cause, ticket }) => [cause, ticket])).toEqual([["start", undefined], ["lost", "t1"]]);
  });
});
