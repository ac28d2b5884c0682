/** Real servers and gateways for tests, on loopback, each on a port of its own. */
import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { afterEach } from "vitest";
import { WebSocket, WebSocketServer, type ServerOptions } from "ws";

const toClose: (() => void)[] = [];
afterEach(() => {
  for (const close of toClose.splice(0).reverse()) close();
});

/** Runs at the end of the test. */
export function atEnd(close: () => void): void {
  toClose.push(close);
}

/** Waits for a condition; fails after ten seconds, with what was awaited. */
export async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 10_000;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`waited in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** The next event of that type. */
export function next<E extends Event = Event>(target: EventTarget, type: string): Promise<E> {
  return new Promise((resolve) => target.addEventListener(type, (event) => resolve(event as E), { once: true }));
}

/** A listening HTTP server and its `host:port`. */
export async function listen(server: Server): Promise<string> {
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  atEnd(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** What a gateway was asked. */
export interface Question {
  v: number;
  path: string;
  caps: string[];
  cause: string;
  sid?: string;
  ticket?: string;
  avoid: string[];
  key?: string;
}

/** A gateway that answers negotiate questions. */
export async function gateway(
  answer: (question: Question, request: IncomingMessage) => { status?: number; json: unknown },
): Promise<{ host: string; questions: Question[]; at: number[] }> {
  const questions: Question[] = [];
  const at: number[] = [];
  const server = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => (body += chunk));
    request.on("end", () => {
      const question = JSON.parse(body) as Question;
      questions.push(question);
      at.push(Date.now());
      const { status = 200, json } = answer(question, request);
      response.writeHead(status, { "content-type": "application/json", "cache-control": "no-store" });
      response.end(JSON.stringify(json));
    });
  });
  return { host: await listen(server), questions, at };
}

/** A WebSocket server; each connection is handed over with its URL. */
export async function server(
  connected: (socket: WebSocket, request: IncomingMessage) => void,
  options: ServerOptions = {},
): Promise<{ host: string; wss: WebSocketServer; http: Server }> {
  const http = createServer();
  const wss = new WebSocketServer({ server: http, ...options });
  wss.on("connection", connected);
  return { host: await listen(http), wss, http };
}

/** A server that sends back what it gets. */
export const echo = (options: ServerOptions = {}) =>
  server((socket) => socket.on("message", (data, binary) => socket.send(data, { binary })), options);

/** A port where nobody listens. */
export async function nobody(): Promise<string> {
  const http = createServer();
  await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
  const { port } = http.address() as AddressInfo;
  await new Promise((resolve) => http.close(resolve));
  return `127.0.0.1:${port}`;
}

/** A token as a gateway would mint it, as far as clients read it. */
export const token = (server: string) =>
  `h.${Buffer.from(JSON.stringify({ aud: `${server}#7` })).toString("base64url")}.s`;
