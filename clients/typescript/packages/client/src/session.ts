/**
 * One session of one client over all its sockets: where to dial, and what to say there.
 *
 * In: how its sockets fared, answers of the gateway. Out: [`Assignment`]s. Invariants: the session id, the newest ticket
 * and the servers to avoid go with every question; no socket follows another without a jittered wait; no host outside
 * `allowedHosts` is ever dialled or asked. Elsewhere: sockets (`socket`), when to dial again (`machine`).
 */
import { Backoff, MIN_UPTIME_MS, type Later } from "./backoff.js";
import { parseObject, randomId } from "./frame.js";
import type { Cause } from "./machine.js";
import { here, sleep } from "./network.js";
import { claimsOf, keyOf, withKeys, withoutKeys } from "./url.js";

/** Where to connect, best first. */
export interface Assignment {
  /** The assigned server, its alternatives, and last the way through the gateway. */
  urls: string[];
  /** Each is to be open within so many milliseconds. */
  connectMs: number;
  /** The range of waits that the gateway named. */
  retry?: { base_ms: number; cap_ms: number };
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

/** A URL provider: asks the gateway for a server each time it is called, after a wait with full jitter where a
 * connection was lost or refused before. It rejects only where asking again cannot help. */
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
    /** HTTP status, 0 where there was no usable answer. */
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
  /** Its id: ours, until a gateway gives another one. */
  sid = randomId();
  /** The URL without keys of the SDK. */
  url: string;
  readonly #options: NegotiatorOptions | undefined;
  readonly #backoff = new Backoff();
  /** What a gateway named it, to be said from then on. */
  #named: string | undefined;
  #ticket: string | undefined;
  #avoid: string[] = [];
  #cause: Cause = "start";
  /** Its sockets are ours and tell how they fare. */
  watched = false;
  #assigned = 0;
  /** An assignment that came in the URL: good once. */
  #given: string | undefined;
  /** When the gateway wants to be asked again. */
  #later: Later | undefined;

  /** With options: asks the gateway of this URL. Without: dials the URL itself each time. */
  constructor(url: string, options?: NegotiatorOptions) {
    this.url = withoutKeys(url);
    this.#given = keyOf(url, "_ek");
    this.#options = options;
  }

  /** Whether it asks a gateway. */
  get negotiates(): boolean {
    return this.#options !== undefined;
  }

