/** The query keys that the SDK adds to URLs (`_ek…`), and what can be read from them. */
import { parseObject } from "./frame.js";

/** The URL without the keys of the SDK; the rest stays as it is. */
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

function cutAt(text: string, mark: string): [string, string] {
  const at = text.indexOf(mark);
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}
