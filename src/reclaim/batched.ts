/**
 * Groups steps, between which any order is harmless, into batches of bounded size.
 */
import type { Step } from "./plan.ts";

/** Each patch holds two sectors, so that a batch of patches stays below 32 MiB. */
const BATCH_STEPS_MAX = 16384;

export async function* batched(steps: AsyncIterable<Step> | Iterable<Step>): AsyncGenerator<readonly Step[]> {
  let batch: Step[] = [];
  for await (const step of steps) {
    batch.push(step);
    if (batch.length < BATCH_STEPS_MAX) continue;
    yield batch;
    batch = [];
  }
  if (batch.length > 0) yield batch;
}
