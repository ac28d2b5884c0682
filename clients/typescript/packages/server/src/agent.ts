/**
 * The machine behind the agent: says who its server is, reports, obeys orders, over one link or two.
 *
 * In: [`Input`] (links that open and close, texts that arrive, counts and measures), `now` in milliseconds and a chance.
 * Out: [`Output`]s, and `pollTimeout`. Invariants: no report before the welcome of its link; `seq` rises within one
 * incarnation; of two nodes the higher order wins whichever link it came by; `drained` is said only with no connection
 * left; with every link gone closing stops when the lease ends and the state stays. This is the machine of the Rust SDK
 * and passes the same vectors (testdata/vectors/agent). Elsewhere: the pace (`executor`), the texts (`message`), sockets
 * and redials (`link`), which connections (`registry`).
 */
import type { Jwk } from "./credentials.js";
import { Executor, type Admit, type Closes } from "./executor.js";
import { MessageError, parseDown, type Desired, type Received } from "./message.js";

/** Links at most: two nodes, so that one may go. */
export const LINKS_MAX = 2;

const REPORT_MS = 1_000;
const REPORT_JITTER = 0.1;
/** Shortest time between two reports: a storm of changes is not worth a storm of reports. */
const REPORT_GAP_MS = 100;
/** A change of the count by more than one twentieth is reported at once. */
const CHANGE_SHARE = 20;
const WELCOME_MS = 5_000;
/** Silence of a node after which it is pinged, and after which its link is ended. */
const PING_MS = 5_000;
const SILENT_MS = 15_000;
/** A hello that was stale so often within this time waits for the redial's back-off. */
const STALE_MAX = 3;
const STALE_WITHIN_MS = 60_000;
/** Time constant of the averages. */
const TAU_MS = 10_000;
const CUSTOM_MAX = 16;
/** Events in one message, and moves that may wait for a link. */
const EVENTS_MAX = 256;

/** What a server holds now. */
export interface Held {
  connections: number;
  /** Of these, told to leave already. */
  leaving: number;
  /** Admitted, but not open yet: a server with such is not drained. */
  arriving: number;
  /** Of these, held by clients that can be moved without losing a message. */
  movable: number;
  totals: { accepted: number; closed: number; closedAbnormal: number; refused: number };
}

/** How busy the process is. */
export interface Measures {
  cpu?: number | undefined;
  memory?: number | undefined;
  lag_ms?: number | undefined;
  custom: Record<string, number>;
}

/** Who a server is. */
export interface Profile {
  id: string;
  fleet?: string | undefined;
  url: string;
  public_url?: string | undefined;
  zone?: string | undefined;
  labels?: Record<string, string> | undefined;
  capacity?: number | undefined;
  caps: string[];
}

export type Event = { rid: string; state: "connected" | "expired" };

export type Input =
  | { is: "opened" | "closed" | "heard"; link: number }
  | { is: "text"; link: number; text: string }
  | { is: "held"; held: Held }
  | { is: "measured"; measures: Measures }
  | { is: "chosen"; asked: number; chosen: number }
  | { is: "events"; events: Event[] }
  | { is: "moved"; mid: string; result: "ok" | "nak"; why?: string }
  | { is: "time" };

export type Output =
  | { do: "say"; link: number; text: string }
  | { do: "ping"; link: number }
  | { do: "end"; link: number; reason: string }
  /** Choose connections and have them leave, then answer with `chosen` and `held`. */
  | { do: "close"; closes: Closes }
  /** To be followed by a `held`: only a count taken after the door closed can say that nobody is left. */
  | { do: "admit"; admit: Admit }
  | { do: "keys"; keys: Jwk[] }
  | { do: "clock"; nowMs: number }
  | { do: "credential"; credential: string }
  | { do: "refused"; why: string }
  /** The incarnation rose because a node knew a later one. */
  | { do: "reborn"; inc: number }
  | { do: "finished" };

interface Link {
  phase: "down" | "greeting" | "up";
  until: number;
  heard: number;
  pinged: boolean;
  applied: string;
  drained: string;
}

