/** What is published: built by `npm run build`, which has to come before the tests. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, symlinkSync, mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { expect, it } from "vitest";

const here = dirname(fileURLToPath(import.meta.url));
const at = (...path: string[]) => join(here, "..", ...path);
const names = ["EvenkeelSocket", "NegotiateError", "negotiator"];

it("is below 8 KiB gzipped", async () => {
  const bundle = await build({
    entryPoints: [at("src/index.ts")],
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    platform: "neutral",
    write: false,
  });
  expect(gzipSync(bundle.outputFiles[0]!.contents, { level: 9 }).length).toBeLessThan(8 * 1024);
  expect(gzipSync(readFileSync(at("dist/esm/index.js")), { level: 9 }).length).toBeLessThan(8 * 1024);
});

it("has no dependency at run time", () => {
  expect(JSON.parse(readFileSync(at("package.json"), "utf8"))).not.toHaveProperty("dependencies");
});

it("is imported and required, and its types serve both", async () => {
  const root = mkdtempSync(join(tmpdir(), "evenkeel-client-"));
  try {
    mkdirSync(join(root, "node_modules/@evenkeel"), { recursive: true });
    symlinkSync(at(), join(root, "node_modules/@evenkeel/client"));
    const list = "console.log(Object.keys(client).sort().join(), typeof steer)";
    const esm = `import * as client from "@evenkeel/client"; import { steer } from "@evenkeel/client/socket.io"; ${list}`;
    const cjs = `const client = require("@evenkeel/client"); const { steer } = require("@evenkeel/client/socket.io"); ${list}`;
    writeFileSync(join(root, "a.mjs"), esm);
    writeFileSync(join(root, "a.cjs"), cjs);
    for (const file of ["a.mjs", "a.cjs"]) {
      expect(execFileSync(process.execPath, [join(root, file)], { encoding: "utf8" }).trim()).toBe(`${names.join()} function`);
    }
    const use = `
      import { EvenkeelSocket, negotiator } from "@evenkeel/client";
      const socket: WebSocket = new EvenkeelSocket(negotiator("https://ws.example.com/chat", { key: "7" }));
      const Class: typeof WebSocket = EvenkeelSocket.with({ reconnect: true });
      new EvenkeelSocket("wss://ws.example.com").addEventListener("moved", ({ detail }) => detail.pauseMs.toFixed());
      // @ts-expect-error -- there is no such reason
      new EvenkeelSocket("wss://ws.example.com").addEventListener("moved", ({ detail }) => detail.reason);
      export { socket, Class };
    `;
    writeFileSync(join(root, "b.mts"), use);
    writeFileSync(join(root, "b.cts"), use);
    const tsc = join(dirname(createRequire(import.meta.url).resolve("typescript/package.json")), "bin/tsc");
    const options = ["--ignoreConfig", "--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom", "--types", ""];
    execFileSync(process.execPath, [tsc, ...options, join(root, "b.mts"), join(root, "b.cts")], { stdio: "pipe" });
  } catch (error) {
    const { stdout } = error as { stdout?: Buffer };
    throw stdout ? new Error(String(stdout)) : error;
  } finally {
    rmSync(root, { recursive: true });
  }
});
