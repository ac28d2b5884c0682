/**
 * What the two ends of a move say, and how it is told from what applications say.
 *
 * A frame is one text message: U+001E `ek1`, space, ctl, space, one JSON object with `op`. In: a text and the ctl of
 * its connection. Out: a [`Frame`], or that it is none of ours. Invariants: only a text with the connection's own ctl
 * is ever ours, and only its two ends know that; whatever else a text holds passes to the application as it is.
 * Elsewhere: what to say when (`machine`), who carries it (`socket`).
 */

/** One frame, of either end. */
export type Frame =
  | { op: "move"; mid: string; ticket: string; by_ms: number; why: string; park?: false }
  | { op: "park"; sid: string; mid: string }
  | { op: "parked"; mid: string; at: string }
  | { op: "cut"; mid: string; at: string }
  | { op: "done"; mid: string; state: string }
  | { op: "resume"; sid: string; mid: string; state: string }
  | { op: "resumed"; mid: string }
  | { op: "nak"; mid?: string; why: string; retry_ms?: number };

/** Ours, but of no known `op` or without a field that it needs: to be answered with `nak{unsupported}`. */
export type Unknown = { op: "unknown"; mid?: string };

const PREFIX = "\u001eek1 ";
/** Longest frame in bytes: a sealed state and its surroundings. A longer text is the application's. */
const FRAME_MAX = 40 * 1024;
/** Longest duration in a frame, a day: anything above is a unit mistake. */
const MS_MAX = 24 * 3_600_000;

/** The fields each op needs and their longest length in bytes; 0: a duration in milliseconds. */
const NAME = 256;
const STATE = 32 * 1024;
const NEEDS: Record<Frame["op"], Record<string, number>> = {
  move: { mid: NAME, ticket: 2 * 1024, by_ms: 0 },
  park: { sid: NAME, mid: NAME },
  parked: { mid: NAME, at: NAME },
  cut: { mid: NAME, at: NAME },
  done: { mid: NAME, state: STATE },
  resume: { sid: NAME, mid: NAME, state: STATE },
  resumed: { mid: NAME },
  nak: {},
};

/** Sixteen random bytes in base64url: the ctl of a socket, the id of a session. */
export function randomId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return btoa(String.fromCharCode(...bytes)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

/** The text of a frame on the connection with this ctl. */
export function encode(ctl: string, frame: Frame): string {
  return `${PREFIX}${ctl} ${JSON.stringify(frame)}`;
}

/** What a message on the connection with this ctl is; undefined: the application's. */
export function parse(ctl: string, data: unknown): Frame | Unknown | undefined {
  const head = `${PREFIX}${ctl} `;
  if (typeof data !== "string" || !data.startsWith(head)) return undefined;
  const json = data.slice(head.length);
  // Nothing around the object: JSON would allow white space there.
  if (!json.startsWith("{") || !json.endsWith("}") || sizeOf(data) > FRAME_MAX) return undefined;
  const object = parseObject(json);
  const op = object?.op;
  if (!object || typeof op !== "string") return undefined;
  const mid = fitting(object.mid, NAME) as string | undefined;
  return frame(op, object, mid) ?? { op: "unknown", ...(mid !== undefined && { mid }) };
}

function frame(op: string, object: Record<string, unknown>, mid: string | undefined): Frame | undefined {
  if (!Object.hasOwn(NEEDS, op)) return undefined;
  const result: Record<string, unknown> = { op };
  for (const [field, max] of Object.entries(NEEDS[op as Frame["op"]])) {
    result[field] = fitting(object[field], max);
    if (result[field] === undefined) return undefined;
  }
  if (op === "move" && object.park === false) result.park = false;
  if (op === "move" || op === "nak") result.why = fitting(object.why, NAME) ?? "";
  if (op === "nak") {
    // What is unusable in a refusal is simply unknown: a refusal is never refused.
    const retry_ms = fitting(object.retry_ms, 0);
    Object.assign(result, mid !== undefined && { mid }, retry_ms !== undefined && { retry_ms });
  }
  return result as Frame;
}

/** A text that is neither empty nor too long, or (`max` 0) a whole number of milliseconds up to a day. */
function fitting(value: unknown, max: number): string | number | undefined {
  if (max === 0) {
    const fits = typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= MS_MAX;
    return fits ? value : undefined;
  }
  return typeof value === "string" && value !== "" && sizeOf(value) <= max ? value : undefined;
}

/** Bytes of a text in UTF-8. */
export function sizeOf(text: string): number {
  return new TextEncoder().encode(text).length;
}

/** A JSON object, or undefined. */
export function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : undefined;
  } catch {
    return undefined;
  }
}
