/** A server dies at each step of a move, on real sockets: never twice, never out of order, and a gap where one may be. */
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { Farm, atEnd, idOfServer, kill, until, type FarmServer } from "../../server/test/farm.js";
import type { Hooks } from "../../server/src/index.js";
import { EvenkeelSocket } from "../src/index.js";

/** What the servers got, in the order they got it, and what each sends: `s<session>:<number>`. */
class Ledger {
  readonly got: number[] = [];
  #sessions = 0;

  hooks(): Hooks {
    const states = new Map<object, { session: number; sent: number }>();
    return {
      connection: (connection, handed) => {
        const state = handed ? JSON.parse(String(handed)) : { session: this.#sessions++, sent: 0 };
        states.set(connection, state);
        connection.on("message", (data) => this.got.push(Number(data)));
        const timer = setInterval(() => {
          const state = states.get(connection);
          if (state) connection.send(`s${state.session}:${state.sent++}`);
        }, 2);
        connection.on("close", () => clearInterval(timer));
      },
      detach(connection) {
        const state = states.get(connection);
        states.delete(connection);
        return JSON.stringify(state);
      },
    };
  }
}

const steps = ["move", "park", "parked", "cut", "done", "resume", "resumed"] as const;

describe.each(["old", "new"] as const)("the %s server dies", (which) => {
  it.each(steps)("at %s", async (step) => {
    const farm = await new Farm().start();
    const ledger = new Ledger();
    const source = await farm.server("a", ledger.hooks());
    let dying: FarmServer | undefined;
    let dead = false;
    /** Sees the frames of both sockets, and ends a server as soon as one of this op passes. */
    class Tapped extends WebSocket {
      constructor(url: string, protocols?: string | string[]) {
        super(url, protocols);
        this.prependListener("message", (data) => this.#passed(String(data)));
      }
      override send(data: never, ...more: never[]): void {
        super.send(data, ...more);
        this.#passed(String(data));
      }
      #passed(text: string): void {
        if (dead || !dying || !text.startsWith("\u001eek1") || !text.includes(`"op":"${step}"`)) return;
        dead = true;
        farm.servers.splice(farm.servers.indexOf(dying), 1);
        kill(dying.host);
      }
    }
    const url = `ws://${await farm.negotiate()}/`;
    const socket = new EvenkeelSocket(url, [], { WebSocket: Tapped, negotiate: true, reconnect: true });
    atEnd(() => socket.close());
    const events: string[] = [];
    const got: [number, number][] = [];
    for (const type of ["moved", "moveFailed", "gap", "lost", "reopened", "close"] as const) {
      socket.addEventListener(type, () => events.push(type));
    }
    socket.addEventListener("message", ({ data }) => {
      const [, session, number] = /^s(\d+):(\d+)$/.exec(data as string) ?? [];
      got.push([Number(session), Number(number)]);
    });
    await until("messages flow", () => got.length > 5);
    const receiver = await farm.server("b", ledger.hooks());
    dying = which === "old" ? source : receiver;
    let sent = 0;
    const timer = setInterval(() => socket.send(String(sent++)), 1);
    atEnd(() => clearInterval(timer));
    farm.drain(source);
    await until("it dies", () => dead);
    const spare = await farm.server("c", ledger.hooks());
    // The one that lives on empties too where it is the source and the move came to nothing.
    await until("the client is served", () => {
      const holders = [source, receiver, spare].filter((server) => server !== dying && server.evenkeel.connections > 0);
      return holders.length === 1 && idOfServer(holders[0]!) !== "a";
    });
    clearInterval(timer);
    const gaps = events.filter((event) => event === "gap").length;
    const before = got.length;
    await until("messages flow again", () => got.length > before + 3);
    socket.send(String(sent++));
    await until("the last has arrived", () => ledger.got.at(-1) === sent - 1);

    // Never twice, never out of order.
    for (const [index, number] of ledger.got.entries()) if (index > 0) expect(number).toBeGreaterThan(ledger.got[index - 1]!);
    got.forEach(([session, number], index) => {
      const [last, at] = got[index - 1] ?? [-1, -1];
      if (session === last) expect(number).toBe(at + 1);
      else expect([session > last, number]).toEqual([true, 0]);
    });
    // Something is missing, or a session began anew, only with a gap.
    const missing = ledger.got.length < sent || got.some(([session]) => session !== got[0]?.[0]);
    if (missing) expect(gaps).toBeGreaterThan(0);
    // What completed has no gap, unless its new server is the one that died.
    const completed = which === "old" && ["done", "resume", "resumed"].includes(step);
    if (completed) expect([gaps, missing]).toEqual([0, false]);
  });
});
