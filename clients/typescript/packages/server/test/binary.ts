/** The real `evenkeel` binary. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** The repository; the packages may lie in a mirror below `target`. */
export const root = fileURLToPath(new URL("../../../../../", import.meta.url));
/** What cargo built. */
export const target = process.env.CARGO_TARGET_DIR ?? (existsSync(join(root, "target")) ? join(root, "target") : root);

/** The binary under test: the one that cargo built, or `EVENKEEL_BIN`. */
export function binary(): string {
  const path = process.env.EVENKEEL_BIN ?? join(target, "debug/evenkeel");
  if (!existsSync(path)) throw new Error(`no ${path}: run cargo build -p evenkeel first, or set EVENKEEL_BIN`);
  return path;
}
