import { describe, expect, it } from "vitest";
import { Backoff } from "../src/backoff.js";

const almostOne = () => 0.999999999;
const widest = (backoff: Backoff, times: number) => Array.from({ length: times }, () => Math.round(backoff.wait()));

describe("backoff", () => {
  it("doubles its range up to the cap and starts over after a connection that lived", () => {
    const backoff = new Backoff(almostOne);
    expect(widest(backoff, 7)).toEqual([500, 1000, 2000, 4000, 8000, 16000, 20000]);
    backoff.lived(4_999);
    expect(widest(backoff, 1)).toEqual([20000]);
    backoff.lived(5_000);
    expect(widest(backoff, 2)).toEqual([500, 1000]);
  });

  it("takes the range of an assignment, with a cap not below the base", () => {
    const backoff = new Backoff(almostOne);
    backoff.range(100, 350);
    expect(widest(backoff, 4)).toEqual([100, 200, 350, 350]);
    backoff.range(0, 0);
    expect(widest(backoff, 2)).toEqual([1, 1]);
  });

  it("waits as told, and by its own rule where a server names no time", () => {
    const backoff = new Backoff(() => 0.5);
    expect(backoff.waitAsTold({ wait_ms: 700, window_ms: 200 })).toBe(800);
    expect(backoff.waitAsTold({ wait_ms: 0, window_ms: 0 })).toBe(250);
    expect(backoff.waitAsTold({ wait_ms: 0, window_ms: 0 })).toBe(500);
    expect(backoff.waitAsTold({ wait_ms: 1e12, window_ms: 1e12 })).toBe(5_400_000);
  });

  it("spreads the waits of many clients evenly over the range", () => {
    const tenths = new Array<number>(10).fill(0);
    for (let client = 0; client < 10_000; client++) {
      const tenth = Math.floor(new Backoff().wait() / 50);
      tenths[tenth] = (tenths[tenth] ?? 0) + 1;
    }
    // Five standard deviations around 1,000.
    expect(tenths.every((count) => count > 850 && count < 1150)).toBe(true);
  });
});
