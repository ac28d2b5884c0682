/**
 * Steers a socket.io client: each connection goes to the server that the gateway assigns.
 *
 * A socket.io `Manager` makes a new engine from its `uri` on each attempt, so that is set anew before each. An engine's
 * session belongs to its server: a move is a reconnect, with the messages that `connectionStateRecovery` brings back.
 *
 * In: events of the manager. Out: its `uri`. Invariant: an attempt goes to the assigned server, its alternatives, the
 * gateway, in this order, and asks anew after that. Elsewhere: asking and waiting (`session`).
 */
import type { Negotiator } from "./session.js";
import { withoutKeys } from "./url.js";

/** What of a socket.io `Manager` is used; `uri` is private in its types. */
interface Manager {
  uri: string;
  opts: { query?: Record<string, unknown> };
  engine?: { close(): unknown };
  on(event: string, listener: () => void): unknown;
  off(event: string, listener: () => void): unknown;
}

/** A steered manager. */
export interface Steering {
  /** Goes to another server: points the manager there and closes its engine, which then reconnects. */
  move(): Promise<void>;
  /** Leaves the manager alone from now on. */
  stop(): void;
}

/**
 * Steers `manager`, made with `autoConnect: false`; resolves when the first server is known, to be followed by
 * `socket.connect()`. The negotiator's URL is that of the gateway with the path of socket.io, `/socket.io/` by default.
 */
export async function steer(manager: object, ek: Negotiator): Promise<Steering> {
  const io = manager as Manager;
  const { session } = ek;
  const gateway = io.uri;
  // Each engine puts the query of its URI in the place of this one.
  const query = Object.entries(io.opts.query ?? {});
  let places: string[] = [];
  let asking: Promise<void> | undefined;
  let current = "";
  let opened = 0;

  const point = (url: string) => {
    const to = new URL(url, gateway);
    for (const [name, value] of query) to.searchParams.set(name, String(value));
    current = url;
    io.uri = `${to.protocol}//${to.host}${to.search ? `/${to.search}` : ""}`;
  };
  const ask = () => {
    asking ??= session
      .next()
      .then(({ urls }) => void (places = [...urls]))
      // Where nobody may be asked, the gateway itself is left.
      .catch(() => {})
      .finally(() => (asking = undefined));
    return asking;
  };
  const listeners = {
    open: () => {
      opened = performance.now();
      session.opened();
    },
    close: () => {
      session.ended(performance.now() - opened);
      // A move has its place already.
      if (places.length === 0) void ask();
    },
    reconnect_attempt: () => point(places.shift() ?? withoutKeys(gateway)),
    reconnect_error: () => {
      session.refused(current);
      if (places.length === 0) void ask();
    },
  };
  for (const [event, listener] of Object.entries(listeners)) io.on(event, listener);
  await ask();
  point(places.shift() ?? gateway);
  return {
    async move() {
      places = [...(await session.assign("move")).urls];
      io.engine?.close();
    },
    stop() {
      for (const [event, listener] of Object.entries(listeners)) io.off(event, listener);
    },
  };
}
