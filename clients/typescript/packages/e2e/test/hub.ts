/**
 * A server that speaks SignalR's JSON protocol over WebSockets, as far as its client needs: a stand-in for ASP.NET Core,
 * which has no Evenkeel SDK and does not run here. What such a server has to do of its own is all in `Hub`: take the
 * token of the gateway's answer with its own negotiate, and again with the WebSocket that follows.
 */
import { randomUUID } from "node:crypto";
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import type { Duplex } from "node:stream";
import { WebSocketServer, type WebSocket } from "ws";
import type { Admission, Evenkeel } from "../../server/src/index.js";

/** Ends each of SignalR's messages. */
const END = "\u001e";
/** A client that has negotiated connects within this. */
const CONNECT_MS = 10_000;

interface Waiting {
  token: string;
  admission: Admission;
  timer: NodeJS.Timeout;
}

export class Hub {
  /** Refused requests, by status. */
  readonly refused: number[] = [];
  /** How tokens came with WebSockets. */
  readonly tokensIn: string[] = [];
  readonly #id: string;
  readonly #evenkeel: Evenkeel;
  readonly #wss = new WebSocketServer({ noServer: true });
  readonly #waiting = new Map<string, Waiting>();

  constructor(id: string, evenkeel: Evenkeel, http: Server) {
    this.#id = id;
    this.#evenkeel = evenkeel;
    http.on("request", (request, response) => this.#request(request, response));
    http.on("upgrade", (request, socket, head) => this.#upgrade(request, socket, head));
  }

  /** `POST /hub/negotiate`: the token of the gateway's answer is a `Bearer`. */
  #request(request: IncomingMessage, response: ServerResponse): void {
    const { origin } = request.headers;
    if (origin) {
      response.setHeader("access-control-allow-origin", origin);
      response.setHeader("access-control-allow-credentials", "true");
    }
    if (request.method === "OPTIONS") {
      response.setHeader("access-control-allow-headers", request.headers["access-control-request-headers"] ?? "");
      return void response.writeHead(204).end();
    }
    const token = bearer(request) ?? "";
    // The path that the assignment is for is that of the hub.
    request.url = `${pathOf(request).replace(/\/negotiate$/, "")}?_ek=${encodeURIComponent(token)}`;
    const admission = this.#evenkeel.admit(request);
    if ("status" in admission) {
      this.refused.push(admission.status);
      return void response.writeHead(admission.status, admission.headers).end(admission.body);
    }
    const connectionToken = randomUUID();
    const timer = setTimeout(() => {
      this.#waiting.delete(connectionToken);
      this.#evenkeel.failed(admission);
    }, CONNECT_MS).unref();
    this.#waiting.set(connectionToken, { token, admission, timer });
    const availableTransports = [{ transport: "WebSockets", transferFormats: ["Text"] }];
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ negotiateVersion: 1, connectionId: randomUUID(), connectionToken, availableTransports }));
  }

  /** The WebSocket: named by what negotiate answered, with the same token; or from a gateway that proxies. */
  #upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    const query = new URL(request.url ?? "/", "http://x").searchParams;
    const waiting = this.#waiting.get(query.get("id") ?? "");
    const token = query.get("access_token") ?? bearer(request);
    let admission: Admission | undefined;
    if (waiting && waiting.token === token) {
      clearTimeout(waiting.timer);
      this.#waiting.delete(query.get("id") ?? "");
      this.tokensIn.push(query.has("access_token") ? "access_token" : "bearer");
      ({ admission } = waiting);
    } else {
      const answer = this.#evenkeel.admit(request);
      if ("status" in answer) {
        this.refused.push(answer.status);
        return void socket.end(`HTTP/1.1 ${answer.status} Refused\r\nconnection: close\r\ncontent-length: 0\r\n\r\n`);
      }
      admission = answer;
    }
    const admitted = admission;
    this.#wss.handleUpgrade(request, socket, head, (native) => this.#talk(native, admitted));
  }

  #talk(native: WebSocket, admission: Admission): void {
    const say = (message: object) => native.send(JSON.stringify(message) + END);
    const member = {
      sid: admission.sid,
      canMove: false,
      order: () => {},
      close: (code: number, reason: string) => {
        say({ type: 7, allowReconnect: true });
        native.close(code, reason);
      },
    };
    this.#evenkeel.opened(member, admission);
    native.on("close", (code) => this.#evenkeel.ended(member, code === 1006));
    native.on("message", (data) => {
      for (const text of String(data).split(END).slice(0, -1)) {
        const { protocol, type, invocationId, arguments: said } = JSON.parse(text);
        if (protocol) say({});
        if (type === 1) say({ type: 3, invocationId, result: `${this.#id} has ${said[0]}` });
      }
    });
  }
}

const bearer = (request: IncomingMessage) => /^Bearer (.+)$/.exec(request.headers.authorization ?? "")?.[1];
const pathOf = (request: IncomingMessage) => (request.url ?? "/").split("?")[0] ?? "/";
