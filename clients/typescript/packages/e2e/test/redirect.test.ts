/**
 * Which stock clients follow the gateway's 307, and how its `Location` has to be written for them. The table in
 * docs/guide/redirect.md says the same, or this fails.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import type { Connection } from "../../server/src/index.js";
import { root } from "../../server/test/binary.js";
import { Child, python, World } from "./world.js";

const FORMS = ["ws", "http", "relative"] as const;
const here = fileURLToPath(new URL(".", import.meta.url));

/** A client as the guide names it: opens the URL, says hello, and tells whether the answer came. */
type Client = (url: string) => Promise<{ follows: boolean; saw: string }>;

const node: Client = (url) =>
  new Promise((resolve) => {
    const socket = new WebSocket(url, { followRedirects: true });
    socket.on("open", () => socket.send("hello"));
    socket.on("message", (data) => {
      resolve({ follows: String(data) === "hello", saw: String(data) });
      socket.close();
    });
    socket.on("error", (error) => resolve({ follows: false, saw: String(error) }));
  });

const nodeByDefault: Client = (url) =>
  new Promise((resolve) => {
    const socket = new WebSocket(url);
    socket.on("open", () => resolve({ follows: true, saw: "open" }));
    socket.on("error", (error) => resolve({ follows: false, saw: String(error) }));
  });

const inPython =
  (library: string): Client =>
  async (url) => {
    const child = new Child(python(), [join(here, "follow.py"), library, url], here);
    const code = await child.ended;
    return { follows: code === 0, saw: child.said };
  };

const CLIENTS: Record<string, Client> = {
  "Node `ws`, `followRedirects: true`": node,
  "Node `ws` as it comes": nodeByDefault,
  "Python `websockets`": inPython("websockets"),
  "Python `websocket-client`": inPython("websocket-client"),
  "Python `websocket-client`, `suppress_origin=True`": inPython("websocket-client-without-origin"),
  "Python `aiohttp`": inPython("aiohttp"),
};

/** Rows of the guide's table: client → what it does with each form. */
function documented(): Map<string, string[]> {
  const guide = readFileSync(join(root, "docs/guide/redirect.md"), "utf8");
  const rows = [...guide.matchAll(/^\| (.+?) \| (\w+) \| (\w+) \| (\w+) \|$/gm)];
  return new Map(rows.slice(1).map(([, client, ...does]) => [client as string, does as string[]]));
}

/** A server that clients can be sent to, behind a route for each form and one that proxies. */
async function farm(): Promise<World> {
  const routes = FORMS.map(
    (form) => `[[routes]]\npath = "/${form}"\nfleet = "chat"\nscheme = "redirect"\nlocation = "${form}"\n`,
  );
  const world = await World.start({ more: routes.join("") });
  const echo = (connection: Connection) => void connection.on("message", (data) => connection.send(String(data)));
  await world.open(await world.serve("a", { connection: echo }, { direct: true }));
  return world;
}

describe("a 307 on the handshake", () => {
  for (const [name, client] of Object.entries(CLIENTS)) {
    it(`is followed as the guide says: ${name}`, async () => {
      const world = await farm();
      const tunnels = () => (world.process.said.match(/tunnel opened/g) ?? []).length;
      const proxied = await client(`ws://${world.gateway}/probe?room=7`);
      expect(proxied.follows, proxied.saw + world.process.said).toBe(true);
      const seen = [];
      const saw = [];
      for (const form of FORMS) {
        const before = tunnels();
        const { follows, saw: said } = await client(`ws://${world.gateway}/${form}?room=7`);
        seen.push(tunnels() > before ? "proxied" : follows ? "yes" : "no");
        saw.push(said);
      }
      expect(seen, saw.join("\n")).toEqual(documented().get(name));
    });
  }

  it("has no client in the guide's table that nobody tries", () => {
    // Those of Rust are tried in crates/evenkeel/tests/e2e/redirect.rs.
    const others = [...documented().keys()].filter((name) => !name.startsWith("Rust "));
    expect(others.sort()).toEqual(Object.keys(CLIENTS).sort());
  });
});
