/**
 * The thread in which cases run: so that a case without end can be ended, and one without bounds be noticed.
 */
import { parentPort, workerData } from "node:worker_threads";
import { mutate, type Sample } from "../../src/testing/fuzz.ts";
import { Random } from "../../src/testing/seeds.ts";
import type { Finding, Job, Statistics } from "./run.ts";
import { TARGETS } from "./targets.ts";

const PEAK_GROWTH_MAX_KIB = 384 * 1024;

const { target: name, folder, seed: first, cases, milliseconds, progress } = workerData as Job;
const target = TARGETS.find((each) => each.name === name)!;
const heart = new Int32Array(progress);
const samples = await target.samples(folder);
const statistics: Statistics = {};
const started = performance.now();
let done = 0;
for (; done < cases && performance.now() - started < milliseconds; done++) {
  Atomics.store(heart, 0, first + done);
  Atomics.add(heart, 1, 1);
  const finding = await tryCase(first + done);
  if (finding !== undefined) parentPort!.postMessage({ finding });
}
parentPort!.postMessage({ done, statistics });

async function tryCase(seed: number): Promise<Finding | undefined> {
  const random = new Random(seed);
  const sample = random.pick(samples);
  const peak = process.resourceUsage().maxRSS;
  const { bytes, changes } = await mutate(sample, random);
  const found = (message: string): Finding => ({ target: name, seed, sample: sample.name, changes, message });
  try {
    count(sample, await target.run(bytes, random, sample, folder));
  } catch (error) {
    return found(error instanceof Error ? (error.stack ?? error.message) : String(error));
  }
  const growth = process.resourceUsage().maxRSS - peak;
  return growth > PEAK_GROWTH_MAX_KIB ? found(`memory grew by ${growth} KiB`) : undefined;
}

function count(sample: Sample, word: string): void {
  const key = `${sample.name}: ${word}`;
  statistics[key] = (statistics[key] ?? 0) + 1;
}
