/**
 * A small fleet on loopback: real servers with the SDK, a node that their agents link to, a gateway that negotiates, and
 * one that proxies. The node and the gateways are stand-ins of a few lines for those of the `evenkeel` binary.
 */
import { createHmac, hkdfSync, randomBytes } from "node:crypto";
import { createServer, type IncomingMessage, type Server } from "node:http";
import { connect, createServer as createTcpServer, type AddressInfo, type Socket } from "node:net";
import { afterEach } from "vitest";
import { WebSocketServer, type WebSocket } from "ws";
import { Evenkeel, serve, type EvenkeelOptions, type Hooks, type ServeOptions } from "../src/index.js";

const toClose: (() => void)[] = [];
afterEach(() => {
  for (const close of toClose.splice(0).reverse()) close();
});

/** Runs at the end of the test. */
export const atEnd = (close: () => void) => void toClose.push(close);

/** Waits for a condition; fails after ten seconds, with what was awaited. */
export async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 10_000;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`waited in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** A listening server and its `host:port`. */
export async function listen(server: Server | ReturnType<typeof createTcpServer>): Promise<string> {
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => {});
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  const kill = () => {
    server.close();
    for (const socket of sockets) socket.destroy();
  };
  kills.set(host, kill);
  atEnd(kill);
  return host;
}

const kills = new Map<string, () => void>();

/** Ends whatever listens there, and all its sockets, at once, as its death would. */
export const kill = (host: string) => kills.get(host)?.();

interface Ask {
  path: string;
  sid?: string;
  ticket?: string;
  cause: string;
  avoid?: string[];
}

type Up = Record<string, unknown> & { op: string };

/** One server of the farm. */
export interface FarmServer {
  evenkeel: Evenkeel;
  host: string;
  http: Server;
  /** What its agent said. */
  said: Up[];
  /** Tells its agent something. */
  tell(message: object): void;
}

/** Mints and checks what the gateways of this farm need. */
export class Farm {
  readonly servers: FarmServer[] = [];
  /** Every question that was negotiated. */
  /** Ids of every hello. */
  readonly hellos: string[] = [];
  readonly questions: (Record<string, unknown> & { cause: string })[] = [];
  #master = randomBytes(32);
  #inc = new Map<string, number>();
  #turn = 0;
  #gen = 0;
  node = "";

  #derive(info: string, from = this.#master): Buffer {
    return Buffer.from(hkdfSync("sha256", from, Buffer.alloc(0), info, 32));
  }

  get #kid(): number {
    return Math.floor((Date.now() - 60_000) / 86_400_000);
  }

  keys(id: string): object[] {
    const aud = `${id}#${this.#inc.get(id)}`;
    const periods = [this.#kid, this.#kid + 1];
    const key = (kid: string, alg: string, info: string) => ({ kty: "oct", kid, alg, k: this.#derive(info).toString("base64url") });
    return periods.flatMap((kid) => [
      key(`${kid}`, "HS256", `evenkeel/assignment/1\0${aud}\0${kid}`),
      key(`m${kid}`, "A256GCM", `evenkeel/move/1\0test\0m${kid}`),
    ]);
  }

  /** An assignment for one server. */
  mint(id: string, claims: object = {}): string {
    const now = Math.floor(Date.now() / 1000);
    const aud = `${id}#${this.#inc.get(id)}`;
    const head = { alg: "HS256", typ: "JWT", kid: `${this.#kid}` };
    const ids = { jti: randomBytes(16).toString("base64url"), rid: randomBytes(8).toString("hex"), sid: "s-none" };
    const all = { aud, iat: now, exp: now + 30, ...ids, path: "/", cause: "start", caps: ["move"], ...claims };
    const signed = [head, all].map((part) => Buffer.from(JSON.stringify(part)).toString("base64url")).join(".");
    const key = this.#derive(`evenkeel/assignment/1\0${aud}\0${this.#kid}`);
    return `${signed}.${createHmac("sha256", key).update(signed).digest("base64url")}`;
  }

  async start(): Promise<this> {
    const wss = new WebSocketServer({ noServer: true });
    const http = createServer().on("upgrade", (request: IncomingMessage, socket, head) => {
      if (request.headers.authorization !== "Bearer secret") return socket.end("HTTP/1.1 401 Unauthorized\r\n\r\n");
      wss.handleUpgrade(request, socket, head, (link) => this.#linked(link));
    });
    this.node = `http://${await listen(http)}`;
    return this;
  }

  #linked(link: WebSocket): void {
    const tell = (message: object) => link.send(JSON.stringify({ now_ms: Date.now(), ...message }));
    let server: FarmServer | undefined;
    link.on("message", (data) => {
      const message = JSON.parse(String(data)) as Up;
      if (message.op === "hello") {
        const id = String(message.id);
        this.hellos.push(id);
        this.#inc.set(id, Number(message.inc));
        server = this.servers.find(({ evenkeel }) => idOf.get(evenkeel) === id);
        if (server) server.tell = tell;
        tell({ op: "welcome", report_ms: 100, keys: this.keys(id) });
      }
      server?.said.push(message);
    });
  }

  /** A server with these hooks, linked to the node. */
  server(id: string, hooks: Hooks, more: Partial<EvenkeelOptions> & ServeOptions = {}): Promise<FarmServer> {
    const { path, perMessageDeflate, maxPayload, handleProtocols } = more;
    const options = { path, perMessageDeflate, maxPayload, handleProtocols } as ServeOptions;
    return this.adopt(id, (evenkeel, http) => void serve(evenkeel, http, hooks, options), more);
  }

  /** A server that is set up so, linked to the node. */
  async adopt(
    id: string,
    setUp: (evenkeel: Evenkeel, http: Server) => void,
    more: Partial<EvenkeelOptions> = {},
  ): Promise<FarmServer> {
    const http = createServer();
    const host = await listen(http);
    const log = () => {};
    const evenkeel = new Evenkeel({ id, url: `ws://${host}`, nodes: [this.node], token: "secret", log, ...more });
    idOf.set(evenkeel, id);
    atEnd(() => evenkeel.stop());
    setUp(evenkeel, http);
    const server: FarmServer = { evenkeel, host, http, said: [], tell: () => {} };
    this.servers.push(server);
    await until(`${id} is linked`, () => evenkeel.isLinked);
    return server;
  }

  /** Orders one server to look like this. */
  desire(server: FarmServer, desired: object): void {
    this.#gen += 1;
    server.tell({ op: "desired", epoch: 1, gen: this.#gen, lease_ms: 60_000, state: "active", moves_per_s: 1000, ...desired });
  }

  drain(server: FarmServer): void {
    this.desire(server, { state: "draining", target: 0 });
  }

  /** The next server, in turn, that is open and not to be avoided. */
  pick(avoid: string[]): FarmServer | undefined {
    const open = this.servers.filter(({ evenkeel }) => evenkeel.state === "active" && !avoid.includes(idOf.get(evenkeel)!));
    this.#turn += 1;
    return open[this.#turn % open.length];
  }

  /** A gateway that answers negotiate questions: its `host:port`. */
  negotiate(): Promise<string> {
    return listen(
      createServer((request, response) => {
        if (request.method !== "POST") return void response.writeHead(404).end();
        let body = "";
        request.on("data", (chunk) => (body += chunk));
        request.on("end", () => {
          const question = JSON.parse(body);
          this.questions.push(question);
          const answer = this.#offer(question);
          response.writeHead(answer ? 200 : 503, { "content-type": "application/json" });
          response.end(JSON.stringify(answer ?? { retry: { wait_ms: 50, window_ms: 50 }, why: "capacity" }));
        });
      }),
    );
  }

  #offer({ path, sid = randomBytes(16).toString("base64url"), ticket, cause, avoid = [] }: Ask): object | undefined {
    const source = cause === "move" && ticket ? sourceOf(ticket) : undefined;
    const server = this.pick([...avoid, ...(source ? [source] : [])]);
    if (!server) return undefined;
    const id = idOf.get(server.evenkeel)!;
    const [route, query] = String(path).split("?");
    const url = `ws://${server.host}${route}?${query ? `${query}&` : ""}_ek=${this.mint(id, { path: route, sid, cause })}`;
    // As far as this gateway reads tickets.
    const next = `h.${Buffer.from(JSON.stringify({ sid, source: id })).toString("base64url")}.s`;
    return { v: 1, url, connect_ms: 5_000, sid, ticket: next, alt: [], proxy: null, retry: { base_ms: 20, cap_ms: 200 } };
  }

  /** A gateway that proxies: its `host:port`. */
  proxy(): Promise<string> {
    return listen(
      createTcpServer((client) => {
        let head = "";
        const gather = (chunk: Buffer) => {
          head += chunk.toString("latin1");
          if (!head.includes("\r\n\r\n")) return;
          client.off("data", gather);
          const query = new URL(head.split(" ")[1] ?? "/", "ws://gateway").searchParams;
          const source = query.get("_ekt") ? sourceOf(query.get("_ekt")!) : undefined;
          const server = this.pick(source ? [source] : []);
          if (!server) return void client.end("HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\n");
          const [host, port] = server.host.split(":") as [string, string];
          const id = idOf.get(server.evenkeel)!;
          const path = head.split(" ")[1]?.split("?")[0];
          const sid = query.get("_eks") ?? "s-unknown";
          const assignment = `Evenkeel-Assignment: ${this.mint(id, { path, sid })}\r\n\r\n`;
          const upstream = connect(Number(port), host);
          upstream.write(Buffer.from(head.replace("\r\n\r\n", `\r\n${assignment}`), "latin1"));
          client.pipe(upstream).pipe(client);
          for (const [one, other] of [[client, upstream], [upstream, client]] as const) {
            one.on("error", () => other.destroy());
            one.on("close", () => other.destroy());
          }
        };
        client.on("data", gather);
      }),
    );
  }
}

const idOf = new WeakMap<Evenkeel, string>();

/** The source in a ticket. */
export const sourceOf = (ticket: string): string | undefined =>
  JSON.parse(Buffer.from(ticket.split(".")[1] ?? "", "base64url").toString() || "{}").source;

/** The id of a server. */
export const idOfServer = (server: FarmServer) => idOf.get(server.evenkeel)!;
