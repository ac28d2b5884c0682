/**
 * What the device does to connections: offline and online, hidden tabs, the back/forward cache, sleep.
 *
 * In: events of the browser where there is one, and a timer that notices when it was not called. Out: [`Change`]s to
 * whoever listens, and waits that end early when trying again is worth it. Invariants: nothing is installed while
 * nobody listens; a hidden tab whose timers are throttled is not taken for a device that slept. Elsewhere: what a
 * socket does about it (`socket`).
 */

import type { Backoff } from "./backoff.js";

/** `lost`: the network that our sockets were on is gone, or the device slept: they are dead even if they look open.
 * `freeze`: the page goes into the back/forward cache, which takes no page with open sockets; `thaw`: it is back. */
export type Change = "lost" | "freeze" | "thaw";

/** How often the timer looks, and how late it has to be for the device to have slept. Visible: a page that hangs for
 * 30 s has lost its sockets to most servers' pings anyway. Hidden: browsers wake a page once a minute. */
const LOOK_MS = 5_000;
const SLEPT_MS = 30_000;
const SLEPT_HIDDEN_MS = 150_000;

/** What of a browser's window is used, each absent elsewhere. */
type Page = Partial<Pick<Window, "addEventListener" | "removeEventListener" | "document" | "location">>;

type Listener = (change: Change) => void;

const listeners = new Set<Listener>();
const waits = new Set<() => void>();
let offline = false;
let hidden = false;
let looked = 0;
let timer: ReturnType<typeof setInterval> | undefined;

/** Where the page is, in a browser. */
export function here(): string | undefined {
  return (globalThis as unknown as Page).location?.href;
}

/** Calls back on every change until the function it returns is called. */
export function watch(listener: Listener): () => void {
  listeners.add(listener);
  settle();
  return () => {
    listeners.delete(listener);
    settle();
  };
}

/**
 * Waits. Ends soon, yet not at once since everybody's network is back, when the network or the page comes back; goes on
 * up to the cap while the device is offline. Rejects when the signal aborts.
 */
export function sleep(ms: number, backoff: Backoff, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const started = Date.now();
    let handle: ReturnType<typeof setTimeout>;
    const finish = (end: () => void) => {
      clearTimeout(handle);
      waits.delete(wake);
      signal?.removeEventListener("abort", aborted);
      settle();
      end();
    };
    const due = () => {
      const left = offline ? started + Math.max(ms, backoff.cap) - Date.now() : 0;
      if (left > 0) handle = setTimeout(due, left);
      else finish(resolve);
    };
    const wake = () => {
      clearTimeout(handle);
      const left = started + ms - Date.now();
      handle = setTimeout(due, Math.max(0, Math.min(left, backoff.soon())));
    };
    const aborted = () => finish(() => reject(signal?.reason));
    handle = setTimeout(due, ms);
    waits.add(wake);
    signal?.addEventListener("abort", aborted);
    settle();
  });
}

function settle(): void {
  const wanted = listeners.size + waits.size > 0;
  if (wanted === (timer !== undefined)) return;
  const page = globalThis as unknown as Page;
  const change = wanted ? page.addEventListener : page.removeEventListener;
  for (const name of ["online", "offline", "pagehide", "pageshow"]) change?.call(page, name, happened);
  const visibility = wanted ? page.document?.addEventListener : page.document?.removeEventListener;
  visibility?.call(page.document, "visibilitychange", happened);
  if (wanted) {
    offline = false;
    hidden = page.document?.visibilityState === "hidden";
    looked = Date.now();
    timer = setInterval(look, LOOK_MS);
    // Node keeps a process alive for a timer; sockets are the reason to live, not this.
    (timer as { unref?: () => void }).unref?.();
  } else {
    clearInterval(timer);
    timer = undefined;
  }
}

function happened(event: Event): void {
  switch (event.type) {
    case "offline":
      offline = true;
      return;
    case "online":
      if (offline) tell("lost");
      offline = false;
      return wakeAll();
    case "pagehide":
      if ((event as PageTransitionEvent).persisted) tell("freeze");
      return;
    case "pageshow":
      looked = Date.now();
      if ((event as PageTransitionEvent).persisted) tell("thaw");
      return wakeAll();
    default:
      look();
      hidden = (globalThis as unknown as Page).document?.visibilityState === "hidden";
      if (!hidden) wakeAll();
  }
}

function look(): void {
  const late = Date.now() - looked - LOOK_MS;
  looked = Date.now();
  if (late > (hidden ? SLEPT_HIDDEN_MS : SLEPT_MS)) tell("lost");
}

function tell(change: Change): void {
  for (const listener of [...listeners]) listener(change);
}

function wakeAll(): void {
  for (const wake of [...waits]) wake();
}
