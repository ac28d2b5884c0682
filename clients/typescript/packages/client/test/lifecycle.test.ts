import { expect, it, vi } from "vitest";
import { WebSocket } from "ws";
import { EvenkeelSocket } from "../src/index.js";
import { next, server } from "./kit.js";

it("gives a socket up whose network went, without waiting for its close", async () => {
  const window = new EventTarget();
  vi.stubGlobal("addEventListener", window.addEventListener.bind(window));
  vi.stubGlobal("removeEventListener", window.removeEventListener.bind(window));
  let accepted = 0;
  const { host } = await server(() => (accepted += 1));
  const socket = new EvenkeelSocket(`ws://${host}`, [], { WebSocket, reconnect: true });
  const events: string[] = [];
  for (const type of ["open", "lost", "gap", "reopened"] as const) socket.addEventListener(type, () => events.push(type));
  await next(socket, "open");
  window.dispatchEvent(new Event("offline"));
  expect(events).toEqual(["open"]);
  window.dispatchEvent(new Event("online"));
  expect(events).toEqual(["open", "lost", "gap"]);
  await next(socket, "reopened");
  expect(accepted).toBe(2);
  // A page that goes into the back/forward cache has no open socket, and dials when it is back.
  window.dispatchEvent(Object.assign(new Event("pagehide"), { persisted: true }));
  expect(events.slice(4)).toEqual(["lost", "gap"]);
  window.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: true }));
  await next(socket, "reopened");
  expect(accepted).toBe(3);
  socket.close();
  await next(socket, "close");
  vi.unstubAllGlobals();
});
