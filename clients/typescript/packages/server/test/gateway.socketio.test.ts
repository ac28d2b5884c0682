/**
 * Real socket.io servers behind the real gateway, with stock clients: a drain moves every client, all reconnect, none
 * hangs; with the state of connections recovered, what was acknowledged arrived once and what was sent to all reached
 * everybody once.
 */
import { execFile, spawn } from "node:child_process";
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, get, request, type Server as HttpServer } from "node:http";
import { connect as dial, createServer as createTcpServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Server } from "socket.io";
import { Adapter, SessionAwareAdapter, type BroadcastOptions } from "socket.io-adapter";
import { io as connect, type Socket } from "socket.io-client";
import { beforeAll, describe, expect, it } from "vitest";
import { Evenkeel, serveSocketIo } from "../src/index.js";
import { atEnd, listen, until } from "./farm.js";

const root = fileURLToPath(new URL("../../../../../", import.meta.url));
const target = process.env.CARGO_TARGET_DIR ?? (existsSync(join(root, "target/debug")) ? join(root, "target") : root);
const binary = process.env.EVENKEEL_BIN ?? join(target, "debug/evenkeel");
const CLIENTS = 12;

beforeAll(() => {
  if (!existsSync(binary)) throw new Error(`no ${binary}: run cargo build -p evenkeel first, or set EVENKEEL_BIN`);
});

async function freePort(): Promise<number> {
  const server = createTcpServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** What socket.io servers share to recover sessions of each other, as the adapters for Redis streams or MongoDB do. */
class Shared {
  readonly sessions = new Map<string, unknown>();
  readonly packets: unknown[] = [];
  readonly adapters: Adapter[] = [];

  get adapter(): typeof SessionAwareAdapter {
    const shared = this;
    return class extends SessionAwareAdapter {
      constructor(nsp: never) {
        super(nsp);
        Object.assign(this, { sessions: shared.sessions, packets: shared.packets });
        shared.adapters.push(this);
      }
      override broadcast(packet: { data: unknown[] }, opts: BroadcastOptions): void {
        super.broadcast(packet as never, opts);
        for (const other of shared.adapters) {
          if (other !== this) Adapter.prototype.broadcast.call(other, { ...packet, data: [...packet.data] }, opts);
        }
      }
    } as unknown as typeof SessionAwareAdapter;
  }
}

interface SioServer {
  id: string;
  host: string;
  io: Server;
  /** Texts that arrived. */
  got: string[];
}

/** One evenkeel process and the socket.io servers behind it. */
class Behind {
  readonly folder = mkdtempSync(join(tmpdir(), "evenkeel-socketio-"));
  readonly config = join(this.folder, "evenkeel.toml");
  readonly servers: SioServer[] = [];
  readonly shared = new Shared();
  gateway = "";
  admin = "";
  log = "";

  /** Chooses where the process will listen. */
  async choose(): Promise<this> {
    [this.gateway, this.admin] = [`http://127.0.0.1:${await freePort()}`, `http://127.0.0.1:${await freePort()}`];
    return this;
  }

  /** Starts the servers, then the process; `agents`: whether the servers have the SDK, which links to `second` too. */
  async start(agents: boolean, second?: Behind): Promise<this> {
    if (!this.gateway) await this.choose();
    for (const id of ["a", "b"]) await this.#serve(id);
    await this.#run(agents);
    if (agents) for (const server of this.servers) this.#join(server, second ? [this.admin, second.admin] : [this.admin]);
    await this.#opened();
    return this;
  }

  /** Starts the process as a second node for the servers of another, with the same key file and token. */
  async beside(first: Behind): Promise<this> {
    for (const file of ["chat.key", "admin.token"]) copyFileSync(join(first.folder, file), join(this.folder, file));
    await this.#run(true);
    await this.#opened();
    return this;
  }

  #opened(): Promise<void> {
    const open = async () => (await this.list().catch(() => [])).filter(({ state }) => state === "active").length;
    return eventually("both servers are open", async () => (await open()) === 2);
  }

  async #run(agents: boolean): Promise<void> {
    const [gateway, admin] = [this.gateway, this.admin].map((url) => new URL(url).port);
    const listed = this.servers.map(({ id, host }) => `{ id = "${id}", url = "ws://${host}" }`);
    writeFileSync(
      this.config,
      `[admin]
listen = "127.0.0.1:${admin}"
[gateway]
listen = ["127.0.0.1:${gateway}"]
[log]
level = "info,evenkeel_gateway=debug"
[fleets.chat]
${agents ? "" : `servers = [${listed.join(", ")}]`}
[fleets.chat.check]
kind = "http"
path = "/socket.io/socket.io.js"
[fleets.chat.move]
pace = 100
soft = "0s"
[[routes]]
path = "/socket.io"
fleet = "chat"
kind = "http"
`,
    );
    const child = spawn(binary, ["serve", "-c", this.config], { cwd: this.folder });
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (this.log += String(data)));
    const ended = new Promise((resolve) => child.on("close", resolve));
    atEnd(() => {
      child.kill("SIGKILL");
      void ended.then(() => rmSync(this.folder, { recursive: true, force: true }));
    });
    await until("the process has a token", () => existsSync(join(this.folder, "admin.token")));
  }

  async #serve(id: string): Promise<void> {
    const http: HttpServer = createServer();
    const host = await listen(http);
    const recovery = { connectionStateRecovery: {}, adapter: this.shared.adapter };
    const io = new Server(http, { ...recovery, pingInterval: 2_000, pingTimeout: 2_000 });
    const got: string[] = [];
    io.on("connection", (socket) => {
      socket.on("say", (text: string, ack: (by: string) => void) => {
        got.push(text);
        ack(id);
      });
    });
    atEnd(() => void io.close());
    this.servers.push({ id, host, io, got });
  }

  #join({ id, host, io }: SioServer, nodes: string[]): void {
    const token = () => readFileSync(join(this.folder, "admin.token"), "utf8").trim();
    const evenkeel = new Evenkeel({ id, url: `ws://${host}`, nodes, token, fleet: "chat" });
    serveSocketIo(evenkeel, io);
    atEnd(() => evenkeel.stop());
  }

  /** The servers as the controller sees them. */
  list(): Promise<{ id: string; state: string; connections: number }[]> {
    const token = readFileSync(join(this.folder, "admin.token"), "utf8").trim();
    return new Promise((resolve, reject) => {
      get(`${this.admin}/v1/servers`, { headers: { authorization: `Bearer ${token}` } }, (response) => {
        let text = "";
        response.on("data", (data) => (text += String(data)));
        response.on("end", () => (response.statusCode === 200 ? resolve(JSON.parse(text)) : reject(new Error(text))));
      }).on("error", reject);
    });
  }

  async counts(): Promise<Record<string, number>> {
    return Object.fromEntries((await this.list()).map(({ id, connections }) => [id, connections]));
  }

  drain(id: string): Promise<unknown> {
    return promisify(execFile)(binary, ["drain", id, "--wait", "-c", this.config], { timeout: 20_000 });
  }

  server = (id: string) => this.servers.find((server) => server.id === id)!;
}

