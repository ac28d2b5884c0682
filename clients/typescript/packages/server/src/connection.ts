/**
 * One connection of a client, as the application sees it: what a `ws` socket is, whichever server it came from.
 *
 * In: a native socket, what its URL said, hooks of the application. Out: events of the application, and what became of
 * orders to move. Invariants: outputs of the machine are performed in its order; an application that was told of a
 * connection is told of its end, once. Elsewhere: every decision (`move`), which connection leaves (`registry`).
 */
import { EventEmitter } from "node:events";
import type { IncomingMessage } from "node:http";
import type { RawData, WebSocket } from "ws";
import { sizeOf } from "../../client/src/frame.js";
import type { Handover } from "./credentials.js";
import type { Admission, Member } from "./evenkeel.js";
import { Session, type Input, type Notice, type Output, type Settled } from "./move.js";

/** What an application may send. */
export type Data = string | Buffer | ArrayBuffer | ArrayBufferView;

/** What an application does with its connections. */
export interface Hooks {
  /** A client is here: a new one, or with `state` one that another server handed over. Listeners set before it returns
   * miss nothing; what it sends goes out behind what the other server sent. */
  connection(connection: Connection, state: Buffer | undefined): void | Promise<void>;
  /** Hand over: after this call nothing more arrives from this client, and what was sent before the result is there
   * goes out first. At most 16 KiB, within 2 s. Without this hook connections are not moved but closed. */
  detach?(connection: Connection): DetachedState | Promise<DetachedState>;
}

/** The state of a connection: whatever lets another server go on. */
export type DetachedState = string | Uint8Array | undefined;

/** What the shell around connections does for them. */
export interface Surroundings {
  hooks: Hooks;
  handover: Handover;
  /** The node's Unix time. */
  nowMs(): number;
  /** The application has this connection from now on. */
  owned(connection: Connection): void;
  /** Something passed. */
  touched(connection: Connection, bytes: number): void;
  /** A move ended. */
  settled(connection: Connection, mid: string, settled: Settled): void;
  /** The native socket is closed. */
  ended(connection: Connection, abnormal: boolean): void;
  /** A hook of the application threw. */
  failed(error: unknown): void;
}

/** A message on its way to or from the application; frames of ours are texts. */
type Message = string | { data: Data; binary: boolean; sent?: ((error?: Error) => void) | undefined };

/** Held back for the application while it takes over. */
const MESSAGES_MAX = 1_024;
const BYTES_MAX = 1 << 20;
/** U+001E, with which every frame of ours begins. */
const MARK = 0x1e;

interface Events {
  message: [data: Buffer, isBinary: boolean];
  close: [code: number, reason: Buffer];
  error: [error: Error];
  ping: [data: Buffer];
  pong: [data: Buffer];
  /** This message will not be sent: the client is gone, or too much waited for the application to take over. */
  unsent: [data: Data];
}

/** See the module's documentation. */
export class Connection extends EventEmitter<Events> implements Member {
  /** Its name in logs of gateway and server. */
  readonly id: string;
  /** The session: the same before and after a move. */
  readonly sid: string;
  /** The handshake of this connection. */
  readonly request: IncomingMessage;
  /** Whether it may be moved now. An application clears it while it holds what cannot be handed over. */
  movable = true;
  readonly #native: WebSocket;
  readonly #around: Surroundings;
  readonly #session: Session<Message>;
  #owned = false;
  #timer: NodeJS.Timeout | undefined;
  #due: number | undefined;
  #queue: Output<Message>[] = [];
  #performing = false;

