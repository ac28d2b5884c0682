/**
 * Assignments, tickets and sealed states: checked, made and opened with nothing but the crypto of Node.
 *
 * In: texts from outside, the live keys as the agent was told them, the node's time in Unix milliseconds. Out: claims, a
 * state, a text; or a [`Refused`] with its reason. Invariants: no algorithm but the pinned one is ever tried; a claim is
 * used only after the signature was checked; what fails any check is not used up; nothing from outside throws anything
 * else. The checks, their order and their words are those of the Rust SDK: testdata/vectors/{token,ticket,seal}.json.
 * Elsewhere: who asks (`admit`), the dialogue (`move`).
 */
import { createCipheriv, createDecipheriv, createHmac, hkdfSync, randomBytes, timingSafeEqual } from "node:crypto";
import { parseObject, sizeOf } from "../../client/src/frame.js";

/** Why a credential was refused, in the words of answers, logs and metrics. */
export type Refusal =
  | "missing"
  | "too_long"
  | "malformed"
  | "algorithm"
  | "unknown_key"
  | "other_server"
  | "signature"
  | "too_long_lived"
  | "not_yet"
  | "expired"
  | "path"
  | "origin"
  | "other_move"
  | "replayed"
  | "replay_full";

/** A credential was refused. Nothing of it may be used. */
export class Refused extends Error {
  override readonly name = "Refused";
  constructor(readonly why: Refusal) {
    super(`refused the credential: ${why}`);
  }
}

/** A key as a JWK Set entry of the message `keys`. */
export interface Jwk {
  kid: string;
  alg: "HS256" | "A256GCM";
  k: string;
}

/** What an assignment says. */
export interface Claims {
  aud: string;
  iat: number;
  exp: number;
  jti: string;
  rid: string;
  sid: string;
  path: string;
  org?: string;
  cause: "start" | "lost" | "refused" | "move";
  caps: string[];
}

/** Longest state that an application may hand over: 16 KiB. */
export const STATE_MAX = 16 * 1024;

const TOKEN_MAX = 2_048;
const TICKET_MAX = 1_024;
const SEALED_MAX = 32 * 1024;
/** Longest lives: the time to connect, to come back, from `done` to `resume`. */
const TOKEN_LIFE_S = 30;
const TICKET_LIFE_S = 600;
const STATE_LIFE_S = 10;
/** How far the clocks of who makes and who checks may be apart. */
const LEEWAY_MS = 5_000;
const ID_MAX = 128;
const CAPS_MAX = 16;
const CAUSES = ["start", "lost", "refused", "move"];
/** Names remembered: 2,800 assignments a second of 35 s each; 1,300 moves a second of 15 s. */
const REPLAYS_MAX = 100_000;
const OPENED_MAX = 20_000;

type Json = Record<string, unknown>;

// Assignments -------------------------------------------------------------------------------------------------------

/** Checks the assignments of one life of one server. It refuses everything until it has keys. */
export class Verifier {
  #keys = new Map<string, Buffer>();
  readonly #replays: Replays;

  constructor(
    /** `server#inc`. */
    readonly audience: string,
    replaysMax = REPLAYS_MAX,
  ) {
    this.#replays = new Replays(replaysMax);
  }

  /** Whether there is a key to check with. */
  get hasKeys(): boolean {
    return this.#keys.size > 0;
  }

  /** Takes the complete live list; keys not in it are dead. */
  setKeys(keys: readonly Jwk[]): void {
    this.#keys = new Map(keys.filter(({ alg }) => alg === "HS256").map(({ kid, k }) => [kid, Buffer.from(k, "base64url")]));
  }

