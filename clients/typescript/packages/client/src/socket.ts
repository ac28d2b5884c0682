/**
 * A WebSocket, as browsers have it, that a server can move elsewhere without its application noticing.
 *
 * Owns the native sockets (one, two during a move) and one timer. In: the application's calls, events of the sockets,
 * the network's changes. Out: the events of a WebSocket and those of [`MoveEvents`]. Invariants: one `open`, at most
 * one `close`; what the machine gives out is performed in its order, also where a listener sends. Elsewhere: every
 * decision (`machine`), where to dial (`session`).
 */
import { closeEvent, type EvenkeelEventMap, type MoveEvents } from "./events.js";
import { randomId, sizeOf } from "./frame.js";
import { DIAL_MS, isFinal, Mover, STEP_MS, type Failure, type Input, type Output } from "./machine.js";
import { here, watch } from "./network.js";
import {
  issuedFor,
  NegotiateError,
  Session,
  type Assignment,
  type Negotiator,
  type NegotiatorOptions,
} from "./session.js";
import { withKeys, withoutKeys } from "./url.js";

/** What an application may send. */
export type Data = string | ArrayBufferLike | Blob | ArrayBufferView<ArrayBufferLike>;

/** A class to make native sockets with: the platform's, or that of the npm package `ws`. */
/* No closer type fits both: `ws` types its events by itself. */
export type NativeWebSocket = new (url: string, protocols?: string | string[]) => object;

/** Settings of an {@link EvenkeelSocket}. */
export interface EvenkeelOptions {
  /** Makes the native sockets. Default: the platform's `WebSocket`; Node 20 has none. */
  WebSocket?: NativeWebSocket;
  /** Ask the gateway for a server first, the URL being that of its route. Default: dial the URL itself. */
  negotiate?: boolean | NegotiatorOptions;
  /** Make a new connection where one is lost instead of closing: for use without a library that does so. Codes that
   * say goodbye (1000) or that coming back does not help (1002, 1003, 1007 to 1010) still close. Default: false. */
  reconnect?: boolean;
  /** Most messages and bytes that are held back during a move or a reconnect. A `send` beyond it throws a
   * `QuotaExceededError` and sends nothing; what was taken before stays. Default: 1,024 and 1 MiB. */
  buffer?: { messages?: number; bytes?: number };
}

type Handler<E> = ((this: WebSocket, event: E) => unknown) | null;

/** One dial and its socket. */
interface Wire {
  stop: AbortController;
  native?: WebSocket;
  opened: boolean;
}

/** RFC 6455 §7.4.1: a Close frame without a code. */
const NO_CODE = 1005;

/** Ended sessions that a class keeps for its next sockets; one class serves one client, which hardly has more. */
const IDLE_MAX = 8;

