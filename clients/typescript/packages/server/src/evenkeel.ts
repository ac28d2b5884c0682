/**
 * What a server holds: its agent, and every connection of its clients.
 *
 * In: handshakes, connections, and over its links the orders of the nodes. Out: who is admitted, reports, and clients that
 * leave. Invariants: outputs of the agent are performed in its order; every handshake that is let in becomes a connection
 * or is turned back; nobody is admitted without an assignment unless that was asked for. Elsewhere: every decision
 * (`agent`, `executor`, `move`), the adapters for `ws` and socket.io (`ws`, `socketio`).
 */
import type { IncomingMessage } from "node:http";
import { randomId } from "../../client/src/frame.js";
import { keyOf, withoutKeys } from "../../client/src/url.js";
import { Agent, LINKS_MAX, type Event, type Input, type Output } from "./agent.js";
import { Handover, Refused, Verifier, type Claims, type Jwk } from "./credentials.js";
import { Link } from "./link.js";
import { type Notice, type Settled } from "./move.js";
import { Registry } from "./registry.js";
import { Usage } from "./usage.js";
import type { Admit, Closes } from "./executor.js";

/** Who this server is and whom it listens to. */
export interface EvenkeelOptions {
  /** 1 to 128 characters of `A-Z a-z 0-9 . _ -`, the first a letter or digit; unique over all fleets. */
  id: string;
  /** Where gateways reach this server: `ws://10.0.0.7:9001`. */
  url: string;
  /** Where clients reach it without a gateway: `wss://a.ws.example.com`. Without it every client is proxied. */
  publicUrl?: string;
  fleet?: string;
  zone?: string;
  labels?: Record<string, string>;
  /** Connections that this server can hold. Default: what the fleet assumes. */
  capacity?: number;
  /** Admin listeners of at most two nodes: `http://10.0.0.2:9900`. None: the server works alone. */
  nodes: string[];
  /** The admin or a join token, or a function that reads it anew for each dial. */
  token?: string | (() => string);
  /** Whom to admit: clients with an assignment from a gateway, or `all`. Default: `assigned`. */
  admit?: "assigned" | "all";
  /** Origins of pages whose handshakes are taken, such as `https://app.example.com`. Default: those that the gateway
   * signed assignments for, and for clients without one those of the request's own host. */
  origins?: string[];
  /** What an operator may want to know. Default: warnings to the console. */
  log?: (message: LogMessage) => void;
}

/** One line for the log: a constant phrase and its data. Never holds a token. */
export interface LogMessage {
  level: "info" | "warn";
  message: string;
  fields: Record<string, string | number>;
}

/** A handshake that is let in: turn it into a connection with `opened`, or call `failed`. */
export interface Admission {
  /** The connection's name in logs of gateway and server. */
  id: string;
  /** The session: the same over moves and reconnects. */
  sid: string;
  /** The name of its frames, if the client knows moves. */
  ctl: string | undefined;
  /** It comes to park. */
  parks: boolean;
  /** What the gateway signed, if it was asked for. */
  claims: Claims | undefined;
}

/** A handshake that is not: what to answer instead of 101. */
export interface Denial {
  status: 401 | 403 | 503;
  headers: Record<string, string>;
  /** JSON: `{"why": …}`. */
  body: string;
  /** Short code for logs. */
  why: string;
}

/** A connection as far as orders concern it. */
export interface Member {
  readonly canMove: boolean;
  readonly sid: string;
  order(notice: Notice): void;
  close(code: number, reason: string): void;
}

/** A client has so long for its `cut`: to negotiate and dial, and to park, five seconds each. */
export const NOTICE_MS = 10_000;
/** A rebalance leaves a client alone for so long that could not or would not move. */
const SPARED_MS = 600_000;
/** Notices to one client of a server that empties, before it is closed instead; those for which there was no credit do not
 * count. */
const NOTICES_MAX = 3;
/** Shortest wait before the next of them. */
const AGAIN_MS = 1_000;
/** Events of clients that connected are told together. */
const EVENTS_MS = 100;
const EVENTS_MAX = 10_000;
/** Changes of the counts are looked at so often at most. */
const QUIET_MS = 10;
/** Steps of {@link Evenkeel.leave}: so close together clients leave evenly to everybody. */
const LEAVE_STEP_MS = 10;

