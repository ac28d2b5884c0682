/** The events of an `EvenkeelSocket` beyond those of a WebSocket, and one that platforms may lack. */
import type { Data } from "./socket.js";

/** What goes on beneath an application that need not care. */
export interface MoveEvents {
  /** The server asked this client to go elsewhere, and it began to. */
  moving: { mid: string; why: string };
  /** The move is complete: no message was lost, none came twice, all in order. What was sent meanwhile waited for
   * `pauseMs`. */
  moved: { mid: string; pauseMs: number };
  /** The move came to nothing; everything goes on where it was. `why`: `unreachable`, `lapsed`, `refused`, `closed`. */
  moveFailed: { mid: string; why: string };
  /** With `reconnect`: the connection is lost; a new one is being made. */
  lost: { code: number; reason: string };
  /** With `reconnect`: the new connection is open. */
  reopened: null;
  /** Something sent or to be received before this may be missing. `why`: `lost` outside of a move, `no_done` and
   * `no_resumed` in one that broke, `no_dialogue` by one between servers that cannot hand over. */
  gap: { why: string };
  /** This message was held back and will not be sent: the session is over. */
  unsent: { message: Data };
}

/** All events of an `EvenkeelSocket`. */
export type EvenkeelEventMap = WebSocketEventMap & { [K in keyof MoveEvents]: CustomEvent<MoveEvents[K]> };

/** A close event of whatever class the platform has: Node has none before 23. */
export function closeEvent(code: number, reason: string): Event {
  const init = { code, reason, wasClean: code !== 1006 };
  const Class = (globalThis as { CloseEvent?: typeof CloseEvent }).CloseEvent;
  return Class ? new Class("close", init) : Object.assign(new Event("close"), init);
}
