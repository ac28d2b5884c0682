/**
 * Reads what a node says to an agent (docs/reference/agent.md).
 *
 * In: the text of one frame. Out: a [`Down`], or a [`MessageError`] that names the code and the field. Invariant: a
 * message is taken as a whole or changes nothing; unknown fields are ignored, absent and null are the same. Elsewhere:
 * what follows from it (`agent`).
 */
import type { Jwk } from "./credentials.js";
import { parseObject, sizeOf } from "../../client/src/frame.js";

/** What a server should look like. */
export interface Desired {
  epoch: number;
  gen: number;
  lease_ms: number;
  state: "active" | "cordoned" | "draining" | "stopped";
  /** The count at which shedding stops. */
  target: number;
  moves_per_s: number;
  deadline_ms?: number;
  select: Select;
}

/** Which connections leave first. */
export type Select = "idle" | "newest" | "oldest" | "random" | "heaviest";

export type Down =
  | { op: "welcome"; report_ms: number; keys: Jwk[]; credential?: string }
  | ({ op: "desired" } & Desired)
  | { op: "keys"; keys: Jwk[] }
  | { op: "stale"; known: number }
  | { op: "error"; why: string };

/** A message and the node's Unix time in it. */
export type Received = Down & { now_ms?: number };

/** A message that changes nothing. */
export class MessageError extends Error {
  override readonly name = "MessageError";
  constructor(
    readonly code: "bad_message" | "missing_field" | "bad_field" | "unknown_op" | "too_long",
    readonly field?: string,
  ) {
    super(`could not take a message: ${code}${field ? ` ${field}` : ""}`);
  }
}

/** Longest message. */
const MESSAGE_MAX = 64 * 1024;
const KEYS_MAX = 64;
const CONNECTIONS_MAX = 100_000_000;
const MOVES_MAX = 1_000_000;
/** 366 days: anything above is a unit mistake. */
const MS_MAX = 31_622_400_000;
const LEASE_MS = 5_000;

/** One message of a node. Throws {@link MessageError}. */
export function parseDown(text: string): Received {
  if (sizeOf(text) > MESSAGE_MAX) throw new MessageError("too_long");
  const object = parseObject(text);
  if (!object) throw new MessageError("bad_message");
  const fields = new Fields(object);
  const now_ms = fields.integer("now_ms");
  return { ...read(fields), ...(now_ms !== undefined && { now_ms }) };
}

function read(fields: Fields): Down {
  const op = fields.needed("op");
  switch (op) {
    case "welcome": {
      const credential = fields.text("credential", 4_096);
      const report_ms = fields.whole("report_ms", 3_600_000, 10);
      return { op, report_ms, keys: keys(fields), ...(credential !== undefined && { credential }) };
    }
    case "desired":
      return { op, ...desired(fields) };
    case "keys":
      return { op, keys: keys(fields) };
    case "stale":
      return { op, known: fields.whole("known") };
    case "error":
      return { op, why: (fields.text("why", MESSAGE_MAX) ?? "unknown").slice(0, 64) };
    default:
      if (typeof op !== "string") throw new MessageError("bad_field", "op");
      throw new MessageError("unknown_op", "op");
  }
}

function desired(fields: Fields): Desired {
  const moves_per_s = fields.value("moves_per_s") ?? 0;
  if (typeof moves_per_s !== "number" || !(moves_per_s >= 0 && moves_per_s <= MOVES_MAX)) {
    throw new MessageError("bad_field", "moves_per_s");
  }
  const deadline_ms = fields.integer("deadline_ms", MS_MAX);
  return {
    epoch: fields.whole("epoch"),
    gen: fields.whole("gen"),
    lease_ms: fields.integer("lease_ms", MS_MAX) ?? LEASE_MS,
    state: fields.word("state", ["active", "cordoned", "draining", "stopped"]),
    target: fields.integer("target", CONNECTIONS_MAX) ?? CONNECTIONS_MAX,
    moves_per_s,
    ...(deadline_ms !== undefined && { deadline_ms }),
    select: fields.word("select", ["idle", "newest", "oldest", "random", "heaviest"], "idle"),
  };
}

/** The keys of a JWK Set, or of its bare list, that are symmetric and complete; others are left out (RFC 7517 §5). */
function keys(fields: Fields): Jwk[] {
  const value = fields.value("keys") ?? [];
  const list = Array.isArray(value) ? value : (value as { keys?: unknown }).keys;
  if (!Array.isArray(list) || list.length > KEYS_MAX) throw new MessageError("bad_field", "keys");
  return list.flatMap((item: unknown) => {
    const { kty, kid, alg, k } = (item ?? {}) as Record<string, unknown>;
    const whole = kty === "oct" && [kid, alg, k].every((each) => typeof each === "string");
    return whole ? [{ kid, alg, k } as Jwk] : [];
  });
}

/** The fields of one object; refusals name them. */
class Fields {
  constructor(readonly object: Record<string, unknown>) {}

  value(name: string): unknown {
    return this.object[name] ?? undefined;
  }

  needed(name: string): unknown {
    const value = this.value(name);
    if (value === undefined) throw new MessageError("missing_field", name);
    return value;
  }

  /** A whole number from `min` to `max`, if it is there. */
  integer(name: string, max: number = Number.MAX_SAFE_INTEGER, min = 0): number | undefined {
    const value = this.value(name);
    if (value === undefined) return undefined;
    const fits = Number.isInteger(value) && (value as number) >= min && (value as number) <= max;
    if (!fits) throw new MessageError("bad_field", name);
    return value as number;
  }

  whole(name: string, max?: number, min?: number): number {
    this.needed(name);
    return this.integer(name, max, min) as number;
  }

  text(name: string, max: number): string | undefined {
    const value = this.value(name);
    if (value === undefined) return undefined;
    // eslint-disable-next-line no-control-regex
    const fits = typeof value === "string" && sizeOf(value) <= max && !/[\u0000-\u001f\u007f-\u009f]/.test(value);
    if (!fits) throw new MessageError("bad_field", name);
    return value as string;
  }

  word<W extends string>(name: string, words: W[], otherwise?: W): W {
    const value = otherwise === undefined ? this.needed(name) : (this.value(name) ?? otherwise);
    if (!words.includes(value as W)) throw new MessageError("bad_field", name);
    return value as W;
  }
}
