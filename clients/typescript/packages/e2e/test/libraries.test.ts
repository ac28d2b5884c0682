/**
 * Unmodified client libraries with `EvenkeelSocket` injected, against the real gateway: each connects, is moved while it
 * is busy, by either scheme, and goes on without a hole.
 */
import { createClient } from "graphql-ws";
import { WebSocket as PartySocket } from "partysocket";
import { Socket as PhoenixSocket } from "phoenix";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { EvenkeelSocket, negotiator } from "../../client/src/index.js";
import { graphql, isRow, numbers, phoenix, speaking, type Dialect } from "../../client/test/dialects.js";
import { atEnd, until } from "../../server/test/farm.js";
import { World, type SdkServer } from "./world.js";

const SCHEMES = ["proxied", "negotiated"] as const;

/** Two servers that speak it behind the gateway, and a class that writes down what happens to its sockets. */
async function farmOf<State>(dialect: Dialect<State>, scheme: (typeof SCHEMES)[number], protocol = "") {
  const world = await World.start();
  const handleProtocols = (offered: Set<string>) => (offered.has(protocol) ? protocol : false);
  const servers: SdkServer[] = [];
  for (const id of ["a", "b"]) servers.push(await world.serve(id, speaking(dialect), { direct: true, handleProtocols }));
  await world.open(...servers);
  const tunnels = () => (world.process.said.match(/tunnel opened/g) ?? []).length;
  const before = tunnels();
  const moves: string[] = [];
  const closes: number[] = [];
  class Watched extends EvenkeelSocket.with({ WebSocket, negotiate: scheme === "negotiated" }) {
    constructor(url: string | URL, protocols?: string | string[]) {
      super(url, protocols);
      for (const type of ["moved", "moveFailed", "gap"] as const) this.addEventListener(type, () => moves.push(type));
      this.addEventListener("close", ({ code }) => closes.push(code));
    }
  }
  /** Moves the one client to the other server, and checks that it went by its scheme. */
  const move = async () => {
    const holder = () => servers.find(({ evenkeel }) => evenkeel.connections > 0);
    const source = holder() as SdkServer;
    await world.drain(source.id);
    await until("the client moved", () => moves.length > 0 && source.evenkeel.connections === 0);
    expect([moves, closes]).toEqual([["moved"], []]);
    expect(holder()?.id).not.toBe(source.id);
    expect(tunnels() - before).toBe(scheme === "proxied" ? 2 : 0);
  };
  return { gateway: world.gateway, Watched, move, closes };
}

describe.each(SCHEMES)("%s", (scheme) => {
  it("partysocket", async () => {
    const { gateway, Watched, move, closes } = await farmOf(numbers, scheme);
    const url = `ws://${gateway}/chat?room=7`;
    const socket = new PartySocket(scheme === "negotiated" ? negotiator(url) : url, [], {
      WebSocket: Watched,
      minReconnectionDelay: 1,
      maxReconnectionDelay: 1,
    });
    atEnd(() => socket.close());
    const events: string[] = [];
    const got: unknown[] = [];
    for (const type of ["open", "close", "error"] as const) socket.addEventListener(type, () => events.push(type));
    socket.addEventListener("message", (event: MessageEvent) => got.push(event.data));
    await until("it is open", () => events.length > 0);
    let sent = 0;
    const timer = setInterval(() => socket.send(String(sent++)), 2);
    atEnd(() => clearInterval(timer));
    await until("messages flow", () => got.length > 5);
    await move();
    const before = got.length;
    await until("messages flow again", () => got.length > before + 5);
    expect(isRow(got.map(Number))).toBe(true);
    expect([events, closes]).toEqual([["open"], []]);
  });

  it("graphql-ws, in the middle of a subscription", async () => {
    const { gateway, Watched, move, closes } = await farmOf(graphql, scheme, "graphql-transport-ws");
    const client = createClient({ url: `ws://${gateway}/graphql`, webSocketImpl: Watched, retryAttempts: 0 });
    const got: number[] = [];
    const ended: unknown[] = [];
    client.subscribe<{ n: number }>(
      { query: "subscription { n }" },
      {
        next: ({ data }) => got.push(data?.n ?? -1),
        error: (error) => ended.push(error),
        complete: () => ended.push("complete"),
      },
    );
    atEnd(() => void client.dispose());
    await until("data flows", () => got.length > 5);
    await move();
    const before = got.length;
    await until("data flows again", () => got.length > before + 5);
    expect(isRow(got)).toBe(true);
    expect([ended, closes]).toEqual([[], []]);
  });

  it("Phoenix, in a channel", async () => {
    const { gateway, Watched, move, closes } = await farmOf(phoenix, scheme);
    const socket = new PhoenixSocket(`ws://${gateway}/socket`, { transport: Watched, params: { user: "1" } });
    socket.connect();
    atEnd(() => void socket.disconnect());
    const channel = socket.channel("room:1");
    const got: number[] = [];
    channel.on("n", ({ n }) => void got.push(n));
    let joined = 0;
    channel.join().receive("ok", () => (joined += 1));
    await until("data flows", () => got.length > 5);
    let [pushes, replies] = [0, 0];
    const timer = setInterval(() => {
      channel.push("echo", { at: pushes++ }).receive("ok", () => (replies += 1));
    }, 3);
    atEnd(() => clearInterval(timer));
    await move();
    clearInterval(timer);
    const before = got.length;
    await until("data flows again", () => got.length > before + 5 && replies === pushes);
    expect(isRow(got)).toBe(true);
    expect([joined, closes, channel.state]).toEqual([1, [], "joined"]);
  });
});
