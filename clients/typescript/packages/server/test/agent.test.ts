import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { Agent, type Held, type Output } from "../src/agent.js";
import { MessageError, parseDown } from "../src/message.js";

const read = (name: string) =>
  JSON.parse(readFileSync(new URL(`../../../../../testdata/vectors/agent/${name}.json`, import.meta.url), "utf8"));

interface Step {
  at_ms: number;
  do?: Record<string, never> & {
    opened?: number;
    closed?: number;
    text?: { link: number; message: object };
    held?: { connections: number };
  };
  says?: { link: number; message: object }[];
  report?: object;
  reports?: [number, number];
  closed?: [number, number];
  ends?: number[];
  admit?: string;
  finished?: boolean;
}

/** Runs one dialogue: the agent, and what was seen of it since a step last expected anything. */
class Stage {
  readonly agent: Agent;
  says: { link: number; message: Record<string, unknown> }[] = [];
  lastReport: unknown;
  reports = 0;
  closed = 0;
  ends: number[] = [];
  finished = false;
  held = 0;

  constructor({ id, inc, ...profile }: { id: string; inc: number; url: string; capacity: number }) {
    this.agent = new Agent({ id, ...profile, caps: [] }, inc, 0);
  }

  #held(): Held {
    const totals = { accepted: 0, closed: 0, closedAbnormal: 0, refused: 0 };
    return { connections: this.held, leaving: 0, arriving: 0, movable: 0, totals };
  }

  perform(outputs: Output[], now: number): void {
    for (const output of outputs) {
      switch (output.do) {
        case "say": {
          const message = JSON.parse(output.text);
          if (message.op !== "report") this.says.push({ link: output.link, message });
          else this.lastReport = message;
          this.reports += message.op === "report" ? 1 : 0;
          break;
        }
        case "end":
          this.ends.push(output.link);
          break;
        case "close": {
          const count = Math.min(output.closes.count, this.held);
          this.held -= count;
          this.closed += count;
          this.input({ is: "chosen", asked: output.closes.count, chosen: count }, now);
          this.input({ is: "held", held: this.#held() }, now);
          break;
        }
        case "admit":
          this.input({ is: "held", held: this.#held() }, now);
          break;
        case "finished":
          this.finished = true;
      }
    }
  }

  input(input: Parameters<Agent["handle"]>[0], now: number): void {
    this.perform(this.agent.handle(input, now, Math.random()), now);
  }

  advance(to: number): void {
    for (let due = this.agent.pollTimeout(); due !== undefined && due <= to; due = this.agent.pollTimeout()) {
      this.input({ is: "time" }, due);
    }
  }

  do(step: NonNullable<Step["do"]>, now: number): void {
    if (step.opened !== undefined) this.input({ is: "opened", link: step.opened }, now);
    if (step.closed !== undefined) this.input({ is: "closed", link: step.closed }, now);
    if (step.text) this.input({ is: "text", link: step.text.link, text: JSON.stringify(step.text.message) }, now);
    if (step.held) {
      this.held = step.held.connections;
      this.input({ is: "held", held: this.#held() }, now);
    }
  }

  forget(): void {
    Object.assign(this, { says: [], reports: 0, closed: 0, ends: [] });
  }
}

const within = ([min, max]: [number, number], value: number) => value >= min && value <= max;

describe("the agent", () => {
  const { agent, dialogues } = read("dialogues") as { agent: never; dialogues: { name: string; steps: Step[] }[] };
  for (const { name, steps } of dialogues) {
    it(name, () => {
      const stage = new Stage(agent);
      for (const step of steps) {
        stage.advance(step.at_ms);
        if (step.do) stage.do(step.do, step.at_ms);
        const at = `at ${step.at_ms} ms`;
        if (step.says) expect(stage.says, at).toMatchObject(step.says);
        if (step.report) expect(stage.lastReport, at).toMatchObject(step.report);
        if (step.reports) expect(stage.reports, at).toSatisfy((count: number) => within(step.reports!, count));
        if (step.closed) expect(stage.closed, at).toSatisfy((count: number) => within(step.closed!, count));
        if (step.ends) expect(stage.ends, at).toEqual(step.ends);
        if (step.admit) expect(stage.agent.admit, at).toBe(step.admit);
        if (step.finished !== undefined) expect(stage.finished, at).toBe(step.finished);
        if (step.says ?? step.reports ?? step.closed ?? step.ends) stage.forget();
      }
    });
  }

  it("reports raw and averaged measures, within what a node takes", () => {
    const stage = new Stage(agent);
    stage.input({ is: "opened", link: 0 }, 0);
    const custom = { queue: 2, "no name": 1, gone: Number.NaN };
    stage.input({ is: "measured", measures: { cpu: 1.5, memory: -1, lag_ms: 100, custom } }, 0);
    stage.input({ is: "measured", measures: { cpu: 0, memory: Number.NaN, lag_ms: 0, custom: { queue: 0 } } }, 10_000);
    stage.input({ is: "opened", link: 0 }, 10_000);
    stage.input({ is: "text", link: 0, text: '{"op":"welcome","report_ms":1000,"keys":[]}' }, 10_000);
    const left = Math.exp(-1);
    expect(stage.lastReport).toMatchObject({ cpu: 0, lag_ms: 0, custom: { queue: 0 }, memory_avg: 0 });
    expect(stage.lastReport).not.toHaveProperty("memory");
    const { cpu_avg, lag_avg_ms, custom_avg } = stage.lastReport as Record<string, number> & { custom_avg: { queue: number } };
    expect([cpu_avg, lag_avg_ms, custom_avg.queue]).toEqual([
      expect.closeTo(left),
      expect.closeTo(100 * left),
      expect.closeTo(left),
    ]);
  });
});

describe("a message of a node", () => {
  for (const { name, from, text, means } of read("messages").messages) {
    if (from === "node") {
      it(`is taken: ${name}`, () => {
        const strip = (keys: { kty: string }[]) => keys.map(({ kty: _, ...key }) => key);
        const expected = { ...means, ...(means.keys && { keys: strip(means.keys) }) };
        expect(parseDown(text)).toEqual(expected);
      });
    }
  }
  for (const { name, as, text, code, field } of read("refusals").refusals) {
    if (as === "node") {
      it(`changes nothing: ${name}`, () => {
        const attempt = () => parseDown(text);
        expect(attempt).toThrow(MessageError);
        expect(attempt).toThrow(expect.objectContaining({ code, field: field ?? undefined }));
      });
    }
  }
});
