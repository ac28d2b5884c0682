import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { encode, parse, sizeOf } from "../../client/src/frame.js";
import { Session, type Input, type Output } from "../src/move.js";

type Message = string | { binary: string };
type Words = Record<string, unknown>;
interface Vector {
  name: string;
  given: { park?: { sid: string; at: string }; ctl?: boolean; buffer?: { messages?: number; bytes?: number } };
  steps: { at_ms: number; in?: Words; out: Words[] }[];
}

const file = new URL("../../../../../testdata/vectors/move_server.json", import.meta.url);
const { vectors } = JSON.parse(readFileSync(file, "utf8")) as { vectors: Vector[] };
const CTL = "ctl-of-connection-0001";

/** An input in the words of the vectors. */
function input(words: Words): Input<Message> {
  const [name, value] = Object.entries(words)[0] as [string, never];
  switch (name) {
    case "frame":
      return { is: "received", message: encode(CTL, value) };
    case "send":
      return { is: "send", message: value };
    case "order":
      return { is: "order", notice: value };
    default:
      return { is: name, ...(value as object) } as Input<Message>;
  }
}

/** An output in the words of the vectors. */
function words(output: Output<Message>): Words {
  switch (output.do) {
    case "say":
      return { frame: parse(CTL, output.text) };
    case "send":
    case "deliver":
    case "unsent":
      return { [output.do]: output.message };
    default: {
      const { do: name, ...fields } = output;
      return { [name]: fields };
    }
  }
}

describe("the server's machine", () => {
  for (const { name, given, steps } of vectors) {
    it(name, () => {
      const session = new Session<Message>(
        {
          ctl: given.ctl === false ? undefined : CTL,
          park: given.park,
          messagesMax: given.buffer?.messages ?? 1024,
          bytesMax: given.buffer?.bytes ?? 1024 * 1024,
          size: (message) => (typeof message === "string" ? sizeOf(message) : Buffer.from(message.binary, "base64url").length),
        },
        0,
      );
      steps.forEach((step, index) => {
        const outputs: Output<Message>[] = [];
        for (let due = session.pollTimeout(); due !== undefined && due <= step.at_ms; due = session.pollTimeout()) {
          outputs.push(...session.handle({ is: "time" }, due));
        }
        if (step.in) outputs.push(...session.handle(input(step.in), step.at_ms));
        expect(outputs.map(words), `step ${index} at ${step.at_ms} ms`).toEqual(step.out);
      });
    });
  }

  it("has vectors to pass", () => expect(vectors.length).toBeGreaterThan(20));
});
