/**
 * Knows every connection of this server: how many there are, which leave first, and whom to admit.
 *
 * In: handshakes that arrive, connections that open and end, orders to have so many leave. Out: counts and the chosen.
 * Invariants: a connection is counted from when the application has it to when its socket is closed; one that leaves is
 * chosen once, unless it stays after all. Elsewhere: how many and when (`executor`), how (`server`).
 */
import type { Held } from "./agent.js";
import type { Admit, Closes } from "./executor.js";

/** What may leave. `M` is whatever the caller knows of it. */
export interface Entry<M> {
  readonly member: M;
  /** Since when, last message, bytes passed. */
  readonly opened: number;
  touched: number;
  bytes: number;
  leaving: boolean;
  /** Could not go: not to be asked again before. */
  again: number;
  /** Left alone by a rebalance until then. */
  spared: number;
}

export class Registry<M> {
  readonly #entries = new Map<M, Entry<M>>();
  readonly #totals = { accepted: 0, closed: 0, closedAbnormal: 0, refused: 0 };
  #arriving = 0;
  #leaving = 0;
  /** As ordered; outranked for good when the application leaves by itself. */
  admit: Admit = "open";
  #left = false;

  /** Whether handshakes are answered with 503. */
  get isClosed(): Admit | undefined {
    if (this.#left) return "draining";
    return this.admit === "open" ? undefined : this.admit;
  }

  /** From now on admits nobody, whatever is ordered. */
  leave(): void {
    this.#left = true;
  }

  /** A handshake that is let in becomes a connection (`open`) or comes to nothing (`turnBack`). */
  arrive(): void {
    this.#arriving += 1;
  }

  turnBack(): void {
    this.#arriving -= 1;
  }

  refuse(): void {
    this.#totals.refused += 1;
  }

  open(member: M, now: number): void {
    this.#entries.set(member, { member, opened: now, touched: now, bytes: 0, leaving: false, again: 0, spared: 0 });
    this.#totals.accepted += 1;
  }

  touch(member: M, bytes: number, now: number): void {
    const entry = this.#entries.get(member);
    if (!entry) return;
    entry.touched = now;
    entry.bytes += bytes;
  }

  end(member: M, abnormal: boolean): void {
    const entry = this.#entries.get(member);
    if (!entry) return;
    this.#entries.delete(member);
    if (entry.leaving) this.#leaving -= 1;
    this.#totals.closed += 1;
    if (abnormal) this.#totals.closedAbnormal += 1;
  }

  /** It stays after all: not to be asked again before, nor bothered by a rebalance. */
  stay(member: M, again: number, spared: number): void {
    const entry = this.#entries.get(member);
    if (!entry?.leaving) return;
    Object.assign(entry, { leaving: false, again, spared });
    this.#leaving -= 1;
  }

  /** Those that may leave, in the order of `select`, at most so many; they are leaving from now on. */
  choose({ count, select, minAgeMs, overdue, reason }: Closes, now: number): M[] {
    const fits = ({ leaving, opened, again, spared }: Entry<M>) =>
      !leaving && now - opened >= minAgeMs && (overdue || now >= again) && (reason !== "ek:rebalance" || now >= spared);
    const rank = (entry: Entry<M>) =>
      ({
        idle: () => entry.touched,
        newest: () => -entry.opened,
        oldest: () => entry.opened,
        random: () => Math.random(),
        heaviest: () => -entry.bytes,
      })[select]();
    const candidates = [...this.#entries.values()].filter(fits).map((entry) => ({ entry, rank: rank(entry) }));
    candidates.sort((a, b) => a.rank - b.rank);
    const chosen = candidates.slice(0, count).map(({ entry }) => entry);
    for (const entry of chosen) entry.leaving = true;
    this.#leaving += chosen.length;
    return chosen.map(({ member }) => member);
  }

  get connections(): number {
    return this.#entries.size;
  }

  /** The counts as they are now. */
  held(isMovable: (member: M) => boolean): Held {
    let movable = 0;
    for (const { member, leaving } of this.#entries.values()) if (!leaving && isMovable(member)) movable += 1;
    return {
      connections: this.#entries.size,
      leaving: this.#leaving,
      arriving: this.#arriving,
      movable,
      totals: { ...this.#totals },
    };
  }
}