const DOWN: Link = { phase: "down", until: 0, heard: 0, pinged: false, applied: "", drained: "" };
const NOBODY: Held = {
  connections: 0,
  leaving: 0,
  arriving: 0,
  movable: 0,
  totals: { accepted: 0, closed: 0, closedAbnormal: 0, refused: 0 },
};

export class Agent {
  readonly #profile: Profile;
  readonly #executor: Executor;
  readonly #averages = new Averages();
  #inc: number;
  #links: Link[] = Array.from({ length: LINKS_MAX }, () => ({ ...DOWN }));
  #held = NOBODY;
  #measures: Measures = { custom: {} };
  #seq = 0;
  #reportMs = REPORT_MS;
  #reported: { at: number; connections: number; next: number };
  #stale = { since: 0, times: 0 };
  #admit: Admit = "open";
  /** `close` was given out and not answered yet. */
  #asking = false;
  /** `admit` was given out and no count came since. */
  #uncounted = false;
  #finished = false;
  #outputs: Output[] = [];
  #now: number;
  #chance = 0.5;

  /** An agent without links and orders: its server is active. `inc`: start time in Unix milliseconds. */
  constructor(profile: Profile, inc: number, now: number) {
    this.#profile = profile;
    this.#inc = inc;
    this.#now = now;
    this.#executor = new Executor(REPORT_MS, now);
    this.#reported = { at: now, connections: 0, next: now };
  }

  /** Takes one input, firing what is due first, except that a count comes before what depends on it. */
  handle(input: Input, now: number, chance: number): Output[] {
    this.#now = now;
    this.#chance = chance;
    if (input.is === "held") this.#hold(input.held);
    this.#due();
    this.#take(input);
    this.#settle();
    const outputs = this.#outputs;
    this.#outputs = [];
    return outputs;
  }

