/** Every snippet of the README serves clients. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createServer, type AddressInfo } from "node:net";
import { fileURLToPath } from "node:url";
import { io as connect } from "socket.io-client";
import { expect, it } from "vitest";
import { WebSocket } from "ws";
import { EvenkeelSocket } from "../../client/src/index.js";
import type { Evenkeel } from "../src/index.js";
import { Farm, atEnd, until } from "./farm.js";
import { names, run } from "./snippets.js";
import type { Server } from "node:http";

const README = fileURLToPath(new URL("../README.md", import.meta.url));

it("is covered here", () => expect(names(README)).toEqual(["ws", "socket.io"]));

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Runs one as a server of a farm. */
async function serving(name: string, replace: Record<string, string>) {
  const farm = await new Farm().start();
  const port = String(await freePort());
  const addresses = { "9001": port, "http://127.0.0.1:9900": farm.node };
  const constants: unknown = await run(README, name, { ...addresses, ...replace });
  const { evenkeel, server } = constants as { evenkeel: Evenkeel; server: Server };
  atEnd(() => (evenkeel.stop(), server.closeAllConnections(), void server.close()));
  await until("it is linked", () => evenkeel.isLinked);
  return { farm, evenkeel, host: `127.0.0.1:${port}` };
}

it("shows ws as it works: echo, a move with its state, SIGTERM", async () => {
  const folder = mkdtempSync(join(tmpdir(), "evenkeel-readme-"));
  atEnd(() => rmSync(folder, { recursive: true }));
  writeFileSync(join(folder, "admin.token"), "secret\n");
  const { farm, evenkeel, host } = await serving("ws", { "admin.token": join(folder, "admin.token") });
  const states: unknown[] = [];
  await farm.server("b", { connection: (_, state) => void states.push(String(state)) });
  const url = `ws://${host}/chat?room=7&_ek=${farm.mint("chat-1", { path: "/chat", sid: "s1" })}`;
  const socket = new EvenkeelSocket(url, [], { WebSocket });
  atEnd(() => socket.close());
  const got: unknown[] = [];
  socket.addEventListener("open", () => socket.send("hello"));
  socket.addEventListener("message", ({ data }) => got.push(data));
  await until("it echoes", () => got.length === 1);
  expect([got, evenkeel.connections]).toEqual([["hello"], 1]);
  const client = new WebSocket(`ws://${host}/?_ek=${farm.mint("chat-1")}`);
  const closed = new Promise((resolve) => client.on("close", (code, reason) => resolve(`${code} ${reason}`)));
  await until("both are there", () => evenkeel.connections === 2);
  process.emit("SIGTERM");
  expect(await closed).toBe("1012 ek:stopped");
});

it("shows socket.io as it works", async () => {
  process.env.EVENKEEL_TOKEN = "secret";
  const { farm, evenkeel, host } = await serving("socket.io", {});
  const token = farm.mint("chat-1", { path: "/socket.io/" });
  const client = connect(`ws://${host}/?_ek=${token}`, { transports: ["websocket"], reconnection: false });
  atEnd(() => client.disconnect());
  expect(await client.timeout(5_000).emitWithAck("say", "hello")).toBe("hello");
  expect(evenkeel.connections).toBe(1);
});
