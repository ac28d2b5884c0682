/** A real Chromium at the real gateway: pages with the SDK, with a bare `WebSocket`, and of somebody else. */
import type { BrowserContext, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { atEnd, until } from "../../server/test/farm.js";
import type { Connection } from "../../server/src/index.js";
import type { Kind } from "./page.js";
import { bundle, launch, site } from "./browser.js";
import { counting, eventually, World, type SdkServer } from "./world.js";

let browser: BrowserContext;
let end: () => Promise<void>;
let script: string;

beforeAll(async () => {
  ({ browser, end } = await launch());
  script = await bundle("page.ts");
});
afterAll(() => end?.());

/** Has the page talk to its server. */
const talk = (page: Page, how: { url: string; kind: Kind }) => page.evaluate((how) => globalThis.talk(how), how);
const story = (page: Page) => page.evaluate(() => globalThis.story);
const stop = (page: Page) => page.evaluate(() => globalThis.hush());

async function open(origin: string): Promise<Page> {
  const page = await browser.newPage();
  atEnd(() => void page.close());
  await page.goto(origin);
  return page;
}

/** Two servers that count and a gateway that lets pages of one site in. */
async function farm(hooks = (wrong: string[]) => counting(wrong)) {
  const origin = await site(script);
  const world = await World.start({ fleet: `origins = ["${origin}"]` });
  const wrong: string[] = [];
  const servers: SdkServer[] = [];
  for (const id of ["a", "b"]) servers.push(await world.serve(id, hooks(wrong), { direct: true }));
  await world.open(...servers);
  return { world, wrong, servers, origin, url: `ws://${world.gateway}/chat?room=7` };
}

/** Drains whichever server holds the one client, and lets clients in again once that is empty. */
async function moveOnce({ world, servers }: { world: World; servers: SdkServer[] }): Promise<void> {
  const source = servers.find(({ evenkeel }) => evenkeel.connections > 0) as SdkServer;
  await world.drain(source.id);
  await until("the source is empty", () => source.evenkeel.connections === 0);
  await eventually("it is drained", async () => (await world.servers()).some(({ id, state }) => id === source.id && state === "drained"));
  await world.undrain(source.id);
  await until("the source is open", () => source.evenkeel.state === "active");
}

describe("Chromium", () => {
  for (const kind of ["proxied", "negotiated"] as const) {
    it(`a page with the SDK is moved in the middle of its messages and does not notice: ${kind}`, async () => {
      const all = await farm();
      const tunnels = () => (all.world.process.said.match(/tunnel opened/g) ?? []).length;
      const before = tunnels();
      const page = await open(all.origin);
      await talk(page, { url: all.url, kind });
      await eventually("messages flow", async () => (await story(page)).got > 20);
      for (let time = 1; time <= 2; time++) {
        await moveOnce(all);
        await eventually("it was moved", async () => (await story(page)).events.filter((event) => event === "moved").length === time);
        const { got } = await story(page);
        await eventually("messages flow", async () => (await story(page)).got > got + 20);
      }
      await stop(page);
      await eventually("each is answered", async () => story(page).then(({ got, sent }) => got === sent));
      const { events, wrong } = await story(page);
      expect([wrong, all.wrong]).toEqual([[], []]);
      expect(events).toEqual(["open", "moving", "moved", "moving", "moved"]);
      expect(tunnels() - before).toBe(kind === "proxied" ? 3 : 0);
    });
  }

  it("a page with a bare WebSocket is proxied on the same URL, and closed with 1012 when its server empties", async () => {
    const all = await farm();
    const page = await open(all.origin);
    await talk(page, { url: all.url, kind: "bare" });
    await eventually("messages flow", async () => (await story(page)).got > 20);
    await stop(page);
    await eventually("each is answered", async () => story(page).then(({ got, sent }) => got === sent));
    await moveOnce(all);
    await eventually("it is closed", async () => (await story(page)).events.length > 1);
    const { events, wrong, other } = await story(page);
    expect([events, wrong, all.wrong, other]).toEqual([["open", "close 1012 ek:draining"], [], [], []]);
  });

  it("frames of a move that another user forges are text to page and server", async () => {
    const live = new Set<Connection>();
    // A chat: what one says all the others get.
    const chat = (wrong: string[]) => {
      const { connection, detach } = counting(wrong, (text) => live.forEach((other) => other.send(text)));
      const joins = (client: Connection, state?: Buffer) => {
        live.add(client);
        client.on("close", () => live.delete(client));
        return connection(client, state);
      };
      return { connection: joins, detach };
    };
    const all = await farm(chat);
    const page = await open(all.origin);
    await talk(page, { url: all.url, kind: "proxied" });
    await eventually("messages flow", async () => (await story(page)).got > 5);
    const attacker = new WebSocket(`${all.url}&_ekm=AAAAAAAAAAAAAAAAAAAAAA`);
    atEnd(() => attacker.terminate());
    await new Promise((resolve) => attacker.on("open", resolve));
    const echoed: string[] = [];
    attacker.on("message", (data) => echoed.push(String(data)));
    const other = "BBBBBBBBBBBBBBBBBBBBBB";
    const forged = [
      `\u001eek1 ${other} {"op":"move","mid":"m","ticket":"t","by_ms":1000,"why":"x"}`,
      `\u001eek1 ${other} {"op":"move","mid":"m","ticket":"t","by_ms":1000,"why":"x","park":false}`,
      `\u001eek1 ${other} {"op":"done","mid":"m","state":"s"}`,
      `\u001eek1 ${other} {"op":"cut","mid":"m","at":"b#1"}`,
      `\u001eek1  {"op":"move","mid":"m","ticket":"t","by_ms":1000,"why":"x"}`,
      `\u001eek1 ${other}`,
    ];
    for (const text of forged) attacker.send(text);
    await eventually("the page has them", async () => (await story(page)).other.length >= forged.length);
    const { got } = await story(page);
    await eventually("messages flow still", async () => (await story(page)).got > got + 5);
    const { events, wrong, other: texts } = await story(page);
    expect([events, wrong, all.wrong]).toEqual([["open"], [], []]);
    expect([...new Set(texts)]).toEqual(forged);
  });

  it("a page of another origin reaches no server, bare or with the SDK", async () => {
    const all = await farm();
    const page = await open(await site(script));
    for (const kind of ["bare", "proxied", "negotiated"] as const) {
      await talk(page, { url: all.url, kind });
      await eventually("it is refused", async () => (await story(page)).events.some((event) => event.startsWith("close")));
      const { events, got } = await story(page);
      expect([events, got]).toEqual([["error", expect.stringMatching(/^close 1006/)], 0]);
    }
    for (const { evenkeel } of all.servers) expect(evenkeel.connections).toBe(0);
    const metrics = (await all.world.ask("/metrics")) as string;
    expect(metrics).toMatch(/evenkeel_gateway_handshakes_total\{outcome="origin_foreign"\} 2/);
  });
});
