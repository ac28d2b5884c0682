/**
 * A reconnect storm of stock clients that wait without jitter, Phoenix and partysocket as they come: half of the servers
 * are killed, and everybody comes back at once, again and again. What the servers admit holds all the same.
 */
import { WebSocket as PartySocket } from "partysocket";
import { Socket as PhoenixSocket } from "phoenix";
import { expect, it } from "vitest";
import { WebSocket } from "ws";
import { atEnd } from "../../server/test/farm.js";
import { eventually, World } from "./world.js";

/** Of each library. */
const CLIENTS = 300;
/** Connections a second that each server admits, and how many at once. */
const [RATE, BURST] = [30, 6];
/** Handshakes that may wait. */
const QUEUE = 60;
/** Promised: all are back within this. */
const BACK_S = 30;

/** A client of either library, and how to leave. */
function client(kind: "phoenix" | "partysocket", url: string, opened: () => void, closed: () => void): () => void {
  let open = false;
  const opens = () => {
    open = true;
    opened();
  };
  // They say close for every dial that fails too.
  const closes = () => {
    if (open) closed();
    open = false;
  };
  if (kind === "phoenix") {
    const socket = new PhoenixSocket(url, { transport: WebSocket as never });
    socket.onOpen(opens);
    socket.onClose(closes);
    socket.connect();
    return () => socket.disconnect();
  }
  const socket = new PartySocket(url, [], { WebSocket });
  socket.addEventListener("open", opens);
  socket.addEventListener("close", closes);
  return () => socket.close();
}

it("clients without jitter all come back within what the servers admit", { timeout: 90_000 }, async () => {
  const place = `slow_start = "1ms"\nadmit_per_s = ${RATE}\nadmit_burst = "${(BURST / RATE) * 1000}ms"\nadmission_queue = ${QUEUE}`;
  const world = await World.start({ place });
  const servers = new Map(["a", "b", "c", "d"].map((id) => [id, world.echo(id)]));
  const seen = async (id: string) => (await world.servers()).find((server) => server.id === id);
  for (const id of servers.keys()) await eventually(`${id} is active`, async () => (await seen(id))?.state === "active");

  let open = 0;
  let lost = 0;
  /** When clients were back, in milliseconds since the storm began. */
  const back: number[] = [];
  let began = 0;
  const opened = () => {
    open += 1;
    if (began) back.push(performance.now() - began);
  };
  const closed = () => {
    open -= 1;
    lost += 1;
  };
  const leave: (() => void)[] = [];
  atEnd(() => leave.forEach((go) => go()));
  for (let number = 0; number < CLIENTS; number++) {
    for (const kind of ["phoenix", "partysocket"] as const) {
      leave.push(client(kind, `ws://${world.gateway}/socket`, opened, closed));
    }
    // As fast as they are admitted, so that the storm begins with rested clients.
    await new Promise((resolve) => setTimeout(resolve, (2 * 1000) / (RATE * 4)));
  }
  const all = 2 * CLIENTS;
  await eventually("all are connected", async () => open === all, BACK_S);
  const held = async (id: string) => (await seen(id))?.connections ?? 0;
  await eventually("all are reported", async () => (await Promise.all([...servers.keys()].map(held))).reduce((a, b) => a + b, 0) === all);
  lost = 0;

  const victims = ["a", "b"];
  const expected = (await Promise.all(victims.map(held))).reduce((a, b) => a + b, 0);
  began = performance.now();
  for (const id of victims) servers.get(id)?.kill();
  let waiting = 0;
  await eventually("all are back", async () => {
    const metrics = (await world.ask("/metrics")) as string;
    waiting = Math.max(waiting, Number(/^evenkeel_gateway_waiting (\d+)/m.exec(metrics)?.[1]));
    return lost >= expected && open === all;
  }, BACK_S);

  expect([lost, back.length]).toEqual([expected, expected]);
  expect(waiting).toBeGreaterThan(0);
  expect(waiting).toBeLessThanOrEqual(QUEUE);
  // Credit for the n-th was there: what two servers admit in that time, and what they had saved.
  const early = back.filter((at, index) => index + 1 > 2 * (BURST + (RATE * at) / 1000) + 1);
  expect(early).toEqual([]);
  await eventually("all are counted", async () => (await held("c")) + (await held("d")) === all);
  const fair = all / 2;
  for (const id of ["c", "d"]) expect(await held(id)).toBeLessThanOrEqual(fair * 1.2);
  expect(world.process.isOver).toBe(false);
});