/** Asks for `sid` at a gateway, as a polling client does. */
function poll(gateway: string, query: string, post?: string): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const url = `${gateway}/socket.io/?EIO=4&transport=polling${query}`;
    const asked = request(url, { method: post === undefined ? "GET" : "POST" }, (response) => {
      let body = "";
      response.on("data", (data) => (body += String(data)));
      response.on("end", () => resolve({ status: response.statusCode ?? 0, body }));
    });
    asked.on("error", reject).end(post);
  });
}

/** As `until`, for what has to be asked. */
async function eventually(what: string, condition: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 10_000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`waited in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A stock client that says numbered texts and hears numbered news. */
class Client {
  readonly socket: Socket;
  readonly acked = new Map<string, string>();
  readonly news: number[] = [];
  readonly reasons: string[] = [];
  readonly recovered: boolean[] = [];
  #said = 0;

  constructor(
    readonly name: string,
    gateway: string,
    options: object,
  ) {
    this.socket = connect(gateway, { forceNew: true, reconnectionDelay: 200, ...options });
    this.socket.on("disconnect", (reason) => this.reasons.push(reason));
    this.socket.on("connect", () => this.recovered.push(this.socket.recovered));
    this.socket.on("news", (number: number) => this.news.push(number));
    atEnd(() => this.socket.disconnect());
  }

  say(): void {
    const text = `${this.name}:${this.#said++}`;
    this.socket.emit("say", text, (by: string) => this.acked.set(text, by));
  }

  get transport(): string | undefined {
    return this.socket.io.engine?.transport?.name;
  }
}

const MODES = [
  { mode: "default transports", options: {}, transport: "websocket" },
  { mode: "websocket only", options: { transports: ["websocket"] }, transport: "websocket" },
  { mode: "polling only", options: { transports: ["polling"] }, transport: "polling" },
];