  /** Waits as long as is due after what its sockets met; not at all before the first. */
  async wait(): Promise<void> {
    if (!this.#assigned) return;
    const later = this.#later;
    this.#later = undefined;
    // Of sockets that are not ours nobody tells; one assigned so long ago was open.
    if (!this.watched && Date.now() - this.#assigned > CONNECT_MS + MIN_UPTIME_MS) this.#backoff.lived(MIN_UPTIME_MS);
    await sleep(later ? this.#backoff.waitAsTold(later) : this.#backoff.wait(), this.#backoff);
  }

  /** Where to dial, after the wait that is due. Asks again while that can help. */
  async next(): Promise<Assignment> {
    for (;;) {
      await this.wait();
      try {
        return await this.assign("start");
      } catch (error) {
        if (!(error instanceof NegotiateError) || !error.isPassing) throw error;
      }
    }
  }

  /** Where to dial now. Rejects with a {@link NegotiateError}. */
  async assign(cause: Cause, ticket?: string, signal?: AbortSignal): Promise<Assignment> {
    this.#assigned = Date.now();
    if (!this.#options) {
      const _ek = this.#given;
      this.#given = undefined;
      return { urls: [withKeys(this.url, { _ek })], connectMs: CONNECT_MS };
    }
    const page = new URL(this.url);
    const question = {
      v: 1,
      path: page.pathname + page.search,
      caps: ["move"],
      cause: cause === "start" ? this.#cause : cause,
      sid: this.#named,
      ticket: ticket ?? this.#ticket,
      avoid: this.#avoid,
      key: this.#options.key,
    };
    let at = page.origin.replace(/^ws/, "http") + PATH;
    for (let hop = 0; hop < HOPS_MAX; hop++) {
      const answer = await ask(at, question, this.#options.request, signal).catch((error: NegotiateError) => {
        // With nobody left but those that refused, they are better than none.
        this.#avoid = [];
        this.#later = cause === "move" ? undefined : error.later;
        throw error;
      });
      if (typeof answer.negotiate !== "string") return this.#read(answer);
      at = this.#allowed(answer.negotiate);
    }
    throw new NegotiateError("too_many_hops", 0);
  }

  /** A socket of the session is open. */
  opened(): void {
    this.#cause = "lost";
    this.#avoid = [];
  }

  /** A socket to this URL did not open. */
  refused(url: string): void {
    const { aud } = claimsOf(keyOf(url, "_ek"));
    if (typeof aud !== "string") return;
    const server = aud.slice(0, aud.lastIndexOf("#"));
    this.#cause = "refused";
    this.#avoid = [server, ...this.#avoid.filter((other) => other !== server)].slice(0, AVOID_MAX);
  }

  /** A socket that was open is no more. */
  ended(uptimeMs: number): void {
    this.#backoff.lived(uptimeMs);
    this.#cause = "lost";
  }

  #read(answer: Record<string, unknown>): Assignment {
    const alt = Array.isArray(answer.alt) ? answer.alt : [];
    const found = [answer.url, ...alt.map((other) => (other as { url?: unknown } | null)?.url), answer.proxy];
    const urls = found.filter((url) => typeof url === "string").map((url) => this.#allowed(url));
    if (urls.length === 0) throw new NegotiateError("bad_answer", 0);
    if (typeof answer.sid === "string") this.sid = this.#named = answer.sid;
    if (typeof answer.ticket === "string") this.#ticket = answer.ticket;
    const { base_ms, cap_ms } = (answer.retry ?? {}) as Record<string, unknown>;
    const retry = isTime(base_ms) && isTime(cap_ms) ? { base_ms, cap_ms } : undefined;
    if (retry) this.#backoff.range(retry.base_ms, retry.cap_ms);
    const connectMs = isTime(answer.connect_ms) && answer.connect_ms > 0 ? answer.connect_ms : CONNECT_MS;
    return { urls, connectMs, ...(retry && { retry }) };
  }

  /** The URL if it may be dialled or asked: an allowed host, and never without TLS where the gateway has it. */
  #allowed(url: string): string {
    let to: URL | undefined;
    try {
      to = new URL(url);
    } catch {}
    const secure = /^(https|wss):/.test(this.url);
    const fits = to && (secure ? /^(https|wss):$/ : /^(https?|wss?):$/).test(to.protocol) && !to.username;
    const hosts = this.#options?.allowedHosts;
    const named = (host: string) =>
      host.startsWith("*.") ? to?.host.endsWith(host.slice(1)) : to?.host === host.toLowerCase();
    if (!fits || (hosts && !hosts.some(named))) throw new NegotiateError("forbidden_host", 403);
    return url;
  }
}

/** One question; its answer. */
async function ask(
  at: string,
  question: object,
  request: NegotiatorOptions["request"] = {},
  signal?: AbortSignal,
): Promise<Record<string, unknown>> {
  const headers = new Headers(request.headers);
  headers.set("content-type", "application/json");
  const stop = new AbortController();
  const abort = () => stop.abort();
  const timer = setTimeout(abort, ASK_MS);
  signal?.addEventListener("abort", abort);
  try {
    if (signal?.aborted) abort();
    const body = JSON.stringify(question);
    const response = await fetch(at, { ...request, method: "POST", headers, body, cache: "no-store", signal: stop.signal });
    const answer = parseObject(await response.text());
    if (!response.ok) throw refusal(response.status, answer ?? {});
    if (answer) return answer;
  } catch (error) {
    throw error instanceof NegotiateError ? error : new NegotiateError("unreachable", 0);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  }
  throw new NegotiateError("bad_answer", 0);
}

function refusal(status: number, answer: Record<string, unknown>): NegotiateError {
  const { wait_ms, window_ms } = (answer.retry ?? {}) as Record<string, unknown>;
  const later = isTime(wait_ms) ? { wait_ms, window_ms: isTime(window_ms) ? window_ms : 0 } : undefined;
  return new NegotiateError(typeof answer.why === "string" ? answer.why : "refused", status, later);
}

/** Assignments that a negotiator gave out and no socket took yet, so that a socket which is handed nothing but the URL
 * (by partysocket, say) finds its session. Bounded: the oldest is forgotten, its socket then moves through the URL. */
const issued = new Map<string, { session: Session; assignment: Assignment }>();
const ISSUED_MAX = 64;

/** A {@link Negotiator} for the gateway route at `url`, for example `"https://ws.example.com/chat?room=7"`. */
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

/** The assignment behind a URL that a negotiator gave out, once. */
export function issuedFor(url: string): { session: Session; assignment: Assignment } | undefined {
  const found = issued.get(url);
  issued.delete(url);
  return found;
}

function isTime(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(value) && value >= 0;
}
