/**
 * A WebSocket, as browsers have it, that a server can move elsewhere without its application noticing.
 *
 * Owns one native socket, two during a move, and the timers. In: the application's calls, events of the sockets, the
 * network's changes. Out: the events of a WebSocket and those of [`MoveEvents`]. Invariants: one `open`, at most one
 * `close`; no message of the application is dropped in silence: what may be missing is told by `gap`. Elsewhere: every
 * decision of a move (`machine`), where to dial and after what wait (`session`).
 */
import { closeEvent, type EvenkeelEventMap, type MoveEvents } from "./events.js";
import { decode, encode, randomId, withoutKeys, type Say } from "./frame.js";
import { step, STEP_MS, timeout, type Effect, type Event as MoveEvent, type State } from "./machine.js";
import { here, watch, type Change } from "./network.js";
import { dialled, issuedFor, NegotiateError, Session, type Assignment, type Negotiator, type NegotiatorOptions } from "./session.js";

/** What an application may send. */
export type Data = string | ArrayBufferLike | Blob | ArrayBufferView<ArrayBufferLike>;

/** A class to make native sockets with: the platform's, or that of the npm package `ws`. */
export type NativeWebSocket = new (url: string, protocols?: string | string[]) => WebSocket;

/** Settings of an {@link EvenkeelSocket}. */
export interface EvenkeelOptions {
  /** Makes the native sockets. Default: the platform's `WebSocket`; Node 20 has none. */
  WebSocket?: NativeWebSocket;
  /** Ask the gateway for a server first, the URL being that of its route. Default: dial the URL itself. */
  negotiate?: boolean | NegotiatorOptions;
  /** Make a new connection where one is lost, instead of closing: for use without a library that does so. Default:
   * false. Ends with 1000, 1002 to 1010 other than 1005 and 1006, and codes from 3000 on, which say "stay away". */
  reconnect?: boolean;
  /** Most bytes that wait while a move or a reconnect is under way. A `send` beyond it throws a `QuotaExceededError`
   * and sends nothing; what was taken before stays. Default: 1 MiB, of which a pause of a second fills little. */
  bufferMax?: number;
}

const BUFFER_MAX = 1 << 20;

type Handler<E> = ((this: WebSocket, event: E) => unknown) | null;

/** One native socket. */
interface Wire {
  readonly native: WebSocket;
  readonly ctl: string;
  readonly url: string;
  opened: number;
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

  readonly url: string;
  binaryType: BinaryType = "blob";

  readonly #options: EvenkeelOptions;
  readonly #protocols: string[];
  readonly #session: Session;
  readonly #handlers = new Map<string, [Handler<never>, EventListener]>();
  readonly #stop = new AbortController();
  #readyState: 0 | 1 | 2 | 3 = 0;
  #protocol = "";
  #extensions = "";
  /** The socket in use. */
  #old: Wire | undefined;
  /** The one to move to. */
  #new: Wire | undefined;
  #state: State<Data> = { at: "open" };
  #timer: ReturnType<typeof setTimeout> | undefined;
  #dialling: AbortController | undefined;
  #paused = 0;
  /** Taken and not yet given to a socket: while reconnecting. */
  #held: Data[] = [];
  #heldBytes = 0;
  #closing: { code?: number; reason?: string } | undefined;
  #last = { code: 1006, reason: "", wasClean: false };
  #unwatch: (() => void) | undefined;
  #frozen = false;
  #released: (() => void) | undefined;

  /** A class with these settings, to be injected where a library takes a WebSocket class. Its sockets that follow one
   * another are one session; make one class per client of the library. */
  static with(options: EvenkeelOptions): typeof EvenkeelSocket {
    const ended: Session[] = [];
    return class extends EvenkeelSocket {
      constructor(url: string | URL | Negotiator, protocols?: string | string[]) {
        super(url, protocols, options, ended);
      }
    };
  }

  constructor(url: string | URL | Negotiator, protocols?: string | string[], options?: EvenkeelOptions);
  /** @internal */
  constructor(url: string | URL | Negotiator, protocols: string | string[] | undefined, options: EvenkeelOptions, ended: Session[]);
  constructor(url: string | URL | Negotiator, protocols: string | string[] = [], options: EvenkeelOptions = {}, ended: Session[] = []) {
    super();
    this.#options = options;
    this.#protocols = checkedProtocols(protocols);
    const issued = typeof url === "function" ? { session: url.session } : issuedFor(String(url));
    const text = typeof url === "function" ? url.session.url : checkedUrl(String(url));
    this.url = withoutKeys(text);
    const { negotiate } = options;
    const wanted = negotiate ? (negotiate === true ? {} : negotiate) : undefined;
    const at = wanted && !issued ? ended.findIndex((session) => session.serves(text)) : -1;
    const again = at < 0 ? undefined : ended.splice(at, 1)[0];
    this.#session = issued?.session ?? again ?? new Session(text, wanted);
    if (wanted && !issued) this.#released = () => void (ended.push(this.#session) > 8 && ended.shift());
    // A missing class is the programmer's mistake, to be seen at once.
    this.#native();
    void this.#connect(issued && "assignment" in issued ? issued.assignment : undefined);
  }