  /** @internal */
  constructor(native: WebSocket, request: IncomingMessage, admission: Admission, around: Surroundings) {
    super();
    const { id, sid, ctl, parks } = admission;
    this.id = id;
    this.sid = sid;
    this.request = request;
    this.#native = native;
    this.#around = around;
    const park = parks ? { sid, at: around.handover.at } : undefined;
    const buffer = { messagesMax: MESSAGES_MAX, bytesMax: BYTES_MAX, size: sizeOfMessage };
    this.#session = new Session({ ctl, park, ...buffer }, performance.now());
    native.on("message", (data, isBinary) => this.#received(data, isBinary));
    native.on("close", (code, reason) => this.#closed(code, reason));
    native.on("error", (error) => this.#owned && this.listenerCount("error") > 0 && this.emit("error", error));
    native.on("ping", (data) => this.#owned && this.emit("ping", data));
    native.on("pong", (data) => this.#owned && this.emit("pong", data));
    this.#arm();
  }

  /** @internal */
  start(): void {
    if (!this.#session.isParked) this.#own(undefined);
  }

  get readyState(): WebSocket["readyState"] {
    return this.#native.readyState;
  }

  get protocol(): string {
    return this.#native.protocol;
  }

  /** Bytes that wait for the client to read. */
  get bufferedAmount(): number {
    return this.#native.bufferedAmount;
  }

  /** Sends a message. What cannot be sent is given back by the event `unsent`. */
  send(data: Data, options: { binary?: boolean } = {}, sent?: (error?: Error) => void): void {
    const binary = options.binary ?? typeof data !== "string";
    // The caller may write into it again before it goes.
    const kept = typeof data === "string" || !this.#session.holds ? data : copyOf(data);
    this.#input({ is: "send", message: { data: kept, binary, sent } });
  }

  /** Closes with a Close frame, after what was sent. */
  close(code = 1000, reason = ""): void {
    this.#input({ is: "close", code, reason });
  }

  ping(data?: Data): void {
    this.#native.ping(data);
  }

  /** Ends it without a Close frame. */
  terminate(): void {
    this.#native.terminate();
  }

  /** Whether its client could be ordered away now: it knows moves, and the application can hand it over. */
  get canMove(): boolean {
    return this.movable && this.#around.hooks.detach !== undefined && this.#session.isMovable;
  }

  /** @internal Orders the client away. */
  order(notice: Notice): void {
    this.#input({ is: "order", notice });
  }

  /** @internal The server empties. */
  drain(): void {
    this.#input({ is: "drain" });
  }

  #received(raw: RawData, isBinary: boolean): void {
    const data = raw as Buffer;
    this.#around.touched(this, data.length);
    const frame = !isBinary && data[0] === MARK;
    this.#input({ is: "received", message: frame ? data.toString() : { data, binary: isBinary } });
  }

  #closed(code: number, reason: Buffer): void {
    this.#input({ is: "closed" });
    clearTimeout(this.#timer);
    this.#around.ended(this, code === 1006);
    if (this.#owned) this.emit("close", code, reason);
  }

  #input(input: Input<Message>): void {
    this.#queue.push(...this.#session.handle(input, performance.now()));
    if (!this.#performing) {
      this.#performing = true;
      // A listener of the application may throw.
      try {
        for (let output = this.#queue.shift(); output; output = this.#queue.shift()) this.#perform(output);
      } finally {
        this.#performing = false;
      }
    }
    this.#arm();
  }

  #arm(): void {
    const due = this.#session.pollTimeout();
    if (due === this.#due) return;
    this.#due = due;
    clearTimeout(this.#timer);
    if (due === undefined) return;
    const fire = () => {
      this.#due = undefined;
      this.#input({ is: "time" });
    };
    this.#timer = setTimeout(fire, Math.ceil(Math.max(0, due - performance.now())));
  }

  #perform(output: Output<Message>): void {
    switch (output.do) {
      case "say":
        return this.#native.send(output.text);
      case "send":
        return this.#transmit(output.message);
      case "close":
        return this.#native.close(output.code, output.reason);
      case "deliver":
        return this.#deliver(output.message);
      case "detach":
        return void this.#detach(output.mid, output.at);
      case "attach":
        return void this.#attach(output.sid, output.mid, output.state);
      case "unsent":
        if (typeof output.message === "object") this.emit("unsent", output.message.data);
        return;
      case "settled": {
        const { do: _, mid, ...settled } = output;
        return this.#around.settled(this, mid, settled);
      }
      case "gone":
      // Told when the socket is closed, with its code.
    }
  }

  #transmit(message: Message): void {
    if (typeof message === "string") return;
    const { data, binary, sent } = message;
    this.#around.touched(this, sizeOfData(data));
    this.#native.send(data as Buffer, { binary }, sent);
  }

  #deliver(message: Message): void {
    if (typeof message === "string") this.emit("message", Buffer.from(message), false);
    else this.emit("message", message.data as Buffer, message.binary);
  }

  async #detach(mid: string, at: string): Promise<void> {
    const { hooks, handover } = this.#around;
    try {
      const state = (await hooks.detach?.(this)) ?? "";
      const sealed = handover.seal(this.sid, mid, at, Buffer.from(state as string), this.#around.nowMs());
      this.#input({ is: "detached", mid, state: sealed });
    } catch (error) {
      this.#around.failed(error);
      // The client is told that there is no state, now and not when the time is over.
      this.close(1012, "ek:timed_out");
    }
  }

  async #attach(sid: string, mid: string, sealed: string): Promise<void> {
    try {
      const state = this.#around.handover.open(sealed, sid, mid, this.#around.nowMs());
      await this.#own(state);
      this.#input({ is: "attached" });
    } catch (error) {
      this.#around.failed(error);
      this.#input({ is: "not_attached" });
    }
  }

  #own(state: Buffer | undefined): void | Promise<void> {
    this.#owned = true;
    this.#around.owned(this);
    if (state !== undefined) return this.#around.hooks.connection(this, state);
    try {
      Promise.resolve(this.#around.hooks.connection(this, undefined)).catch((error) => this.#broken(error));
    } catch (error) {
      this.#broken(error);
    }
  }

  /** A new client whom the application did not take. */
  #broken(error: unknown): void {
    this.#around.failed(error);
    this.close(1011, "");
  }
}

function copyOf(data: Exclude<Data, string>): Buffer {
  const bytes = ArrayBuffer.isView(data) ? Buffer.from(data.buffer, data.byteOffset, data.byteLength) : Buffer.from(data);
  return Buffer.from(bytes);
}

function sizeOfMessage(message: Message): number {
  return typeof message === "string" ? sizeOf(message) : sizeOfData(message.data);
}

function sizeOfData(data: Data): number {
  return typeof data === "string" ? sizeOf(data) : data.byteLength;
}
