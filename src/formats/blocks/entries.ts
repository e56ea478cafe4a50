/**
 * Changes of mapping entries as patches of the file: neighbouring entries of one sector share a patch.
 *
 * An entry changes once in a plan, unmapped or moved, so its old bytes can be taken from the file at any time before:
 * the same plan gives the same steps.
 */
import { viewOf } from "../../bytes/struct.ts";
import { cache } from "../../device/cache.ts";
import { readBytes } from "../../device/device.ts";
import { SECTOR_BYTES } from "../../reclaim/differences.ts";
import type { Step } from "../../reclaim/plan.ts";
import type { BlockLayout } from "./layout.ts";

/** A block and the slot that its entry is to say. */
export interface Change {
  readonly block: number;
  readonly slot: number;
}

/** @param changes ascending by block, each block once */
export async function* entryPatches(
  layout: BlockLayout,
  changes: () => Iterable<Change>,
): AsyncGenerator<Step> {
  const { entries, file, fileName } = layout;
  const table = cache(file);
  for (let copy = 0; copy < entries.copies; copy++) {
    for (const run of runsOf(layout, copy, changes())) {
      const at = entries.at(run[0]!.block, copy);
      const before = await readBytes(table, at, run.length * entries.bytes);
      const after = before.slice();
      const view = viewOf(after);
      for (const [i, { block, slot }] of run.entries()) entries.write(view, i * entries.bytes, block, slot);
      yield { file: fileName, op: "patch", at, before, after };
    }
  }
}

/** Changes whose entries follow each other inside of one sector. */
export function* runsOf(
  { entries }: BlockLayout,
  copy: number,
  changes: Iterable<Change>,
): Generator<readonly Change[]> {
  let run: Change[] = [];
  let next = -1;
  for (const change of changes) {
    const at = entries.at(change.block, copy);
    if (at < 0) continue;
    if (run.length > 0 && (at !== next || at % SECTOR_BYTES === 0)) {
      yield run;
      run = [];
    }
    run.push(change);
    next = at + entries.bytes;
  }
  if (run.length > 0) yield run;
}
