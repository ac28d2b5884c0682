/** Runs the snippets of a README as they stand there, but for addresses. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { transform } from "esbuild";

/** The code of the snippet ` ```ts name=NAME `. */
export function snippet(readme: string, name: string): string {
  const text = readFileSync(readme, "utf8");
  const [, code] = new RegExp("```ts name=" + name.replace(".", "\\.") + "\\n([\\s\\S]*?)```").exec(text) ?? [];
  if (!code) throw new Error(`${readme} has no snippet named ${name}`);
  return code;
}

/** Names of all snippets of a README. */
export function names(readme: string): string[] {
  return [...readFileSync(readme, "utf8").matchAll(/```ts name=(\S+)/g)].map(([, name]) => name as string);
}

/** Runs a snippet; its constants are the result. */
export async function run(readme: string, name: string, replace: Record<string, string>): Promise<Record<string, never>> {
  let code = snippet(readme, name);
  for (const [from, to] of Object.entries(replace)) {
    if (!code.includes(from)) throw new Error(`the snippet ${name} does not say ${from}`);
    code = code.replaceAll(from, to);
  }
  const constants = [...code.matchAll(/^const (\w+)/gm)].map(([, name]) => name);
  const { code: js } = await transform(`${code}\nexport { ${constants.join(", ")} };`, { loader: "ts", format: "esm" });
  // Inside the package, so that its imports resolve as those of a user's project do: to what is built.
  const file = join(dirname(readme), "dist/snippets", `${name}-${process.pid}.mjs`);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, js);
  return import(/* @vite-ignore */ `${pathToFileURL(file).href}?${Date.now()}`) as Promise<Record<string, never>>;
}
