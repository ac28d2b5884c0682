/**
 * Serves clients with the npm package `ws`: handshakes are admitted or refused before 101, and connections of either kind,
 * new and handed over, come to the application by one hook.
 *
 * Elsewhere: whom to admit (`evenkeel`), what a connection does (`connection`).
 */
import { STATUS_CODES, type IncomingMessage, type Server as HttpServer } from "node:http";
import type { Server as HttpsServer } from "node:https";
import type { Duplex } from "node:stream";
import { WebSocketServer, type ServerOptions } from "ws";
import { Connection, type Hooks } from "./connection.js";
import type { Admission, Denial, Evenkeel } from "./evenkeel.js";

/** Settings of {@link serve}: those of `ws` but for where it listens. */
export interface ServeOptions
  extends Pick<ServerOptions, "handleProtocols" | "maxPayload" | "perMessageDeflate" | "skipUTF8Validation"> {
  /** Take only handshakes for this path; others are left to other listeners of `upgrade`. Default: all. */
  path?: string;
}

/** Takes the WebSocket handshakes of an HTTP server. Returns a function that stops taking them. */
export function serve(
  evenkeel: Evenkeel,
  server: HttpServer | HttpsServer,
  hooks: Hooks,
  { path, ...options }: ServeOptions = {},
): () => void {
  const wss = new WebSocketServer({ ...options, noServer: true, clientTracking: false });
  if (hooks.detach) evenkeel.handsOver();
  const ids = new WeakMap<IncomingMessage, string>();
  wss.on("headers", (headers, request) => headers.push(`Evenkeel-Conn: ${ids.get(request)}`));
  const upgrade = (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    if (path !== undefined && request.url?.split("?")[0] !== path) {
      // With nobody else to answer the client would wait for ever.
      if (server.listenerCount("upgrade") === 1) refuse(socket, 404, {}, "");
      return;
    }
    const admission = evenkeel.admit(request, hooks.detach !== undefined);
    if ("status" in admission) return refuse(socket, admission.status, admission.headers, admission.body);
    ids.set(request, admission.id);
    accept(evenkeel, wss, hooks, admission, request, socket, head);
  };
  server.on("upgrade", upgrade);
  return () => void server.off("upgrade", upgrade);
}

function accept(
  evenkeel: Evenkeel,
  wss: WebSocketServer,
  hooks: Hooks,
  admission: Admission,
  request: IncomingMessage,
  socket: Duplex,
  head: Buffer,
): void {
  // Until the application has the connection, this admission has to be given back.
  let pending = true;
  const failed = () => {
    if (pending) evenkeel.failed(admission);
    pending = false;
  };
  socket.once("close", failed);
  wss.handleUpgrade(request, socket, head, (native) => {
    const connection: Connection = new Connection(native, request, admission, {
      hooks,
      handover: evenkeel.handover,
      nowMs: () => evenkeel.nowMs,
      owned: () => {
        pending = false;
        forget();
        evenkeel.opened(connection, admission);
      },
      touched: (member, bytes) => evenkeel.touched(member, bytes),
      settled: (member, mid, settled) => evenkeel.settled(member, mid, settled),
      ended: (member, abnormal) => {
        forget();
        evenkeel.ended(member, abnormal);
      },
      failed: (error) => evenkeel.hookFailed(error),
    });
    const forget = evenkeel.onDrain(() => connection.drain());
    connection.start();
  });
}

function refuse(socket: Duplex, status: Denial["status"] | 404, headers: Record<string, string>, body: string): void {
  socket.on("error", () => {});
  const fields = { ...headers, connection: "close", "content-length": String(Buffer.byteLength(body)) };
  const lines = Object.entries(fields).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.end(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${lines.join("")}\r\n${body}`);
}