describe.each([
  { agents: true, kind: "with the SDK" },
  { agents: false, kind: "without agent" },
])("servers $kind", ({ agents }) => {
  it.each(MODES)("$mode: a drain moves every client, all come back, and nothing is lost or twice", async ({ options, transport }) => {
    const behind = await new Behind().start(agents);
    const clients = Array.from({ length: CLIENTS }, (_, at) => new Client(`c${at}`, behind.gateway, options));
    await until("all are connected as they wish", () =>
      clients.every((client) => client.socket.connected && client.transport === transport),
    );
    // A session that was upgraded counts once. How many are on which server is the score's business: a process that
    // is busy just then gets fewer.
    let onA = 0;
    await eventually("each client counts once, and both servers have some", async () => {
      const { a = 0, b = 0 } = await behind.counts();
      onA = a;
      return a > 0 && b > 0 && a + b === CLIENTS;
    });
    let number = 0;
    const tell = setInterval(() => behind.server("b").io.emit("news", ++number), 20);
    const talk = setInterval(() => clients.forEach((client) => client.say()), 20);
    atEnd(() => [tell, talk].forEach(clearInterval));
    await until("all hear and are heard", () => clients.every(({ news, acked }) => news.length > 5 && acked.size > 5));

    await behind.drain("a");
    await until("all are back, on the other server", () =>
      clients.every(({ socket, acked }) => socket.connected && [...acked.values()].at(-1) === "b"),
    );
    const drained = await behind.counts();
    expect(drained).toEqual({ a: 0, b: CLIENTS });
    await until("all have upgraded again", () => clients.every((client) => client.transport === transport));
    clearInterval(tell);
    clearInterval(talk);
    const last = number;
    await until("the news reached everybody", () => clients.every(({ news }) => news.at(-1) === last));

    const moved = clients.filter(({ reasons }) => reasons.length > 0);
    expect(moved).toHaveLength(onA);
    for (const { reasons, recovered } of moved) {
      expect([reasons.length, recovered]).toEqual([1, [false, true]]);
      expect(["transport close", "transport error"]).toContain(reasons[0]);
    }
    const arrived = new Map<string, number>();
    for (const text of behind.servers.flatMap(({ got }) => got)) arrived.set(text, (arrived.get(text) ?? 0) + 1);
    expect([...arrived].filter(([, times]) => times !== 1)).toEqual([]);
    for (const { acked } of clients) for (const text of acked.keys()) expect(arrived.get(text)).toBe(1);
    for (const { news } of clients) expect(news).toEqual(news.map((_, at) => (news[0] as number) + at));
  });
});

it("a client that goes on with a session that nobody has is told so at once", async () => {
  const behind = await new Behind().start(true);
  const { status, body } = await poll(behind.gateway, "&sid=nobody");
  expect([status, JSON.parse(body)]).toEqual([400, { code: 1, message: "Session ID unknown" }]);
});

it("a polling client is served through two gateways in turn that share nothing but the key file", async () => {
  const second = await new Behind().choose();
  const first = await new Behind().start(true, second);
  await second.beside(first);
  // One session on each server; the second gateway knows both once it takes a packet for either.
  for (let at = 0; at < 2; at += 1) {
    const { sid } = JSON.parse((await poll(first.gateway, "")).body.slice(1)) as { sid: string };
    await eventually("the second gateway knows the server", async () => (await poll(second.gateway, `&sid=${sid}`, "3")).status === 200);
    await poll(second.gateway, `&sid=${sid}`, "1");
  }
  let turn = 0;
  const used = [0, 0];
  const front = await listen(
    createTcpServer((client) => {
      const at = turn++ % 2;
      used[at] = (used[at] as number) + 1;
      const gateway = dial(Number(new URL([first, second][at]!.gateway).port), "127.0.0.1");
      client.pipe(gateway).pipe(client);
      for (const [one, other] of [[client, gateway], [gateway, client]] as const) {
        one.on("error", () => other.destroy());
        one.on("close", () => other.destroy());
      }
    }),
  );
  const clients = Array.from({ length: 4 }, (_, at) => new Client(`c${at}`, `http://${front}`, { transports: ["polling"] }));
  await until("all are connected", () => clients.every(({ socket }) => socket.connected));
  const talk = setInterval(() => clients.forEach((client) => client.say()), 20);
  atEnd(() => clearInterval(talk));
  await until("all are heard", () => clients.every(({ acked }) => acked.size > 20));
  expect(clients.flatMap(({ reasons }) => reasons)).toEqual([]);
  // Each is heard by one server all the time.
  for (const { acked } of clients) expect(new Set(acked.values()).size).toBe(1);
  expect(Math.min(...used)).toBeGreaterThan(10);
});
