/**
 * One session of one client over all its sockets: where to dial next, after what wait, and what to say there.
 *
 * In: how the last socket ended, answers of the gateway. Out: [`Assignment`]s. Invariants: the session id, the newest
 * ticket and the servers to avoid go with every question; no attempt follows another without a jittered wait; no host
 * outside `allowedHosts` is ever dialled. Elsewhere: sockets (`socket`), the dialogue (`machine`).
 */
import { Backoff, MIN_UPTIME_MS, type Later } from "./backoff.js";
import { claimsOf, keyOf, parseObject, randomId, withKeys, withoutKeys } from "./frame.js";
import { here, sleep } from "./network.js";

/** Why a client asks where to go. */
export type Cause = "start" | "lost" | "refused" | "move";

/** Where to connect, best first. */
export interface Assignment {
  /** The assigned server, its alternatives, and last the way through the gateway. */
  urls: string[];
  /** Each is to be open within so many milliseconds. */
  connectMs: number;
}

/** Settings of a {@link negotiator}. */
export interface NegotiatorOptions {
  /** What connections want to be together with on one server, such as a room. */
  key?: string;
  /** Hosts that may be dialled or asked: `"ws.example.com"`, `"*.ws.example.com"`, with a port where there is one.
   * Default: whatever the gateway says, which is trusted as the page that names it is. */
  allowedHosts?: string[];
  /** Added to each question, for example `{ credentials: "include", headers: { authorization: "…" } }`. */
  request?: Pick<RequestInit, "credentials" | "headers">;
}

/** An url provider that asks the gateway for a server each time it is called, after a wait with full jitter where the
 * last connection failed. It rejects only where asking again cannot help. */
export interface Negotiator {
  (): Promise<string>;
  /** @internal */
  readonly session: Session;
}

/** The gateway assigned no server. */
export class NegotiateError extends Error {
  override readonly name = "NegotiateError";
  constructor(
    /** The gateway's code, or `unreachable`, `bad_answer`, `forbidden_host`, `too_many_hops`. */
    readonly why: string,
    /** HTTP status, 0 where there was no answer. */
    readonly status: number,
    /** When the gateway wants to be asked again. */
    readonly later?: Later,
  ) {
    super(`the gateway assigned no server: ${why}${status ? ` (${status})` : ""}`);
  }

