/**
 * Decides what a client says and does while its session moves from one server to another.
 *
 * In: one state, one event, the time. Out: the next state and effects, to be performed in order. Messages of the
 * application are opaque here. Invariants: the application's messages leave in the order they were sent, each on
 * exactly one socket; nothing of the new server is delivered before the old one's last; every step has an end; `gap` is
 * given out exactly when something may be missing, never for a move that completed. Elsewhere: sockets and timers
 * (`socket`), frames (`frame`), where to dial (`session`).
 */
import type { Heard, Say } from "./frame.js";

/** Longest time a step may take: five seconds, for each but the server's own `detach`. */
export const STEP_MS = 5_000;

/** Which of the two sockets. `new` becomes `old` when a move completes. */
export type Which = "old" | "new";

/** Where a session stands. `held` are messages that wait for the end of the move. */
export type State<M> =
  | { at: "open" }
  | { at: "dialling"; mid: string; by: number; until: number }
  | { at: "parking"; mid: string; by: number; until: number }
  | { at: "cutting"; mid: string; until: number; held: readonly M[]; alone: boolean }
  | { at: "resuming"; mid: string; until: number; held: readonly M[] }
  | { at: "lost" };

export type Event<M> =
  /** A control frame. */
  | { is: "heard"; on: Which; message: Heard }
  /** A message for the application. */
  | { is: "message"; on: Which; data: M }
  /** The application sends. */
  | { is: "send"; data: M }
  /** The new socket is open. */
  | { is: "opened" }
  /** There will be no new socket. */
  | { is: "unreachable"; retryMs: number }
  /** A socket is gone. */
  | { is: "ended"; on: Which }
  /** Nothing but time. */
  | { is: "time" };

export type Effect<M> =
  /** Find a server with this ticket and open the new socket. */
  | { do: "dial"; ticket: string; untilMs: number }
  | { do: "say"; on: Which; message: Say }
  | { do: "send"; on: Which; data: M }
  | { do: "deliver"; data: M }
  /** Give the new socket up. */
  | { do: "drop" }
  /** The new socket is the only one from here on; the old one is closed by its server. */
  | { do: "swap" }
  /** The connection is lost; `unsent` were never sent. */
  | { do: "lose"; unsent: readonly M[] }
  | { do: "moving"; mid: string; why: string }
  | { do: "moved"; mid: string }
  | { do: "failed"; mid: string; why: string };

type Step<M> = [State<M>, Effect<M>[]];

/** The next state and what to do. */
export function step<M>(state: State<M>, event: Event<M>, now: number): Step<M> {
  if (event.is === "message") return message(state, event);
  if (event.is === "send") return send(state, event.data);
  if (event.is === "time") return due(state, now);
  if (event.is === "ended") return ended(state, event.on);
  if (event.is === "heard") return heard(state, event.on, event.message, now);
  if (state.at !== "dialling") return [state, []];
  if (event.is === "unreachable") return stay(state, "unreachable", event.retryMs);
  const { mid, by } = state;
  return [{ at: "parking", mid, by, until: now + STEP_MS }, [{ do: "say", on: "new", message: { op: "park", mid } }]];
}

/** When to give {@link step} the event `time` at the latest. */
export function timeout<M>(state: State<M>): number | undefined {
  switch (state.at) {
    case "open":
    case "lost":
      return undefined;
    case "dialling":
    case "parking":
      return Math.min(state.until, state.by);
    default:
      return state.until;
  }
}

function message<M>(state: State<M>, event: { on: Which; data: M }): Step<M> {
  // A server says nothing to a parked client, and nothing after `done`.
  const live = event.on === "old" ? state.at !== "resuming" && state.at !== "lost" : false;
  return [state, live ? [{ do: "deliver", data: event.data }] : []];
}

function send<M>(state: State<M>, data: M): Step<M> {
  if (state.at === "cutting" || state.at === "resuming") return [{ ...state, held: [...state.held, data] }, []];
  return [state, state.at === "lost" ? [] : [{ do: "send", on: "old", data }]];
}

function due<M>(state: State<M>, now: number): Step<M> {
  const at = timeout(state);
  if (at === undefined || now < at) return [state, []];
  if (state.at === "dialling" || state.at === "parking") {
    // A notice that lapsed needs no answer: the server counts for itself.
    return now >= state.by ? lapse(state) : stay(state, "unreachable", 0);
  }
  return lose(state);
}

