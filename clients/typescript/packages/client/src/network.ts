/**
 * What the device does to connections: offline and online, the back/forward cache, sleep.
 *
 * In: events of the browser where there is one, and a timer that notices when it was not called. Out: [`Change`]s to
 * whoever listens, and waits that end early when trying again is worth it. Invariants: nothing is installed while
 * nobody listens; a hidden tab whose timers are throttled is not taken for a device that slept. Elsewhere: what a
 * session does about it (`machine`).
 */
import type { Backoff } from "./backoff.js";

/** `offline`: do not dial. `online`: one may again. `dead`: sockets that are open are dead even if they look open. */
export type Change = "offline" | "online" | "dead";

/** How often the timer looks, and how late it has to be for the device to have slept. Visible: a page that hangs for
 * 30 s has lost its sockets to most servers' pings anyway. Hidden: browsers wake a page once a minute. */
const LOOK_MS = 5_000;
const SLEPT_MS = 30_000;
const SLEPT_HIDDEN_MS = 150_000;

/** What of a browser's window is used, each absent elsewhere. */
type Page = Partial<Pick<Window, "addEventListener" | "removeEventListener" | "document" | "location">>;
type Listener = (change: Change) => void;

const listeners = new Set<Listener>();
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

/** Waits. Ends soon, yet not at once since everybody's network is back, when the network comes back; goes on up to the
 * cap of the back-off while the device is offline. */
export function sleep(ms: number, backoff: Backoff): Promise<void> {
  return new Promise((resolve) => {
    const started = Date.now();
    let handle: ReturnType<typeof setTimeout>;
    const due = () => {
      const left = offline ? started + Math.max(ms, backoff.cap) - Date.now() : 0;
      if (left > 0) {
        handle = setTimeout(due, left);
        return;
      }
      unwatch();
      resolve();
    };
    const unwatch = watch((change) => {
      if (change !== "online") return;
      clearTimeout(handle);
      handle = setTimeout(due, Math.max(0, Math.min(started + ms - Date.now(), backoff.soon())));
    });
    handle = setTimeout(due, ms);
  });
}

function settle(): void {
  const wanted = listeners.size > 0;
  if (wanted === (timer !== undefined)) return;
  const page = globalThis as unknown as Page;
  const change = wanted ? page.addEventListener : page.removeEventListener;
  for (const name of ["online", "offline", "pagehide", "pageshow"]) change?.call(page, name, happened);
  const visibility = wanted ? page.document?.addEventListener : page.document?.removeEventListener;
  visibility?.call(page.document, "visibilitychange", happened);
  clearInterval(timer);
  timer = undefined;
  if (!wanted) return;
  offline = false;
  hidden = page.document?.visibilityState === "hidden";
  looked = Date.now();
  timer = setInterval(look, LOOK_MS);
  // Node keeps a process alive for a timer; sockets are the reason to live, not this.
  (timer as { unref?: () => void }).unref?.();
}

function happened(event: Event): void {
  const { persisted } = event as PageTransitionEvent;
  switch (event.type) {
    case "offline":
      offline = true;
      return tell("offline");
    case "online":
      // The sockets were on the network that went.
      if (offline) tell("dead");
      offline = false;
      return tell("online");
    case "pagehide":
      // The back/forward cache takes no page with open sockets, and a page in it hears nothing.
      if (!persisted) return;
      tell("offline");
      return tell("dead");
    case "pageshow":
      looked = Date.now();
      return persisted ? tell("online") : undefined;
    default:
      look();
      hidden = (globalThis as unknown as Page).document?.visibilityState === "hidden";
  }
}

function look(): void {
  const late = Date.now() - looked - LOOK_MS;
  looked = Date.now();
  if (late > (hidden ? SLEPT_HIDDEN_MS : SLEPT_MS)) tell("dead");
}

function tell(change: Change): void {
  for (const listener of [...listeners]) listener(change);
}
