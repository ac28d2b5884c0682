/** Every snippet of the README connects, negotiated, and is moved. */
import { fileURLToPath } from "node:url";
import { expect, it, vi } from "vitest";
import { WebSocket } from "ws";
import { Farm, atEnd, until } from "../../server/test/farm.js";
import { names, run } from "../../server/test/snippets.js";
import { Server } from "socket.io";
import { serveSocketIo } from "../../server/src/index.js";

const README = fileURLToPath(new URL("../README.md", import.meta.url));

/** How each is stopped, and the subprotocol its server picks. */
const stops: Record<string, [(constants: Record<string, { [method: string]: () => unknown }>) => unknown, string?]> = {
  "by-itself": [({ socket }) => socket?.close?.()],
  "node-20": [({ socket }) => socket?.close?.()],
  partysocket: [({ socket }) => socket?.close?.()],
  "graphql-ws": [({ client }) => client?.dispose?.(), "graphql-transport-ws"],
  phoenix: [({ socket }) => socket?.disconnect?.()],
  centrifuge: [({ centrifuge }) => centrifuge?.disconnect?.()],
  actioncable: [({ consumer }) => consumer?.disconnect?.(), "actioncable-v1-json"],
  "socket.io": [({ socket }) => socket?.disconnect?.()],
};

it("is covered here", () => expect(names(README)).toEqual(Object.keys(stops)));

for (const name of names(README)) {
  it(`shows ${name} as it works`, async () => {
    // As in a browser.
    vi.stubGlobal("WebSocket", WebSocket);
    vi.stubGlobal("addEventListener", () => {});
    vi.stubGlobal("removeEventListener", () => {});
    vi.stubGlobal("document", Object.assign(new EventTarget(), { visibilityState: "visible" }));
    vi.spyOn(console, "log").mockImplementation(() => {});
    atEnd(() => (vi.unstubAllGlobals(), void vi.restoreAllMocks()));
    const farm = await new Farm().start();
    const [stop, protocol] = stops[name] ?? [() => {}];
    for (const id of ["a", "b"]) {
      if (name === "socket.io") {
        await farm.adopt(id, (evenkeel, http) => {
          const io = new Server(http);
          atEnd(() => void io.close());
          serveSocketIo(evenkeel, io);
        });
      } else {
        const hooks = { connection: () => {}, detach: () => "" };
        await farm.server(id, hooks, protocol ? { handleProtocols: () => protocol } : {});
      }
    }
    const [scheme, own] = name === "socket.io" ? ["https", "http"] : ["wss", "ws"];
    const constants = await run(README, name, { [`${scheme}://ws.example.com`]: `${own}://${await farm.negotiate()}` });
    // Some object to being stopped before their server said a word.
    atEnd(() => void Promise.resolve(stop(constants as never)).catch(() => {}));
    const holder = () => farm.servers.find(({ evenkeel }) => evenkeel.connections === 1);
    await until("it is connected", () => holder() !== undefined);
    const source = holder()!;
    farm.drain(source);
    await until("it is on the other server", () => holder() !== undefined && holder() !== source);
    if (name !== "socket.io") expect(source.said.find(({ op }) => op === "moved")).toMatchObject({ result: "ok" });
  });
}