function ended<M>(state: State<M>, on: Which): Step<M> {
  if (state.at === "lost" || (state.at === "open" && on === "new")) return [state, []];
  if (on === "old") return state.at === "resuming" ? [state, []] : lose(state);
  // The old server may still refuse the cut; if it does not, its state has nowhere to go.
  if (state.at === "cutting") return [{ ...state, alone: true }, []];
  return state.at === "resuming" ? lose(state) : stay(state as Trying<M>, "unreachable", 0);
}

function heard<M>(state: State<M>, on: Which, message: Heard, now: number): Step<M> {
  const { op, mid } = message;
  if (on === "old" && op === "move") return notice(state, message, now);
  const ours = state.at !== "open" && state.at !== "lost" && mid === state.mid;
  if (!ours) return [state, []];
  switch (`${state.at} ${on} ${op}`) {
    case "parking new parked":
      return parked(state as Trying<M>, message, now);
    case "parking new nak":
      return stay(state as Trying<M>, String(message.why), 0);
    case "cutting old nak":
      return back(state as Cutting<M>, String(message.why));
    case "cutting old done":
      return done(state as Cutting<M>, message, now);
    case "resuming new resumed":
      return resumed(state as Resuming<M>);
    case "resuming new nak":
      return lose(state);
    default:
      return [state, []];
  }
}

type Trying<M> = Extract<State<M>, { at: "dialling" | "parking" }>;
type Cutting<M> = Extract<State<M>, { at: "cutting" }>;
type Resuming<M> = Extract<State<M>, { at: "resuming" }>;

function notice<M>(state: State<M>, message: Heard, now: number): Step<M> {
  const { mid, ticket, by_ms, why } = message;
  if (typeof mid !== "string" || typeof ticket !== "string" || typeof by_ms !== "number") return [state, []];
  if (state.at !== "open") {
    const repeated = state.at === "lost" || state.mid === mid;
    return [state, repeated ? [] : [{ do: "say", on: "old", message: { op: "nak", mid, why: "busy" } }]];
  }
  return [
    { at: "dialling", mid, by: now + by_ms, until: now + 2 * STEP_MS },
    [{ do: "moving", mid, why: String(why) }, { do: "dial", ticket, untilMs: Math.min(by_ms, 2 * STEP_MS) }],
  ];
}

function parked<M>(state: Trying<M>, message: Heard, now: number): Step<M> {
  const { mid } = state;
  const at = String(message.at);
  return [
    { at: "cutting", mid, until: now + STEP_MS, held: [], alone: false },
    [{ do: "say", on: "old", message: { op: "cut", mid, at } }],
  ];
}

function done<M>(state: Cutting<M>, message: Heard, now: number): Step<M> {
  return state.alone || typeof message.state !== "string"
    ? lose(state)
    : [{ at: "resuming", mid: state.mid, until: now + STEP_MS, held: state.held }, [{ do: "say", on: "new", message: { op: "resume", mid: state.mid, state: message.state } }]];
}

function resumed<M>(state: Resuming<M>): Step<M> {
  const flushed = state.held.map((data): Effect<M> => ({ do: "send", on: "old", data }));
  return [{ at: "open" }, [{ do: "swap" }, ...flushed, { do: "moved", mid: state.mid }]];
}

/** The cut was refused: everything goes on where it was. */
function back<M>(state: Cutting<M>, why: string): Step<M> {
  const flushed = state.held.map((data): Effect<M> => ({ do: "send", on: "old", data }));
  return [{ at: "open" }, [{ do: "drop" }, ...flushed, { do: "failed", mid: state.mid, why }]];
}

function stay<M>(state: Trying<M>, why: string, retryMs: number): Step<M> {
  const message: Say = { op: "nak", mid: state.mid, why, retry_ms: retryMs };
  return [{ at: "open" }, [{ do: "drop" }, { do: "say", on: "old", message }, { do: "failed", mid: state.mid, why }]];
}

function lapse<M>(state: Trying<M>): Step<M> {
  return [{ at: "open" }, [{ do: "drop" }, { do: "failed", mid: state.mid, why: "expired" }]];
}

function lose<M>(state: State<M>): Step<M> {
  return [{ at: "lost" }, [{ do: "drop" }, { do: "lose", unsent: "held" in state ? state.held : [] }]];
}
