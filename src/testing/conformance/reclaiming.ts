/**
 * What a reclaim may do to an image, and what may befall it meanwhile.
 */
import assert from "node:assert/strict";
import { ExtentSet } from "../../bytes/extents.ts";
import { DiskError } from "../../error.ts";
import { type CrashState, crashStates, type Files, recording } from "../crash.ts";
import type { SimulatedFile } from "../simulated-file.ts";
import { type Bench, copyOf, type Method } from "./bench.ts";
import { type Expectation, judge } from "./judge.ts";
import { doSomething } from "./writing.ts";

const hostBytes = (files: Files): number =>
  [...files.values()].reduce((sum, { hostBytes: bytes }) => sum + bytes, 0);
const fileBytes = (files: Files): number => [...files.values()].reduce((sum, { bytes }) => sum + bytes, 0);

export async function reclaimKeeps(bench: Bench, method: Method): Promise<void> {
  const expected = bench.wish();
  const files = copyOf(bench.sample.files);
  const before = { hostBytes: hostBytes(files), fileBytes: fileBytes(files) };
  const plan = await bench.reclaim(files, expected, method);
  await mustBeWhole(bench, files, expected, bench.label, true);
  if (method === "pack") {
    assert.equal(
      before.fileBytes - fileBytes(files),
      plan.packBytes,
      `${bench.label}: the promise of packing`,
    );
    if (!bench.format.about.packs) assert.equal(plan.packBytes, 0, `${bench.label}: it says that it cannot`);
  } else {
    assert.ok(hostBytes(files) <= before.hostBytes, `${bench.label}: the host's allocation does not grow`);
    assert.equal(fileBytes(files), before.fileBytes, `${bench.label}: punching keeps the length`);
  }
  const again = await bench.reclaim(files, { free: expected.free, blank: ExtentSet.EMPTY }, method);
  assert.deepEqual(
    [again.unmapBytes, again.punchBytes, again.packBytes],
    [0, 0, 0],
    `${bench.label}: a second run finds nothing`,
  );
}

async function mustBeWhole(
  bench: Bench,
  files: Files,
  expected: Expectation,
  label: string,
  complete: boolean,
): Promise<void> {
  await using image = await bench.open(files);
  await judge(image, expected, label, complete);
}

/** Of so many crash states one is carried on: by a second run, or by somebody who writes. */
const GOES_ON_ONE_IN = 6;
const STATES_PER_FLUSH = Number(process.env["STATES"] ?? 12);

export async function crashesAreSafe(bench: Bench, method: Method): Promise<void> {
  const expected = bench.wish();
  for await (const state of crashesOf(bench, bench.sample.files, expected, method)) {
    const label = `${bench.label} ${state.label}`;
    await mustBeWhole(bench, state.files, expected, label, false);
    if (!bench.random.oneIn(GOES_ON_ONE_IN)) continue;
    if (bench.random.oneIn(2)) await secondRun(bench, state, expected, method, label);
    else await somebodyWrites(bench, state.files, expected, label);
  }
}

async function* crashesOf(
  bench: Bench,
  files: Files,
  expected: Expectation,
  method: Method,
): AsyncGenerator<CrashState> {
  const { files: copies, trace } = recording(files);
  await bench.reclaim(copies, expected, method);
  yield* crashStates(files, trace, { random: bench.random, statesPerFlush: STATES_PER_FLUSH });
}

/** A second run plans anew; it may crash, too, or complete. */
async function secondRun(
  bench: Bench,
  { files }: CrashState,
  expected: Expectation,
  method: Method,
  label: string,
): Promise<void> {
  for await (const state of crashesOf(bench, files, expected, method)) {
    if (!bench.random.oneIn(8)) continue;
    await mustBeWhole(bench, state.files, expected, `${label}; second run: ${state.label}`, false);
  }
  const completed = copyOf(files);
  await bench.reclaim(completed, expected, method);
  await mustBeWhole(bench, completed, expected, `${label}; second run`, true);
}

/** Another allocator works on the image after the crash: nothing that it writes may land on live bytes (H12). */
async function somebodyWrites(
  bench: Bench,
  files: Files,
  expected: Expectation,
  label: string,
): Promise<void> {
  const model = new Uint8Array(expected.content);
  {
    await using image = await bench.openWritable(files);
    await image.read(0, model);
    for (let i = 0; i < 20; i++) await doSomething(image, model, bench.random, `${label}; then write ${i}`);
    await image.flush();
  }
  const nothing = { content: model, free: ExtentSet.EMPTY, blank: ExtentSet.EMPTY };
  await mustBeWhole(bench, files, nothing, `${label}; then writes`, false);
}

/** At most so many places of failure are tried. */
const FAILURES_MAX = 40;

export async function failuresAreSafe(bench: Bench): Promise<void> {
  const expected = bench.wish();
  for (const method of ["punch", "pack"] as const) {
    const { files, trace } = recording(bench.sample.files);
    await bench.reclaim(files, expected, method);
    const step = Math.max(1, Math.ceil(trace.length / FAILURES_MAX));
    for (let operation = 0; operation < trace.length; operation += step) {
      await failsSafely(bench, expected, method, `change ${operation}`, (file) => {
        file.fault = { operation, forever: bench.random.oneIn(2) };
      });
      await failsSafely(bench, expected, method, `read ${operation}`, (file) => {
        file.fault = { read: operation, forever: bench.random.oneIn(2) };
      });
    }
    await failsSafely(bench, expected, method, "full host", (file) => {
      file.capacityBytes = file.hostBytes;
    });
  }
}

/** Runs into whatever `arrange` prepared: it succeeds, or throws a DiskError; the image is whole in both cases. */
async function failsSafely(
  bench: Bench,
  expected: Expectation,
  method: Method,
  what: string,
  arrange: (file: SimulatedFile) => void,
): Promise<void> {
  const files = copyOf(bench.sample.files);
  for (const file of files.values()) arrange(file);
  const label = `${bench.label} ${method} ${what}`;
  try {
    await bench.reclaim(files, expected, method);
  } catch (error) {
    assert.ok(error instanceof DiskError, `${label}: ${String(error)}`);
  }
  const survivors = copyOf(files);
  await mustBeWhole(bench, survivors, expected, label, false);
}