  get readyState(): 0 | 1 | 2 | 3 {
    return this.#readyState;
  }

  /** Bytes that were given to `send` and have not left: those that wait for a move included. */
  get bufferedAmount(): number {
    return this.#heldBytes + (this.#old?.native.bufferedAmount ?? 0);
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
    const { at } = this.#state;
    if (at === "cutting" || at === "resuming" || at === "lost") this.#hold(data);
    if (at === "lost") this.#held.push(data);
    else this.#step({ is: "send", data });
  }

  close(code?: number, reason?: string): void {
    if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) {
      throw new DOMException(`The close code must be 1000 or from 3000 to 4999, not ${code}`, "InvalidAccessError");
    }
    if (reason !== undefined && new TextEncoder().encode(reason).length > 123) {
      throw new DOMException("The close reason must not be longer than 123 bytes", "SyntaxError");
    }
    if (this.#readyState > 1) return;
    const connecting = this.#readyState === 0;
    this.#readyState = 2;
    this.#closing = { ...(code !== undefined && { code }), ...(reason !== undefined && { reason }) };
    if (connecting || this.#state.at === "lost") {
      this.#stop.abort();
      this.#drop();
      this.#old?.native.close();
      queueMicrotask(() => this.#end({ code: 1006, reason: "", wasClean: false }));
    } else {
      this.#finish();
    }
  }

  /** Tells the server and closes, once what waits for a move has gone out. */
  #finish(): void {
    const { at } = this.#state;
    if (!this.#closing || at === "cutting" || at === "resuming") return;
    this.#drop();
    this.#old?.native.close(this.#closing.code, this.#closing.reason);
  }

  // Connecting ------------------------------------------------------------------------------------------------------

  #native(): NativeWebSocket {
    const Native = this.#options.WebSocket ?? (globalThis as { WebSocket?: NativeWebSocket }).WebSocket;
    if (!Native) throw new TypeError("this platform has no WebSocket: pass a class as options.WebSocket");
    return Native;
  }

  /** Connects, and again after each failure where that is wanted. */
  async #connect(assigned?: Assignment): Promise<void> {
    const { signal } = this.#stop;
    try {
      for (;;) {
        const assignment = assigned ?? (await this.#session.next(signal));
        const wire = await this.#open(assignment, signal);
        if (signal.aborted) return wire?.native.close();
        if (wire) return this.#connected(wire);
        if (!this.#options.reconnect) break;
        assigned = undefined;
      }
    } catch (error) {
      if (signal.aborted) return;
      const why = error instanceof NegotiateError ? `ek:${error.why}` : "";
      this.#last = { code: 1006, reason: why, wasClean: false };
    }
    this.#end(this.#last);
  }

  #connected(wire: Wire): void {
    const again = this.#state.at === "lost";
    this.#old = wire;
    this.#state = { at: "open" };
    this.#protocol = wire.native.protocol;
    this.#extensions = wire.native.extensions;
    this.#unwatch ??= watch((change) => this.#changed(change));
    this.#session.opened();
    if (!again) {
      this.#readyState = 1;
      this.dispatchEvent(new Event("open"));
      return;
    }
    const held = this.#held;
    this.#held = [];
    this.#heldBytes = 0;
    this.#emit("gap", { why: "lost", held: held.length });
    for (const data of held) this.#step({ is: "send", data });
  }

