import { describe, expect, it } from "vitest";
import { encode, parse, randomId, type Frame } from "../src/frame.js";

describe("frames", () => {
  const ctl = randomId();
  const text = (json: string) => `\u001eek1 ${ctl} ${json}`;

  it("have a ctl of 16 random bytes, new each time", () => {
    expect(ctl).toMatch(/^[A-Za-z0-9_-]{22}$/);
    expect(new Set(Array.from({ length: 1000 }, randomId)).size).toBe(1000);
  });

  it("come back from their text", () => {
    const frames: Frame[] = [
      { op: "move", mid: "m", ticket: "t.t.t", by_ms: 30_000, why: "draining" },
      { op: "move", mid: "m", ticket: "t.t.t", by_ms: 30_000, why: "draining", park: false },
      { op: "park", sid: "s", mid: "m" },
      { op: "parked", mid: "m", at: "b#1" },
      { op: "cut", mid: "m", at: "b#1" },
      { op: "done", mid: "m", state: "x".repeat(32 * 1024) },
      { op: "resume", sid: "s", mid: "m", state: "x" },
      { op: "resumed", mid: "m" },
      { op: "nak", why: "unsupported" },
      { op: "nak", mid: "m", why: "busy", retry_ms: 7 },
    ];
    for (const frame of frames) expect(parse(ctl, encode(ctl, frame))).toEqual(frame);
    expect(encode("CTL", { op: "cut", mid: "m", at: "b" })).toBe('\u001eek1 CTL {"op":"cut","mid":"m","at":"b"}');
  });

  it("are nothing that is not exactly a frame of this connection: that is the application's", () => {
    const good = encode(ctl, { op: "resumed", mid: "m" });
    const foreign = [
      "",
      "hello",
      good.slice(1),
      ` ${good}`,
      `${good} `,
      `${good}\n`,
      good.replace("ek1", "ek2"),
      good.replace("ek1 ", "ek1  "),
      encode(randomId(), { op: "resumed", mid: "m" }),
      text(""),
      text('["op"]'),
      text("null"),
      text(' {"op":"resumed","mid":"m"}'),
      text('{"op":"resumed","mid":"m"}{}'),
      text('{"op":"resumed","mid":"m",}'),
      text('{"mid":"m"}'),
      text('{"op":7}'),
      text(`{"op":"resumed","mid":"m","a":"${"a".repeat(40 * 1024)}"}`),
    ];
    for (const each of foreign) expect(parse(ctl, each), each.slice(0, 80)).toBeUndefined();
    expect(parse(ctl, new TextEncoder().encode(good))).toBeUndefined();
  });

  it("of an unknown op, or without a field they need, are to be refused", () => {
    const unknown = (mid?: string) => ({ op: "unknown", ...(mid && { mid }) });
    expect(parse(ctl, text('{"op":"splice","mid":"m9"}'))).toEqual(unknown("m9"));
    expect(parse(ctl, text('{"op":"toString"}'))).toEqual(unknown());
    expect(parse(ctl, text('{"op":"cut","mid":"m"}'))).toEqual(unknown("m"));
    expect(parse(ctl, text('{"op":"cut","mid":"","at":"b"}'))).toEqual(unknown());
    expect(parse(ctl, text('{"op":"move","mid":"m","ticket":"t","by_ms":-1}'))).toEqual(unknown("m"));
    expect(parse(ctl, text('{"op":"move","mid":"m","ticket":"t","by_ms":1.5}'))).toEqual(unknown("m"));
    expect(parse(ctl, text('{"op":"move","mid":"m","by_ms":5}'))).toEqual(unknown("m"));
  });

  it("may have more fields than needed, and null is absent", () => {
    const move = '{"more":[1,{"op":"x"}],"op":"move","mid":"m","ticket":"t","by_ms":5.0,"why":null,"park":null}';
    expect(parse(ctl, text(move))).toEqual({ op: "move", mid: "m", ticket: "t", by_ms: 5, why: "" });
    expect(parse(ctl, text('{"op":"nak","mid":null,"why":3,"retry_ms":"soon"}'))).toEqual({ op: "nak", why: "" });
  });
});
