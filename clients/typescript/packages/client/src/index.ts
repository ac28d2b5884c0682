/** Keeps WebSocket clients where there is room for them: `EvenkeelSocket`, `negotiator`, and an adapter for socket.io. */
export { EvenkeelSocket, type Data, type EvenkeelOptions, type NativeWebSocket } from "./socket.js";
export type { EvenkeelEventMap, MoveEvents } from "./events.js";
export { negotiator, NegotiateError, type Negotiator, type NegotiatorOptions } from "./session.js";
