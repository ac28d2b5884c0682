import { describe, expect, it } from "vitest";
import { claimsOf, decode, encode, keyOf, randomId, withKeys, withoutKeys } from "../src/frame.js";

describe("frames", () => {
  const ctl = randomId();

  it("has 16 random bytes in a ctl, new each time", () => {
    expect(ctl).toMatch(/^[A-Za-z0-9_-]{22}$/);
    expect(new Set(Array.from({ length: 1000 }, randomId)).size).toBe(1000);
  });

  it("are what INTERFACES §5 says", () => {
    expect(encode("CTL", { op: "cut", mid: "m", at: "b#1" })).toBe('\u001eek1 CTL {"op":"cut","mid":"m","at":"b#1"}');
    expect(decode("CTL", '\u001eek1 CTL {"op":"resumed","mid":"m"}')).toEqual({ op: "resumed", mid: "m" });
  });

  it("with another ctl, in binary or in the middle of a text are text of the application", () => {
    const frame = encode(ctl, { op: "cut", mid: "m", at: "b" });
    expect(decode(randomId(), frame)).toBeUndefined();
    expect(decode(ctl, new TextEncoder().encode(frame))).toBeUndefined();
    expect(decode(ctl, ` ${frame}`)).toBeUndefined();
    expect(decode(ctl, "\u001eek1 ")).toBeUndefined();
  });

  it("that cannot be read are an op nobody knows", () => {
    for (const json of ["", "{", "null", "[]", "7", '{"op":7}', "{}"]) {
      expect(decode("CTL", `\u001eek1 CTL ${json}`)).toEqual({ op: "" });
    }
  });
});

describe("query keys", () => {
  it("come and go without touching the application's", () => {
    const url = "wss://a.example.com/chat?room=7&x=%20";
    const dialled = withKeys(url, { _ek: "t.o.k", _ekm: "c", _eks: undefined });
    expect(dialled).toBe(`${url}&_ek=t.o.k&_ekm=c`);
    expect(withoutKeys(dialled)).toBe(url);
    expect(withoutKeys("wss://a.example.com/chat?_ek=1&_ekm=2")).toBe("wss://a.example.com/chat");
    expect(keyOf(dialled, "_ek")).toBe("t.o.k");
    expect(keyOf(dialled, "_ekt")).toBeUndefined();
  });

  it("hold claims that can be read as hints, whatever they are", () => {
    const payload = Buffer.from(JSON.stringify({ aud: "é#7" })).toString("base64url");
    expect(claimsOf(`h.${payload}.s`)).toEqual({ aud: "é#7" });
    for (const token of [undefined, "", "a", "a.b", "a.!!.c", "a.bnVsbA.c"]) expect(claimsOf(token)).toEqual({});
  });
});
