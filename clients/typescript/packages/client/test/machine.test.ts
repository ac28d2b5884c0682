import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { encode, parse, sizeOf, type Frame } from "../src/frame.js";
import { Mover, type Input, type Output } from "../src/machine.js";

type Message = string | { binary: string };
type Words = Record<string, unknown>;
interface Vector {
  name: string;
  given: { random?: number; redial?: boolean; buffer?: { messages?: number; bytes?: number } };
  steps: { at_ms: number; in?: Words; out: Words[] }[];
}

const file = new URL("../../../../../testdata/vectors/move_client.json", import.meta.url);
const { vectors } = JSON.parse(readFileSync(file, "utf8")) as { vectors: Vector[] };

const ctlOf = (socket: number) => `ctl-of-socket-${String(socket).padStart(8, "0")}`;
const size = (message: Message) =>
  typeof message === "string" ? sizeOf(message) : Buffer.from(message.binary, "base64url").length;

/** An input in the words of the vectors. */
function input(words: Words): Input<Message> {
  const [name, value] = Object.entries(words)[0] as [string, never];
  const { socket, ...fields } = (typeof value === "object" ? value : {}) as { socket: number } & Words;
  switch (name) {
    case "opened":
      return { is: "opened", socket, ctl: ctlOf(socket), sid: String(fields.sid) };
    case "failed": {
      const { how, wait_ms = 0, window_ms = 0 } = fields as { how: "no_answer"; wait_ms?: number; window_ms?: number };
      return { is: "failed", socket, failure: (how as string) === "no_credit" ? { no_credit: { wait_ms, window_ms } } : how };
    }
    case "frame":
      return { is: "received", socket, message: encode(ctlOf(socket), fields as unknown as Frame) };
    case "send":
      return { is: "send", message: value };
    default:
      return { is: name, ...(value as object) } as Input<Message>;
  }
}

/** An output in the words of the vectors. */
function words(output: Output<Message>): Words {
  const { do: name, ...fields } = output;
  switch (output.do) {
    case "say": {
      const frame = parse(ctlOf(output.socket), output.text);
      return { frame: { ...frame, socket: output.socket } };
    }
    case "deliver":
      return { deliver: output.message };
    case "moved":
      return { moved: { mid: output.mid } };
    default:
      return { [name]: fields };
  }
}

describe("the client's machine", () => {
  for (const { name, given, steps } of vectors) {
    it(name, () => {
      const mover = new Mover<Message>({
        onLoss: given.redial === false ? "end" : "redial",
        messagesMax: given.buffer?.messages ?? 1024,
        bytesMax: given.buffer?.bytes ?? 1024 * 1024,
        size,
      });
      const random = given.random ?? 0.5;
      steps.forEach((step, index) => {
        const outputs: Output<Message>[] = [];
        for (let due = mover.pollTimeout(); due !== undefined && due <= step.at_ms; due = mover.pollTimeout()) {
          outputs.push(...mover.handle({ is: "time" }, due, random));
        }
        if (step.in) outputs.push(...mover.handle(input(step.in), step.at_ms, random));
        expect(outputs.map(words), `step ${index} at ${step.at_ms} ms`).toEqual(step.out);
      });
    });
  }

  it("has vectors to pass", () => expect(vectors.length).toBeGreaterThan(50));
});