  /** Checks a token and uses it up; throws {@link Refused}, and then it is not. */
  verify(token: string, path: string, origin: string | undefined, nowMs: number): Claims {
    const parts = split(token, TOKEN_MAX);
    const key = this.#keys.get(parts.kid) ?? refuse("unknown_key");
    // Each life of a server has its own key, so the signature could not be right. "Another server" helps more.
    const named = audience(tryObject(parts.payload)?.aud);
    if (named !== undefined && named !== this.audience) refuse("other_server");
    checkSignature(parts, key);
    const claims = readClaims(object(parts.payload));
    checkTime(claims, nowMs);
    if (claims.path !== path.split("?")[0]) refuse("path");
    if (claims.org !== origin) refuse("origin");
    this.#replays.take(claims.jti, ends(claims.exp), nowMs);
    return claims;
  }
}

function checkTime({ iat, exp }: Claims, nowMs: number): void {
  if (exp < iat) refuse("malformed");
  if (exp - iat > TOKEN_LIFE_S) refuse("too_long_lived");
  if (iat * 1000 > nowMs + LEEWAY_MS) refuse("not_yet");
  if (nowMs >= ends(exp)) refuse("expired");
}

function readClaims(claims: Json): Claims {
  const { org = null, cause = null, caps = null } = claims as Record<string, unknown>;
  if (org !== null && typeof org !== "string") refuse("malformed");
  if (cause !== null && typeof cause !== "string") refuse("malformed");
  const list = caps ?? [];
  if (!Array.isArray(list) || list.length > CAPS_MAX || !list.every((cap) => typeof cap === "string")) refuse("malformed");
  return {
    aud: audience(claims.aud) ?? refuse("malformed"),
    iat: seconds(claims, "iat"),
    exp: seconds(claims, "exp"),
    jti: text(claims, "jti"),
    rid: text(claims, "rid"),
    sid: text(claims, "sid"),
    path: text(claims, "path", TOKEN_MAX),
    ...(org !== null && { org: org as string }),
    // A word that a newer gateway knows and we do not is no reason to turn its client away.
    cause: (CAUSES.includes(cause as string) ? cause : "start") as Claims["cause"],
    caps: list as string[],
  };
}

/** `server#inc` in its one form. */
function audience(aud: unknown): string | undefined {
  const found = typeof aud === "string" ? /^([A-Za-z0-9][A-Za-z0-9._-]{0,127})#(\d{1,20})$/.exec(aud) : null;
  return found ? `${found[1]}#${BigInt(found[2] as string)}` : undefined;
}

// Tickets -----------------------------------------------------------------------------------------------------------

/** Makes tickets, seals and opens the states of one life of one server. */
export class Handover {
  #keys: { kid: string; move: Buffer; ticket: Buffer }[] = [];
  readonly #opened = new Replays(OPENED_MAX);

  constructor(
    /** What the server calls itself in `parked`: another name in each life. */
    public at: string,
  ) {}

