/** The events of an {@link EvenkeelSocket} beyond those of a WebSocket, and those that a platform may lack. */

/** What goes on beneath an application that need not care. */
export interface MoveEvents {
  /** The server asked this client to go elsewhere, and it began to. */
  moving: { mid: string; why: string };
  /** The move is complete: no message was lost, none came twice, all in order. Messages waited for `pauseMs`. */
  moved: { mid: string; pauseMs: number };
  /** The move did not happen; everything goes on where it was. */
  moveFailed: { mid: string; why: string };
  /** With `reconnect`: the connection broke, and a new one is being made. */
  lost: { code: number; reason: string };
  /** Messages may be missing, in either direction. With `reconnect` it comes when the new connection is open, before
   * `held` messages go out on it; what a listener sends goes out first. Without, it comes just before `close`. */
  gap: { why: string; held: number };
}

/** All events of an {@link EvenkeelSocket}. */
export type EvenkeelEventMap = WebSocketEventMap & { [K in keyof MoveEvents]: CustomEvent<MoveEvents[K]> };

/** Browsers and Node from 23 on have one; Node 20 has not. */
class PlainCloseEvent extends Event {
  readonly code: number;
  readonly reason: string;
  readonly wasClean: boolean;
  constructor(type: string, init: CloseEventInit = {}) {
    super(type);
    this.code = init.code ?? 0;
    this.reason = init.reason ?? "";
    this.wasClean = init.wasClean ?? false;
  }
}

/** A close event of whatever class the platform has. */
export function closeEvent(init: CloseEventInit): CloseEvent {
  const Class = (globalThis as { CloseEvent?: typeof CloseEvent }).CloseEvent ?? PlainCloseEvent;
  return new Class("close", init);
}
