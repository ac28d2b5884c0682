import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["packages/*/test/**/*.test.ts"],
    // Real sockets on a machine that may be busy: a test waits for a condition, and this is when it gives up.
    testTimeout: 30_000,
    hookTimeout: 30_000,
  },
});
