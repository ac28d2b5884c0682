/**
 * The real `evenkeel` binary with real servers behind it, for clients that are not ours. Everything is on loopback, in a
 * folder of its own, and ends with the test.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { WebSocket } from "ws";
import { Evenkeel, serve, type EvenkeelOptions, type Hooks, type ServeOptions } from "../../server/src/index.js";
import { binary, root } from "../../server/test/binary.js";
import { atEnd, listen, until } from "../../server/test/farm.js";

/** Python with the pinned stock clients. */
export function python(): string {
  const path = join(root, "target/peers/python/bin/python");
  if (!existsSync(path)) throw new Error(`no ${path}: cargo xtask test installs Python's clients`);
  return path;
}

/** One process that a test started. Nothing else is ever ended. */
export class Child {
  readonly process: ChildProcess;
  /** Its output and errors so far. */
  said = "";
  /** Its exit code, once all output is here. */
  readonly ended: Promise<number | null>;
  #over = false;

  constructor(program: string, args: string[], cwd: string, env: Record<string, string> = {}) {
    this.process = spawn(program, args, { cwd, env: { ...process.env, ...env } });
    this.process.on("error", (error) => (this.said += String(error)));
    for (const stream of [this.process.stdout, this.process.stderr]) {
      stream?.on("data", (data) => (this.said += String(data)));
    }
    this.ended = new Promise((resolve) =>
      this.process.on("close", (code) => {
        this.#over = true;
        resolve(code);
      }),
    );
    atEnd(() => this.kill());
  }

  get isOver(): boolean {
    return this.#over;
  }

  kill(): void {
    if (!this.#over) this.process.kill("SIGKILL");
  }
}

/** One of `GET /v1/servers`. */
export interface Seen {
  id: string;
  state: string;
  health: string;
  connections: number;
  pending: number;
}

/** A server with the SDK, in this process. */
export interface SdkServer {
  id: string;
  host: string;
  http: Server;
  evenkeel: Evenkeel;
}

/** What the configuration says besides addresses. */
export interface Settings {
  gateway?: string;
  /** Keys of `[fleets.chat]`. */
  fleet?: string;
  move?: string;
  place?: string;
  /** Further tables. */
  more?: string;
}

/** Drains begin at once and are quick; everything else is as by default. */
const MOVE = `soft = "0s"\npace = 200`;
/** Servers take their whole share from the first moment. */
const PLACE = `slow_start = "1ms"`;

/** Beside other routes: a way in for {@link World.open}. */
const PROBE = `
[[routes]]
path = "/probe"
fleet = "chat"
scheme = "proxy"
`;

/** One evenkeel process. */
export class World {
  readonly folder = mkdtempSync(join(tmpdir(), "evenkeel-e2e-"));
  readonly process: Child;
  /** `127.0.0.1:PORT` of the gateway. */
  gateway = "";
  /** `http://127.0.0.1:PORT` of the admin listener. */
  admin = "";

  private constructor({ gateway = "", fleet = "", move = MOVE, place = PLACE, more = "" }: Settings) {
    const config = join(this.folder, "evenkeel.toml");
    writeFileSync(
      config,
      `[admin]
listen = "127.0.0.1:0"
[gateway]
listen = ["127.0.0.1:0"]
${gateway}
[log]
level = "info,evenkeel_gateway=debug"
[fleets.chat]
${fleet}
[fleets.chat.move]
${move}
[fleets.chat.place]
${place}
${more}${more.includes("[[routes]]") ? PROBE : ""}`,
    );
    this.process = new Child(binary(), ["serve", "-c", config], this.folder);
    const { folder, process } = this;
    atEnd(() => void process.ended.then(() => rmSync(folder, { recursive: true, force: true })));
  }

  static async start(settings: Settings = {}): Promise<World> {
    const world = new World(settings);
    const { process } = world;
    await until("evenkeel is ready", () => {
      if (process.isOver) throw new Error(process.said);
      return /^next: /m.test(process.said);
    });
    world.gateway = /gateway +ws:\/\/(\S+)/.exec(process.said)?.[1] ?? "";
    world.admin = /admin +(http:\/\/\S+)/.exec(process.said)?.[1] ?? "";
    return world;
  }

  get token(): string {
    return readFileSync(join(this.folder, "admin.token"), "utf8").trim();
  }

