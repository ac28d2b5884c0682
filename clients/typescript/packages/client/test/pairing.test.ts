/**
 * The client's machine against the server's, over links that keep order: random interleavings, crashes, lapses. What must
 * hold whatever happens: nothing twice, nothing out of order, nobody waits for ever; `gap` where something may be missing,
 * never by a move that completes. The Rust machines are explored exhaustively; this guards the port of both.
 */
import { expect, it } from "vitest";
import { Session, type Input as ServerInput } from "../../server/src/move.js";
import { Mover, type Input as ClientInput } from "../src/machine.js";

/** A small seeded generator (mulberry32), so that a failure names the seed that replays it. */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

const CTL = (socket: number) => `ctl-of-socket-${String(socket).padStart(8, "0")}`;
const limits = { messagesMax: 1_000, bytesMax: 1 << 20, size: (message: string) => message.length };

/** One socket: its server's end, what is on its way, and whether it stands. */
interface Wire {
  session: Session<string>;
  up: string[];
  down: (string | { close: true })[];
  alive: boolean;
  /** The application's state here: next number of either direction. */
  state: { got: number; sent: number } | undefined;
}

/** One run. Each server numbers what it sends and checks what it gets; what a gap may hide is started anew. */
class World {
  now = 0;
  readonly random: () => number;
  readonly mover = new Mover<string>({ onLoss: "redial", ...limits });
  readonly wires: (Wire | undefined)[] = [];
  readonly dials: { socket: number; park: boolean }[] = [];
  readonly tasks: (() => void)[] = [];
  readonly faults: string[] = [];
  clientGot: [number, number] = [0, -1];
  clientSent: [number, number] = [0, 0];
  /** Rises with each gap: numbers of different epochs are not compared. */
  gaps = 0;
  moved = 0;
  open = false;
  crashes: number;

  constructor(seed: number) {
    this.random = generator(seed);
    this.crashes = this.random() < 0.5 ? 0 : 1;
    this.client({ is: "start" });
  }

  chance = (share: number) => this.random() < share;

  client(input: ClientInput<string>): void {
    for (const output of this.mover.handle(input, this.now, this.random())) {
      const wire = "socket" in output ? this.wires[output.socket] : undefined;
      switch (output.do) {
        case "dial":
          this.dials.push({ socket: output.socket, park: output.park });
          break;
        case "say":
          wire?.up.push(output.text);
          break;
        case "send":
          wire?.up.push(output.message);
          break;
        case "close":
          if (wire) this.end(output.socket);
          break;
        case "open":
          this.open = true;
          break;
        case "deliver":
          this.delivered(output.message);
          break;
        case "gap":
          this.gaps += 1;
          this.open = false;
          break;
        case "moved":
          this.moved += 1;
          break;
        case "unsent":
          this.faults.push(`unsent ${output.message}`);
      }
    }
  }

  /** Server messages are `s<session>:<number>`: a session that starts anew says so. */
  delivered(message: string): void {
    const [, session, number] = /^s(\d+):(\d+)$/.exec(message) ?? [];
    const [expected, of] = this.clientGot;
    if (Number(session) !== of) {
      // A new session without a gap means that the state was lost in silence.
      if (of >= 0 && this.gaps === this.seenGaps) this.faults.push(`a new session without a gap: ${message}`);
      if (Number(number) !== 0) this.faults.push(`${message} begins a session`);
    } else if (Number(number) !== expected) {
      this.faults.push(`client got ${message} for ${expected}`);
    }
    this.seenGaps = this.gaps;
    this.clientGot = [Number(number) + 1, Number(session)];
  }
  seenGaps = 0;

  server(socket: number, input: ServerInput<string>): void {
    const wire = this.wires[socket];
    if (!wire) return;
    for (const output of wire.session.handle(input, this.now)) {
      switch (output.do) {
        case "say":
          wire.down.push(output.text);
          break;
        case "send":
          wire.down.push(output.message);
          break;
        case "close":
          wire.down.push({ close: true });
          break;
        case "deliver":
          this.accepted(wire, output.message);
          break;
        case "detach": {
          const { mid } = output;
          this.tasks.push(() => {
            const state = wire.state;
            wire.state = undefined;
            this.server(socket, { is: "detached", mid, state: JSON.stringify(state) });
          });
          break;
        }
        case "attach": {
          const { state } = output;
          this.tasks.push(() => {
            wire.state = JSON.parse(state);
            // It may send before it has taken over.
            this.tasks.push(() => this.server(socket, { is: "attached" }));
          });
          break;
        }
        case "gone":
          wire.state = undefined;
      }
    }
  }

  /** Client messages are `c<gaps>:<number>`. */
  accepted(wire: Wire, message: string): void {
    const [, epoch, number] = /^c(\d+):(\d+)$/.exec(message) ?? [];
    if (!wire.state) return void this.faults.push(`${message} for nobody`);
    const key = Number(epoch) * 1_000_000 + Number(number);
    // After a gap numbers may be missing; within one epoch they are a row, and never go back.
    if (key < wire.state.got) this.faults.push(`server got ${message} again, or late`);
    const same = Math.floor(wire.state.got / 1_000_000) === Number(epoch);
    if (same && key !== wire.state.got && this.gapless) this.faults.push(`server got ${message} for ${wire.state.got}`);
    wire.state.got = key + 1;
  }
  get gapless(): boolean {
    return this.gaps === 0;
  }

