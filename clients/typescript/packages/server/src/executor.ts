/**
 * Decides how many connections of one server leave now: the paced end of an order.
 *
 * In: [`Desired`] orders, the count held, `now` in milliseconds. Out: [`Closes`] (how many, which, why) and whom to
 * admit. Invariants: an older order never takes effect; repeating one changes nothing but its lease; never below the
 * target; in any window at most pace · window and a tenth; nothing leaves after the lease. This is the executor of the
 * Rust SDK. Elsewhere: which connections exactly (`registry`), how they leave (`connection`).
 */
import type { Desired, Select } from "./message.js";

/** Whom a server admits. */
export type Admit = "open" | "cordoned" | "draining";

/** Connections that are to leave now. */
export interface Closes {
  /** At most so many, at least 1. */
  count: number;
  select: Select;
  /** Younger ones stay. */
  minAgeMs: number;
  /** The deadline passed: moves under way are ended as well. */
  overdue: boolean;
  /** What to tell the client. */
  reason: "ek:rebalance" | "ek:shed" | "ek:draining" | "ek:stopped";
}

/** Report intervals for which rebalancing leaves a young connection alone: a minute at the default interval. */
const MIN_AGE_REPORTS = 60;
/** Longest time whose closes may be made up for: a timer of a busy machine comes some tenths of a second late. */
const OWED_MS = 500;
/** What receivers see is bounded over this time, by the pace and a tenth more. */
const WINDOW_MS = 2_000;
const WINDOW_SLACK = 1.1;
/** Closes of a fast pace are bundled to one wake-up in so long. */
const WAKE_MS = 50;
/** Where fewer were chosen than asked for, the next try waits a quarter of a report interval. */
const RETRIES_A_REPORT = 4;
/** Slack for the rounding of pace · time. */
const EPSILON = 1e-6;

export class Executor {
  #reportMs: number;
  #order: { desired: Desired; leaseUntil: number; deadline: number | undefined } | undefined;
  /** Closes that the pace allows by now and that did not happen. */
  #tokens = 0;
  /** Up to where they are counted. */
  #filled: number;
  /** There was nothing to close when last asked: time that passes so owes nothing. */
  #idle = false;
  #recent: { at: number; count: number }[] = [];
  #retry: number;

  constructor(reportMs: number, now: number) {
    this.#reportMs = reportMs;
    this.#filled = now;
    this.#retry = now;
  }

  reportEach(ms: number): void {
    this.#reportMs = ms;
  }

  /** Takes an order and renews its lease; false if a higher one was taken before. */
  take(desired: Desired, now: number): boolean {
    const held = this.desired;
    if (held && compare(desired, held) < 0) return false;
    this.#fill(now);
    if (!held || compare(desired, held) > 0) this.#retry = now;
    const deadline = desired.deadline_ms === undefined ? undefined : now + desired.deadline_ms;
    this.#order = { desired, leaseUntil: now + desired.lease_ms, deadline };
    this.#fill(now);
    return true;
  }

  /** The order in force, also after its lease. */
  get desired(): Desired | undefined {
    return this.#order?.desired;
  }

  get admit(): Admit {
    const state = this.desired?.state ?? "active";
    return state === "active" ? "open" : state === "cordoned" ? "cordoned" : "draining";
  }

  /** The connections that are to leave now, of `held` that are not leaving yet. The caller says with `chosen` how many
   * it found; without that the same are due again. */
  due(held: number, now: number): Closes | undefined {
    this.#fill(now);
    while (this.#recent[0] && now - this.#recent[0].at >= WINDOW_MS) this.#recent.shift();
    const order = this.#order;
    if (!order) return undefined;
    const excess = Math.max(0, held - order.desired.target);
    this.#idle = excess === 0;
    const pace = now <= order.leaseUntil ? order.desired.moves_per_s : 0;
    if (now < this.#retry || pace === 0) return undefined;
    const count = Math.min(Math.floor(this.#tokens + EPSILON), excess, this.#room(pace));
    return count > 0 ? this.#closes(count, now) : undefined;
  }

  /** Says how many of the connections that were due were chosen. */
  chosen(asked: number, chosen: number, now: number): void {
    this.#tokens = Math.max(0, this.#tokens - chosen);
    if (chosen > 0) this.#recent.push({ at: now, count: chosen });
    // The rest is too young, held by somebody else or just gone.
    if (chosen < asked) this.#retry = now + this.#reportMs / RETRIES_A_REPORT;
  }

  /** When to ask `due` next for a server that holds `held`; undefined: only after the next order or another count. */
  pollTimeout(held: number): number | undefined {
    const order = this.#order;
    if (!order) return undefined;
    const excess = held - order.desired.target;
    const pace = order.desired.moves_per_s;
    if (excess <= 0 || pace === 0) return undefined;
    const bundle = Math.min(Math.max(1, Math.floor((pace * WAKE_MS) / 1000)), excess);
    const wait = Math.max(0, ((bundle - this.#tokens) / pace) * 1000);
    let at = Math.max(this.#filled + wait, this.#retry);
    if (this.#room(pace) === 0 && this.#recent[0]) at = Math.max(at, this.#recent[0].at + WINDOW_MS);
    return at <= order.leaseUntil ? at : undefined;
  }

  #closes(count: number, now: number): Closes {
    const { desired, deadline } = this.#order as { desired: Desired; deadline: number | undefined };
    const leaves = this.admit === "draining";
    // A server that stays has a deadline only where an operator ordered it to shed; rebalancing has none.
    const ordered = desired.deadline_ms !== undefined;
    const reason =
      desired.state === "draining" || desired.state === "stopped"
        ? (`ek:${desired.state}` as const)
        : desired.state === "active" && !ordered
          ? "ek:rebalance"
          : "ek:shed";
    return {
      count,
      select: desired.select,
      minAgeMs: leaves || ordered ? 0 : this.#reportMs * MIN_AGE_REPORTS,
      overdue: leaves && deadline !== undefined && now >= deadline,
      reason,
    };
  }

  /** Closes that the window has room for: whole ones, so that a pace below one in two seconds closes too. */
  #room(pace: number): number {
    const most = Math.ceil(((pace * WINDOW_MS) / 1000) * WINDOW_SLACK);
    return Math.max(0, most - this.#recent.reduce((sum, { count }) => sum + count, 0));
  }

  /** Counts the tokens up to `now`; time after the lease adds none. */
  #fill(now: number): void {
    if (this.#order) {
      const pace = this.#order.desired.moves_per_s;
      // One more, or a pace below one in that time would lose what passes between two closes.
      const most = this.#idle ? 1 : 1 + (pace * OWED_MS) / 1000;
      const until = Math.min(now, this.#order.leaseUntil);
      this.#tokens = Math.min(most, this.#tokens + (pace * Math.max(0, until - this.#filled)) / 1000);
    }
    this.#filled = Math.max(this.#filled, now);
  }
}

/** By epoch, then generation. */
function compare(a: Desired, b: Desired): number {
  return a.epoch - b.epoch || a.gen - b.gen;
}
