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
  it("takes its sockets with it, which shows once it is back", () => {
    page.happen("offline");
    expect(changes).toEqual(["offline"]);
    page.happen("online");
    expect(changes).toEqual(["offline", "dead", "online"]);
    page.happen("online");
    expect(changes).toEqual(["offline", "dead", "online", "online"]);
  });

  it("is gone after the device slept", () => {
    vi.advanceTimersByTime(60_000);
    expect(changes).toEqual([]);
    deviceSleeps(40_000);
    vi.advanceTimersByTime(5_000);
    expect(changes).toEqual(["dead"]);
  });

  it("is there in a hidden tab whose timers are throttled to one a minute", () => {
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
    expect(changes).toEqual(["dead"]);
  });

  it("is away for a page in the back/forward cache, and for no other", () => {
    page.happen("pagehide", false);
    page.happen("pageshow", false);
    expect(changes).toEqual([]);
    page.happen("pagehide", true);
    expect(changes).toEqual(["offline", "dead"]);
    deviceSleeps(3_600_000);
    page.happen("pageshow", true);
    vi.advanceTimersByTime(5_000);
    expect(changes).toEqual(["offline", "dead", "online"]);
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
    for (const back of [() => page.happen("online"), () => page.happen("pageshow", true)]) {
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
});
