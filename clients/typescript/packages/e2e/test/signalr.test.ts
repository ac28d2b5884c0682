/**
 * The stock SignalR client at a route of kind `signalr`: it asks the gateway, is sent to a server, asks that one too, and
 * shows it the token that the gateway made. Its server is a stand-in, see `hub.ts`.
 */
import { HttpTransportType, HubConnectionBuilder, LogLevel, type HubConnection } from "@microsoft/signalr";
import { describe, expect, it } from "vitest";
import { atEnd, until } from "../../server/test/farm.js";
import { bundle, launch, site } from "./browser.js";
import { Hub } from "./hub.js";
import { World, type SdkServer } from "./world.js";

const ROUTE = `[[routes]]\npath = "/hub"\nfleet = "chat"\nkind = "signalr"\n`;

async function farm(fleet = "", ids = ["a", "b"]) {
  const world = await World.start({ more: ROUTE, fleet });
  const servers: (SdkServer & { hub: Hub })[] = [];
  for (const id of ids) {
    let hub!: Hub;
    const server = await world.join(id, (evenkeel, http) => (hub = new Hub(id, evenkeel, http)), { direct: true });
    servers.push({ ...server, hub });
  }
  await world.open(...servers);
  const tunnels = () => (world.process.said.match(/tunnel opened/g) ?? []).length;
  return { world, servers, url: `http://${world.gateway}/hub`, tunnels };
}

function client(url: string, options = {}): HubConnection {
  const builder = new HubConnectionBuilder().withUrl(url, { withCredentials: false, ...options });
  const connection = builder.withAutomaticReconnect([0, 100, 500, 1_000, 2_000]).configureLogging(LogLevel.None).build();
  atEnd(() => void connection.stop());
  return connection;
}

describe("SignalR", () => {
  it("follows the gateway to a server and comes to another one when that empties", async () => {
    const { world, servers, url, tunnels } = await farm();
    const before = tunnels();
    const connection = client(`${url}?room=7`);
    const states: string[] = [];
    connection.onreconnecting(() => states.push("reconnecting"));
    connection.onreconnected(() => states.push("reconnected"));
    connection.onclose(() => states.push("closed"));
    await connection.start();
    const home = servers.find(({ evenkeel }) => evenkeel.connections === 1) as (typeof servers)[0];
    expect(await connection.invoke("Say", "hello")).toBe(`${home.id} has hello`);
    await world.drain(home.id);
    await until("it is back", () => states.includes("reconnected"));
    const other = servers.find(({ id }) => id !== home.id) as (typeof servers)[0];
    expect(await connection.invoke("Say", "hello again")).toBe(`${other.id} has hello again`);
    expect(states).toEqual(["reconnecting", "reconnected"]);
    expect([home.evenkeel.connections, other.evenkeel.connections]).toEqual([0, 1]);
    for (const { hub } of servers) expect([hub.tokensIn, hub.refused]).toEqual([["bearer"], []]);
    expect(tunnels()).toBe(before);
  });

  it("is refused by a server that it comes to without a token, asked or unasked, or with a token for the other", async () => {
    const { servers, url } = await farm();
    const [a, b] = servers as [(typeof servers)[0], (typeof servers)[0]];
    await expect(client(`http://${a.host}/hub`).start()).rejects.toThrow("401");
    const unasked = { skipNegotiation: true, transport: HttpTransportType.WebSockets };
    await expect(client(`http://${a.host}/hub`, unasked).start()).rejects.toThrow();
    const { url: assigned, accessToken } = await ask(url);
    const other = assigned.includes(a.host) ? b : a;
    await expect(client(`http://${other.host}/hub`, { accessTokenFactory: () => accessToken }).start()).rejects.toThrow("401");
    expect(a.hub.refused.length + b.hub.refused.length).toBe(3);
    expect(a.evenkeel.connections + b.evenkeel.connections).toBe(0);
  });

  it("that skips negotiate is proxied", async () => {
    const { url, tunnels } = await farm("", ["a"]);
    const before = tunnels();
    const connection = client(url, { skipNegotiation: true, transport: HttpTransportType.WebSockets });
    await connection.start();
    expect(await connection.invoke("Say", "hello")).toBe("a has hello");
    expect(tunnels()).toBe(before + 1);
  });

  it("in a page of Chromium is let in by what the gateway tells its browser, and shows its token in the query", async () => {
    const origin = await site(await bundle("page.ts"));
    const { servers, url } = await farm(`origins = ["${origin}"]`);
    const { browser, end } = await launch();
    try {
      const page = await browser.newPage();
      await page.goto(origin);
      const said = await page.evaluate((url) => globalThis.sayToHub(url), url);
      expect(said).toMatch(/^[ab] has hello$/);
      expect(servers.flatMap(({ hub }) => hub.tokensIn)).toEqual(["access_token"]);
    } finally {
      await end();
    }
  });
});

/** What the gateway answers to SignalR's question. */
async function ask(url: string): Promise<{ url: string; accessToken: string }> {
  const response = await fetch(`${url}/negotiate?negotiateVersion=1`, { method: "POST" });
  return (await response.json()) as { url: string; accessToken: string };
}