/** See the module's documentation. */
export class Evenkeel {
  readonly #options: EvenkeelOptions;
  readonly #agent: Agent;
  readonly #registry = new Registry<Member>();
  readonly #links: Link[] = [];
  readonly #usage = new Usage();
  readonly #terms: Record<string, number> = {};
  /** Notices that a client would not or could not follow. */
  readonly #notices = new WeakMap<Member, number>();
  readonly #caps: string[] = [];
  readonly #handover: Handover;
  readonly #finished: Promise<void>;
  readonly #drains = new Set<() => void>();
  #verifier: Verifier;
  #credential: string | undefined;
  /** The node's Unix time less ours. */
  #ahead = 0;
  /** The node's time when the door was closed: assignments made before are honoured. */
  #closedAt = 0;
  #events: Event[] = [];
  #timer: NodeJS.Timeout | undefined;
  #due: number | undefined;
  #measuring: NodeJS.Timeout | undefined;
  #telling: NodeJS.Timeout | undefined;
  #looking = false;
  #queue: Output[] = [];
  #performing = false;
  #finish!: () => void;

  /** Starts the agent. Nodes are dialled in the background: a server works whether they are there or not. */
  constructor(options: EvenkeelOptions) {
    if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/.test(options.id)) throw new TypeError(`'${options.id}' is no id of a server`);
    if (options.nodes.length > LINKS_MAX) throw new TypeError(`a server links to at most ${LINKS_MAX} nodes`);
    this.#options = options;
    this.#finished = new Promise((resolve) => (this.#finish = resolve));
    const { id, fleet, url, publicUrl: public_url, zone, labels, capacity } = options;
    const inc = Date.now();
    const profile = { id, fleet, url, public_url, zone, labels, capacity, caps: this.#caps };
    this.#agent = new Agent(profile, inc, performance.now());
    this.#verifier = new Verifier(`${id}#${inc}`);
    this.#handover = new Handover(`${id}#${inc}`);
    options.nodes.forEach((node, link) => this.#links.push(this.#linkTo(node, link)));
    this.#measure();
  }

  /** What the nodes want of this server: `active` until they say something else. */
  get state(): "active" | "cordoned" | "draining" | "stopped" {
    return this.#agent.desired?.state ?? "active";
  }

  /** Whether at least one node knows this server now. */
  get isLinked(): boolean {
    return this.#agent.isLinked;
  }

  /** Connections of clients now. */
  get connections(): number {
    return this.#registry.connections;
  }

  /** Resolves when the nodes want the process to end and no connection is left. */
  get finished(): Promise<void> {
    return this.#finished;
  }

  /** The node's Unix time in milliseconds. */
  get nowMs(): number {
    return Date.now() + this.#ahead;
  }

  /** Makes tickets and seals states. */
  get handover(): Handover {
    return this.#handover;
  }

  /** Sets one of the application's own terms, 0 idle to 1 full, reported until it is set again; undefined removes it. */
  setTerm(name: string, value: number | undefined): void {
    if (value === undefined) delete this.#terms[name];
    else this.#terms[name] = value;
  }

  /** Asks whether a handshake may be answered with 101, and takes the SDK's keys out of its URL. `takesOver`: whether the
   * application takes sessions of other servers over. */
  admit(request: IncomingMessage, takesOver = false): Admission | Denial {
    const url = request.url ?? "/";
    const header = single(request, "evenkeel-assignment");
    const token = header ?? keyOf(url, "_ek");
    request.url = withoutKeys(url);
    delete request.headers["evenkeel-assignment"];
    const parks = keyOf(url, "_ekc") === "move" && isCtl(keyOf(url, "_ekm")) && isName(keyOf(url, "_eks"));
    const closed = this.#registry.isClosed;
    if (parks && !takesOver) return this.#deny(503, "no_moves");
    const why = this.#isForeign(request) ? "origin" : this.#options.admit === "all" || this.#verifier.hasKeys ? undefined : "starting";
    if (why === "origin") return this.#deny(403, why);
    // Whoever comes with nothing to a closed door hears that it is closed.
    if (closed && (token === undefined || parks)) return this.#deny(503, closed);
    if (why) return this.#deny(503, why);
    let claims: Claims | undefined;
    try {
      claims = this.#verifier.verify(token ?? "", url, request.headers.origin, this.nowMs);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (closed) return this.#deny(503, closed);
      if (this.#options.admit !== "all") return this.#deny(401, error.why);
      if (!this.#options.origins && !isOwn(request)) return this.#deny(403, "origin");
    }
    // Whom a gateway sent before it knew is let in.
    if (closed && claims && claims.iat * 1000 > this.#closedAt) return this.#deny(503, closed);
    return this.#let(request, url, parks, claims);
  }

  #isForeign({ headers: { origin } }: IncomingMessage): boolean {
    const { origins } = this.#options;
    return origins !== undefined && origin !== undefined && !origins.includes(origin);
  }

  #let(request: IncomingMessage, url: string, parks: boolean, claims: Claims | undefined): Admission {
    this.#registry.arrive();
    const [ctl, own, conn] = [keyOf(url, "_ekm"), keyOf(url, "_eks"), single(request, "evenkeel-conn")];
    const sid = claims?.sid ?? (isName(own) ? own : undefined);
    return {
      id: (isName(conn) ? conn : claims?.rid) ?? randomId(),
      sid: sid ?? randomId(),
      // Only where both ends know the session by one name can it be moved.
      ctl: isCtl(ctl) && sid !== undefined ? ctl : undefined,
      parks,
      claims,
    };
  }

  #deny(status: Denial["status"], why: string): Denial {
    this.#registry.refuse();
    this.#look();
    const headers: Record<string, string> = { "content-type": "application/json", "cache-control": "no-store" };
    if (status === 503) Object.assign(headers, { "evenkeel-draining": "1", "retry-after": "1" });
    if (status !== 503) this.#log("info", "handshake refused", { reason: why });
    return { status, headers, body: JSON.stringify({ why }), why };
  }

  /** The application hands sessions over and takes them over: said to the nodes from the next link on. */
  handsOver(): void {
    if (!this.#caps.includes("move")) this.#caps.push("move");
  }

  /** An admission became a connection that the application has. */
  opened(member: Member, admission: Admission): void {
    this.#registry.turnBack();
    this.#registry.open(member, performance.now());
    this.#tell(admission, "connected");
    this.#look();
  }

  /** Settles the placement that the gateway counts. */
  #tell({ claims }: Admission, state: Event["state"]): void {
    if (!claims || this.#events.length >= EVENTS_MAX) return;
    this.#events.push({ rid: claims.rid, state });
    this.#telling ??= setTimeout(() => {
      this.#telling = undefined;
      this.#input({ is: "events", events: this.#events.splice(0) });
    }, EVENTS_MS);
  }

