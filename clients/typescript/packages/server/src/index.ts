/** Servers of WebSockets that can be filled, emptied and relieved evenly, without their clients losing a message. */
export { Connection, type Data, type DetachedState, type Hooks } from "./connection.js";
export {
  Evenkeel,
  gracePeriodS,
  type Admission,
  type Denial,
  type EvenkeelOptions,
  type LogMessage,
  type Member,
} from "./evenkeel.js";
export { serveSocketIo, type SocketIoServer } from "./socketio.js";
export { serve, type ServeOptions } from "./ws.js";
export { STATE_MAX, type Claims } from "./credentials.js";
