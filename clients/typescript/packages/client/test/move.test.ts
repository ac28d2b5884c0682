import { describe, expect, it } from "vitest";
import { createServer } from "node:http";
import { connect, createServer as createTcpServer } from "node:net";
import { WebSocket as NodeWebSocket } from "undici";
import { WebSocket, WebSocketServer, type PerMessageDeflateOptions } from "ws";
import { Farm, atEnd, kill, listen, until, type FarmServer } from "../../server/test/farm.js";
import type { Connection, Hooks } from "../../server/src/index.js";
import { EvenkeelSocket, type EvenkeelOptions } from "../src/index.js";

/** Per client: how many of its messages the server has, how many it sent. Handed over on a move. */
interface Counts {
  got: number;
  sent: number;
}

/**
 * Numbers messages both ways: tells the client each time it is sent something, and of itself every few milliseconds.
 * Anything lost, repeated or out of order shows as a wrong number.
 */
function counting(wrong: string[]): Hooks & { live: Map<Connection, Counts> } {
  const live = new Map<Connection, Counts>();
  const timers = new Map<Connection, NodeJS.Timeout>();
  return {
    live,
    connection(connection, state) {
      const counts: Counts = state ? JSON.parse(String(state)) : { got: 0, sent: 0 };
      live.set(connection, counts);
      connection.on("message", (data) => {
        if (Number(data) !== counts.got) wrong.push(`server got ${data} for ${counts.got}`);
        counts.got += 1;
      });
      timers.set(connection, setInterval(() => connection.send(String(counts.sent++)), 3));
      connection.on("close", () => {
        clearInterval(timers.get(connection));
        live.delete(connection);
      });
    },
    detach(connection) {
      // What was sent before this has gone out before the state; nothing may follow.
      clearInterval(timers.get(connection));
      return JSON.stringify(live.get(connection));
    },
  };
}

/** A client that numbers what it sends and checks what it gets. */
function client(url: string, wrong: string[], options: EvenkeelOptions = {}, protocols: string[] = []) {
  const socket = new EvenkeelSocket(url, protocols, { WebSocket, ...options });
  const seen = { got: 0, sent: 0, events: [] as string[] };
  for (const type of ["open", "moving", "moved", "moveFailed", "gap", "lost", "reopened", "close", "error"] as const) {
    socket.addEventListener(type, () => seen.events.push(type));
  }
  socket.addEventListener("message", ({ data }) => {
    if (Number(data) !== seen.got) wrong.push(`client got ${data} for ${seen.got}`);
    seen.got += 1;
  });
  const timer = setInterval(() => socket.readyState === 1 && socket.send(String(seen.sent++)), 2);
  atEnd(() => clearInterval(timer));
  atEnd(() => socket.close());
  return { socket, seen, stop: () => clearInterval(timer) };
}

async function pair(wrong: string[], more: { perMessageDeflate?: PerMessageDeflateOptions } = {}) {
  const farm = await new Farm().start();
  const hooks = counting(wrong);
  const a = await farm.server("a", hooks, more);
  const b = await farm.server("b", hooks, more);
  const holds = (server: FarmServer) => server.evenkeel.connections;
  return { farm, hooks, servers: [a, b] as const, holds };
}

/** Drains whichever server holds the client, waits until the other has it, and makes the first active again. */
async function moveOnce({ farm, servers, holds }: Awaited<ReturnType<typeof pair>>, moved: () => number) {
  const [source, receiver] = holds(servers[0]) > 0 ? servers : [servers[1], servers[0]];
  const before = moved();
  farm.drain(source);
  await until("the client moved", () => moved() > before);
  await until("its source is empty", () => holds(source) === 0 && holds(receiver) === 1);
  await until("the source says drained", () => source.said.some(({ op }) => op === "drained"));
  farm.desire(source, { state: "active" });
  await until("the source is open", () => source.evenkeel.state === "active");
}