  /** The first of the assigned places where a socket opens. */
  async #open(assignment: Assignment, signal: AbortSignal, ticket?: string): Promise<Wire | undefined> {
    for (const url of assignment.urls) {
      if (signal.aborted) return undefined;
      const wire = await this.#dial(url, assignment.connectMs, signal, ticket);
      if (wire) return wire;
      this.#session.refused(url);
    }
    return undefined;
  }

  #dial(url: string, connectMs: number, signal: AbortSignal, ticket?: string): Promise<Wire | undefined> {
    return new Promise((resolve) => {
      const ctl = randomId();
      const Native = this.#native();
      const target = dialled(url.replace(/^http/, "ws"), ctl, ticket === undefined ? undefined : { sid: this.#session.sid, ticket });
      const native = new Native(target, this.#protocols);
      // The one form in which every platform hands data over at once and in order.
      native.binaryType = "arraybuffer";
      const wire: Wire = { native, ctl, url, opened: 0 };
      const finish = (result: Wire | undefined) => {
        clearTimeout(timer);
        signal.removeEventListener("abort", abort);
        resolve(result);
      };
      const abort = () => {
        native.close();
        finish(undefined);
      };
      const timer = setTimeout(abort, connectMs);
      signal.addEventListener("abort", abort);
      native.onopen = () => {
        wire.opened = Date.now();
        finish(wire);
      };
      native.onmessage = (event: MessageEvent) => this.#received(wire, event.data);
      native.onerror = () => {};
      native.onclose = (event: CloseEvent) => {
        if (wire.opened) this.#closed(wire, event);
        else finish(undefined);
      };
    });
  }

  // Sockets ---------------------------------------------------------------------------------------------------------

  #received(wire: Wire, data: string | ArrayBuffer): void {
    const on = wire === this.#old ? "old" : wire === this.#new ? "new" : undefined;
    if (!on) return;
    const message = decode(wire.ctl, data);
    this.#step(message ? { is: "heard", on, message } : { is: "message", on, data });
  }

  #closed(wire: Wire, { code, reason, wasClean }: CloseEvent): void {
    if (wire === this.#new) return this.#step({ is: "ended", on: "new" });
    if (wire !== this.#old) return;
    this.#session.ended(Date.now() - wire.opened);
    this.#last = { code, reason, wasClean };
    this.#step({ is: "ended", on: "old" });
  }

  #changed(change: Change): void {
    if (change === "thaw") {
      if (this.#frozen) this.#lose([]);
      this.#frozen = false;
      return;
    }
    if (this.#state.at === "lost" || !this.#old) return;
    // Dead or about to be: the socket's own close may take minutes, or never be seen by a frozen page.
    const wire = this.#old;
    this.#frozen = change === "freeze";
    this.#last = { code: 1006, reason: `ek:${change}`, wasClean: false };
    this.#session.ended(Date.now() - wire.opened);
    this.#step({ is: "ended", on: "old" });
    wire.native.close();
  }

  // The dialogue ----------------------------------------------------------------------------------------------------

  #step(event: MoveEvent<Data>): void {
    const [state, effects] = step(this.#state, event, Date.now());
    this.#state = state;
    for (const effect of effects) this.#perform(effect);
    const at = timeout(this.#state);
    clearTimeout(this.#timer);
    if (at !== undefined) this.#timer = setTimeout(() => this.#step({ is: "time" }), Math.max(0, at - Date.now()));
    this.#finish();
  }

  #perform(effect: Effect<Data>): void {
    switch (effect.do) {
      case "send":
        return this.#old?.native.send(effect.data as string);
      case "deliver":
        return this.#deliver(effect.data as string | ArrayBuffer);
      case "say":
        if (effect.message.op === "cut") this.#paused = Date.now();
        return this.#say(effect.on === "old" ? this.#old : this.#new, effect.message);
      case "dial":
        return void this.#move(effect.ticket);
      case "drop":
        return this.#drop();
      case "swap":
        return this.#swap();
      case "lose":
        return this.#lose(effect.unsent);
      case "moving":
        return this.#emit("moving", { mid: effect.mid, why: effect.why });
      case "moved":
        this.#heldBytes = 0;
        return this.#emit("moved", { mid: effect.mid, pauseMs: Date.now() - this.#paused });
      case "failed":
        this.#heldBytes = 0;
        return this.#emit("moveFailed", { mid: effect.mid, why: effect.why });
    }
  }

  #say(wire: Wire | undefined, message: Say): void {
    if (wire?.native.readyState !== 1) return;
    const { sid } = this.#session;
    const named = message.op === "park" || message.op === "resume" ? { ...message, sid } : message;
    wire.native.send(encode(wire.ctl, named));
  }

  async #move(ticket: string): Promise<void> {
    const stop = new AbortController();
    this.#dialling = stop;
    let retryMs = 0;
    let wire: Wire | undefined;
    try {
      const assignment = await this.#session.move(ticket, stop.signal);
      wire = await this.#open(assignment, stop.signal, ticket);
    } catch (error) {
      if (error instanceof NegotiateError) retryMs = error.later?.wait_ms ?? 0;
    }
    if (stop.signal.aborted) return wire?.native.close();
    if (wire && wire.native.protocol === this.#protocol) {
      this.#new = wire;
      this.#step({ is: "opened" });
    } else {
      wire?.native.close();
      this.#step({ is: "unreachable", retryMs });
    }
  }

  #drop(): void {
    this.#dialling?.abort();
    this.#dialling = undefined;
    const wire = this.#new;
    this.#new = undefined;
    wire?.native.close();
  }

  #swap(): void {
    const gone = this.#old?.native;
    this.#old = this.#new;
    this.#new = undefined;
    this.#dialling = undefined;
    this.#session.opened();
    // Its server closes it; what never does is closed here.
    setTimeout(() => gone?.close(), STEP_MS);
  }

  // The application -------------------------------------------------------------------------------------------------

  #deliver(data: string | ArrayBuffer): void {
    if (this.#readyState !== 1) return;
    const whole = typeof data === "string" || this.binaryType === "arraybuffer" ? data : new Blob([data]);
    this.dispatchEvent(new MessageEvent("message", { data: whole, origin: new URL(this.url).origin }));
  }

  #hold(data: Data): void {
    const size = sizeOf(data);
    if (this.#heldBytes + size > (this.#options.bufferMax ?? BUFFER_MAX)) {
      throw new DOMException("Too much waits to be sent while the connection moves", "QuotaExceededError");
    }
    this.#heldBytes += size;
  }

  #lose(unsent: readonly Data[]): void {
    if (this.#frozen) return;
    this.#old = undefined;
    const { code, reason } = this.#last;
    const deliberate = code === 1000 || code >= 3000 || (code >= 1002 && code <= 1010 && code !== 1005 && code !== 1006);
    if (this.#options.reconnect && !deliberate && this.#readyState === 1) {
      this.#held = [...unsent];
      this.#emit("lost", { code, reason });
      void this.#connect();
      return;
    }
    if (!deliberate || unsent.length > 0) this.#emit("gap", { why: reason || String(code), held: unsent.length });
    this.#end(this.#last);
  }

  #end(last: { code: number; reason: string; wasClean: boolean }): void {
    if (this.#readyState === 3) return;
    this.#readyState = 3;
    this.#unwatch?.();
    this.#released?.();
    clearTimeout(this.#timer);
    if (!last.wasClean) this.dispatchEvent(new Event("error"));
    this.dispatchEvent(closeEvent(last));
  }

  #emit<K extends keyof MoveEvents>(type: K, detail: MoveEvents[K]): void {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  // Event handlers --------------------------------------------------------------------------------------------------

  get onopen(): Handler<Event> {
    return this.#handler("open");
  }
  set onopen(handler: Handler<Event>) {
    this.#handle("open", handler);
  }
  get onmessage(): Handler<MessageEvent> {
    return this.#handler("message");
  }
  set onmessage(handler: Handler<MessageEvent>) {
    this.#handle("message", handler);
  }
  get onerror(): Handler<Event> {
    return this.#handler("error");
  }
  set onerror(handler: Handler<Event>) {
    this.#handle("error", handler);
  }
  get onclose(): Handler<CloseEvent> {
    return this.#handler("close");
  }
  set onclose(handler: Handler<CloseEvent>) {
    this.#handle("close", handler);
  }

  #handler<E>(type: string): Handler<E> {
    return (this.#handlers.get(type)?.[0] ?? null) as Handler<E>;
  }

  #handle<E>(type: string, handler: Handler<E>): void {
    const before = this.#handlers.get(type);
    if (before) super.removeEventListener(type, before[1]);
    this.#handlers.delete(type);
    if (typeof handler !== "function") return;
    const listener = (event: Event) => void handler.call(this, event as E);
    this.#handlers.set(type, [handler as Handler<never>, listener]);
    super.addEventListener(type, listener);
  }

  override addEventListener<K extends keyof EvenkeelEventMap>(type: K, listener: (this: WebSocket, event: EvenkeelEventMap[K]) => unknown, options?: boolean | AddEventListenerOptions): void;
  override addEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions): void;
  override addEventListener(type: string, listener: unknown, options?: boolean | AddEventListenerOptions): void {
    super.addEventListener(type, listener as EventListener, options);
  }

  override removeEventListener<K extends keyof EvenkeelEventMap>(type: K, listener: (this: WebSocket, event: EvenkeelEventMap[K]) => unknown, options?: boolean | EventListenerOptions): void;
  override removeEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | EventListenerOptions): void;
  override removeEventListener(type: string, listener: unknown, options?: boolean | EventListenerOptions): void {
    super.removeEventListener(type, listener as EventListener, options);
  }
}

function checkedUrl(url: string): string {
  let parsed: URL | undefined;
  try {
    parsed = new URL(url, here());
  } catch {}
  if (!parsed || !/^(wss?|https?):$/.test(parsed.protocol)) {
    throw new DOMException(`The URL '${withoutKeys(url)}' is not one of a WebSocket`, "SyntaxError");
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

function sizeOf(data: Data): number {
  if (typeof data === "string") return new TextEncoder().encode(data).length;
  return data instanceof Blob ? data.size : data.byteLength;
}
