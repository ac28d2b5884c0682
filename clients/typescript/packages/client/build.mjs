// Builds dist/esm and dist/cjs: one bundle each, with type declarations for both module systems.
import { execFileSync } from "node:child_process";
import { cpSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const at = (...path) => join(here, ...path);
rmSync(at("dist"), { recursive: true, force: true });

const common = {
  entryPoints: [at("src/index.ts"), at("src/socketio.ts")],
  bundle: true,
  minify: true,
  sourcemap: "linked",
  target: "es2022",
  platform: "neutral",
};
await build({ ...common, format: "esm", outdir: at("dist/esm") });
await build({ ...common, format: "cjs", outdir: at("dist/cjs") });

const typescript = dirname(createRequire(import.meta.url).resolve("typescript/package.json"));
execFileSync(process.execPath, [join(typescript, "bin/tsc"), "-p", at("tsconfig.json")], { stdio: "inherit" });
for (const file of readdirSync(at("dist/esm"))) {
  if (file.endsWith(".d.ts")) cpSync(at("dist/esm", file), at("dist/cjs", file));
}
writeFileSync(at("dist/cjs/package.json"), '{ "type": "commonjs" }\n');