  /** An admission came to nothing. */
  failed(admission: Admission): void {
    this.#registry.turnBack();
    this.#tell(admission, "expired");
    this.#look();
  }

  /** Something passed on a connection. */
  touched(member: Member, bytes: number): void {
    this.#registry.touch(member, bytes, performance.now());
  }

  /** A connection ended. Many abnormal ends at once look like an outage, which is not taken for idleness. */
  ended(member: Member, abnormal: boolean): void {
    this.#registry.end(member, abnormal);
    this.#look();
  }

  /** Called when the door closes, for connections that the application does not have yet. */
  onDrain(drain: () => void): () => void {
    this.#drains.add(drain);
    return () => void this.#drains.delete(drain);
  }

  /** A hook of the application threw. */
  hookFailed(error: unknown): void {
    this.#log("warn", "hook failed", { error: error instanceof Error ? `${error.name}: ${error.message}` : String(error) });
  }

  /** How an ordered move ended. */
  settled(member: Member, mid: string, settled: Settled): void {
    const { how } = settled;
    const why = how === "refused" ? settled.why.slice(0, 128) : how;
    this.#input(how === "moved" ? { is: "moved", mid, result: "ok" } : { is: "moved", mid, result: "nak", why });
    const now = performance.now();
    if (how === "refused" && settled.retry_ms !== undefined) {
      // No credit anywhere is nobody's fault.
      const again = now + Math.max(AGAIN_MS, settled.retry_ms);
      this.#registry.stay(member, again, again);
    } else if (how === "refused" || how === "lapsed") {
      // One that did not answer at all is closed in its next turn, by a server that empties.
      this.#notices.set(member, how === "lapsed" ? NOTICES_MAX : (this.#notices.get(member) ?? 0) + 1);
      this.#registry.stay(member, now + AGAIN_MS, now + SPARED_MS);
    }
    this.#look();
    if (how === "not_sent") member.close(1012, "ek:draining");
  }

