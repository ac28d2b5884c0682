/**
 * Serves clients of socket.io: its engine's handshakes are admitted or refused, its sessions counted, and closed at the
 * engine when they are to leave.
 *
 * `socket.disconnect(true)` would send clients away for good: they take it for a goodbye. A closed engine is a
 * `transport close` to them, after which they reconnect by themselves. An engine's session lives in one process, so
 * nothing is handed over; what `connectionStateRecovery` keeps is in that process too unless the adapter shares it.
 * Elsewhere: whom to admit (`evenkeel`).
 */
import { STATUS_CODES, type IncomingMessage, type ServerResponse } from "node:http";
import { keyOf } from "../../client/src/url.js";
import type { Admission, Denial, Evenkeel, Member } from "./evenkeel.js";

/** What of a socket.io server (`io`) is used. */
export interface SocketIoServer {
  readonly engine: {
    use(middleware: (request: IncomingMessage, response: ServerResponse, next: () => void) => void): unknown;
    on(event: "connection", listener: (socket: EngineSocket) => void): unknown;
  };
}

interface Packet {
  data?: unknown;
}

/** A session of engine.io. */
interface EngineSocket {
  readonly request: IncomingMessage;
  close(discard?: boolean): unknown;
  on(event: "close", listener: (reason: string) => void): unknown;
  on(event: "packet" | "packetCreate", listener: (packet: Packet) => void): unknown;
}

/** Takes part in the handshakes of a socket.io server that is attached to its HTTP server already. */
export function serveSocketIo(evenkeel: Evenkeel, io: SocketIoServer): void {
  const admissions = new WeakMap<IncomingMessage, Admission>();
  io.engine.use((request, response, next) => {
    // Only the first request of a session has none; the others belong to one that was admitted.
    if (keyOf(request.url ?? "", "sid") !== undefined) return next();
    const admission = evenkeel.admit(request);
    hideKeys(request);
    if ("status" in admission) return refuse(response, admission);
    admissions.set(request, admission);
    // A handshake that the engine refuses opens no session.
    response.on("close", () => admissions.delete(request) && evenkeel.failed(admission));
    next();
  });
  io.engine.on("connection", (socket) => {
    const admission = admissions.get(socket.request);
    if (!admission) return;
    admissions.delete(socket.request);
    const member: Member = {
      canMove: false,
      sid: admission.sid,
      order: () => {},
      close: () => void socket.close(),
    };
    evenkeel.opened(member, admission);
    for (const event of ["packet", "packetCreate"] as const) {
      socket.on(event, ({ data }) => evenkeel.touched(member, sizeOf(data)));
    }
    socket.on("close", (reason) => evenkeel.ended(member, reason !== "transport close" && reason !== "forced close"));
  });
}

/** The engine parsed the query before us, and hands it to the application. */
function hideKeys(request: IncomingMessage): void {
  const { _query } = request as { _query?: Record<string, unknown> };
  for (const key of Object.keys(_query ?? {})) if (key.startsWith("_ek")) delete _query?.[key];
}

function refuse(response: ServerResponse, { status, headers, body }: Denial): void {
  if ("writableEnded" in response) {
    response.writeHead(status, headers).end(body);
    return;
  }
  // An upgrade: the engine has no way to answer one but to hang up.
  const { socket } = response as { socket: { end(text: string): void } };
  const lines = Object.entries({ ...headers, connection: "close", "content-length": Buffer.byteLength(body) });
  const head = lines.map(([name, value]) => `${name}: ${value}\r\n`).join("");
  socket.end(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${head}\r\n${body}`);
}

function sizeOf(data: unknown): number {
  if (typeof data === "string") return data.length;
  return ArrayBuffer.isView(data) || data instanceof ArrayBuffer ? data.byteLength : 0;
}
