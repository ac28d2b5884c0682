/** Runs in pages: counts with the server, `#N` both ways, and writes down what happens; or asks a hub of SignalR. */
import { HubConnectionBuilder, LogLevel } from "@microsoft/signalr";
import { EvenkeelSocket } from "../../client/src/index.js";

/** The platform's `WebSocket`, the SDK's through the gateway, or the SDK's at the assigned server. */
export type Kind = "bare" | "proxied" | "negotiated";

/** What a page went through. */
export interface Story {
  events: string[];
  sent: number;
  got: number;
  wrong: string[];
  /** Messages that are no numbers. */
  other: string[];
}

declare global {
  var story: Story;
  /** Begins. */
  var talk: (how: { url: string; kind: Kind }) => void;
  /** Sends no more. */
  var hush: () => void;
  /** The answer of a SignalR hub. */
  var sayToHub: (url: string) => Promise<string>;
}

const TYPES = ["open", "close", "error", "moving", "moved", "moveFailed", "gap", "lost", "reopened", "unsent"];

globalThis.talk = ({ url, kind }) => {
  const story: Story = (globalThis.story = { events: [], sent: 0, got: 0, wrong: [], other: [] });
  const socket = kind === "bare" ? new WebSocket(url) : new EvenkeelSocket(url, [], { negotiate: kind === "negotiated" });
  for (const type of TYPES) {
    socket.addEventListener(type, (event) => {
      const { code, reason } = event as CloseEvent;
      story.events.push(type === "close" ? `close ${code} ${reason}` : type);
    });
  }
  socket.addEventListener("message", (event) => {
    const data = String((event as MessageEvent).data);
    if (!data.startsWith("#")) return void story.other.push(data);
    if (data !== `#${story.got}`) story.wrong.push(`page got ${data} for #${story.got}`);
    story.got += 1;
  });
  const timer = setInterval(() => socket.readyState === socket.OPEN && socket.send(`#${story.sent++}`), 2);
  globalThis.hush = () => clearInterval(timer);
};

globalThis.sayToHub = async (url) => {
  const hub = new HubConnectionBuilder().withUrl(url).configureLogging(LogLevel.None).build();
  await hub.start();
  return hub.invoke<string>("Say", "hello");
};