export interface EvenkeelSocket {
  onopen: Handler<Event>;
  onmessage: Handler<MessageEvent>;
  onerror: Handler<Event>;
  onclose: Handler<CloseEvent>;
  addEventListener<K extends keyof EvenkeelEventMap>(
    type: K,
    listener: (this: WebSocket, event: EvenkeelEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof EvenkeelEventMap>(
    type: K,
    listener: (this: WebSocket, event: EvenkeelEventMap[K]) => unknown,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

export class EvenkeelSocket extends EventTarget implements WebSocket {
  static readonly CONNECTING = 0;
  static readonly OPEN = 1;
  static readonly CLOSING = 2;
  static readonly CLOSED = 3;
  readonly CONNECTING = 0;
  readonly OPEN = 1;
  readonly CLOSING = 2;
  readonly CLOSED = 3;

  /** The URL as it was given, without keys of the SDK. */
  readonly url: string;
  binaryType: BinaryType = "blob";

  readonly #native: NativeWebSocket;
  readonly #protocols: string[];
  readonly #session: Session;
  readonly #origin: string;
  readonly #mover: Mover<Data>;
  readonly #wires = new Map<number, Wire>();
  readonly #handlers = new Map<string, [unknown, EventListener]>();
  readonly #unwatch: () => void;
  readonly #idle: Session[];
  #issued: Assignment | undefined;
  #queue: Output<Data>[] = [];
  #performing = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #due: number | undefined;
  #readyState: 0 | 1 | 2 | 3 = 0;
  #protocol = "";
  #extensions = "";
  /** When it last opened. */
  #since = 0;

  /** A class with these settings, to be injected where a library takes a WebSocket class. Its sockets that follow one
   * another are one session; make one class per client of the library. */
  static with(options: EvenkeelOptions): typeof EvenkeelSocket {
    const idle: Session[] = [];
    return class extends EvenkeelSocket {
      constructor(url: string | URL | Negotiator, protocols?: string | string[]) {
        super(url, protocols, options, idle);
      }
    };
  }

  constructor(url: string | URL | Negotiator, protocols?: string | string[], options?: EvenkeelOptions);
  /** @internal */
  constructor(
    url: string | URL | Negotiator,
    protocols: string | string[] | undefined,
    options: EvenkeelOptions,
    idle: Session[],
  );
  constructor(
    url: string | URL | Negotiator,
    protocols: string | string[] = [],
    options: EvenkeelOptions = {},
    idle: Session[] = [],
  ) {
    super();
    this.#native = nativeOf(options);
    this.#protocols = checkedProtocols(protocols);
    const text = checkedUrl(typeof url === "function" ? url.session.url : String(url));
    this.url = withoutKeys(text);
    this.#origin = new URL(text).origin;
    const issued = typeof url === "function" ? undefined : issuedFor(String(url));
    this.#issued = issued?.assignment;
    const given = typeof url === "function" ? url.session : issued?.session;
    this.#session = given ?? sessionOf(text, options.negotiate, idle);
    this.#session.watched = true;
    // Those of a negotiator are its own; those that dial as they are told have nothing to hand on.
    this.#idle = given || !options.negotiate ? [] : idle;
    const { messages = 1024, bytes = 1 << 20 } = options.buffer ?? {};
    const onLoss = options.reconnect ? "redial" : "end";
    this.#mover = new Mover({ onLoss, messagesMax: messages, bytesMax: bytes, size: sizeOfData });
    this.#unwatch = watch((change) => (change === "dead" ? this.#died() : void this.#input({ is: change })));
    void this.#start();
  }

  get readyState(): 0 | 1 | 2 | 3 {
    return this.#readyState;
  }

  /** Bytes that were given to `send` and have not left, those held back included. */
  get bufferedAmount(): number {
    return this.#mover.held + (this.#wires.get(this.#mover.owner ?? -1)?.native?.bufferedAmount ?? 0);
  }

  get protocol(): string {
    return this.#protocol;
  }

  get extensions(): string {
    return this.#extensions;
  }

  send(data: Data): void {
    if (this.#readyState === 0) throw new DOMException("Still in CONNECTING state", "InvalidStateError");
    if (this.#readyState !== 1) return;
    let message = typeof data === "object" ? data : String(data);
    // The caller may write into it again before it goes.
    if (typeof message === "object" && !(message instanceof Blob) && (this.#performing || this.#mover.holds)) {
      message = ArrayBuffer.isView(message)
        ? new Uint8Array(message.buffer, message.byteOffset, message.byteLength).slice()
        : message.slice(0);
    }
    if (this.#input({ is: "send", message })) {
      throw new DOMException("Too much is held back while the connection moves", "QuotaExceededError");
    }
  }

  close(code?: number, reason = ""): void {
    if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) {
      throw new DOMException(`The close code must be 1000 or from 3000 to 4999, not ${code}`, "InvalidAccessError");
    }
    if (sizeOf(reason) > 123) throw new DOMException("The close reason is longer than 123 bytes", "SyntaxError");
    if (this.#readyState > 1) return;
    const failing = this.#readyState === 0;
    this.#readyState = 2;
    // As a WebSocket does: what never opened fails, and nobody hears of it before the caller is done.
    const input: Input<Data> = { is: "close", code: failing ? 1006 : (code ?? NO_CODE), reason: failing ? "" : reason };
    if (this.#mover.owner === undefined) queueMicrotask(() => this.#input(input));
    else this.#input(input);
  }

  // The machine -----------------------------------------------------------------------------------------------------

  async #start(): Promise<void> {
    if (!this.#issued) await this.#session.wait();
    this.#input({ is: "start" });
  }

  /** Hands an input in and performs what comes out, behind what is being performed. Whether a message was not taken. */
  #input(input: Input<Data>): boolean {
    const outputs = this.#mover.handle(input, performance.now(), Math.random());
    const isFull = (output: Output<Data>) => output.do === "unsent" && output.why === "full";
    for (const output of outputs) if (!isFull(output)) this.#queue.push(output);
    if (!this.#performing) {
      this.#performing = true;
      try {
        for (let output = this.#queue.shift(); output; output = this.#queue.shift()) this.#perform(output);
      } finally {
        this.#performing = false;
      }
    }
    this.#arm();
    return outputs.some(isFull);
  }

  #arm(): void {
    const due = this.#mover.pollTimeout();
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

  #perform(output: Output<Data>): void {
    switch (output.do) {
      case "dial":
        return void this.#dial(output);
      case "say":
        return this.#wires.get(output.socket)?.native?.send(output.text);
      case "send":
        return this.#wires.get(output.socket)?.native?.send(output.message as string);
      case "close":
        return this.#shut(output.socket, output.code, output.reason);
      case "deliver":
        return this.#deliver(output.message as string | ArrayBuffer);
      case "open":
        return this.#up(output.again);
      case "closed":
        return this.#end(output.code, output.reason);
      default: {
        if (output.do === "lost") this.#session.ended(performance.now() - this.#since);
        const { do: type, ...detail } = output;
        this.#emit(type === "stayed" ? "moveFailed" : type, detail);
      }
    }
  }

  // Sockets ---------------------------------------------------------------------------------------------------------

  async #dial({ socket, cause, ticket, park }: Extract<Output<Data>, { do: "dial" }>): Promise<void> {
    const wire: Wire = { stop: new AbortController(), opened: false };
    this.#wires.set(socket, wire);
    const { signal } = wire.stop;
    let failure: Failure = "handshake";
    try {
      const { urls, connectMs, retry } = this.#issued ?? (await this.#session.assign(cause, ticket, signal));
      this.#issued = undefined;
      if (retry) this.#input({ is: "retry", ...retry });
      const within = Math.min(connectMs, (cause === "move" ? STEP_MS : DIAL_MS) / urls.length);
      for (const url of urls) {
        if (signal.aborted) break;
        if (await this.#open(socket, wire, this.#keyed(url, park, ticket), within)) return;
        if (!signal.aborted) this.#session.refused(url);
      }
    } catch (error) {
      failure = failureOf(error);
    }
    this.#wires.delete(socket);
    this.#input({ is: "failed", socket, failure });
  }

  /** The URL to dial and the ctl in it. */
  #keyed(url: string, park: boolean, ticket: string | undefined): { url: string; ctl: string } {
    const { sid, negotiates } = this.#session;
    const ctl = randomId();
    const keys: Record<string, string | undefined> = { _ekm: ctl };
    // Who negotiates has said its session there.
    if (park) keys._ekc = "move";
    if (park || !negotiates) Object.assign(keys, { _eks: sid, _ekt: ticket });
    return { url: withKeys(url.replace(/^http/, "ws"), keys), ctl };
  }

  /** Whether it opened, in which case the machine knows already: a message may follow at once. */
  #open(socket: number, wire: Wire, { url, ctl }: { url: string; ctl: string }, withinMs: number): Promise<boolean> {
    return new Promise((resolve) => {
      const native = new this.#native(url, this.#protocols) as WebSocket;
      wire.native = native;
      // The one form in which every platform hands data over at once and in order.
      native.binaryType = "arraybuffer";
      const { signal } = wire.stop;
      const abort = () => native.close();
      const timer = setTimeout(abort, withinMs);
      signal.addEventListener("abort", abort);
      const settled = (opened: boolean) => {
        clearTimeout(timer);
        signal.removeEventListener("abort", abort);
        resolve(opened);
      };
      native.onopen = () => {
        // A session keeps its subprotocol.
        if (this.#readyState === 1 && native.protocol !== this.#protocol) return native.close();
        wire.opened = true;
        settled(true);
        this.#input({ is: "opened", socket, ctl, sid: this.#session.sid });
      };
      native.onmessage = ({ data }: MessageEvent<string | ArrayBuffer>) =>
        void this.#input({ is: "received", socket, message: data });
      native.onerror = () => {};
      native.onclose = ({ code, reason }: CloseEvent) => {
        if (!wire.opened) return settled(false);
        this.#wires.delete(socket);
        this.#input({ is: "closed", socket, code, reason });
      };
    });
  }

  #shut(socket: number, code: number, reason: string): void {
    const wire = this.#wires.get(socket);
    if (!wire?.opened) wire?.stop.abort();
    else if (code === NO_CODE) wire.native?.close();
    else wire.native?.close(code, reason);
  }

  /** The network is gone under the socket: its own close may take minutes, or never be seen by a frozen page. */
  #died(): void {
    const socket = this.#mover.owner;
    if (socket === undefined) return;
    this.#wires.get(socket)?.native?.close();
    this.#wires.delete(socket);
    this.#input({ is: "closed", socket, code: 1006, reason: "" });
  }

  // The application -------------------------------------------------------------------------------------------------

  #up(again: boolean): void {
    const native = this.#wires.get(this.#mover.owner ?? -1)?.native;
    this.#protocol = native?.protocol ?? "";
    this.#extensions = native?.extensions ?? "";
    this.#since = performance.now();
    this.#session.opened();
    if (again) return this.#emit("reopened");
    this.#readyState = 1;
    this.dispatchEvent(new Event("open"));
  }

  #deliver(data: string | ArrayBuffer): void {
    if (this.#readyState !== 1) return;
    const whole = typeof data === "string" || this.binaryType === "arraybuffer" ? data : new Blob([data]);
    this.dispatchEvent(new MessageEvent("message", { data: whole, origin: this.#origin }));
  }

  #end(code: number, reason: string): void {
    const before = this.#readyState;
    this.#readyState = 3;
    this.#unwatch();
    if (this.#since) this.#session.ended(performance.now() - this.#since);
    if (this.#idle.push(this.#session) > IDLE_MAX) this.#idle.shift();
    if (before === 1 && !isFinal(code, reason)) this.#emit("gap", { why: "lost" });
    if (code === 1006) this.dispatchEvent(new Event("error"));
    this.dispatchEvent(closeEvent(code, reason));
  }

  #emit(type: keyof MoveEvents, detail?: MoveEvents[keyof MoveEvents]): void {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  static {
    for (const type of ["open", "message", "error", "close"]) {
      Object.defineProperty(this.prototype, `on${type}`, {
        configurable: true,
        enumerable: true,
        get(this: EvenkeelSocket) {
          return this.#handlers.get(type)?.[0] ?? null;
        },
        set(this: EvenkeelSocket, handler: unknown) {
          const before = this.#handlers.get(type);
          if (before) this.removeEventListener(type, before[1]);
          this.#handlers.delete(type);
          if (typeof handler !== "function") return;
          const listener = (event: Event) => void handler.call(this, event);
          this.#handlers.set(type, [handler, listener]);
          this.addEventListener(type, listener);
        },
      });
    }
  }
}

/** A missing class is the programmer's mistake, to be seen at once. */
function nativeOf(options: EvenkeelOptions): NativeWebSocket {
  const native = options.WebSocket ?? (globalThis as { WebSocket?: NativeWebSocket }).WebSocket;
  if (!native) throw new TypeError("this platform has no WebSocket: pass a class as options.WebSocket");
  return native;
}

function sessionOf(url: string, negotiate: EvenkeelOptions["negotiate"], idle: Session[]): Session {
  if (!negotiate) return new Session(url);
  const route = withoutKeys(url).split("?")[0];
  const at = idle.findIndex((session) => session.url.split("?")[0] === route);
  const again = at < 0 ? undefined : idle.splice(at, 1)[0];
  return Object.assign(again ?? new Session(url, negotiate === true ? {} : negotiate), { url: withoutKeys(url) });
}

function failureOf(error: unknown): Failure {
  if (!(error instanceof NegotiateError)) return "no_answer";
  const full = error.status === 503 || error.status === 429;
  return full ? { no_credit: error.later ?? { wait_ms: 0, window_ms: 0 } } : "no_answer";
}

function checkedUrl(url: string): string {
  let parsed: URL | undefined;
  try {
    parsed = new URL(url, here());
  } catch {}
  if (!parsed || !/^(wss?|https?):$/.test(parsed.protocol)) {
    throw new DOMException(`'${withoutKeys(url)}' is no URL of a WebSocket`, "SyntaxError");
  }
  parsed.hash = "";
  return parsed.href.replace(/^http/, "ws");
}

function checkedProtocols(protocols: string | string[]): string[] {
  const list = typeof protocols === "string" ? [protocols] : [...(protocols ?? [])].map(String);
  const token = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
  if (new Set(list).size !== list.length || !list.every((each) => token.test(each))) {
    throw new DOMException("The subprotocols must be distinct tokens", "SyntaxError");
  }
  return list;
}

function sizeOfData(data: Data): number {
  if (typeof data === "string") return sizeOf(data);
  return data instanceof Blob ? data.size : data.byteLength;
}