  /** When to hand `time` in at the latest. */
  pollTimeout(): number | undefined {
    const times = this.#links.flatMap((link) => {
      if (link.phase === "down") return [];
      return [link.phase === "greeting" ? link.until : link.heard + (link.pinged ? SILENT_MS : PING_MS)];
    });
    if (this.isLinked) times.push(this.#reported.next);
    const closes = this.#asking ? undefined : this.#executor.pollTimeout(this.#open);
    if (closes !== undefined) times.push(closes);
    return times.length > 0 ? Math.min(...times) : undefined;
  }

  get desired(): Desired | undefined {
    return this.#executor.desired;
  }

  get admit(): Admit {
    return this.#admit;
  }

  get reportMs(): number {
    return this.#reportMs;
  }

  /** The incarnation in force; it rises when a node says `stale`. */
  get inc(): number {
    return this.#inc;
  }

  /** Whether a node answered the hello on at least one link. */
  get isLinked(): boolean {
    return this.#links.some((link) => link.phase === "up");
  }

  #take(input: Input): void {
    switch (input.is) {
      case "opened":
        this.#links[input.link] = { ...DOWN, heard: this.#now };
        return this.#greet(input.link);
      case "closed":
        this.#links[input.link] = { ...DOWN };
        return;
      case "heard":
        return this.#heard(input.link);
      case "text":
        return this.#text(input.link, input.text);
      case "measured":
        this.#measures = withinBounds(input.measures);
        return this.#averages.update(this.#measures, this.#now);
      case "chosen":
        this.#asking = false;
        this.#executor.chosen(input.asked, input.chosen, this.#now);
        // Until the next count says the same: without it they would be chosen again.
        this.#held = { ...this.#held, leaving: this.#held.leaving + input.chosen };
        return;
      case "events":
        for (let at = 0; at < input.events.length; at += EVENTS_MAX) {
          this.#sayToAll({ op: "event", events: input.events.slice(at, at + EVENTS_MAX) });
        }
        return;
      case "moved": {
        const { is: _, ...moved } = input;
        return this.#sayToAll({ op: "moved", ...moved });
      }
      case "held":
      case "time":
    }
  }

  #due(): void {
    this.#watchLinks();
    if (this.#now >= this.#reported.next && this.isLinked) this.#report();
    // One set of closes at a time: the next is due when the shell has said what it chose.
    const closes = this.#asking ? undefined : this.#executor.due(this.#open, this.#now);
    if (!closes) return;
    this.#asking = true;
    this.#outputs.push({ do: "close", closes });
  }

  #say(link: number, message: object): void {
    this.#outputs.push({ do: "say", link, text: JSON.stringify(message) });
  }

  #sayToAll(message: object): void {
    this.#links.forEach((link, index) => link.phase === "up" && this.#say(index, message));
  }

  #greet(index: number): void {
    const link = this.#links[index];
    if (!link) return;
    link.phase = "greeting";
    link.until = this.#now + WELCOME_MS;
    const { desired } = this;
    const applied = desired && { epoch: desired.epoch, gen: desired.gen };
    const { id, ...profile } = this.#profile;
    this.#say(index, { op: "hello", ver: 1, id, inc: this.#inc, ...profile, applied });
  }

  #heard(index: number): void {
    const link = this.#links[index];
    if (!link) return;
    link.heard = this.#now;
    link.pinged = false;
  }

  #text(index: number, text: string): void {
    this.#heard(index);
    const link = this.#links[index];
    if (!link || link.phase === "down") return;
    try {
      this.#message(index, link, parseDown(text));
    } catch (error) {
      if (!(error instanceof MessageError)) throw error;
      // A node of another version may say more than we know; what we cannot read changes nothing.
      this.#outputs.push({ do: "refused", why: error.message });
    }
  }

  #message(index: number, link: Link, message: Received): void {
    if (message.now_ms !== undefined) this.#outputs.push({ do: "clock", nowMs: message.now_ms });
    switch (message.op) {
      case "welcome":
        link.phase = "up";
        this.#reportMs = message.report_ms;
        this.#executor.reportEach(message.report_ms);
        this.#outputs.push({ do: "keys", keys: message.keys });
        if (message.credential) this.#outputs.push({ do: "credential", credential: message.credential });
        // At once: until it arrives the node knows nothing of this server.
        return this.#report();
      case "desired":
        return this.#ordered(index, link, message);
      case "keys":
        return void this.#outputs.push({ do: "keys", keys: message.keys });
      case "stale":
        return this.#outbid(index, message.known);
      case "error":
        return void this.#outputs.push({ do: "refused", why: message.why });
    }
  }

  #ordered(index: number, link: Link, { op: _, now_ms: __, ...desired }: Received & { op: "desired" }): void {
    const taken = this.#executor.take(desired, this.#now);
    const { epoch, gen } = this.desired as Desired;
    const fence = `${epoch} ${gen}`;
    if (taken && link.applied === fence) return;
    if (taken) link.applied = fence;
    // Also where it was refused, so that a node with a wiped store starts above it.
    this.#say(index, { op: "applied", epoch, gen });
  }

  #outbid(index: number, known: number): void {
    if (this.#now - this.#stale.since > STALE_WITHIN_MS) this.#stale = { since: this.#now, times: 0 };
    this.#stale.times += 1;
    if (known >= this.#inc) {
      this.#inc = known + 1;
      this.#seq = 0;
      this.#outputs.push({ do: "reborn", inc: this.#inc });
    }
    if (this.#stale.times > STALE_MAX) return this.#end(index, "ek:stale");
    this.#greet(index);
    // Another node knows us by the old number, and a hello opens a link: it is dialled again.
    this.#links.forEach((other, at) => at !== index && other.phase !== "down" && this.#end(at, "ek:stale"));
  }

  #end(index: number, reason: string): void {
    this.#links[index] = { ...DOWN };
    this.#outputs.push({ do: "end", link: index, reason });
  }

  #hold(held: Held): void {
    this.#held = held;
    this.#uncounted = false;
    if (Math.abs(held.connections - this.#reported.connections) * CHANGE_SHARE > this.#reported.connections) {
      const at = Math.max(this.#reported.at + REPORT_GAP_MS, this.#now);
      this.#reported.next = Math.min(this.#reported.next, at);
    }
  }

  /** One report to every node that welcomed us. */
  #report(): void {
    this.#seq += 1;
    const { connections, movable, totals } = this.#held;
    const { custom, ...raw } = this.#measures;
    this.#sayToAll({
      op: "report",
      inc: this.#inc,
      seq: this.#seq,
      connections,
      movable: Math.min(movable, connections),
      ...raw,
      ...(Object.keys(custom).length > 0 && { custom }),
      ...this.#averages.fields(),
      accepted_total: totals.accepted,
      closed_total: totals.closed,
      closed_abnormal_total: totals.closedAbnormal,
      refused_total: totals.refused,
    });
    const jitter = 1 + REPORT_JITTER * (2 * this.#chance - 1);
    this.#reported = { at: this.#now, connections, next: this.#now + this.#reportMs * jitter };
  }

  #watchLinks(): void {
    this.#links.forEach((link, index) => {
      const silent = this.#now - link.heard;
      const late = link.phase === "greeting" ? this.#now >= link.until : link.phase === "up" && silent >= SILENT_MS;
      if (late) {
        this.#end(index, "ek:timed_out");
      } else if (link.phase === "up" && !link.pinged && silent >= PING_MS) {
        link.pinged = true;
        this.#outputs.push({ do: "ping", link: index });
      }
    });
  }

  /** What follows from orders and counts together. */
  #settle(): void {
    const { admit } = this.#executor;
    if (admit !== this.#admit) {
      this.#admit = admit;
      this.#uncounted = true;
      this.#outputs.push({ do: "admit", admit });
    }
    const { desired } = this;
    const empty = !this.#uncounted && this.#held.connections + this.#held.arriving === 0;
    if (!desired || !empty || admit !== "draining") return;
    const { epoch, gen } = desired;
    this.#links.forEach((link, index) => {
      if (link.phase !== "up" || link.drained === `${epoch} ${gen}`) return;
      link.drained = `${epoch} ${gen}`;
      this.#say(index, { op: "drained", epoch, gen });
    });
    if (desired.state === "stopped" && !this.#finished) {
      this.#finished = true;
      this.#outputs.push({ do: "finished" });
    }
  }

  /** Connections that may still be chosen. */
  get #open(): number {
    return Math.max(0, this.#held.connections - this.#held.leaving);
  }
}

