/**
 * Unmodified client libraries with `EvenkeelSocket` injected: each connects, is moved while it is busy, and goes on. The
 * server speaks just enough of each library's protocol, and hands over where it stands.
 */
import * as actioncable from "@rails/actioncable";
import { Centrifuge } from "centrifuge";
import { createClient } from "graphql-ws";
import { WebSocket as PartySocket } from "partysocket";
import { Socket as PhoenixSocket } from "phoenix";
import { expect, it, vi } from "vitest";
import { WebSocket } from "ws";
import { Farm, atEnd, kill, until } from "../../server/test/farm.js";
import { EvenkeelSocket, negotiator } from "../src/index.js";
import { graphql, isRow, numbers, phoenix, speaking, type Dialect } from "./dialects.js";

/** Two servers that speak it, and a gateway of either kind. */
async function farmOf<State>(dialect: Dialect<State>, protocol = "") {
  const farm = await new Farm().start();
  const options = protocol ? { handleProtocols: () => protocol } : {};
  const a = await farm.server("a", speaking(dialect), options);
  const b = await farm.server("b", speaking(dialect), options);
  const moves: string[] = [];
  const closes: number[] = [];
  class Watched extends EvenkeelSocket.with({ WebSocket, negotiate: true }) {
    constructor(url: string | URL, protocols?: string | string[]) {
      super(url, protocols);
      for (const type of ["moved", "moveFailed", "gap"] as const) this.addEventListener(type, () => moves.push(type));
      this.addEventListener("close", ({ code }) => closes.push(code));
    }
  }
  /** Moves the one client to the other server. */
  const move = async () => {
    const source = a.evenkeel.connections > 0 ? a : b;
    farm.drain(source);
    await until("the client moved", () => moves.length > 0 && source.evenkeel.connections === 0);
    expect(moves).toEqual(["moved"]);
  };
  return { farm, host: await farm.negotiate(), Watched, move, closes };
}

it("partysocket, with the negotiator as its URL provider", async () => {
  const { host, Watched, move, closes } = await farmOf(numbers);
  const socket = new PartySocket(negotiator(`ws://${host}/chat`), [], {
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

it("partysocket reconnects through the negotiator, as the same session, after a loss", async () => {
  const { farm, host, Watched } = await farmOf(numbers);
  const socket = new PartySocket(negotiator(`ws://${host}/chat`), [], {
    WebSocket: Watched,
    minReconnectionDelay: 1,
    maxReconnectionDelay: 1,
  });
  atEnd(() => socket.close());
  let opened = 0;
  socket.addEventListener("open", () => (opened += 1));
  await until("it is open", () => opened === 1);
  const [holder] = farm.servers.filter(({ evenkeel }) => evenkeel.connections > 0);
  kill(holder!.host);
  farm.servers.splice(farm.servers.indexOf(holder!), 1);
  await until("it is open again", () => opened === 2);
  const [first, ...more] = farm.questions;
  expect([first?.cause, first?.sid]).toEqual(["start", undefined]);
  expect(more.every(({ cause }) => ["lost", "refused"].includes(cause))).toBe(true);
  expect(new Set(more.map(({ sid }) => sid)).size).toBe(1);
  expect(more.length).toBeGreaterThan(0);
});

it("graphql-ws, in the middle of a subscription", async () => {
  const { host, Watched, move, closes } = await farmOf(graphql, "graphql-transport-ws");
  const client = createClient({ url: `ws://${host}/graphql`, webSocketImpl: Watched, retryAttempts: 0 });
  const got: number[] = [];
  const ended: unknown[] = [];
  const unsubscribe = client.subscribe<{ n: number }>(
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
  unsubscribe();
  await until("the subscription is over", () => ended.length === 1);
});

it("Phoenix, in a channel", async () => {
  const { host, Watched, move, closes } = await farmOf(phoenix);
  const socket = new PhoenixSocket(`ws://${host}/socket`, { transport: Watched, params: { user: "1" } });
  socket.connect();
  atEnd(() => void socket.disconnect());
  const channel = socket.channel("room:1");
  const got: number[] = [];
  channel.on("n", ({ n }) => void got.push(n));
  let joined = 0;
  channel.join().receive("ok", () => (joined += 1));
  await until("data flows", () => got.length > 5);
  let replies = 0;
  let pushes = 0;
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

it("centrifuge, with a subscription", async () => {
  const { host, Watched, move, closes } = await farmOf<{ channel?: string; sent: number }>({
    start: () => ({ sent: 0 }),
    answer(lines, state, connection) {
      for (const line of lines.split("\n")) {
        const { id, connect, subscribe } = JSON.parse(line);
        if (connect) connection.send(JSON.stringify({ id, connect: { client: "c1", version: "test" } }));
        if (!subscribe) continue;
        state.channel = subscribe.channel;
        connection.send(JSON.stringify({ id, subscribe: {} }));
      }
    },
    tick(state, connection) {
      const { channel } = state;
      if (channel) connection.send(JSON.stringify({ push: { channel, pub: { data: { n: state.sent++ } } } }));
    },
  });
  const centrifuge = new Centrifuge(`ws://${host}/connection/websocket`, { websocket: Watched });
  atEnd(() => centrifuge.disconnect());
  const subscription = centrifuge.newSubscription("news");
  const got: number[] = [];
  const states: string[] = [];
  subscription.on("publication", ({ data }) => got.push(data.n));
  for (const event of ["connected", "disconnected"] as const) centrifuge.on(event, () => states.push(event));
  subscription.subscribe();
  centrifuge.connect();
  await until("data flows", () => got.length > 5);
  await move();
  const before = got.length;
  await until("data flows again", () => got.length > before + 5);
  expect(isRow(got)).toBe(true);
  expect([states, closes]).toEqual([["connected"], []]);
});

it("Action Cable, with a subscription", async () => {
  const { host, Watched, move, closes } = await farmOf<{ identifier?: string; sent: number }>(
    {
      start: (connection) => {
        connection.send('{"type":"welcome"}');
        return { sent: 0 };
      },
      answer(message, state, connection) {
        const { command, identifier } = JSON.parse(message);
        if (command !== "subscribe") return;
        state.identifier = identifier;
        connection.send(JSON.stringify({ type: "confirm_subscription", identifier }));
      },
      tick(state, connection) {
        const { identifier } = state;
        if (identifier) connection.send(JSON.stringify({ identifier, message: { n: state.sent++ } }));
      },
    },
    "actioncable-v1-json",
  );
  // It is made for browsers, and listens for the page to become visible.
  vi.stubGlobal("addEventListener", () => {});
  vi.stubGlobal("removeEventListener", () => {});
  vi.stubGlobal("document", Object.assign(new EventTarget(), { visibilityState: "visible" }));
  atEnd(() => void vi.unstubAllGlobals());
  actioncable.adapters.WebSocket = Watched;
  const consumer = actioncable.createConsumer(`ws://${host}/cable`);
  atEnd(() => consumer.disconnect());
  const got: number[] = [];
  const states: string[] = [];
  consumer.subscriptions.create("NewsChannel", {
    connected: () => states.push("connected"),
    disconnected: () => states.push("disconnected"),
    received: ({ n }: { n: number }) => got.push(n),
  });
  await until("data flows", () => got.length > 5);
  await move();
  const before = got.length;
  await until("data flows again", () => got.length > before + 5);
  expect(isRow(got)).toBe(true);
  expect([states, closes]).toEqual([["connected"], []]);
});