  /** Takes the complete live list; keys not in it are dead. */
  setKeys(keys: readonly Jwk[]): void {
    const ours = keys.filter(({ alg }) => alg === "A256GCM");
    this.#keys = ours.map(({ kid, k }) => {
      const move = Buffer.from(k, "base64url");
      return { kid, move, ticket: Buffer.from(hkdfSync("sha256", move, Buffer.alloc(0), "evenkeel/ticket/1", 32)) };
    });
  }

  /** Whether there is a key to make something with. */
  get hasKeys(): boolean {
    return this.#keys.length > 0;
  }

  /** A ticket for the session `sid` at the server `source`. */
  ticket(sid: string, source: string, nowMs: number): string {
    const { kid, ticket } = this.#signing(nowMs);
    const claims = { sid, source, exp: Math.floor(nowMs / 1000) + TICKET_LIFE_S };
    const signed = `${base64url({ alg: "HS256", typ: "JWT", kid })}.${base64url(claims)}`;
    return `${signed}.${createHmac("sha256", ticket).update(signed).digest("base64url")}`;
  }

  /** Checks a ticket under the live keys; throws {@link Refused}. */
  checkTicket(ticket: string, nowMs: number): { sid: string; source: string; exp: number } {
    const parts = split(ticket, TICKET_MAX);
    const key = this.#keys.find(({ kid }) => kid === parts.kid) ?? refuse("unknown_key");
    checkSignature(parts, key.ticket);
    const claims = object(parts.payload);
    const source = text(claims, "source");
    if (!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(source)) refuse("malformed");
    const result = { sid: text(claims, "sid"), source, exp: seconds(claims, "exp") };
    if (result.exp * 1000 > nowMs + TICKET_LIFE_S * 1000 + LEEWAY_MS) refuse("too_long_lived");
    if (nowMs >= ends(result.exp)) refuse("expired");
    return result;
  }

  /** Seals a state of at most {@link STATE_MAX} bytes to session, move and receiver. */
  seal(sid: string, mid: string, at: string, state: Uint8Array, nowMs: number, nonce = randomBytes(12)): string {
    if (state.length > STATE_MAX) throw new RangeError(`a state of ${state.length} bytes, allowed are ${STATE_MAX}`);
    const { kid, move } = this.#signing(nowMs);
    const exp = Math.floor(nowMs / 1000) + STATE_LIFE_S;
    const head = base64url({ alg: "dir", enc: "A256GCM", kid });
    const cipher = createCipheriv("aes-256-gcm", move, nonce).setAAD(Buffer.from(head));
    const payload = JSON.stringify({ at, exp, mid, sid, state: Buffer.from(state).toString("base64url") });
    const sealed = Buffer.concat([cipher.update(payload, "utf8"), cipher.final()]);
    return [head, "", ...[nonce, sealed, cipher.getAuthTag()].map((part) => part.toString("base64url"))].join(".");
  }

  /** Opens the state of a move, once; throws {@link Refused}, and then it is not used up. */
  open(sealed: string, sid: string, mid: string, nowMs: number): Buffer {
    const payload = object(this.#decrypt(sealed));
    const named = [text(payload, "sid"), text(payload, "mid"), text(payload, "at", 2 * ID_MAX)];
    const exp = seconds(payload, "exp");
    const state = bytes(typeof payload.state === "string" ? payload.state : refuse("malformed"));
    if (named[2] !== this.at) refuse("other_server");
    if (named[0] !== sid || named[1] !== mid) refuse("other_move");
    if (exp * 1000 > nowMs + STATE_LIFE_S * 1000 + LEEWAY_MS) refuse("too_long_lived");
    if (nowMs >= ends(exp)) refuse("expired");
    // The length in front keeps ("a", "bc") and ("ab", "c") apart.
    this.#opened.take(`${sid.length} ${sid}${mid}`, ends(exp), nowMs);
    return state;
  }

  #decrypt(sealed: string): Buffer {
    if (sealed === "") refuse("missing");
    if (sizeOf(sealed) > SEALED_MAX) refuse("too_long");
    const parts = sealed.split(".");
    if (parts.length !== 5 || parts[1] !== "") refuse("malformed");
    const [head, , nonce, body, tag] = parts.map((part, index) => (index === 1 ? Buffer.alloc(0) : bytes(part)));
    if (nonce?.length !== 12 || tag?.length !== 16 || !head || !body) return refuse("malformed");
    const header = object(head);
    if ("crit" in header || "zip" in header) refuse("malformed");
    if (header.alg !== "dir" || header.enc !== "A256GCM") refuse("algorithm");
    const key = this.#keys.find(({ kid }) => kid === header.kid) ?? refuse("unknown_key");
    const decipher = createDecipheriv("aes-256-gcm", key.move, nonce).setAAD(Buffer.from(parts[0] as string));
    decipher.setAuthTag(tag);
    try {
      return Buffer.concat([decipher.update(body), decipher.final()]);
    } catch {
      return refuse("signature");
    }
  }

  /** The key that signs: the newest that began a minute ago, by when every agent has it. */
  #signing(nowMs: number): { kid: string; move: Buffer; ticket: Buffer } {
    const period = Math.floor((nowMs - SIGN_AFTER_MS) / PERIOD_MS);
    const known = this.#keys.find(({ kid }) => kid === `m${period}`) ?? this.#keys.at(-1);
    if (!known) throw new Error("no move key: the agent was not told any yet");
    return known;
  }
}