  end(socket: number): void {
    const wire = this.wires[socket];
    if (!wire?.alive) return;
    wire.alive = false;
    this.tasks.push(() => this.server(socket, { is: "closed" }));
  }

  session = 0;
  /** One thing happens, or nothing can. */
  step(): boolean {
    const can = this.tasks.map((task) => () => {
      this.tasks.splice(this.tasks.indexOf(task), 1);
      task();
    });
    const dial = this.dials[0];
    if (dial) can.push(() => this.dialled(dial));
    this.wires.forEach((wire, socket) => {
      if (!wire) return;
      if (wire.up.length > 0 && wire.alive) can.push(() => this.server(socket, { is: "received", message: wire.up.shift() as string }));
      if (wire.down.length > 0 && wire.alive) can.push(() => this.arrived(socket, wire));
      if (this.crashes > 0 && wire.alive && this.chance(0.05)) can.push(() => this.crash(socket, wire));
    });
    if (can.length === 0) return false;
    can[Math.floor(this.random() * can.length)]?.();
    return true;
  }

  dialled({ socket, park }: { socket: number; park: boolean }): void {
    this.dials.shift();
    if (this.crashes > 0 && this.chance(0.3)) {
      this.crashes -= 1;
      return this.client({ is: "failed", socket, failure: "handshake" });
    }
    const arrival = { ctl: CTL(socket), park: park ? { sid: "s", at: "b" } : undefined, ...limits };
    const state = park ? undefined : { got: 0, sent: 0 };
    this.wires[socket] = { session: new Session(arrival, this.now), up: [], down: [], alive: true, state };
    if (state) Object.assign(state, { session: this.session++ });
    this.client({ is: "opened", socket, ctl: CTL(socket), sid: "s" });
  }

  arrived(socket: number, wire: Wire): void {
    const message = wire.down.shift() as string | { close: true };
    if (typeof message === "string") return this.client({ is: "received", socket, message });
    this.end(socket);
    this.client({ is: "closed", socket, code: 1012, reason: "ek:moved" });
  }

  crash(socket: number, wire: Wire): void {
    this.crashes -= 1;
    wire.alive = false;
    wire.up = [];
    wire.down = [];
    this.server(socket, { is: "closed" });
    this.client({ is: "closed", socket, code: 1006, reason: "" });
  }

  /** Lets time pass to the next thing that is due, if there is one within ten minutes. */
  wait(): boolean {
    const times = [this.mover.pollTimeout(), ...this.wires.map((wire) => wire?.session.pollTimeout())];
    const next = Math.min(...times.filter((time) => time !== undefined));
    if (!Number.isFinite(next)) return false;
    this.now = Math.max(this.now, next);
    this.client({ is: "time" });
    this.wires.forEach((_, socket) => this.server(socket, { is: "time" }));
    return true;
  }

  clientSends(): void {
    const [next, epoch] = this.clientSent;
    const number = epoch === this.gaps ? next : 0;
    this.clientSent = [number + 1, this.gaps];
    this.client({ is: "send", message: `c${this.gaps}:${number}` });
  }

  serverSends(): void {
    this.wires.forEach((wire, socket) => {
      if (!wire?.state || !wire.alive) return;
      const { session } = wire.state as unknown as { session: number };
      this.server(socket, { is: "send", message: `s${session}:${wire.state.sent++}` });
    });
  }

  order(mid: string): void {
    const notice = { mid, ticket: "t", by_ms: this.chance(0.2) ? 1 : 30_000, why: "draining" };
    this.wires.forEach((wire, socket) => wire?.alive && wire.state && this.server(socket, { is: "order", notice }));
  }
}

function run(seed: number): World {
  const world = new World(seed);
  let orders = 0;
  for (let round = 0; round < 400; round++) {
    const draw = world.random();
    if (draw < 0.15) world.clientSends();
    else if (draw < 0.3) world.serverSends();
    else if (draw < 0.33 && orders < 3) world.order(`m${orders++}`);
    else if (draw < 0.34) world.wait();
    else world.step();
  }
  // Everything comes to rest: nobody waits for ever.
  for (let round = 0; round < 5_000; round++) if (!world.step() && !world.wait()) return world;
  world.faults.push("it never comes to rest");
  return world;
}

it("holds what a move promises in thousands of random runs", () => {
  let moved = 0;
  let gaps = 0;
  for (let seed = 1; seed <= 3_000; seed++) {
    const world = run(seed);
    if (world.faults.length > 0) throw new Error(`seed ${seed}: ${world.faults.slice(0, 3).join("; ")}`);
    expect(world.mover.held, `seed ${seed}`).toBe(0);
    moved += world.moved;
    gaps += world.gaps;
  }
  // They are runs worth looking at.
  expect(moved).toBeGreaterThan(1_000);
  expect(gaps).toBeGreaterThan(300);
});
