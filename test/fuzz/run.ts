/**
 * Runs the cases of one target in a thread of its own, and ends it when a case takes too long.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";

export interface FuzzOptions {
  readonly target: string;
  /** Seed of the first case; the others follow. */
  readonly seed: number;
  readonly cases: number;
  readonly milliseconds: number;
  readonly onFinding?: (finding: Finding) => void;
}

export interface Job extends Omit<FuzzOptions, "onFinding"> {
  readonly folder: string;
  /** Two words: the seed at work, and a counter that moves. */
  readonly progress: SharedArrayBuffer;
}

export interface Finding {
  readonly target: string;
  readonly seed: number;
  readonly sample: string;
  readonly changes: readonly string[];
  readonly message: string;
}

export type Statistics = Record<string, number>;

export interface FuzzReport {
  readonly done: number;
  readonly findings: readonly Finding[];
  readonly statistics: Statistics;
}

/** Far beyond what a case takes on a busy machine. */
const CASE_MS_MAX = 20_000;
/** Making the samples is the first beat. */
const SAMPLES_MS_MAX = 60_000;
const HEAP_MIB_MAX = 512;

export async function fuzz({ onFinding, ...options }: FuzzOptions): Promise<FuzzReport> {
  const folder = mkdtempSync(join(tmpdir(), "ullage-fuzz-"));
  const progress = new SharedArrayBuffer(8);
  const findings: Finding[] = [];
  const report = (finding: Finding) => {
    findings.push(finding);
    onFinding?.(finding);
  };
  let end: { done: number; statistics: Statistics } = { done: 0, statistics: {} };
  const worker = new Worker(new URL("./worker.ts", import.meta.url), {
    workerData: { ...options, folder, progress } satisfies Job,
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MIB_MAX },
  });
  const watch = watchdog(new Int32Array(progress), () => void worker.terminate());
  try {
    await new Promise<void>((resolve) => {
      worker.on("message", (message: { finding: Finding } | typeof end) => {
        if ("finding" in message) report(message.finding);
        else end = message;
      });
      worker.on("error", (error: unknown) => report(atWork(options.target, progress, String(error))));
      worker.on("exit", () => resolve());
    });
    if (watch.isStuck()) report(atWork(options.target, progress, `no end within ${CASE_MS_MAX} ms`));
  } finally {
    watch.stop();
    rmSync(folder, { recursive: true, force: true });
  }
  return { ...end, findings };
}

function atWork(target: string, progress: SharedArrayBuffer, message: string): Finding {
  return { target, seed: new Int32Array(progress)[0]!, sample: "", changes: [], message };
}

function watchdog(heart: Int32Array, bark: () => void): { isStuck(): boolean; stop(): void } {
  let beat = 0;
  let since = performance.now();
  let stuck = false;
  const timer = setInterval(() => {
    const now = Atomics.load(heart, 1);
    if (now !== beat) {
      beat = now;
      since = performance.now();
    } else if (performance.now() - since > (beat === 0 ? SAMPLES_MS_MAX : CASE_MS_MAX)) {
      stuck = true;
      bark();
    }
  }, 250);
  return { isStuck: () => stuck, stop: () => clearInterval(timer) };
}
