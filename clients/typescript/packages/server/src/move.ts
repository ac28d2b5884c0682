/**
 * The machine of one connection at a server: sends its client away when told to, or parks one that came and takes its
 * session over.
 *
 * In: [`Input`] (what the client sent, what the application and the agent want) and `now` in milliseconds. Out:
 * [`Output`]s, to be performed in order, and `pollTimeout`. Invariants: everything the client sent before `cut` is
 * delivered before `detach`; everything the application sent before it handed over is sent before `done`; a state is
 * taken at most once; the application hears of a parked connection only by `attach`; each session ends with exactly one
 * of `detach` and `gone`. This is the machine of the Rust SDK and passes the same vectors (docs/reference/move.md), so
 * it keeps that one's shape. Elsewhere: making tickets, sealing and opening states (`credentials`), whom to order away
 * and when (`executor`).
 */
import { encode, parse, type Frame } from "../../client/src/frame.js";

/** Longest wait for the other end in one step. */
export const STEP_MS = 5_000;
/** Longest time an application takes to hand over its state. The client holds its messages back meanwhile. */
export const DETACH_MS = 2_000;
/** How long a parked connection is kept that is not resumed. */
const PARKED_MS = 10_000;

/** A notice: its client is to go elsewhere within `by_ms`. */
export interface Notice {
  mid: string;
  ticket: string;
  by_ms: number;
  why: string;
}

/** How an ordered move ended: the client took the state with it; it stays; no `cut` came in time, which is no refusal;
 * it knows no moves, or one is under way; the application did not hand over in time; the connection ended. */
export type Settled =
  | { how: "moved" | "lapsed" | "not_sent" | "overdue" | "gone" }
  | { how: "refused"; why: string; retry_ms?: number };

export type Input<M> =
  | { is: "received"; message: M }
  | { is: "closed" }
  | { is: "send"; message: M }
  | { is: "order"; notice: Notice }
  | { is: "detached"; mid: string; state: string }
  | { is: "attached" }
  | { is: "not_attached" }
  | { is: "drain" }
  | { is: "close"; code: number; reason: string }
  | { is: "time" };

export type Output<M> =
  | { do: "say"; text: string }
  | { do: "send"; message: M }
  | { do: "close"; code: number; reason: string }
  | { do: "deliver"; message: M }
  | { do: "detach"; mid: string; at: string }
  | { do: "attach"; sid: string; mid: string; state: string }
  | { do: "gone" }
  | { do: "unsent"; message: M }
  | ({ do: "settled"; mid: string } & Settled);

/** What a connection's URL says of it, and what may be held back while the application takes over. */
export interface Arrival<M> {
  /** `_ekm`; without one the client knows no moves and is never told of them. */
  ctl: string | undefined;
  /** It comes to park: the session it was admitted for (of its assignment, without one `_eks`), and what `parked` says:
   * for whom the state is to be sealed. */
  park: { sid: string; at: string } | undefined;
  messagesMax: number;
  bytesMax: number;
  size: (message: M) => number;
}

type Phase =
  /** Owns the session; `open` is the notice that was sent and not answered. */
  | { at: "serving"; open: { mid: string; by: number } | undefined }
  /** `cut` came, the application hands over. */
  | { at: "detaching"; mid: string; until: number }
  /** Came to park and has not said so. */
  | { at: "awaiting"; sid: string; name: string; until: number }
  /** Said `park`, calling the session by a name of its own: a client that did not negotiate made one up. */
  | { at: "parked"; sid: string; said: string; mid: string; since: number; until: number }
  /** Said `resume`, the application takes over. */
  | { at: "attaching"; mid: string; until: number }
  /** Closed from here; the application hears of its end where it owned it. */
  | { at: "closing"; owned: boolean }
  | { at: "ended" };

export class Session<M> {
  readonly #arrival: Arrival<M>;
  #phase: Phase;
  #held: M[] = [];
  #bytes = 0;
  #outputs: Output<M>[] = [];
  #now: number;

  /** A connection whose handshake is done. */
  constructor(arrival: Arrival<M>, now: number) {
    this.#arrival = arrival;
    this.#now = now;
    const { park } = arrival;
    this.#phase = park
      ? { at: "awaiting", sid: park.sid, name: park.at, until: now + STEP_MS }
      : { at: "serving", open: undefined };
  }

