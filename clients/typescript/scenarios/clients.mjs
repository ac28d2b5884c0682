// Clients for trials of moves, against servers of `server.mjs`. Uses what is built.
//
//   node scenarios/clients.mjs --url ws://127.0.0.1:8080/chat --count 2000 --rate 10 --seconds 30
//        [--negotiate] [--reconnect] [--ramp 400]
//
// Each sends `rate` numbers a second and checks those it gets. Prints `ready` when all are open, and at the end one line of
// JSON: how many opened and moved, gaps, closes, wrong numbers, what was lost, pauses in milliseconds.
import { parseArgs } from "node:util";
import { EvenkeelSocket } from "@evenkeel/client";
import { WebSocket } from "ws";

const { values: options } = parseArgs({
  options: {
    url: { type: "string" },
    count: { type: "string", default: "2000" },
    rate: { type: "string", default: "10" },
    seconds: { type: "string", default: "30" },
    ramp: { type: "string", default: "400" },
    negotiate: { type: "boolean", default: false },
    reconnect: { type: "boolean", default: false },
  },
});
const count = Number(options.count);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const total = { opened: 0, moved: 0, failed: 0, gaps: 0, lost: 0, closed: 0, unsent: 0, wrong: [] };
const pauses = [];
const clients = [];

function start() {
  const { negotiate, reconnect } = options;
  const socket = new EvenkeelSocket(options.url, [], { WebSocket, negotiate, reconnect });
  const client = { socket, sent: 0, got: 0, end: undefined };
  clients.push(client);
  const on = (type, listener) => socket.addEventListener(type, listener);
  on("open", () => (total.opened += 1));
  on("moved", ({ detail }) => {
    total.moved += 1;
    pauses.push(detail.pauseMs);
  });
  on("moveFailed", () => (total.failed += 1));
  on("gap", () => (total.gaps += 1));
  on("lost", () => (total.lost += 1));
  on("unsent", () => (total.unsent += 1));
  on("close", ({ code, reason }) => {
    if (client.end === undefined) total.wrong.push(`closed ${code} ${reason}`);
    total.closed += 1;
  });
  on("message", ({ data }) => {
    if (data.startsWith("end ")) client.end = Number(data.slice(4));
    else if (data !== String(client.got++)) total.wrong.push(`got ${data} for ${client.got - 1}`);
  });
}

for (let started = 0; started < count; started += 1) {
  start();
  if (started % 20 === 19) await sleep((20 / Number(options.ramp)) * 1000);
}
while (total.opened < count) await sleep(20);
console.log("ready");

const slots = 10;
let turn = 0;
const sending = setInterval(() => {
  turn = (turn + 1) % slots;
  for (let at = turn; at < clients.length; at += slots) {
    const client = clients[at];
    if (client.socket.readyState === 1) client.socket.send(String(client.sent++));
  }
}, 1000 / Number(options.rate) / slots);
await sleep(Number(options.seconds) * 1000);
clearInterval(sending);
for (const { socket } of clients) if (socket.readyState === 1) socket.send("end");
for (let waited = 0; waited < 10_000 && clients.some(({ end }) => end === undefined); waited += 50) await sleep(50);

const sum = (field) => clients.reduce((sum, client) => sum + (client[field] ?? 0), 0);
pauses.sort((a, b) => a - b);
const at = (share) => pauses[Math.min(pauses.length - 1, Math.floor(pauses.length * share))] ?? 0;
const round = (value) => Math.round(value * 10) / 10;
const { wrong, ...counts } = total;
const result = {
  ...counts,
  sent: sum("sent"),
  arrived: sum("end"),
  got: sum("got"),
  wrong: wrong.length,
  first_wrong: wrong.slice(0, 5),
  pause_ms: { p50: round(at(0.5)), p99: round(at(0.99)), max: round(at(1)) },
};
console.log(JSON.stringify(result));
process.exit(result.wrong === 0 && result.sent === result.arrived ? 0 : 1);