  /** Whether asking again can help. */
  get isPassing(): boolean {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

const PATH = "/.well-known/evenkeel/negotiate";
/** A gateway may point to another one, for example of a region; five are enough for everyone but a loop. */
const HOPS_MAX = 5;
const ASK_MS = 10_000;
/** As long as an assignment without `connect_ms` is good for. */
const CONNECT_MS = 10_000;
/** Servers remembered as having refused. The gateway keeps eight. */
const AVOID_MAX = 8;

export class Session {
  sid = randomId();
  readonly backoff = new Backoff();
  #ticket: string | undefined;
  #avoid: string[] = [];
  #cause: Cause = "start";
  #asked = 0;
  /** When the gateway wants to be asked again. */
  #later: Later | undefined;
  readonly #url: string;
  readonly #options: NegotiatorOptions | undefined;

  /** With options: asks the gateway of this URL. Without: dials the URL itself each time. */
  constructor(url: string, options?: NegotiatorOptions) {
    this.#url = withoutKeys(url);
    this.#options = options;
  }

  /** The URL without keys of the SDK. */
  get url(): string {
    return this.#url;
  }

  /** Whether it is for this route, whatever the query. */
  serves(url: string): boolean {
    const route = (each: string) => each.replace(/^http/, "ws").split("?")[0];
    return route(url) === route(this.#url);
  }

  /** Where to dial, after the wait that is due. Asks again while that can help. */
  async next(signal?: AbortSignal): Promise<Assignment> {
    for (;;) {
      const foreign = Date.now() - this.#asked > CONNECT_MS + MIN_UPTIME_MS;
      // Sockets that are not ours say nothing of how they fare; one asked for so long ago was open.
      if (this.#asked && foreign) this.backoff.lived(MIN_UPTIME_MS);
      if (this.#asked) await sleep(this.#wait(), this.backoff, signal);
      this.#asked = Date.now();
      try {
        return await this.#assign(this.#cause, undefined, signal);
      } catch (error) {
        if (!(error instanceof NegotiateError) || !error.isPassing || signal?.aborted) throw error;
      }
    }
  }

  #wait(): number {
    const later = this.#later;
    this.#later = undefined;
    return later ? this.backoff.waitAsTold(later) : this.backoff.wait();
  }

  /** Where to move to; one question, no wait. */
  move(ticket: string, signal: AbortSignal): Promise<Assignment> {
    return this.#assign("move", ticket, signal);
  }

  /** A socket to this URL is open. */
  opened(): void {
    this.#cause = "lost";
    this.#avoid = [];
  }

  /** A socket to this URL did not open. */
  refused(url: string): void {
    const server = serverOf(url);
    if (server === undefined) return;
    this.#cause = "refused";
    this.#avoid = [server, ...this.#avoid.filter((other) => other !== server)].slice(0, AVOID_MAX);
  }

  /** An open socket ended. */
  ended(uptimeMs: number): void {
    this.backoff.lived(uptimeMs);
    this.#cause = "lost";
    this.#asked ||= Date.now();
  }

  async #assign(cause: Cause, ticket: string | undefined, signal?: AbortSignal): Promise<Assignment> {
    if (!this.#options) return { urls: [this.#url], connectMs: CONNECT_MS };
    const page = new URL(this.#url);
    const question = {
      v: 1,
      path: page.pathname + page.search,
      caps: ["move"],
      cause,
      sid: this.sid,
      ticket: ticket ?? this.#ticket,
      avoid: this.#avoid,
      key: this.#options.key,
    };
    let at = page.origin.replace(/^ws/, "http") + PATH;
    for (let hop = 0; hop < HOPS_MAX; hop++) {
      const answer = await this.#ask(at, question, signal);
      if (typeof answer.negotiate !== "string") return this.#read(answer);
      at = this.#allowed(answer.negotiate);
    }
    throw new NegotiateError("too_many_hops", 0);
  }

  async #ask(at: string, question: object, signal?: AbortSignal): Promise<Record<string, unknown>> {
    const { headers, credentials } = this.#options?.request ?? {};
    const fields = new Headers(headers);
    fields.set("content-type", "application/json");
    const within = AbortSignal.timeout(ASK_MS);
    const stop = new AbortController();
    const abort = () => stop.abort();
    for (const other of [within, signal]) other?.addEventListener("abort", abort);
    if (signal?.aborted) abort();
    let response: Response;
    let text: string;
    try {
      response = await fetch(at, {
        method: "POST",
        headers: fields,
        body: JSON.stringify(question),
        cache: "no-store",
        signal: stop.signal,
        ...(credentials ? { credentials } : {}),
      });
      text = await response.text();
    } catch {
      throw new NegotiateError("unreachable", 0);
    } finally {
      for (const other of [within, signal]) other?.removeEventListener("abort", abort);
    }
    const answer = parseObject(text);
    if (!response.ok) this.#refuse(response.status, answer ?? {});
    if (!answer) throw new NegotiateError("bad_answer", 0);
    return answer;
  }

  #refuse(status: number, answer: Record<string, unknown>): never {
    const { wait_ms, window_ms } = (answer.retry ?? {}) as Record<string, unknown>;
    const later = isTime(wait_ms) ? { wait_ms, window_ms: isTime(window_ms) ? window_ms : 0 } : undefined;
    this.#later = later;
    throw new NegotiateError(typeof answer.why === "string" ? answer.why : "refused", status, later);
  }

  #read(answer: Record<string, unknown>): Assignment {
    const alt = Array.isArray(answer.alt) ? answer.alt : [];
    const found = [answer.url, ...alt.map((other) => (other as { url?: unknown } | null)?.url), answer.proxy];
    const urls = found.filter((url): url is string => typeof url === "string").map((url) => this.#allowed(url));
    if (urls.length === 0) throw new NegotiateError("bad_answer", 0);
    if (typeof answer.sid === "string") this.sid = answer.sid;
    if (typeof answer.ticket === "string") this.#ticket = answer.ticket;
    const { base_ms, cap_ms } = (answer.retry ?? {}) as Record<string, unknown>;
    if (isTime(base_ms) && isTime(cap_ms)) this.backoff.range(base_ms, cap_ms);
    return { urls, connectMs: isTime(answer.connect_ms) && answer.connect_ms > 0 ? answer.connect_ms : CONNECT_MS };
  }

  /** The URL if it may be dialled or asked: an allowed host, and never without TLS where the gateway has it. */
  #allowed(url: string): string {
    let to: URL | undefined;
    try {
      to = new URL(url);
    } catch {}
    const secure = /^(https|wss):/.test(this.#url);
    const fits = to && (secure ? /^(https|wss):$/ : /^(https?|wss?):$/).test(to.protocol) && !to.username;
    const hosts = this.#options?.allowedHosts;
    const named = (host: string) =>
      host.startsWith("*.") ? to?.host.endsWith(host.slice(1)) : to?.host === host.toLowerCase();
    if (!fits || (hosts && !hosts.some(named))) throw new NegotiateError("forbidden_host", 403);
    return url;
  }
}

/** What the SDK adds to a URL that it dials. */
export function dialled(url: string, ctl: string, move?: { sid: string; ticket: string }): string {
  return withKeys(url, { _ekm: ctl, ...(move ? { _ekc: "move", _eks: move.sid, _ekt: move.ticket } : {}) });
}

/** Assignments that a negotiator gave out and no socket took yet, so that a socket which is handed nothing but the URL
 * (by partysocket, say) finds its session. Bounded: the oldest is forgotten, its socket then moves through the URL. */
const issued = new Map<string, { session: Session; assignment: Assignment }>();
const ISSUED_MAX = 64;

/** An {@link Negotiator} for the gateway route at `url`, for example `"https://ws.example.com/chat?room=7"`. */
export function negotiator(url: string | URL, options: NegotiatorOptions = {}): Negotiator {
  const session = new Session(new URL(url, here()).href, options);
  const provider = async () => {
    const assignment = await session.next();
    const first = assignment.urls[0] as string;
    issued.set(first, { session, assignment });
    for (const oldest of issued.keys()) if (issued.size > ISSUED_MAX) issued.delete(oldest);
    return first;
  };
  return Object.assign(provider, { session });
}

/** The assignment behind a URL that a negotiator gave out. */
export function issuedFor(url: string): { session: Session; assignment: Assignment } | undefined {
  const found = issued.get(url);
  issued.delete(url);
  return found;
}

function serverOf(url: string): string | undefined {
  const { aud } = claimsOf(keyOf(url, "_ek"));
  return typeof aud === "string" ? aud.slice(0, aud.lastIndexOf("#")) : undefined;
}

function isTime(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(value) && value >= 0;
}