/** A key signs for a day, from a minute into it on. */
const PERIOD_MS = 86_400_000;
const SIGN_AFTER_MS = 60_000;

// What they share ---------------------------------------------------------------------------------------------------

/** Remembers what was used, for as long as it could be used again. Bounded; a live name is never forgotten. */
class Replays {
  readonly #used = new Set<string>();
  readonly #ends = new Map<number, string[]>();
  /** Everything that ended up to here is forgotten. */
  #forgotten = 0;

  constructor(readonly max: number) {}

  take(name: string, ends: number, nowMs: number): void {
    this.#forget(nowMs);
    if (ends <= this.#forgotten) refuse("expired");
    if (this.#used.has(name)) refuse("replayed");
    if (this.#used.size >= this.max) refuse("replay_full");
    this.#used.add(name);
    const names = this.#ends.get(ends);
    if (names) names.push(name);
    else this.#ends.set(ends, [name]);
  }

  /** Whole seconds of names at a time, of which there are few at once. */
  #forget(nowMs: number): void {
    for (const [ends, names] of this.#ends) {
      if (ends > nowMs) continue;
      for (const name of names) this.#used.delete(name);
      this.#ends.delete(ends);
      this.#forgotten = Math.max(this.#forgotten, ends);
    }
  }
}

interface Parts {
  kid: string;
  payload: Buffer;
  signed: string;
  signature: Buffer;
}

/** Takes a JWS apart: form, algorithm. */
function split(token: string, longest: number): Parts {
  if (token === "") refuse("missing");
  if (sizeOf(token) > longest) refuse("too_long");
  const parts = token.split(".");
  if (parts.length !== 3) refuse("malformed");
  const [head, payload, signature] = parts.map(bytes) as [Buffer, Buffer, Buffer];
  const header = object(head);
  // What a header marks as critical must be understood (RFC 7515 §4.1.11), and we know no extension.
  if ("crit" in header) refuse("malformed");
  if (header.alg !== "HS256") refuse("algorithm");
  if (header.typ !== "JWT") refuse("malformed");
  const kid = typeof header.kid === "string" ? header.kid : refuse("unknown_key");
  return { kid, payload, signed: `${parts[0]}.${parts[1]}`, signature };
}

function checkSignature({ signed, signature }: Parts, key: Buffer): void {
  const right = createHmac("sha256", key).update(signed).digest();
  if (right.length !== signature.length || !timingSafeEqual(right, signature)) refuse("signature");
}

/** Strict base64url: no padding, no line ends, no bits left over. */
function bytes(part: string): Buffer {
  const decoded = Buffer.from(part, "base64url");
  return decoded.toString("base64url") === part ? decoded : refuse("malformed");
}

function object(json: Buffer): Json {
  return tryObject(json) ?? refuse("malformed");
}

function tryObject(json: Buffer): Json | undefined {
  try {
    return parseObject(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(json));
  } catch {
    return undefined;
  }
}

function text(claims: Json, name: string, max = ID_MAX): string {
  const value = claims[name];
  return typeof value === "string" && value !== "" && sizeOf(value) <= max ? value : refuse("malformed");
}

/** Unix seconds: a whole number from 0 that every JSON reader holds exactly. */
function seconds(claims: Json, name: string): number {
  const value = claims[name];
  return Number.isSafeInteger(value) && (value as number) >= 0 ? (value as number) : refuse("malformed");
}

/** From when on something of that `exp` is expired. */
const ends = (exp: number) => exp * 1000 + LEEWAY_MS;

const base64url = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");

function refuse(why: Refusal): never {
  throw new Refused(why);
}
