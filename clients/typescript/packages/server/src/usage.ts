/**
 * Measures how busy this process is.
 *
 * CPU: its share of what it may use (the quota of its control group, else the cores), or the utilisation of its event
 * loop where that is higher: one thread is all that most servers on Node have, and when it is busy the server is.
 * Memory: resident, as a share of what the process may hold. Lag: the mean delay of the event loop's timers since the
 * last measure. What cannot be read is unknown, not zero.
 */
import { readFileSync } from "node:fs";
import { availableParallelism, totalmem } from "node:os";
import { dirname, join } from "node:path";
import { monitorEventLoopDelay, performance, type IntervalHistogram } from "node:perf_hooks";

/** Shortest time over which CPU is measured: the start of a process would show as a full one. */
const WINDOW_MIN_MS = 50;

/** Step of the lag's timer; delays below it say nothing. */
const LAG_STEP_MS = 10;

export class Usage {
  readonly #lag: IntervalHistogram = monitorEventLoopDelay({ resolution: LAG_STEP_MS });
  readonly #root: string;
  #cpu = process.cpuUsage();
  #loop = performance.eventLoopUtilization();
  #at = performance.now();
  #share: number | undefined;

  /** `root` is `/` but in tests. */
  constructor(root = "/") {
    this.#root = root;
    this.#lag.enable();
  }

  /** Measures since the last call. */
  measure(): { cpu: number | undefined; memory: number | undefined; lag_ms: number } {
    const mean = this.#lag.mean / 1e6;
    this.#lag.reset();
    return {
      cpu: this.#cpuShare(),
      memory: Math.min(1, process.memoryUsage.rss() / memoryMax()),
      lag_ms: Number.isFinite(mean) ? Math.max(0, mean - LAG_STEP_MS) : 0,
    };
  }

  #cpuShare(): number | undefined {
    const now = performance.now();
    if (now - this.#at < WINDOW_MIN_MS) return this.#share;
    const used = process.cpuUsage(this.#cpu);
    const loop = performance.eventLoopUtilization();
    const busy = performance.eventLoopUtilization(loop, this.#loop).utilization;
    const share = (used.user + used.system) / 1000 / (now - this.#at) / coresOf(this.#root);
    this.#cpu = process.cpuUsage();
    this.#loop = loop;
    this.#at = now;
    this.#share = Math.min(1, Math.max(share, busy));
    return this.#share;
  }

  stop(): void {
    this.#lag.disable();
  }
}

/** Cores that the process may use: the lowest quota from its own control group upwards, else what the machine has. */
export function coresOf(root: string): number {
  const cores = availableParallelism();
  const group = /^0::(.+)$/m.exec(read(join(root, "proc/self/cgroup")) ?? "")?.[1] ?? "/";
  const quotas = [cores];
  for (let path = group; ; path = dirname(path)) {
    const [quota, period] = (read(join(root, "sys/fs/cgroup", path, "cpu.max")) ?? "").trim().split(" ").map(Number);
    if (quota && period) quotas.push(quota / period);
    if (path === dirname(path)) break;
  }
  const [v1, period] = ["cpu.cfs_quota_us", "cpu.cfs_period_us"].map((name) =>
    Number(read(join(root, "sys/fs/cgroup/cpu", name)) ?? Number.NaN),
  );
  if (v1 && v1 > 0 && period) quotas.push(v1 / period);
  return Math.max(0.01, Math.min(...quotas));
}

/** Bytes that the process may hold. Node says 0, or a number beyond every machine, where there is no limit. */
function memoryMax(): number {
  const limit = process.constrainedMemory();
  return limit > 0 ? Math.min(limit, totalmem()) : totalmem();
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}
