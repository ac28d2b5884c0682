import { steer } from "../../client/src/socketio.js";
import { negotiator } from "../../client/src/index.js";
import { createServer } from "node:http";
import { Server } from "socket.io";
import { io as connect, Manager } from "socket.io-client";
import { expect, it } from "vitest";
import { Evenkeel, serveSocketIo, type EvenkeelOptions } from "../src/index.js";
import { Farm, atEnd, listen, until, type FarmServer } from "./farm.js";

/** Two real socket.io servers that acknowledge what they are sent, in a farm. */
async function farmOf(more: Partial<EvenkeelOptions> = {}) {
  const farm = await new Farm().start();
  const got: string[] = [];
  const ios: Server[] = [];
  for (const id of ["a", "b"]) {
    const server = await farm.adopt(id, (evenkeel, http) => {
      const io = new Server(http, { pingInterval: 1_000 });
      ios.push(io);
      serveSocketIo(evenkeel, io);
      io.on("connection", (socket) => {
        socket.on("say", (text: string, ack: (text: string) => void) => {
          got.push(text);
          ack(`${id} has ${text}`);
        });
      });
    }, more);
    expect(server.evenkeel.connections).toBe(0);
  }
  atEnd(() => ios.forEach((io) => void io.close()));
  return { farm, servers: farm.servers as [FarmServer, FarmServer], got, ios };
}

const holds = ({ evenkeel }: FarmServer) => evenkeel.connections;

it("stock clients reconnect to the other server when theirs empties, and what is acknowledged is so once", async () => {
  const { farm, servers, got } = await farmOf();
  const host = await farm.proxy();
  const clients = Array.from({ length: 10 }, () => {
    const options = { transports: ["websocket"], forceNew: true, reconnectionDelay: 10, retries: 5, ackTimeout: 2_000 };
    const client = connect(`ws://${host}`, options);
    atEnd(() => client.disconnect());
    return client;
  });
  await until("all are connected", () => clients.every((client) => client.connected));
  const reasons: string[] = [];
  for (const client of clients) client.on("disconnect", (reason) => reasons.push(reason));
  const [source, receiver] = holds(servers[0]) > 0 ? servers : [servers[1], servers[0]];
  const moving = holds(source);
  let acknowledged = 0;
  let sent = 0;
  const timer = setInterval(() => {
    for (const client of clients) client.emit("say", String(sent++), () => (acknowledged += 1));
  }, 5);
  atEnd(() => clearInterval(timer));
  farm.drain(source);
  await until("the source says drained", () => source.said.some(({ op }) => op === "drained"));
  await until("all are back", () => holds(receiver) === 10 && clients.every((client) => client.connected));
  clearInterval(timer);
  await until("all is acknowledged", () => acknowledged === sent);
  expect(reasons).toEqual(Array.from({ length: moving }, () => "transport close"));
  // A retry may repeat what arrived without its acknowledgement; nothing is missing.
  expect(new Set(got).size).toBe(sent);
  expect([holds(source), farm.pick([])]).toEqual([0, receiver]);
});

it("polling clients that upgrade are admitted once, counted once, and sent away too", async () => {
  const { farm, servers } = await farmOf({ admit: "all" });
  const [a, b] = servers;
  const client = connect(`http://${a.host}`, { reconnection: false, forceNew: true });
  atEnd(() => client.disconnect());
  await until("it has upgraded", () => client.io.engine?.transport?.name === "websocket");
  expect(holds(a)).toBe(1);
  farm.drain(a);
  await until("it is gone", () => !client.connected && holds(a) === 0);
  const refused = connect(`http://${a.host}`, { reconnection: false, forceNew: true });
  const error = await new Promise<Error & { description?: number }>((resolve) => refused.on("connect_error", resolve));
  expect(error.description).toBe(503);
  expect(holds(b)).toBe(0);
});

it("a steered client goes where the gateway assigns it, and elsewhere when its server empties or when told", async () => {
  const { farm, servers } = await farmOf();
  const gateway = `http://${await farm.negotiate()}`;
  const manager = new Manager(gateway, { autoConnect: false, reconnectionDelay: 200, transports: ["websocket"], query: { user: "7" } });
  const steering = await steer(manager, negotiator(`${gateway}/socket.io/`));
  const socket = manager.socket("/");
  atEnd(() => socket.disconnect());
  socket.connect();
  await until("it is connected", () => socket.connected);
  const other = (server: FarmServer) => servers.find((each) => each !== server)!;
  const first = servers.find((server) => holds(server) === 1)!;
  farm.drain(first);
  await until("it is on the other", () => socket.connected && holds(other(first)) === 1 && holds(first) === 0);
  farm.desire(first, { state: "active" });
  await until("the first is open", () => first.evenkeel.state === "active");
  await steering.move();
  await until("it is back on the first", () => socket.connected && holds(first) === 1);
  const causes = farm.questions.map(({ cause }) => cause);
  expect(causes.filter((cause, index) => cause !== causes[index - 1])).toEqual(["start", "lost", "move"]);
  expect(farm.questions.every(({ path }) => path === "/socket.io/")).toBe(true);
  steering.stop();
});

it("the application sees nothing of the SDK's keys", async () => {
  const http = createServer();
  const host = await listen(http);
  const io = new Server(http);
  const evenkeel = new Evenkeel({ id: "a", url: `ws://${host}`, nodes: [], admit: "all" });
  atEnd(() => (evenkeel.stop(), void io.close()));
  serveSocketIo(evenkeel, io);
  const seen: unknown[] = [];
  io.on("connection", (socket) => seen.push(socket.handshake.query, socket.request.url));
  const client = connect(`http://${host}`, { transports: ["websocket"], query: { _ek: "secret", _ekm: "c", user: "7" } });
  atEnd(() => client.disconnect());
  await until("it is connected", () => seen.length > 0);
  expect(seen[0]).toMatchObject({ user: "7" });
  expect(JSON.stringify(seen)).not.toMatch(/_ek|secret/);
});
