/**
 * Carries out a plan: batch by batch, a flush of every touched file after each.
 *
 *   batch 1 → flush → batch 2 → flush → …          abort: after any step; what was done is flushed first
 *
 * Within a batch any order is harmless by the plan's own promise, so the steps are grouped: patches become few reads
 * and writes, and neighbouring punches one. A patch is checked against what is on disk first; whatever fails stops
 * the run at once and is never tried again (H13). An interrupted run is finished by planning anew (H12).
 */
import { setImmediate } from "node:timers/promises";
import { type Extent, ExtentBuilder } from "../bytes/extents.ts";
import type { HostFile } from "../device/device.ts";
import { assert, DiskError } from "../error.ts";
import { copyRange } from "./copy.ts";
import { applyPatches, type Patch } from "./patches.ts";
import type { Plan, Step } from "./plan.ts";

export interface ExecuteOptions {
  /** Aborted: the run ends after the current step. */
  readonly signal?: AbortSignal;
  /** Called now and then with the bytes punched, zeroed and cut off so far. */
  readonly onProgress?: (doneBytes: number) => void;
}

/** What was really done. */
export interface Executed {
  /** The signal ended the run before the plan did. */
  readonly interrupted: boolean;
  readonly batches: number;
  readonly patches: number;
  readonly punches: number;
  readonly punchedBytes: number;
  readonly zeroedBytes: number;
  readonly movedBytes: number;
  /** By how much files became shorter. */
  readonly cutBytes: number;
}

/**
 * @param files by the names that the steps use
 * @throws DiskError `busy` when a patched place does not hold what the plan saw there, and whatever a file throws;
 *   the plan's order makes every point of failure safe
 */
export async function execute(
  plan: Plan,
  files: ReadonlyMap<string, HostFile>,
  options: ExecuteOptions = {},
): Promise<Executed> {
  const run = new Run(options);
  for await (const batch of plan.batches()) {
    if (options.signal?.aborted || !(await run.batch(batch, files))) return run.result(true);
  }
  run.report();
  return run.result(false);
}

/** How long to work before other events (a key, a timer) get their turn. */
const SLICE_MS = 20;

class Run {
  readonly #options: ExecuteOptions;
  readonly #done = {
    batches: 0,
    patches: 0,
    punches: 0,
    punchedBytes: 0,
    zeroedBytes: 0,
    movedBytes: 0,
    cutBytes: 0,
  };
  #lastPauseMs = performance.now();

  constructor(options: ExecuteOptions) {
    this.#options = options;
  }

  result(interrupted: boolean): Executed {
    return { interrupted, ...this.#done };
  }

  report(): void {
    const { punchedBytes, zeroedBytes, cutBytes } = this.#done;
    this.#options.onProgress?.(punchedBytes + zeroedBytes + cutBytes);
  }

  /** @returns false when the signal ended it early: any part of a batch is harmless */
  async batch(steps: readonly Step[], files: ReadonlyMap<string, HostFile>): Promise<boolean> {
    let isWhole = true;
    try {
      for (const [name, work] of sorted(steps)) {
        const file = files.get(name);
        assert(file !== undefined, `the plan names an open file, not "${name}"`);
        await this.#carryOut(name, work, file);
      }
    } catch (error) {
      if (!(error instanceof Interruption)) throw error;
      isWhole = false;
    }
    for (const name of new Set(steps.map((step) => step.file))) await files.get(name)!.flush();
    if (isWhole) this.#done.batches++;
    this.report();
    return isWhole;
  }

  async #carryOut(name: string, work: Work, file: HostFile): Promise<void> {
    if (work.end > file.bytes) {
      throw new DiskError(
        "busy",
        `${name || "image"} ends at ${file.bytes}, expected ${work.end}: someone cut it`,
      );
    }
    for (const { from, to } of work.copies) {
      await copyRange(file, from, to, () => this.#pause());
      this.#done.movedBytes += from.end - from.start;
    }
    await applyPatches(name, file, work.patches, () => this.#pause());
    this.#done.patches += work.patches.length;
    for (const range of work.zeros.build()) {
      await file.zero(range);
      this.#done.zeroedBytes += range.end - range.start;
      await this.#pause();
    }
    const punches = work.punches.build();
    for (let i = 0; i < punches.count; i++) {
      const range = { start: punches.start(i), end: punches.end(i) };
      await file.punch(range);
      this.#done.punches++;
      this.#done.punchedBytes += range.end - range.start;
      if ((i & 63) === 63) await this.#pause();
    }
    if (work.bytes !== undefined) {
      this.#done.cutBytes += Math.max(0, file.bytes - work.bytes);
      await file.truncate(work.bytes);
    }
  }

  async #pause(): Promise<void> {
    if (performance.now() - this.#lastPauseMs < SLICE_MS) return;
    this.report();
    await setImmediate();
    this.#lastPauseMs = performance.now();
    if (this.#options.signal?.aborted) throw new Interruption();
  }
}

/** Ends a batch after a step. */
class Interruption extends Error {}

/** The steps of a batch for one file, by kind. */
interface Work {
  readonly copies: { readonly from: Extent; readonly to: number }[];
  readonly patches: Patch[];
  readonly zeros: ExtentBuilder;
  readonly punches: ExtentBuilder;
  /** The new length. */
  bytes: number | undefined;
  /** Where the last byte that the steps touch must lie. */
  end: number;
}

function sorted(steps: readonly Step[]): Map<string, Work> {
  const byFile = new Map<string, Work>();
  for (const step of steps) {
    let work = byFile.get(step.file);
    if (work === undefined) {
      work = {
        copies: [],
        patches: [],
        zeros: new ExtentBuilder(),
        punches: new ExtentBuilder(),
        bytes: undefined,
        end: 0,
      };
      byFile.set(step.file, work);
    }
    switch (step.op) {
      case "copy":
        work.copies.push(step);
        work.end = Math.max(work.end, step.from.end, step.to + step.from.end - step.from.start);
        break;
      case "patch":
        work.patches.push(step);
        work.end = Math.max(work.end, step.at + step.before.length);
        break;
      case "zero":
        work.zeros.add(step.range.start, step.range.end);
        work.end = Math.max(work.end, step.range.end);
        break;
      case "punch":
        work.punches.add(step.range.start, step.range.end);
        work.end = Math.max(work.end, step.range.end);
        break;
      case "truncate":
        assert(work.bytes === undefined, "one truncation a batch");
        work.bytes = step.bytes;
        break;
    }
  }
  return byFile;
}
