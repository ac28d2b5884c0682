// Builds dist/esm and dist/cjs: one bundle each with what is shared with the client's package, `ws` left outside, and
// type declarations for both module systems.
import { execFileSync } from "node:child_process";
import { cpSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const at = (...path) => join(here, ...path);
rmSync(at("dist"), { recursive: true, force: true });

const common = {
  entryPoints: [at("src/index.ts")],
  bundle: true,
  sourcemap: "linked",
  target: "node20",
  platform: "node",
  packages: "external",
};
await build({ ...common, format: "esm", outdir: at("dist/esm") });
await build({ ...common, format: "cjs", outdir: at("dist/cjs") });

const typescript = dirname(createRequire(import.meta.url).resolve("typescript/package.json"));
execFileSync(process.execPath, [join(typescript, "bin/tsc"), "-p", at("tsconfig.json")], { stdio: "inherit" });
for (const folder of ["server", "client"]) cpSync(at("dist/esm", folder), at("dist/cjs", folder), { recursive: true });
writeFileSync(at("dist/cjs/package.json"), '{ "type": "commonjs" }\n');