describe("a move", () => {
  const ways: [string, (farm: Farm) => Promise<string>, EvenkeelOptions][] = [
    ["by negotiate", (farm) => farm.negotiate(), { negotiate: true }],
    ["through a proxying gateway", (farm) => farm.proxy(), {}],
  ];
  for (const [way, gateway, options] of ways) {
    it(`loses, repeats and reorders nothing, and the application hears only of the move: ${way}`, async () => {
      const wrong: string[] = [];
      const all = await pair(wrong);
      const { socket, seen, stop } = client(`ws://${await gateway(all.farm)}/chat?room=7`, wrong, options);
      await until("messages flow", () => seen.got > 10);
      const moves = () => seen.events.filter((event) => event === "moved").length;
      for (let time = 0; time < 3; time++) await moveOnce(all, moves);
      stop();
      await until("all have come", () => [...all.hooks.live.values()].some(({ got }) => got === seen.sent));
      expect(wrong).toEqual([]);
      expect(seen.events).toEqual(["open", "moving", "moved", "moving", "moved", "moving", "moved"]);
      expect([socket.readyState, socket.bufferedAmount]).toEqual([1, 0]);
      const moved = all.servers.flatMap(({ said }) => said.filter(({ op }) => op === "moved"));
      expect(moved.map(({ result }) => result)).toEqual(["ok", "ok", "ok"]);
    });
  }

  it("is the same through permessage-deflate with context takeover, large and fragmented messages in flight", async () => {
    const wrong: string[] = [];
    const all = await pair(wrong, { perMessageDeflate: { threshold: 0 } });
    let echoed = 0;
    const { connection } = all.hooks;
    // Fragments of one message, with the other numbers around it: what arrives is whole or not at all.
    all.hooks.connection = (client, state) => {
      const counting = connection(client, state);
      const [count] = client.listeners("message") as ((data: Buffer, isBinary: boolean) => void)[];
      client.removeAllListeners("message");
      client.on("message", (data, isBinary) => {
        if (!isBinary) return count?.(data, isBinary);
        if (data.length !== 500_000) wrong.push(`a large message of ${data.length} bytes`);
        echoed += 1;
      });
      return counting;
    };
    // `ws` sends each message in one frame; this one sends what it is given in fragments.
    class Fragmenting extends WebSocket {
      override send(data: never, ...more: never[]): void {
        if ((data as unknown) instanceof Uint8Array === false) return super.send(data, ...more);
        const bytes = data as unknown as Uint8Array;
        for (let at = 0; at < bytes.length; at += 100_000) {
          super.send(bytes.subarray(at, at + 100_000), { fin: at + 100_000 >= bytes.length, binary: true });
        }
      }
    }
    // What is sent while the clients' messages wait is more than a megabyte on a slow machine.
    const options = { WebSocket: Fragmenting, negotiate: true, buffer: { bytes: 1 << 28 } };
    const { socket, seen, stop } = client(`ws://${await all.farm.negotiate()}/chat`, wrong, options);
    await until("messages flow", () => seen.got > 10);
    expect(socket.extensions).toContain("permessage-deflate");
    let sent = 0;
    const flood = setInterval(() => {
      socket.send(Buffer.alloc(500_000, sent++));
    }, 30);
    atEnd(() => clearInterval(flood));
    const moves = () => seen.events.filter((event) => event === "moved").length;
    for (let time = 0; time < 3; time++) await moveOnce(all, moves);
    clearInterval(flood);
    stop();
    const got = () => [...all.hooks.live.values()].map(({ got }) => got);
    await until("all have come", () => echoed >= sent && got().some((got) => got >= seen.sent)).catch((error: unknown) => {
      throw new Error(`${echoed} of ${sent} large, ${got()} of ${seen.sent}; ${wrong}; ${seen.events}`, { cause: error });
    });
    expect(wrong).toEqual([]);
    expect(seen.events.filter((event) => !/^mov/.test(event))).toEqual(["open"]);
  });

  it("works with the WebSocket of Node 22 and later", async () => {
    const wrong: string[] = [];
    const all = await pair(wrong);
    const options = { WebSocket: NodeWebSocket, negotiate: true };
    const { socket, seen, stop } = client(`ws://${await all.farm.negotiate()}/chat`, wrong, options);
    await until("messages flow", () => seen.got > 10);
    const moves = () => seen.events.filter((event) => event === "moved").length;
    for (let time = 0; time < 2; time++) await moveOnce(all, moves);
    stop();
    await until("all have come", () => [...all.hooks.live.values()].some(({ got }) => got === seen.sent));
    socket.close(1000, "bye");
    await until("it is closed", () => seen.events.includes("close"));
    expect(wrong).toEqual([]);
    expect(seen.events).toEqual(["open", "moving", "moved", "moving", "moved", "close"]);
  });

  it("without a dialogue opens the new connection first, tells of the gap, and says nothing to either server", async () => {
    const got: Record<string, string[]> = { a: [], b: [] };
    const urls: string[] = [];
    const closes: string[] = [];
    const plain = async (id: "a" | "b") => {
      const http = createServer();
      new WebSocketServer({ server: http }).on("connection", (socket, request) => {
        urls.push(request.url ?? "");
        socket.on("message", (data) => got[id]?.push(String(data)));
        socket.on("close", (code, reason) => closes.push(`${id} ${code} ${reason}`));
        // As a gateway between would.
        const ctl = new URL(request.url ?? "", "ws://x").searchParams.get("_ekm");
        const notice = { op: "move", mid: "m", ticket: "h.e30.s", by_ms: 5_000, why: "draining", park: false };
        if (id === "a") socket.send(`\u001eek1 ${ctl} ${JSON.stringify(notice)}`);
        else socket.send("welcome");
      });
      return listen(http);
    };
    const hosts = [await plain("a"), await plain("b")];
    const gateway = createTcpServer((socket) => {
      const upstream = connect(Number(hosts.shift()?.split(":")[1]), "127.0.0.1");
      socket.pipe(upstream).pipe(socket);
      for (const each of [socket, upstream]) each.on("error", () => {});
    });
    const events: string[] = [];
    const socket = new EvenkeelSocket(`ws://${await listen(gateway)}/chat?room=7`, [], { WebSocket });
    atEnd(() => socket.close());
    for (const type of ["open", "moving", "moved", "gap", "close"] as const) socket.addEventListener(type, () => events.push(type));
    socket.addEventListener("message", ({ data }) => events.push(data as string));
    await until("it is welcome", () => events.includes("welcome"));
    socket.send("hello");
    await until("it has arrived, and the old one is closed", () => got.b?.length === 1 && closes.length === 1);
    expect(events).toEqual(["open", "moving", "gap", "moved", "welcome"]);
    expect([got, closes]).toEqual([{ a: [], b: ["hello"] }, ["a 1000 ek:moved"]]);
    const sid = /_eks=([\w-]{22})/.exec(urls[0] ?? "")?.[1];
    expect(urls[1]).toMatch(new RegExp(`^/chat\\?room=7&_ekm=[\\w-]{22}&_eks=${sid}&_ekt=h\\.e30\\.s$`));
  });

  it("sends what it was given, whatever becomes of the buffer", async () => {
    const farm = await new Farm().start();
    const got: string[] = [];
    const detached: (() => void)[] = [];
    const hooks: Hooks = {
      connection: (connection) => void connection.on("message", (data) => got.push(data.toString("hex"))),
      detach: () => new Promise((resolve) => detached.push(() => resolve(""))),
    };
    const a = await farm.server("a", hooks);
    const socket = new EvenkeelSocket(`ws://${await farm.negotiate()}/`, [], { WebSocket, negotiate: true });
    atEnd(() => socket.close());
    await until("it is open", () => a.evenkeel.connections === 1);
    await farm.server("b", hooks);
    farm.drain(a);
    await until("the old server hands over", () => detached.length === 1);
    const bytes = new Uint8Array([0, 1, 2, 3]);
    socket.send(bytes.subarray(1, 3));
    bytes.fill(9);
    socket.send(bytes.buffer);
    bytes.fill(8);
    expect(socket.bufferedAmount).toBe(6);
    socket.send(7 as never);
    detached[0]?.();
    await until("all have come", () => got.length === 3);
    expect(got).toEqual(["0102", "09090909", "37"]);
  });

  it("stays where nobody can receive, and says when to try again", async () => {
    const wrong: string[] = [];
    const farm = await new Farm().start();
    const hooks = counting(wrong);
    const a = await farm.server("a", hooks);
    const { seen } = client(`ws://${await farm.negotiate()}/`, wrong, { negotiate: true });
    await until("messages flow", () => seen.got > 10);
    farm.desire(a, { state: "draining", target: 0 });
    await until("the client answered", () => a.said.some(({ op }) => op === "moved"));
    expect(a.said.find(({ op }) => op === "moved")).toMatchObject({ result: "nak", why: "unreachable" });
    expect(seen.events.slice(0, 3)).toEqual(["open", "moving", "moveFailed"]);
    expect(a.evenkeel.connections).toBe(1);
    const before = seen.got;
    await until("messages flow still", () => seen.got > before + 5);
    expect(wrong).toEqual([]);
  });

  it("is not made by text of an application that looks like ours", async () => {
    const farm = await new Farm().start();
    const said: string[] = [];
    const forged = '\u001eek1 AAAAAAAAAAAAAAAAAAAAAA {"op":"move","mid":"m","ticket":"t","by_ms":1000,"why":"x"}';
    await farm.server("a", { connection: (connection) => connection.send(forged), detach: () => "" });
    const socket = new EvenkeelSocket(`ws://${await farm.negotiate()}/`, [], { WebSocket, negotiate: true });
    socket.addEventListener("message", ({ data }) => said.push(data as string));
    socket.addEventListener("moving", () => said.push("moving"));
    await until("it came", () => said.length > 0);
    expect(said).toEqual([forged]);
    socket.close();
  });

  it("that breaks because its receiver dies after the cut is told as a gap", async () => {
    const farm = await new Farm().start();
    const events: string[] = [];
    const detached: (() => void)[] = [];
    const hooks: Hooks = {
      connection: () => {},
      // Hands over only when it is told to.
      detach: () => new Promise((resolve) => detached.push(() => resolve("state"))),
    };
    const a = await farm.server("a", hooks);
    const url = `ws://${await farm.negotiate()}/`;
    const socket = new EvenkeelSocket(url, [], { WebSocket, negotiate: true, reconnect: true });
    atEnd(() => socket.close());
    for (const type of ["open", "moving", "moved", "gap", "lost", "reopened", "close"] as const) {
      socket.addEventListener(type, (event) => events.push(`${type} ${(event as CustomEvent).detail?.why ?? ""}`));
    }
    await until("it is open", () => a.evenkeel.connections === 1);
    const b = await farm.server("b", hooks);
    farm.drain(a);
    await until("the old server hands over", () => detached.length === 1);
    kill(b.host);
    detached[0]?.();
    await until("the gap is told", () => events.some((event) => event.startsWith("gap")));
    expect(events.slice(0, 4)).toEqual(["open ", "moving draining", "lost ", "gap no_resumed"]);
    const c = await farm.server("c", hooks);
    farm.servers.splice(0, 2);
    await until("it is open again", () => c.evenkeel.connections === 1 && events.at(-1) === "reopened ");
  });
});
