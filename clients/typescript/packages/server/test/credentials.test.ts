import { readFileSync } from "node:fs";
import { compactDecrypt, jwtVerify } from "jose";
import { describe, expect, it } from "vitest";
import { Handover, Refused, Verifier, type Jwk } from "../src/credentials.js";

type Text = string | { text: string; times: number };
interface Ask {
  path: string;
  origin: string | null;
  now_ms: number;
}
type Attempt = Partial<Ask> & { token: Text };
type Case = { name: string; why?: string; replays?: number; before?: (Attempt | Text)[]; means?: object } & Attempt;

const read = (name: string) =>
  JSON.parse(readFileSync(new URL(`../../../../../testdata/vectors/${name}`, import.meta.url), "utf8"));
const whole = (text: Text) => (typeof text === "string" ? text : text.text.repeat(text.times));
const key = (keys: Jwk[], kid: string) => Buffer.from(keys.find((key) => key.kid === kid)!.k, "base64url");
/** The reason, or undefined where it passes. */
const reason = (attempt: () => unknown) => {
  try {
    attempt();
    return undefined;
  } catch (error) {
    expect(error).toBeInstanceOf(Refused);
    return (error as Refused).why;
  }
};

describe("an assignment", () => {
  const vectors = read("token.json");
  const { ask, keys } = vectors as { ask: Ask; keys: Jwk[] };
  const verify = (verifier: Verifier, attempt: Attempt) => {
    const { token, path, origin, now_ms } = { ...ask, ...attempt };
    return verifier.verify(whole(token), path, origin ?? undefined, now_ms);
  };
  const prepared = ({ replays, before = [] }: Case) => {
    const verifier = new Verifier(`${vectors.server}#${vectors.inc}`, replays);
    verifier.setKeys(keys);
    for (const each of before) {
      const attempt = typeof each === "object" && "token" in each ? each : { token: each };
      reason(() => verify(verifier, attempt));
    }
    return verifier;
  };

  for (const each of vectors.accept as Case[]) {
    it(`is taken: ${each.name}`, () => expect(verify(prepared(each), each)).toMatchObject(each.means ?? {}));
  }
  for (const each of vectors.refuse as Case[]) {
    it(`is refused as ${each.why}: ${each.name}`, () => expect(reason(() => verify(prepared(each), each))).toBe(each.why));
  }

  it("is refused by a server without keys", () => {
    const verifier = new Verifier(`${vectors.server}#${vectors.inc}`);
    expect(reason(() => verify(verifier, { token: vectors.mint[0].token }))).toBe("unknown_key");
  });

  it("as Evenkeel mints it is a JWT to another library, with the same claims", async () => {
    for (const { token, claims, kid } of vectors.mint) {
      const options = { algorithms: ["HS256"], currentDate: new Date(ask.now_ms), audience: claims.aud };
      expect((await jwtVerify(token, key(keys, kid), options)).payload).toEqual(claims);
    }
  });

  it("is refused in more than thirty ways", () => expect(vectors.refuse.length).toBeGreaterThan(30));
});

describe("a ticket", () => {
  const vectors = read("ticket.json");
  const handover = () => {
    const handover = new Handover("any#1");
    handover.setKeys(vectors.keys);
    return handover;
  };
  const check = ({ text, now_ms = vectors.now_ms }: { text: Text; now_ms?: number }) =>
    handover().checkTicket(whole(text), now_ms);

  for (const each of vectors.accept) {
    it(`is taken: ${each.name}`, () => expect(check(each)).toMatchObject(each.means ?? {}));
  }
  for (const each of vectors.refuse) {
    it(`is refused as ${each.why}: ${each.name}`, () => expect(reason(() => check(each))).toBe(each.why));
  }

  it("of ours is taken by us and by another library", async () => {
    const ticket = handover().ticket("s-1", "chat-1", vectors.now_ms);
    const exp = Math.floor(vectors.now_ms / 1000) + 600;
    expect(check({ text: ticket })).toEqual({ sid: "s-1", source: "chat-1", exp });
    const { payload, protectedHeader } = await jwtVerify(ticket, key(toKeys(vectors.ticket_keys), "m20417"), {
      algorithms: ["HS256"],
      currentDate: new Date(vectors.now_ms),
    });
    expect([payload, protectedHeader]).toEqual([
      { sid: "s-1", source: "chat-1", exp },
      { alg: "HS256", typ: "JWT", kid: "m20417" },
    ]);
  });

  it("is signed with the key of the day before until a minute into the day", () => {
    const midnight = 20_417 * 86_400_000;
    for (const [ms, kid] of [[59_999, "m20416"], [60_000, "m20417"]] as const) {
      const head = handover().ticket("s", "a", midnight + ms).split(".")[0]!;
      expect(JSON.parse(Buffer.from(head, "base64url").toString()).kid).toBe(kid);
    }
  });

  const toKeys = (keys: { kid: string; k: string }[]) => keys as Jwk[];
});

describe("a sealed state", () => {
  const vectors = read("seal.json");
  interface Seal {
    name: string;
    why?: string;
    text: Text;
    now_ms?: number;
    sid?: string;
    mid?: string;
    at?: string;
    state?: string;
    before?: (Text | Partial<Seal>)[];
  }
  const prepared = ({ at = vectors.ask.at, before = [] }: Seal) => {
    const handover = new Handover(at);
    handover.setKeys(vectors.keys);
    for (const each of before) {
      const attempt = typeof each === "object" && !("times" in each) ? (each as Seal) : { text: each as Text };
      reason(() => open(handover, attempt as Seal));
    }
    return handover;
  };
  const open = (handover: Handover, { text, ...more }: Seal) => {
    const { sid, mid, now_ms } = { ...vectors.ask, ...more };
    return handover.open(whole(text), sid, mid, now_ms).toString("base64url");
  };

  for (const each of vectors.seal) {
    it(`is sealed byte for byte: ${each.name}`, async () => {
      const handover = prepared({ ...each, at: undefined });
      const { sid, mid, at, now_ms = vectors.ask.now_ms } = each;
      const nonce = Buffer.from(each.nonce, "base64url");
      const text = handover.seal(sid, mid, at, Buffer.from(each.state, "base64url"), now_ms, nonce);
      expect(text).toBe(each.text);
      const { plaintext } = await compactDecrypt(text, key(vectors.keys, each.kid));
      const exp = Math.floor(now_ms / 1000) + 10;
      expect(JSON.parse(new TextDecoder().decode(plaintext))).toEqual({ sid, mid, at, exp, state: each.state });
    });
  }
  for (const each of vectors.accept as Seal[]) {
    it(`is opened: ${each.name}`, () => expect(open(prepared(each), each)).toBe(each.state));
  }
  for (const each of vectors.refuse as Seal[]) {
    it(`is refused as ${each.why}: ${each.name}`, () => expect(reason(() => open(prepared(each), each))).toBe(each.why));
  }

  it("of 16 KiB passes, of more does not, and fits a frame", () => {
    const handover = prepared({ name: "", text: "" });
    const { sid, mid, at, now_ms } = vectors.ask;
    const state = Buffer.alloc(16 * 1024, 7);
    const sealed = handover.seal(sid, mid, at, state, now_ms);
    expect(sealed.length).toBeLessThanOrEqual(32 * 1024);
    expect(handover.open(sealed, sid, mid, now_ms)).toEqual(state);
    expect(() => handover.seal(sid, mid, at, Buffer.alloc(16 * 1024 + 1), now_ms)).toThrow(RangeError);
  });
});