  /**
   * Leaves on the application's own decision, for example on SIGTERM: admits nobody from now on, whatever the nodes say,
   * has all clients leave at a pace, and waits for them to be gone, at most `graceMs` after the last was told. Says how
   * many are left.
   */
  async leave({ perSecond = 20, graceMs = NOTICE_MS + 2_000 }: { perSecond?: number; graceMs?: number } = {}): Promise<number> {
    this.#closeDoor("draining");
    this.#registry.leave();
    this.#look();
    const started = performance.now();
    let told = 0;
    let deadline: number | undefined;
    for (;;) {
      const { connections, arriving, leaving } = this.#registry.held(() => false);
      const now = performance.now();
      if (connections + arriving === 0 || (deadline !== undefined && now >= deadline)) return connections;
      const allowed = Math.floor(((now - started) / 1000) * perSecond) + 1 - told;
      // Who could not move comes back into this count, and is told again or closed.
      const count = Math.min(connections - leaving, allowed);
      if (count > 0) told += this.#close({ count, select: "idle", minAgeMs: 0, overdue: false, reason: "ek:stopped" });
      deadline = connections > leaving ? undefined : (deadline ?? now + graceMs);
      await new Promise((resolve) => setTimeout(resolve, LEAVE_STEP_MS));
    }
  }

