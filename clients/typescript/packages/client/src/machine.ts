/**
 * The machine of one client session: dials, comes back when the connection is lost, and moves when it is told to.
 *
 * In: [`Input`] (what happened to its sockets, what the application wants), `now` in milliseconds and a chance from 0 to
 * below 1. Out: [`Output`]s, to be performed in order, and `pollTimeout`. Invariants: at most two sockets; the
 * application hears of one only while it owns the session; in a dialogue the old socket is never closed from here,
 * because a browser drops what arrives after its own close; what is held back leaves in order, once, or is given back.
 * This is the machine of the Rust client, field by field, and passes the same vectors (docs/reference/move.md), so it
 * keeps that one's shape: a class with a state. Elsewhere: sockets, ctl (`socket`), negotiating (`session`), waits
 * (`backoff`), texts (`frame`).
 */
import { Backoff, type Later } from "./backoff.js";
import { encode, parse, type Frame, type Unknown } from "./frame.js";

/** Longest wait for the other end in one step. Several round trips even on bad paths; a larger value holds back
 * messages of an application for longer when a server froze. */
export const STEP_MS = 5_000;
/** A dial that neither opened nor failed by then has failed: negotiate, name resolution, TCP, TLS, handshake. */
export const DIAL_MS = 10_000;
/** A closing handshake that is not through by then is over. */
const CLOSE_MS = 5_000;
/** What a connection that broke without a Close frame ends with (RFC 6455 §7.1.5). */
const ABNORMAL = 1006;

/** Why a client asks where to go. */
export type Cause = "start" | "lost" | "refused" | "move";
export type GapReason = "lost" | "no_done" | "no_resumed" | "no_dialogue";
export type StayReason = "unreachable" | "lapsed" | "refused" | "closed";
export type UnsentReason = "full" | "closed";

/** How a dial failed: nobody could be asked; the assigned server did not admit; refused for lack of room. */
export type Failure = "no_answer" | "handshake" | { no_credit: Later };

/** What a mover takes in. What is said of a socket that it has given up is ignored. */
export type Input<M> =
  | { is: "start" }
  | { is: "opened"; socket: number; ctl: string; sid: string }
  | { is: "failed"; socket: number; failure: Failure }
  | { is: "received"; socket: number; message: M }
  | { is: "closed"; socket: number; code: number; reason: string }
  | { is: "send"; message: M }
  | { is: "close"; code: number; reason: string }
  | { is: "offline" }
  | { is: "online" }
  | { is: "retry"; base_ms: number; cap_ms: number }
  | { is: "time" };

/** What a mover gives out. Nothing more is heard from a socket after `close`, but where the application closed. */
export type Output<M> =
  | { do: "dial"; socket: number; cause: Cause; ticket?: string; park: boolean }
  | { do: "say"; socket: number; text: string }
  | { do: "send"; socket: number; message: M }
  | { do: "close"; socket: number; code: number; reason: string }
  | { do: "open"; again: boolean }
  | { do: "deliver"; message: M }
  | { do: "moving"; mid: string; why: string }
  | { do: "moved"; mid: string; pauseMs: number }
  | { do: "stayed"; mid: string; why: StayReason }
  | { do: "lost"; code: number; reason: string }
  | { do: "gap"; why: GapReason }
  | { do: "unsent"; message: M; why: UnsentReason }
  | { do: "closed"; code: number; reason: string };

/** What a mover is told once. */
export interface Config<M> {
  /** What becomes of a lost session: dialled again, or over for a caller that dials by itself. */
  onLoss: "redial" | "end";
  /** How much may be held back: messages and bytes. */
  messagesMax: number;
  bytesMax: number;
  /** Bytes of a message. */
  size: (message: M) => number;
}

type Phase =
  | { at: "idle" }
  | { at: "ended" }
  /** Waits to dial; without network for as long as that lasts. */
  | { at: "waiting"; cause: Cause; until: number | undefined }
  | { at: "dialling"; cause: Cause; socket: number; until: number }
  | Line
  | { at: "closing"; socket: number; until: number };

/** The connection that owns the session, up without a loss since then, moves included. */
type Line = { at: "open"; socket: number; ctl: string; sid: string; since: number; moving: Move | undefined };