/** What may be reported: shares from 0 to 1, a lag of at most an hour, no number that is none, no name that a node would
 * refuse. An application's slip must not cost it its link. */
function withinBounds({ cpu, memory, lag_ms, custom }: Measures): Measures {
  const within = (value: number | undefined, max: number) =>
    value === undefined || Number.isNaN(value) ? undefined : Math.min(Math.max(value, 0), max);
  const named = Object.entries(custom).filter(([name, value]) => /^[!-~]{1,64}$/.test(name) && !Number.isNaN(value));
  return {
    cpu: within(cpu, 1),
    memory: within(memory, 1),
    lag_ms: within(lag_ms, 3_600_000),
    custom: Object.fromEntries(named.slice(0, CUSTOM_MAX).map(([name, value]) => [name, within(value, 1) as number])),
  };
}

/** Averages of every measure, time-decayed and right for irregular intervals. */
class Averages {
  readonly #values = new Map<string, { at: number; value: number }>();

  update({ custom, ...measures }: Measures, now: number): void {
    const samples = new Map<string, number>();
    for (const [name, value] of Object.entries(measures)) if (value !== undefined) samples.set(name, value);
    for (const [name, value] of Object.entries(custom)) samples.set(`custom ${name}`, value);
    for (const name of this.#values.keys()) {
      // A term that is gone is unknown, not frozen.
      if (name.startsWith("custom ") && !samples.has(name)) this.#values.delete(name);
    }
    for (const [name, sample] of samples) {
      const last = this.#values.get(name);
      if (!last) this.#values.set(name, { at: now, value: sample });
      if (!last || now <= last.at) continue;
      last.value += (sample - last.value) * (1 - Math.exp((last.at - now) / TAU_MS));
      last.at = now;
    }
  }

  fields(): Record<string, unknown> {
    const fields: Record<string, unknown> = {};
    const custom: Record<string, number> = {};
    for (const [name, { value }] of this.#values) {
      if (name.startsWith("custom ")) custom[name.slice(7)] = value;
      else fields[name === "lag_ms" ? "lag_avg_ms" : `${name}_avg`] = value;
    }
    if (Object.keys(custom).length > 0) fields.custom_avg = custom;
    return fields;
  }
}