  /** Asks the admin listener. */
  async ask(path: string, body?: object): Promise<unknown> {
    const headers = { authorization: `Bearer ${this.token}`, "content-type": "application/json" };
    const method = body ? "POST" : "GET";
    const response = await fetch(this.admin + path, { method, headers, ...(body && { body: JSON.stringify(body) }) });
    const text = await response.text();
    if (!response.ok) throw new Error(`${path}: ${response.status} ${text}`);
    return path.startsWith("/v1") ? JSON.parse(text) : text;
  }

  async servers(): Promise<Seen[]> {
    return (await this.ask("/v1/servers")) as Seen[];
  }

  drain(id: string): Promise<unknown> {
    return this.ask(`/v1/servers/${id}/drain`, {});
  }

  undrain(id: string): Promise<unknown> {
    return this.ask(`/v1/servers/${id}/undrain`, {});
  }

  /** Waits until these servers are open for clients, and the gateway places on each of them. */
  async open(...servers: SdkServer[]): Promise<void> {
    await eventually(`${servers.map(({ id }) => id)} are active`, async () => {
      const open = (await this.servers()).filter(({ state, health }) => state === "active" && health === "ok");
      return servers.every(({ id }) => open.some((server) => server.id === id));
    });
    const probes: WebSocket[] = [];
    await eventually(`the gateway places on ${servers.map(({ id }) => id)}`, async () => {
      const probe = new WebSocket(`ws://${this.gateway}/probe`);
      probes.push(probe);
      await new Promise<void>((resolve) => probe.on("open", resolve).on("error", () => resolve()));
      return servers.every(({ evenkeel }) => evenkeel.connections > 0);
    });
    for (const probe of probes) probe.close();
    await until("the probes are gone", () => servers.every(({ evenkeel }) => evenkeel.connections === 0));
  }

  /** A server that is a process of its own and can be killed: `evenkeel echo`. */
  echo(id: string): Child {
    const token = join(this.folder, "admin.token");
    return new Child(binary(), ["echo", "--listen", "127.0.0.1:0", "--id", id, "--join", this.admin, "--token-file", token], this.folder);
  }

  /** A server that joins with its agent; `direct`: clients may be sent to it without the gateway. */
  async join(
    id: string,
    setUp: (evenkeel: Evenkeel, http: Server) => void,
    { direct = false, ...more }: Partial<EvenkeelOptions> & { direct?: boolean } = {},
  ): Promise<SdkServer> {
    const http = createServer();
    const host = await listen(http);
    const url = `ws://${host}`;
    const options = { id, url, ...(direct && { publicUrl: url }), log: () => {}, ...more };
    const evenkeel = new Evenkeel({ ...options, nodes: [this.admin], token: () => this.token });
    atEnd(() => evenkeel.stop());
    setUp(evenkeel, http);
    await until(`${id} is linked`, () => evenkeel.isLinked);
    return { id, host, http, evenkeel };
  }

  /** The same, serving WebSockets. */
  serve(
    id: string,
    hooks: Hooks,
    more: Partial<EvenkeelOptions> & { direct?: boolean } & ServeOptions = {},
  ): Promise<SdkServer> {
    const { handleProtocols, ...options } = more;
    return this.join(id, (evenkeel, http) => void serve(evenkeel, http, hooks, { handleProtocols }), options);
  }
}

/** Waits for something that has to be asked for; fails after `seconds`, with what was awaited. */
export async function eventually(what: string, condition: () => Promise<boolean>, seconds = 10): Promise<void> {
  const deadline = Date.now() + seconds * 1000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`waited in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Servers that count with each client, both ways: `#N` has to come in a row and is answered by `#N`; what was counted
 * goes along with the client. Everything else is given to `heard`. */
export function counting(wrong: string[], heard: (text: string) => void = () => {}): Hooks {
  const counts = new Map<object, { got: number; sent: number }>();
  return {
    connection(connection, state) {
      const count = state ? JSON.parse(String(state)) : { got: 0, sent: 0 };
      counts.set(connection, count);
      connection.on("message", (data, isBinary) => {
        const text = String(data);
        if (!text.startsWith("#")) {
          heard(text);
          connection.send(data, { binary: isBinary });
          return;
        }
        if (text !== `#${count.got}`) wrong.push(`server got ${text} for #${count.got}`);
        count.got += 1;
        connection.send(`#${count.sent++}`);
      });
      connection.on("unsent", (data) => wrong.push(`unsent ${data}`));
      connection.on("close", () => counts.delete(connection));
    },
    detach(connection) {
      const count = counts.get(connection);
      counts.delete(connection);
      return JSON.stringify(count);
    },
  };
}
