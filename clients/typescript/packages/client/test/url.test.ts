import { expect, it } from "vitest";
import { claimsOf, keyOf, withKeys, withoutKeys } from "../src/url.js";

it("keys come and go without touching the application's", () => {
  const url = "wss://a.example.com/chat?room=7&x=%20";
  const dialled = withKeys(url, { _ek: "t.o.k", _ekm: "c", _eks: undefined });
  expect(dialled).toBe(`${url}&_ek=t.o.k&_ekm=c`);
  expect(withoutKeys(dialled)).toBe(url);
  expect(withoutKeys("wss://a.example.com/chat?_ek=1&_ekm=2")).toBe("wss://a.example.com/chat");
  expect(keyOf(dialled, "_ek")).toBe("t.o.k");
  expect(keyOf(dialled, "_ekt")).toBeUndefined();
});

it("claims can be read as hints, whatever they are", () => {
  const payload = Buffer.from(JSON.stringify({ aud: "é#7" })).toString("base64url");
  expect(claimsOf(`h.${payload}.s`)).toEqual({ aud: "é#7" });
  for (const token of [undefined, "", "a", "a.b", "a.!!.c", "a.bnVsbA.c"]) expect(claimsOf(token)).toEqual({});
});
