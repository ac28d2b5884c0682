/** The distribution's Chromium with pages of ours. */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { chromium, type BrowserContext } from "playwright-core";
import { listen } from "../../server/test/farm.js";

function executable(): string {
  const folders = (process.env.PATH ?? "").split(delimiter);
  const found = ["chromium", "chromium-browser"].flatMap((name) => folders.map((folder) => join(folder, name))).find(existsSync);
  if (!found) throw new Error("no chromium: apt-get install -y --no-install-recommends chromium");
  return found;
}

const FLAGS = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"];
const MORE_FLAGS = ["disable-component-update", "disable-sync", "disable-dev-shm-usage"];

/** A browser with a fresh profile, and how to end it. */
export async function launch(): Promise<{ browser: BrowserContext; end: () => Promise<void> }> {
  const profile = mkdtempSync(join(tmpdir(), "evenkeel-chromium-"));
  const args = [...FLAGS, ...MORE_FLAGS].map((flag) => `--${flag}`);
  const browser = await chromium.launchPersistentContext(profile, { executablePath: executable(), headless: true, args });
  const end = async () => {
    await browser.close();
    rmSync(profile, { recursive: true, force: true });
  };
  return { browser, end };
}

/** A script of ours, with what it imports, for a page. */
export async function bundle(name: string): Promise<string> {
  const entryPoints = [fileURLToPath(new URL(name, import.meta.url))];
  const { outputFiles } = await build({ entryPoints, bundle: true, format: "iife", write: false });
  return outputFiles[0]?.text ?? "";
}

/** A site whose pages have this script: its origin. */
export async function site(script: string): Promise<string> {
  const server = createServer((request, response) => {
    const isScript = request.url === "/script.js";
    response.writeHead(200, { "content-type": isScript ? "text/javascript" : "text/html" });
    response.end(isScript ? script : `<!doctype html><title>page</title><script src="/script.js"></script>`);
  });
  return `http://${await listen(server)}`;
}