/** A move under way: no `cut` after `by`, the step has to end by `until`. `socket` and `ctl` are the new one's: the
 * socket is absent once it is gone (in `cutting`), the ctl until it is open. */
interface Move {
  mid: string;
  by: number;
  park: boolean;
  step: "dialling" | "parking" | "cutting" | "resuming";
  socket: number | undefined;
  ctl: string;
  until: number;
  /** When `cut` was said. */
  cut: number;
}

const isCut = (move: Move | undefined) => move?.step === "cutting" || move?.step === "resuming";

/** Whether coming back does not help: the server said goodbye, or cannot speak with this client. A close of ours
 * always means to come back. */
export const isFinal = (code: number, reason: string) =>
  !reason.startsWith("ek:") && [1000, 1002, 1003, 1007, 1008, 1009, 1010].includes(code);

export class Mover<M> {
  readonly #config: Config<M>;
  readonly #backoff = new Backoff(() => this.#chance);
  #phase: Phase = { at: "idle" };
  #held: M[] = [];
  #bytes = 0;
  #next = 0;
  #online = true;
  #again = false;
  /** The application wants to end the session as soon as nothing is held back. */
  #goodbye: { code: number; reason: string } | undefined;
  /** The old socket after `done`: its server closes it, unless it died meanwhile. */
  #leaving: { socket: number; until: number } | undefined;
  #outputs: Output<M>[] = [];
  #now = 0;
  #chance = 0;

  constructor(config: Config<M>) {
    this.#config = config;
  }

  /** Takes one input, firing what is due first; what to do about it. */
  handle(input: Input<M>, now: number, chance: number): Output<M>[] {
    this.#now = now;
    this.#chance = chance;
    this.#due();
    this.#take(input);
    const outputs = this.#outputs;
    this.#outputs = [];
    return outputs;
  }

  /** When to hand `time` in at the latest. */
  pollTimeout(): number | undefined {
    const phase = this.#phase;
    let until: number | undefined;
    if (phase.at === "open") until = phase.moving && moveUntil(phase.moving);
    else if (phase.at !== "idle" && phase.at !== "ended") until = phase.until;
    const leaving = this.#leaving?.until;
    return until === undefined ? leaving : leaving === undefined ? until : Math.min(until, leaving);
  }

  /** Bytes held back. */
  get held(): number {
    return this.#bytes;
  }

  /** The socket that owns the session. */
  get owner(): number | undefined {
    return this.#phase.at === "open" || this.#phase.at === "closing" ? this.#phase.socket : undefined;
  }

  /** Whether what is sent now is held back. */
  get holds(): boolean {
    return this.#phase.at !== "open" || isCut(this.#phase.moving);
  }

  #take(input: Input<M>): void {
    switch (input.is) {
      case "start":
        return this.#start();
      case "opened":
        return this.#opened(input.socket, input.ctl, input.sid);
      case "failed":
        return this.#failed(input.socket, input.failure);
      case "received":
        return this.#received(input.socket, input.message);
      case "closed":
        return this.#closed(input.socket, input.code, input.reason);
      case "send":
        return this.#send(input.message);
      case "close":
        return this.#close(input.code, input.reason);
      case "offline":
        this.#online = false;
        if (this.#phase.at === "waiting") this.#phase.until = undefined;
        return;
      case "online":
        this.#online = true;
        if (this.#phase.at === "waiting") this.#phase.until ??= this.#now + this.#backoff.soon();
        return;
      case "retry":
        return this.#backoff.range(input.base_ms, input.cap_ms);
      case "time":
    }
  }

  #due(): void {
    if (this.#leaving && this.#now >= this.#leaving.until) {
      const { socket } = this.#leaving;
      this.#leaving = undefined;
      this.#closeSocket(socket, "moved");
    }
    const phase = this.#phase;
    if (phase.at === "open") return this.#moveDue(phase);
    if (phase.at === "idle" || phase.at === "ended" || phase.until === undefined || this.#now < phase.until) return;
    if (phase.at === "waiting") return this.#dial(phase.cause);
    if (phase.at === "closing") return this.#end(ABNORMAL, "");
    this.#closeSocket(phase.socket, "timed_out");
    this.#failed(phase.socket, "handshake");
  }

  // The session -----------------------------------------------------------------------------------------------------

  #start(): void {
    if (this.#phase.at !== "idle") return;
    if (this.#online) this.#dial("start");
    else this.#phase = { at: "waiting", cause: "start", until: undefined };
  }

  #dial(cause: Cause): void {
    const socket = this.#next++;
    this.#phase = { at: "dialling", cause, socket, until: this.#now + DIAL_MS };
    this.#outputs.push({ do: "dial", socket, cause, park: false });
  }

  #opened(socket: number, ctl: string, sid: string): void {
    const phase = this.#phase;
    if (phase.at === "open") return this.#moveOpened(phase, socket, ctl, sid);
    if (phase.at !== "dialling" || phase.socket !== socket) return;
    this.#phase = { at: "open", socket, ctl, sid, since: this.#now, moving: undefined };
    this.#outputs.push({ do: "open", again: this.#again });
    this.#again = true;
    this.#flush(this.#phase);
  }

