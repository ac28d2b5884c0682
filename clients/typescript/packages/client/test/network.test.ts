import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Backoff } from "../src/backoff.js";
import { sleep, watch, type Change } from "../src/network.js";

/** A browser's window and document as far as the module uses them. */
class Page {
  readonly window = new EventTarget();
  readonly document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  install() {
    vi.stubGlobal("addEventListener", this.window.addEventListener.bind(this.window));
    vi.stubGlobal("removeEventListener", this.window.removeEventListener.bind(this.window));
    vi.stubGlobal("document", this.document);
  }
  happen(type: string, persisted?: boolean) {
    this.window.dispatchEvent(Object.assign(new Event(type), { persisted }));
  }
  show(visibilityState: "visible" | "hidden") {
    this.document.visibilityState = visibilityState;
    this.document.dispatchEvent(new Event("visibilitychange"));
  }
}

let page: Page;
let changes: Change[];
let unwatch: () => void;

beforeEach(() => {
  vi.useFakeTimers();
  page = new Page();
  page.install();
  changes = [];
  unwatch = watch((change) => changes.push(change));
});

afterEach(() => {
  unwatch();
  expect(vi.getTimerCount()).toBe(0);
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

/** The device sleeps: the clock goes on, timers do not. */
const deviceSleeps = (ms: number) => vi.setSystemTime(Date.now() + ms);

describe("the network", () => {
  it("is lost once it is back, not when it goes: a short gap may heal", () => {
    page.happen("offline");
    expect(changes).toEqual([]);
    page.happen("online");
    expect(changes).toEqual(["lost"]);
    page.happen("online");
    expect(changes).toEqual(["lost"]);
  });

  it("is lost after the device slept", () => {
    vi.advanceTimersByTime(60_000);
    expect(changes).toEqual([]);
    deviceSleeps(40_000);
    vi.advanceTimersByTime(5_000);
    expect(changes).toEqual(["lost"]);
  });

  it("is not lost in a hidden tab whose timers are throttled to one a minute", () => {
    page.show("hidden");
    for (let minute = 0; minute < 10; minute++) {
      deviceSleeps(55_000);
      vi.advanceTimersByTime(5_000);
    }
    deviceSleeps(58_000);
    page.show("visible");
    expect(changes).toEqual([]);
    page.show("hidden");
    deviceSleeps(600_000);
    page.show("visible");
    expect(changes).toEqual(["lost"]);
  });

  it("freezes for the back/forward cache only, and thaws", () => {
    page.happen("pagehide", false);
    page.happen("pageshow", false);
    expect(changes).toEqual([]);
    page.happen("pagehide", true);
    deviceSleeps(3_600_000);
    page.happen("pageshow", true);
    vi.advanceTimersByTime(5_000);
    expect(changes).toEqual(["freeze", "thaw"]);
  });
});

describe("a wait", () => {
  const backoff = new Backoff(() => 0.5);
  const settled = async (wait: Promise<void>) => {
    let over = false;
    void wait.then(() => (over = true));
    await Promise.resolve();
    return () => over;
  };

  it("takes as long as asked", async () => {
    const over = await settled(sleep(10_000, backoff));
    await vi.advanceTimersByTimeAsync(9_999);
    expect(over()).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect(over()).toBe(true);
  });

  it("ends soon, but not at once, when the network or the page is back", async () => {
    for (const back of [() => page.happen("online"), () => page.show("visible"), () => page.happen("pageshow", true)]) {
      const over = await settled(sleep(10_000, backoff));
      back();
      await vi.advanceTimersByTimeAsync(249);
      expect(over()).toBe(false);
      await vi.advanceTimersByTimeAsync(1);
      expect(over()).toBe(true);
    }
  });

  it("goes on while the device is offline, up to the cap", async () => {
    page.happen("offline");
    const over = await settled(sleep(1_000, backoff));
    await vi.advanceTimersByTimeAsync(19_999);
    expect(over()).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect(over()).toBe(true);
  });

  it("can be given up", async () => {
    const stop = new AbortController();
    const wait = sleep(1_000, backoff, stop.signal);
    stop.abort(new Error("enough"));
    await expect(wait).rejects.toThrow("enough");
    await expect(sleep(1_000, backoff, stop.signal)).rejects.toThrow("enough");
  });
});
