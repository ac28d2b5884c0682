/**
 * One link to one node: dials, sends what it is given, hands over what arrives, and dials again.
 *
 * Invariants: each `opened` is followed by one `closed`; a dial has a deadline; redials wait a random time that grows with
 * each failure; a link that cannot keep up is ended. Elsewhere: what is said (`agent`).
 */
import { WebSocket } from "ws";
import { sizeOf } from "../../client/src/frame.js";

/** What a link tells. */
export interface Listener {
  opened(): void;
  text(text: string): void;
  heard(): void;
  closed(): void;
  /** A dial failed or a link ended; `status` where a node answered with HTTP. Told once until a node speaks. */
  failed(why: string, status: number | undefined): void;
}

const DIAL_MS = 5_000;
const CLOSE_MS = 1_000;
/** First and longest range of waits before a redial. 5 s keeps 10,000 agents below 4,000 dials a second. */
const REDIAL_MIN_MS = 200;
const REDIAL_MAX_MS = 5_000;
/** Bytes that may wait for a node that does not read: hours of reports. */
const BACKLOG_MAX = 1 << 20;
const MESSAGE_MAX = 64 * 1024;

export class Link {
  readonly #url: string;
  readonly #token: () => string | undefined;
  readonly #listener: Listener;
  #socket: WebSocket | undefined;
  #open = false;
  #failures = 0;
  #told = false;
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;

  /** A link to the admin listener at `node`, `http://host:port`. */
  constructor(node: string, token: () => string | undefined, listener: Listener) {
    this.#url = `${node.replace(/^http/, "ws").replace(/\/$/, "")}/v1/agent`;
    this.#token = token;
    this.#listener = listener;
    this.#dial();
  }

  say(text: string): void {
    if (!this.#open || !this.#socket) return;
    if (this.#socket.bufferedAmount + sizeOf(text) > BACKLOG_MAX) this.#socket.terminate();
    else this.#socket.send(text);
  }

  ping(): void {
    if (this.#open) this.#socket?.ping();
  }

  /** Ends the link; it is dialled again. */
  end(reason: string): void {
    const socket = this.#socket;
    socket?.close(1008, reason);
    setTimeout(() => socket?.terminate(), CLOSE_MS).unref();
  }

  /** Ends the link for good. */
  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
    const socket = this.#socket;
    socket?.close(1001);
    setTimeout(() => socket?.terminate(), CLOSE_MS).unref();
  }

  #dial(): void {
    const token = this.#token();
    const headers = token === undefined ? {} : { authorization: `Bearer ${token}` };
    const options = { headers, handshakeTimeout: DIAL_MS, maxPayload: MESSAGE_MAX, perMessageDeflate: false };
    const socket = new WebSocket(this.#url, options);
    this.#socket = socket;
    let status: number | undefined;
    let why = "closed";
    let spoke = false;
    socket.on("open", () => {
      this.#open = true;
      this.#listener.opened();
    });
    socket.on("message", (data, isBinary) => {
      spoke = true;
      this.#failures = 0;
      this.#told = false;
      if (isBinary) this.#listener.heard();
      else this.#listener.text(String(data));
    });
    for (const event of ["ping", "pong"] as const) socket.on(event, () => this.#listener.heard());
    socket.on("unexpected-response", (request, response) => {
      status = response.statusCode;
      why = `refused with HTTP status ${status}`;
      request.destroy();
      closed();
    });
    socket.on("error", (error: NodeJS.ErrnoException) => (why = status === undefined ? (error.code ?? error.message) : why));
    let over = false;
    const closed = () => {
      if (over) return;
      over = true;
      if (this.#open) this.#listener.closed();
      this.#open = false;
      this.#ended(why, status, spoke);
    };
    socket.on("close", closed);
  }

  #ended(why: string, status: number | undefined, spoke: boolean): void {
    if (this.#stopped) return;
    if (!this.#told) this.#listener.failed(why, status);
    this.#told = true;
    if (!spoke) this.#failures += 1;
    const range = Math.min(REDIAL_MAX_MS, REDIAL_MIN_MS * 2 ** Math.min(this.#failures, 10));
    this.#timer = setTimeout(() => this.#dial(), Math.random() * range);
  }
}