  #failed(socket: number, failure: Failure): void {
    const phase = this.#phase;
    if (phase.at === "open") return this.#moveFailed(phase, socket, failure);
    if (phase.at !== "dialling" || phase.socket !== socket) return;
    if (this.#config.onLoss === "end") return this.#end(ABNORMAL, "");
    const told = typeof failure === "object" ? failure.no_credit : { wait_ms: 0, window_ms: 0 };
    this.#wait(failure === "handshake" ? "refused" : phase.cause, this.#backoff.waitAsTold(told));
  }

  #wait(cause: Cause, ms: number): void {
    this.#phase = { at: "waiting", cause, until: this.#online ? this.#now + ms : undefined };
  }

  #received(socket: number, message: M): void {
    const line = this.#phase;
    if (line.at !== "open") return;
    if (socket === line.socket) this.#receivedFromOwner(line, message);
    else if (line.moving?.socket === socket) this.#receivedFromNew(line, line.moving, message);
  }

  #receivedFromOwner(line: Line, message: M): void {
    // After `done` the new server speaks for the session.
    if (line.moving?.step === "resuming") return;
    const frame = parse(line.ctl, message);
    switch (frame?.op) {
      case undefined:
        return void this.#outputs.push({ do: "deliver", message });
      case "unknown":
        return this.#say(line.socket, line.ctl, unsupported(frame));
      case "move":
        return this.#noticed(line, frame);
      case "done":
        return this.#done(line, frame.mid, frame.state);
      case "nak":
        return this.#refused(line, frame.mid);
      default:
      // The client's own words, or those of a server that it does not park at.
    }
  }

  #closed(socket: number, code: number, reason: string): void {
    if (this.#leaving?.socket === socket) {
      this.#leaving = undefined;
      return;
    }
    const phase = this.#phase;
    if (phase.at === "dialling" && phase.socket === socket) return this.#failed(socket, "handshake");
    if (phase.at === "closing" && phase.socket === socket) return this.#end(code, reason);
    if (phase.at !== "open") return;
    if (phase.socket === socket) return this.#lose(phase, code, reason, isCut(phase.moving) ? "no_done" : "lost");
    if (phase.moving && phase.moving.socket === socket) this.#withoutNew(phase, phase.moving);
  }

  /** The connection that owned the session is gone. */
  #lose(line: Line, code: number, reason: string, why: GapReason): void {
    const { moving } = line;
    line.moving = undefined;
    if (moving?.socket !== undefined) this.#closeSocket(moving.socket, "unused");
    if (this.#goodbye || this.#config.onLoss === "end" || isFinal(code, reason)) return this.#end(code, reason);
    this.#backoff.lived(this.#now - line.since);
    this.#wait("lost", this.#backoff.wait());
    this.#outputs.push({ do: "lost", code, reason }, { do: "gap", why });
  }

  #send(message: M): void {
    const phase = this.#phase;
    if (this.#goodbye || phase.at === "closing" || phase.at === "ended") {
      this.#outputs.push({ do: "unsent", message, why: "closed" });
    } else if (phase.at === "open" && !isCut(phase.moving)) {
      this.#outputs.push({ do: "send", socket: phase.socket, message });
    } else {
      const bytes = this.#bytes + this.#config.size(message);
      if (this.#held.length >= this.#config.messagesMax || bytes > this.#config.bytesMax) {
        this.#outputs.push({ do: "unsent", message, why: "full" });
        return;
      }
      this.#bytes = bytes;
      this.#held.push(message);
    }
  }

  /** Sends what was held back, then goes if the application wants to. */
  #flush(line: Line): void {
    for (const message of this.#takeHeld()) this.#outputs.push({ do: "send", socket: line.socket, message });
    const goodbye = this.#goodbye;
    this.#goodbye = undefined;
    if (goodbye) this.#close(goodbye.code, goodbye.reason);
  }

  #close(code: number, reason: string): void {
    const phase = this.#phase;
    switch (phase.at) {
      case "open":
        // What was sent goes first: the end of the move decides where to.
        if (isCut(phase.moving)) {
          this.#goodbye ??= { code, reason };
          return;
        }
        this.#stay(phase, "closed");
        this.#phase = { at: "closing", socket: phase.socket, until: this.#now + CLOSE_MS };
        this.#outputs.push({ do: "close", socket: phase.socket, code, reason });
        return;
      case "dialling":
        this.#closeSocket(phase.socket, "unused");
        return this.#end(code, reason);
      case "idle":
      case "waiting":
        return this.#end(code, reason);
      default:
    }
  }

  #end(code: number, reason: string): void {
    this.#phase = { at: "ended" };
    for (const message of this.#takeHeld()) this.#outputs.push({ do: "unsent", message, why: "closed" });
    this.#outputs.push({ do: "closed", code, reason });
  }

  #takeHeld(): M[] {
    const held = this.#held;
    this.#held = [];
    this.#bytes = 0;
    return held;
  }

  #say(socket: number, ctl: string, frame: Frame): void {
    this.#outputs.push({ do: "say", socket, text: encode(ctl, frame) });
  }

  /** Closes a socket that no message of the application is on its way on any more. */
  #closeSocket(socket: number, reason: string): void {
    this.#outputs.push({ do: "close", socket, code: 1000, reason: `ek:${reason}` });
  }

  // The move --------------------------------------------------------------------------------------------------------

  #noticed(line: Line, notice: Extract<Frame, { op: "move" }>): void {
    const { mid, why, ticket } = notice;
    const park = notice.park !== false;
    if (line.moving) {
      // Said again: one answer is enough.
      if (line.moving.mid !== mid && park) this.#say(line.socket, line.ctl, { op: "nak", mid, why: "busy" });
      return;
    }
    const socket = this.#next++;
    const until = this.#now + STEP_MS;
    line.moving = { mid, by: this.#now + notice.by_ms, park, step: "dialling", socket, ctl: "", until, cut: 0 };
    this.#outputs.push({ do: "moving", mid, why }, { do: "dial", socket, cause: "move", ticket, park });
  }

  #moveOpened(line: Line, socket: number, ctl: string, sid: string): void {
    const { moving } = line;
    if (moving?.step !== "dialling" || moving.socket !== socket) return;
    if (!moving.park) return this.#switch(line, moving, socket, ctl, sid);
    Object.assign(moving, { step: "parking", ctl, until: this.#now + STEP_MS });
    this.#say(socket, ctl, { op: "park", sid: line.sid, mid: moving.mid });
  }

  /** Goes over to the new connection without a dialogue: what is on its way on the old one is lost. */
  #switch(line: Line, moving: Move, socket: number, ctl: string, sid: string): void {
    const old = line.socket;
    Object.assign(line, { socket, ctl, sid, moving: undefined });
    this.#closeSocket(old, "moved");
    this.#outputs.push({ do: "gap", why: "no_dialogue" }, { do: "moved", mid: moving.mid, pauseMs: 0 });
  }

  #moveFailed(line: Line, socket: number, failure: Failure): void {
    if (line.moving?.step !== "dialling" || line.moving.socket !== socket) return;
    this.#unreachable(line, line.moving, typeof failure === "object" ? failure.no_credit.wait_ms : undefined);
  }

  /** No new connection could be parked: says so and stays. */
  #unreachable(line: Line, { mid, park }: Move, retry_ms?: number): void {
    line.moving = undefined;
    const retry = retry_ms === undefined ? {} : { retry_ms };
    if (park) this.#say(line.socket, line.ctl, { op: "nak", mid, why: "unreachable", ...retry });
    this.#outputs.push({ do: "stayed", mid, why: "unreachable" });
  }

  #receivedFromNew(line: Line, moving: Move, message: M): void {
    if (moving.step === "dialling" || moving.socket === undefined) return;
    const frame = parse(moving.ctl, message);
    const mine = frame && (frame.mid === undefined || frame.mid === moving.mid);
    if (!frame) return this.#giveUpNew(line, moving); // It speaks to the application without owning the session.
    if (frame.op === "unknown") return this.#say(moving.socket, moving.ctl, unsupported(frame));
    if (!mine) return;
    // A server that does not park, or does not take the state.
    if (frame.op === "nak") return this.#giveUpNew(line, moving);
    if (frame.op === "parked" && moving.step === "parking") {
      Object.assign(moving, { step: "cutting", until: this.#now + STEP_MS, cut: this.#now });
      this.#say(line.socket, line.ctl, { op: "cut", mid: moving.mid, at: frame.at });
    }
    if (frame.op === "resumed" && moving.step === "resuming") {
      Object.assign(line, { socket: moving.socket, ctl: moving.ctl, moving: undefined });
      this.#outputs.push({ do: "moved", mid: moving.mid, pauseMs: this.#now - moving.cut });
      this.#flush(line);
    }
  }

  #done(line: Line, mid: string, state: string): void {
    const { moving } = line;
    if (moving?.mid !== mid || moving.step !== "cutting") return;
    this.#leaving = { socket: line.socket, until: this.#now + STEP_MS };
    // There may be nobody left to give the state to.
    if (moving.socket === undefined) return this.#lose(line, ABNORMAL, "", "no_resumed");
    Object.assign(moving, { step: "resuming", until: this.#now + STEP_MS });
    this.#say(moving.socket, moving.ctl, { op: "resume", sid: line.sid, mid, state });
  }

  /** The old server takes the move back, or did not take the `cut`: it still owns the session. */
  #refused(line: Line, mid: string | undefined): void {
    if (line.moving && line.moving.step !== "resuming" && line.moving.mid === mid) this.#stay(line, "refused");
  }

  /** Ends a move before the old server handed over: drops the new connection, sends on the old one. */
  #stay(line: Line, why: StayReason): void {
    const { moving } = line;
    if (!moving) return;
    line.moving = undefined;
    if (moving.socket !== undefined) this.#closeSocket(moving.socket, "unused");
    this.#outputs.push({ do: "stayed", mid: moving.mid, why });
    this.#flush(line);
  }

  #giveUpNew(line: Line, moving: Move): void {
    if (moving.socket === undefined) return;
    this.#closeSocket(moving.socket, "unused");
    this.#withoutNew(line, moving);
  }

  /** Goes on without the new connection. */
  #withoutNew(line: Line, moving: Move): void {
    if (moving.step === "resuming") {
      line.moving = undefined;
      this.#lose(line, ABNORMAL, "", "no_resumed");
    } else if (moving.step === "cutting") {
      // The old server may be handing over, and what it still says is for the application.
      moving.socket = undefined;
    } else {
      this.#unreachable(line, moving);
    }
  }

  #moveDue(line: Line): void {
    const { moving } = line;
    if (!moving || this.#now < moveUntil(moving)) return;
    if (moving.step === "cutting") {
      this.#closeSocket(line.socket, "timed_out");
      this.#lose(line, ABNORMAL, "", "no_done");
    } else if (moving.step !== "resuming" && this.#now >= moving.by) {
      this.#stay(line, "lapsed");
    } else {
      this.#giveUpNew(line, moving);
    }
  }
}

const moveUntil = (move: Move) => (isCut(move) ? move.until : Math.min(move.until, move.by));

const unsupported = ({ mid }: Unknown): Frame => ({ op: "nak", ...(mid !== undefined && { mid }), why: "unsupported" });
