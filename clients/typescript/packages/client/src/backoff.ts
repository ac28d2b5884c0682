/**
 * How long to wait before the next attempt: full jitter, and what a server says of when to come back.
 *
 * In: how long connections lived, a server's wishes, random numbers. Out: waits in milliseconds. Invariants: without a
 * word from a server a wait is even over 0 to min(cap, base · 2ⁿ); with one it lies within the window the server gave;
 * only a connection that lived counts as success. Elsewhere: timers (`network`), when to dial (`session`).
 */

/** A connection that lived so long was a success: the next wait is a first one. One that the server closes at once
 * must not be dialled at full speed for ever. */
export const MIN_UPTIME_MS = 5_000;

/** First and longest range of waits until an assignment says otherwise. */
const BASE_MS = 500;
const CAP_MS = 20_000;

/** Longest wait that a server may ask for: an hour. A slip there must not strand a client for a day. */
const LATER_MAX_MS = 3_600_000;

/** What a refusal says: come back after `wait_ms`, at a random moment within `window_ms`. */
export interface Later {
  wait_ms: number;
  window_ms: number;
}

export class Backoff {
  #attempt = 0;
  #base = BASE_MS;
  #cap = CAP_MS;
  readonly #random: () => number;

  constructor(random: () => number = Math.random) {
    this.#random = random;
  }

  /** The longest wait by our own rule. */
  get cap(): number {
    return this.#cap;
  }

  /** Takes the range an assignment named (`retry`), at least a millisecond and with the cap not below the base. */
  range(base: number, cap: number): void {
    this.#base = Math.max(1, base);
    this.#cap = Math.max(cap, this.#base);
  }

  /** Says how long the connection that just ended had lived. */
  lived(ms: number): void {
    if (ms >= MIN_UPTIME_MS) this.#attempt = 0;
  }

  /** The next wait by our own rule. */
  wait(): number {
    const range = Math.min(this.#cap, this.#base * 2 ** Math.min(this.#attempt, 20));
    this.#attempt += 1;
    return this.#random() * range;
  }

  /** The next wait as a server wants it; by our own rule where it names no time at all, because a mistake there must
   * not make clients dial without a pause. */
  waitAsTold({ wait_ms, window_ms }: Later): number {
    if (wait_ms <= 0 && window_ms <= 0) return this.wait();
    const bounded = (ms: number) => Math.min(Math.max(0, ms), LATER_MAX_MS);
    return bounded(wait_ms) + this.#random() * bounded(window_ms);
  }

  /** A soon wait that does not count as an attempt: the network came back. */
  soon(): number {
    return this.#random() * this.#base;
  }
}