  /** Ends the links to the nodes. The server works on, alone. */
  stop(): void {
    for (const link of this.#links) link.stop();
    for (const timer of [this.#timer, this.#measuring, this.#telling]) clearTimeout(timer);
    this.#usage.stop();
  }

  // The agent -------------------------------------------------------------------------------------------------------

  #linkTo(node: string, link: number): Link {
    const { token } = this.#options;
    const current = () => this.#credential ?? (typeof token === "function" ? token() : token);
    return new Link(node, current, {
      opened: () => this.#input({ is: "opened", link }),
      text: (text) => this.#input({ is: "text", link, text }),
      heard: () => this.#input({ is: "heard", link }),
      closed: () => this.#input({ is: "closed", link }),
      failed: (why, status) => {
        // A node that lost its store does not know the credential it gave out: back to the token.
        if (status === 401) this.#credential = undefined;
        this.#log("warn", "agent link ended", { node, reason: why });
      },
    });
  }

  #input(input: Input): void {
    this.#queue.push(...this.#agent.handle(input, performance.now(), Math.random()));
    if (!this.#performing) {
      this.#performing = true;
      try {
        for (let output = this.#queue.shift(); output; output = this.#queue.shift()) this.#perform(output);
      } finally {
        this.#performing = false;
      }
    }
    const due = this.#agent.pollTimeout();
    if (due === this.#due) return;
    this.#due = due;
    clearTimeout(this.#timer);
    if (due === undefined) return;
    const fire = () => {
      this.#due = undefined;
      this.#input({ is: "time" });
    };
    this.#timer = setTimeout(fire, Math.ceil(Math.max(0, due - performance.now())));
    // Connections keep a process alive, an agent does not.
    this.#timer.unref();
  }

  #perform(output: Output): void {
    switch (output.do) {
      case "say":
        return this.#links[output.link]?.say(output.text);
      case "ping":
        return this.#links[output.link]?.ping();
      case "end":
        return this.#links[output.link]?.end(output.reason);
      case "close":
        this.#input({ is: "chosen", asked: output.closes.count, chosen: this.#close(output.closes) });
        return this.#hold();
      case "admit":
        if (output.admit !== "open") this.#closeDoor(output.admit);
        this.#registry.admit = output.admit;
        this.#log("info", "server admits", { admit: output.admit });
        return this.#hold();
      case "keys":
        return this.#keys(output.keys);
      case "clock":
        this.#ahead = output.nowMs - Date.now();
        return;
      case "credential":
        this.#credential = output.credential;
        return;
      case "refused":
        return this.#log("warn", "agent and node did not understand each other", { reason: output.why });
      case "reborn":
        // Keys of the old life are dead; the welcome brings those of the new one.
        this.#verifier = new Verifier(`${this.#options.id}#${output.inc}`);
        this.#handover.at = `${this.#options.id}#${output.inc}`;
        return;
      case "finished":
        return this.#finish();
    }
  }

  #keys(keys: Jwk[]): void {
    this.#verifier.setKeys(keys);
    this.#handover.setKeys(keys);
  }

  #closeDoor(admit: Admit): void {
    if (!this.#registry.isClosed) this.#closedAt = this.nowMs;
    if (admit === "draining") for (const drain of [...this.#drains]) drain();
  }

  /** Has connections leave; how many were found. */
  #close(closes: Closes): number {
    const chosen = this.#registry.choose(closes, performance.now());
    for (const member of chosen) this.#sendAway(member, closes);
    return chosen.length;
  }

  #sendAway(member: Member, { overdue, reason }: Closes): void {
    const empties = reason === "ek:draining" || reason === "ek:stopped";
    const enough = empties && (this.#notices.get(member) ?? 0) >= NOTICES_MAX;
    const moves = member.canMove && this.#handover.hasKeys && !overdue && !enough;
    if (!moves) return member.close(1012, reason);
    const ticket = this.#handover.ticket(member.sid, this.#options.id, this.nowMs);
    member.order({ mid: randomId(), ticket, by_ms: NOTICE_MS, why: reason.slice(3) });
  }

  /** Tells the agent the counts soon, once for all changes until then: counting goes over all connections. */
  #look(): void {
    if (this.#looking) return;
    this.#looking = true;
    setTimeout(() => {
      this.#looking = false;
      this.#hold();
    }, QUIET_MS);
  }

  #hold(): void {
    this.#input({ is: "held", held: this.#registry.held((member) => member.canMove) });
  }

  /** Twice for each report, so that none carries a measure older than half its interval. */
  #measure(): void {
    this.#input({ is: "measured", measures: { ...this.#usage.measure(), custom: { ...this.#terms } } });
    this.#measuring = setTimeout(() => this.#measure(), this.#agent.reportMs / 2).unref();
  }

  #log(level: LogMessage["level"], message: string, fields: LogMessage["fields"]): void {
    if (this.#options.log) this.#options.log({ level, message, fields });
    else if (level === "warn") console.warn("evenkeel:", message, fields);
  }
}

/** The field if it is there once. */
function single(request: IncomingMessage, name: string): string | undefined {
  const value = request.headersDistinct[name];
  return value?.length === 1 ? value[0] : value ? "?" : undefined;
}

const isCtl = (ctl: string | undefined): ctl is string => ctl !== undefined && /^[\w-]{22}$/.test(ctl);

/** A name that may be logged and signed. */
const isName = (name: string | undefined): name is string => name !== undefined && /^[!-~]{1,128}$/.test(name);

/** Whether a page is of the host that it asks. Programs send no origin. */
function isOwn({ headers: { origin, host } }: IncomingMessage): boolean {
  if (origin === undefined) return true;
  return URL.canParse(origin) && new URL(origin).host === host?.toLowerCase();
}

/** Seconds that a server needs from SIGTERM to its end, for `terminationGracePeriodSeconds` and its like: everybody told
 * at the pace, the last one's notice, and ten seconds for the process itself. */
export function gracePeriodS(connections: number, perSecond: number): number {
  return Math.ceil(connections / perSecond + NOTICE_MS / 1000 + 10);
}
