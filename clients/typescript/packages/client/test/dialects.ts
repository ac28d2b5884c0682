/**
 * Servers that speak just enough of the protocols of client libraries, and hand over where they stand.
 */
import type { Connection, Hooks } from "../../server/src/index.js";

/** What a server remembers of one client, and how it answers. */
export interface Dialect<State> {
  /** For a new client. */
  start(connection: Connection): State;
  answer(message: string, state: State, connection: Connection): void;
  /** Sends the next of a row of numbers, if the client asked for any. */
  tick(state: State, connection: Connection): void;
}

export function speaking<State>({ start, answer, tick }: Dialect<State>): Hooks {
  const states = new Map<Connection, State>();
  return {
    connection(connection, handed) {
      const state: State = handed ? JSON.parse(String(handed)) : start(connection);
      states.set(connection, state);
      connection.on("message", (data) => answer(String(data), state, connection));
      const timer = setInterval(() => states.has(connection) && tick(state, connection), 3);
      connection.on("close", () => clearInterval(timer));
    },
    detach(connection) {
      const state = JSON.stringify(states.get(connection));
      states.delete(connection);
      return state;
    },
  };
}

/** Without a hole, from 0. */
export const isRow = (numbers: number[]) => numbers.every((number, index) => number === index);

/** Numbers both ways, each side from 0. */
export const numbers: Dialect<{ got: number; sent: number }> = {
  start: () => ({ got: 0, sent: 0 }),
  answer(message, state, connection) {
    if (message === String(state.got)) state.got += 1;
    else connection.send(`wrong ${message} for ${state.got}`);
  },
  tick: (state, connection) => connection.send(String(state.sent++)),
};

/** One subscription that gets a row of numbers. */
export const graphql: Dialect<{ id?: string; sent: number }> = {
  start: () => ({ sent: 0 }),
  answer(message, state, connection) {
    const { type, id } = JSON.parse(message);
    if (type === "connection_init") connection.send('{"type":"connection_ack"}');
    if (type === "subscribe") state.id = id;
    if (type === "complete") delete state.id;
  },
  tick(state, connection) {
    if (!state.id) return;
    const payload = { data: { n: state.sent++ } };
    connection.send(JSON.stringify({ id: state.id, type: "next", payload }));
  },
};

/** One channel that gets a row of numbers and echoes. */
export const phoenix: Dialect<{ join?: string; topic?: string; sent: number }> = {
  start: () => ({ sent: 0 }),
  answer(message, state, connection) {
    const [join, ref, topic, event, payload] = JSON.parse(message);
    if (event === "phx_join") Object.assign(state, { join, topic });
    const response = event === "echo" ? payload : {};
    connection.send(JSON.stringify([join, ref, topic, "phx_reply", { status: "ok", response }]));
  },
  tick(state, connection) {
    if (state.join) connection.send(JSON.stringify([state.join, null, state.topic, "n", { n: state.sent++ }]));
  },
};
