/** A guide of docs/guide that is followed step by step as it stands there but for the ports, with the real binary. */
import { spawn, type ChildProcess } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { binary, root } from "./binary.js";
import { atEnd } from "./farm.js";

const PORTS = ["8080", "9900", "9001", "9002"];

/** Free ports for those that the guides name. */
export async function freePorts(): Promise<Map<string, string>> {
  const servers = await Promise.all(
    PORTS.map(async () => {
      const server = createServer();
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
      return server;
    }),
  );
  const ports = servers.map((server) => String((server.address() as AddressInfo).port));
  for (const server of servers) server.close();
  return new Map(PORTS.map((port, index) => [port, ports[index] as string]));
}

/** A guide in a folder of its own. */
export class Guide {
  readonly #folder: string;
  readonly #text: string;
  readonly #processes: ChildProcess[] = [];
  /** What each command said. */
  readonly said = new Map<string, string>();

  constructor(name: string, ports: Map<string, string>) {
    let text = readFileSync(join(root, "docs/guide", name), "utf8");
    for (const [from, to] of ports) text = text.replaceAll(new RegExp(`\\b${from}\\b`, "g"), to);
    this.#text = text;
    // Inside the package, so that imports resolve as in a user's folder.
    this.#folder = fileURLToPath(new URL(`../dist/guide-${name}-${process.pid}`, import.meta.url));
    mkdirSync(this.#folder, { recursive: true });
    for (const [, file, code] of text.matchAll(/```\w+ name=(\S+)\n([\s\S]*?)```/g)) {
      writeFileSync(join(this.#folder, file as string), code as string);
    }
    atEnd(() => {
      for (const process of this.#processes.reverse()) process.kill("SIGKILL");
      rmSync(this.#folder, { recursive: true, force: true });
    });
  }

  /** The commands of the guide, in order. */
  get commands(): string[] {
    return [...this.#text.matchAll(/```sh\n([\s\S]*?)```/g)].map(([, command]) => (command as string).trim());
  }

  /** Starts one of its commands. */
  run(command: string): Promise<number | null> {
    const env = { ...process.env, PATH: `${dirname(binary())}${delimiter}${process.env.PATH}` };
    const child = spawn("sh", ["-c", `exec ${command}`], { cwd: this.#folder, env });
    this.#processes.push(child);
    const add = (data: Buffer) => this.said.set(command, (this.said.get(command) ?? "") + String(data));
    child.stdout.on("data", add);
    child.stderr.on("data", add);
    return new Promise((resolve) => child.on("close", resolve));
  }

  /** What the text says, with the ports that are used. */
  get text(): string {
    return this.#text;
  }

  exists = (file: string) => existsSync(join(this.#folder, file));
  lines = (command: string) => (this.said.get(command) ?? "").split("\n").filter(Boolean);
}
