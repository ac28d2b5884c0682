// A server for trials of moves: numbers messages both ways and hands the numbers over. Uses what is built.
//
//   node scenarios/server.mjs --id a --port 9001 --node http://127.0.0.1:9900 --token-file admin.token
//        [--fleet chat] [--public-url ws://127.0.0.1:9001] [--admit all] [--rate 10] [--deflate]
//
// Each client gets `rate` numbers a second, counted from 0 over all servers. What it sends has to be a row of numbers too;
// `end` is answered with `end N`: so many came. Anything lost, repeated or out of order is a line `wrong …` on standard
// output. On SIGTERM its clients leave, and it ends.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { Evenkeel, serve } from "@evenkeel/server";

const { values: options } = parseArgs({
  options: {
    id: { type: "string" },
    port: { type: "string" },
    node: { type: "string", multiple: true },
    "token-file": { type: "string" },
    fleet: { type: "string" },
    "public-url": { type: "string" },
    admit: { type: "string", default: "assigned" },
    rate: { type: "string", default: "10" },
    deflate: { type: "boolean", default: false },
  },
});
const { id, port, fleet } = options;
const evenkeel = new Evenkeel({
  id,
  url: `ws://127.0.0.1:${port}`,
  publicUrl: options["public-url"],
  fleet,
  nodes: options.node ?? [],
  token: () => readFileSync(options["token-file"], "utf8").trim(),
  admit: options.admit,
  log: ({ level, message, fields }) => console.log(level, message, JSON.stringify(fields)),
});

const clients = new Map();
const server = createServer();
serve(
  evenkeel,
  server,
  {
    connection(connection, state) {
      const counts = state ? JSON.parse(state) : { got: 0, sent: 0 };
      clients.set(connection, counts);
      connection.on("message", (data) => {
        const text = String(data);
        if (text === "end") return connection.send(`end ${counts.got}`);
        if (text !== String(counts.got)) console.log(`wrong ${id}: ${text} from ${connection.sid} for ${counts.got}`);
        counts.got += 1;
      });
      connection.on("unsent", (data) => console.log(`wrong ${id}: unsent ${data} to ${connection.sid}`));
      connection.on("close", () => clients.delete(connection));
    },
    detach(connection) {
      const counts = clients.get(connection);
      clients.delete(connection);
      return JSON.stringify(counts);
    },
  },
  { perMessageDeflate: options.deflate ? { threshold: 0 } : false },
);
// Spread over the interval, as independent users would be.
const slots = 10;
const rate = Number(options.rate);
let turn = 0;
if (rate > 0) {
  setInterval(() => {
    turn = (turn + 1) % slots;
    let at = 0;
    for (const [connection, counts] of clients) if (at++ % slots === turn) connection.send(String(counts.sent++));
  }, 1000 / rate / slots);
}
server.listen(Number(port), "127.0.0.1", () => console.log(`listening ${port}`));
process.once("SIGTERM", async () => {
  console.log(`left ${await evenkeel.leave({ perSecond: 200 })}`);
  evenkeel.stop();
  process.exit();
});
