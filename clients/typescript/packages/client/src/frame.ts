/**
 * The frames of the move dialogue and the keys that the SDK adds to a URL.
 *
 * In: texts and URLs. Out: parsed messages, texts, URLs. Invariants: a frame is only one of ours when it carries the
 * `ctl` of the very socket it came on, so text of an application can never pass for one. Elsewhere: what the messages
 * mean (`machine`), who sends them (`socket`).
 */

/** Messages to a server; `park` and `resume` carry the session's `sid` too. */
export type Say =
  | { op: "park"; mid: string }
  | { op: "cut"; mid: string; at: string }
  | { op: "resume"; mid: string; state: string }
  | { op: "nak"; mid: string; why: string; retry_ms?: number };

/** A message from a server as it came: `op` is known to be a string, everything else is not. */
export type Heard = { op: string } & Record<string, unknown>;

const MARK = "\u001eek1 ";

/** Sixteen random bytes as 22 characters of base64url. */
export function randomId(): string {
  return base64url(crypto.getRandomValues(new Uint8Array(16)));
}

/** One control frame. */
export function encode(ctl: string, message: Say & { sid?: string }): string {
  return `${MARK}${ctl} ${JSON.stringify(message)}`;
}

/** The message of a control frame of the socket with this `ctl`; undefined for everything else. */
export function decode(ctl: string, data: unknown): Heard | undefined {
  const head = `${MARK}${ctl} `;
  if (typeof data !== "string" || !data.startsWith(head)) return undefined;
  const message = parseObject(data.slice(head.length));
  return typeof message?.op === "string" ? (message as Heard) : { op: "" };
}

/** The URL without the keys of the SDK (`_ek…`), in the order they came. */
export function withoutKeys(url: string): string {
  const [front, query] = cutAt(url, "?");
  const rest = query.split("&").filter((part) => part !== "" && !part.startsWith("_ek"));
  return rest.length > 0 ? `${front}?${rest.join("&")}` : front;
}

/** The URL with more query keys. Values that are undefined are left out. */
export function withKeys(url: string, keys: Record<string, string | undefined>): string {
  let result = url;
  for (const [key, value] of Object.entries(keys)) {
    if (value === undefined) continue;
    result += `${result.includes("?") ? "&" : "?"}${key}=${encodeURIComponent(value)}`;
  }
  return result;
}

/** The value of one query key. */
export function keyOf(url: string, key: string): string | undefined {
  const part = cutAt(url, "?")[1].split("&").find((part) => part.startsWith(`${key}=`));
  return part?.slice(key.length + 1);
}

/** The claims of a signed token, which only its receiver can verify: good for hints, not for trust. */
export function claimsOf(token: string | undefined): Record<string, unknown> {
  try {
    const payload = (token ?? "").split(".")[1] ?? "";
    const bytes = Uint8Array.from(atob(payload.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
    return parseObject(new TextDecoder().decode(bytes)) ?? {};
  } catch {
    return {};
  }
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

function cutAt(text: string, mark: string): [string, string] {
  const at = text.indexOf(mark);
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}

function base64url(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}