  /** Takes one input, firing what is due first; what to do about it. */
  handle(input: Input<M>, now: number): Output<M>[] {
    this.#now = now;
    this.#due();
    this.#take(input);
    const outputs = this.#outputs;
    this.#outputs = [];
    return outputs;
  }

  /** When to hand `time` in at the latest. */
  pollTimeout(): number | undefined {
    const phase = this.#phase;
    if (phase.at === "serving") return phase.open?.by;
    return "until" in phase ? phase.until : undefined;
  }

  /** Whether its client could be ordered away now. */
  get isMovable(): boolean {
    return this.#arrival.ctl !== undefined && this.#phase.at === "serving" && !this.#phase.open;
  }

  /** Whether what the application sends now is held back. */
  get holds(): boolean {
    return this.#phase.at === "attaching";
  }

  /** Whether it came to park and did not resume: nothing of an application. */
  get isParked(): boolean {
    return this.#phase.at === "awaiting" || this.#phase.at === "parked";
  }

  #take(input: Input<M>): void {
    switch (input.is) {
      case "received":
        return this.#received(input.message);
      case "closed":
        return this.#closed();
      case "send":
        return this.#send(input.message);
      case "order":
        return this.#order(input.notice);
      case "detached":
        return this.#detached(input.mid, input.state);
      case "attached":
        return this.#attached();
      case "not_attached":
        return this.#notAttached();
      case "drain":
        return this.#drain();
      case "close":
        return this.#close(input.code, input.reason);
      case "time":
    }
  }

  #due(): void {
    const until = this.pollTimeout();
    if (until === undefined || this.#now < until) return;
    const phase = this.#phase;
    if (phase.at === "serving" && phase.open) {
      const { mid } = phase.open;
      phase.open = undefined;
      this.#settle(mid, { how: "lapsed" });
    } else if (phase.at === "awaiting") {
      this.#breakOff();
    } else {
      this.#close(1012, "ek:timed_out", phase.at === "detaching" ? "overdue" : "gone");
    }
  }

  #received(message: M): void {
    const { ctl } = this.#arrival;
    const frame = ctl === undefined ? undefined : parse(ctl, message);
    switch (this.#phase.at) {
      case "serving":
        if (!frame) this.#outputs.push({ do: "deliver", message });
        else if (frame.op === "cut") this.#cut(this.#phase, frame.mid, frame.at);
        else if (frame.op === "nak") this.#refused(this.#phase, frame);
        else if (frame.op === "unknown") this.#unsupported(frame.mid);
        return;
      case "awaiting":
      case "parked":
      case "attaching":
        if (frame?.op === "park") this.#park(frame.sid, frame.mid);
        else if (frame?.op === "resume") this.#resume(frame.sid, frame.mid, frame.state);
        else if (frame?.op === "unknown") this.#unsupported(frame.mid);
        else if (frame?.op !== "nak") this.#breakOff();
        return;
      default:
      // Nothing follows a `cut`, and nothing is heard after our close.
    }
  }

  #say(frame: Frame): void {
    const { ctl } = this.#arrival;
    if (ctl !== undefined) this.#outputs.push({ do: "say", text: encode(ctl, frame) });
  }

  #unsupported(mid: string | undefined): void {
    this.#say({ op: "nak", ...(mid !== undefined && { mid }), why: "unsupported" });
  }

  #settle(mid: string, settled: Settled): void {
    this.#outputs.push({ do: "settled", mid, ...settled });
  }

  #order({ mid, ticket, by_ms, why }: Notice): void {
    const phase = this.#phase;
    if (!this.isMovable || phase.at !== "serving") return this.#settle(mid, { how: "not_sent" });
    phase.open = { mid, by: this.#now + by_ms };
    this.#say({ op: "move", mid, ticket, by_ms, why });
  }

  #refused(phase: Extract<Phase, { at: "serving" }>, nak: Extract<Frame, { op: "nak" }>): void {
    if (!phase.open || nak.mid !== phase.open.mid) return;
    phase.open = undefined;
    const retry = nak.retry_ms === undefined ? {} : { retry_ms: nak.retry_ms };
    this.#settle(nak.mid, { how: "refused", why: nak.why, ...retry });
  }

  #cut(phase: Extract<Phase, { at: "serving" }>, mid: string, at: string): void {
    if (phase.open?.mid !== mid) return this.#say({ op: "nak", mid, why: "expired" });
    this.#phase = { at: "detaching", mid, until: this.#now + DETACH_MS };
    this.#outputs.push({ do: "detach", mid, at });
  }

  #detached(mid: string, state: string): void {
    // Too late: the client was told that there is no state.
    if (this.#phase.at !== "detaching" || this.#phase.mid !== mid) return;
    this.#say({ op: "done", mid, state });
    this.#close(1012, "ek:moved", "moved");
  }

  #park(said: string, mid: string): void {
    const phase = this.#phase;
    if (phase.at !== "awaiting") return this.#breakOff();
    this.#phase = { at: "parked", sid: phase.sid, said, mid, since: this.#now, until: this.#now + PARKED_MS };
    this.#say({ op: "parked", mid, at: phase.name });
  }

  #resume(said: string, mid: string, state: string): void {
    const phase = this.#phase;
    if (phase.at !== "parked" || phase.said !== said || phase.mid !== mid) return this.#breakOff();
    this.#phase = { at: "attaching", mid, until: this.#now + STEP_MS };
    this.#outputs.push({ do: "attach", sid: phase.sid, mid, state });
  }

  /** The client says what it may not say here. */
  #breakOff(): void {
    this.#close(1002, "ek:unexpected");
  }

  #attached(): void {
    const phase = this.#phase;
    if (phase.at === "attaching") {
      this.#phase = { at: "serving", open: undefined };
      this.#say({ op: "resumed", mid: phase.mid });
      for (const message of this.#takeHeld()) this.#outputs.push({ do: "send", message });
    } else if (phase.at === "closing" || phase.at === "ended") {
      // The connection ended while the application took over.
      this.#giveBack();
      this.#outputs.push({ do: "gone" });
    }
  }

  #notAttached(): void {
    if (this.#phase.at === "attaching") {
      this.#say({ op: "nak", mid: this.#phase.mid, why: "refused" });
      this.#close(1008, "ek:forbidden");
    }
    this.#giveBack();
  }

  #send(message: M): void {
    const { at } = this.#phase;
    if (at === "serving" || at === "detaching") {
      this.#outputs.push({ do: "send", message });
      return;
    }
    const { messagesMax, bytesMax, size } = this.#arrival;
    const bytes = this.#bytes + size(message);
    if (at !== "attaching" || this.#held.length >= messagesMax || bytes > bytesMax) {
      this.#outputs.push({ do: "unsent", message });
      return;
    }
    this.#bytes = bytes;
    this.#held.push(message);
  }

  #takeHeld(): M[] {
    const held = this.#held;
    this.#held = [];
    this.#bytes = 0;
    return held;
  }

  #giveBack(): void {
    for (const message of this.#takeHeld()) this.#outputs.push({ do: "unsent", message });
  }

  /** A parked client whose old server may be handing over is waited for as long as that takes; one that has not parked
   * yet is not. */
  #drain(): void {
    const phase = this.#phase;
    if (phase.at === "awaiting") this.#close(1012, "ek:draining");
    if (phase.at !== "parked") return;
    phase.until = Math.min(phase.until, phase.since + STEP_MS);
    this.#due();
  }

  #close(code: number, reason: string, how: "moved" | "overdue" | "gone" = "gone"): void {
    const { at } = this.#phase;
    if (at === "closing" || at === "ended") return;
    this.#outputs.push({ do: "close", code, reason });
    this.#finishMove(how);
    this.#phase = { at: "closing", owned: at === "serving" };
  }

  #closed(): void {
    const phase = this.#phase;
    const gone = phase.at === "serving" || (phase.at === "closing" && phase.owned);
    this.#finishMove("gone");
    this.#phase = { at: "ended" };
    if (gone) this.#outputs.push({ do: "gone" });
  }

  #finishMove(how: "moved" | "overdue" | "gone"): void {
    const phase = this.#phase;
    if (phase.at === "detaching") this.#settle(phase.mid, { how });
    if (phase.at === "serving" && phase.open) this.#settle(phase.open.mid, { how });
  }
}
