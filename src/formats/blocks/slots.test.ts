/**
 * Slots of a large disk of small blocks: a VMDK's grains are 64 KiB.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { ExtentSet } from "../../bytes/extents.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import type { BlockLayout } from "./layout.ts";
import { Slots } from "./slots.ts";
import { ABSENT, BlockTable } from "./table.ts";
import { BlockWriter } from "./write.ts";

const BLOCK = 4096;
const MANY = 300_000;

function layoutOf(file: SimulatedFile, table: BlockTable, freed?: number): BlockLayout<SimulatedFile> {
  return {
    fileName: "",
    file,
    bytes: MANY * BLOCK,
    parent: undefined,
    blockBytes: BLOCK,
    headBytes: 0,
    baseBytes: 0,
    unitBytes: BLOCK,
    table,
    entries: { copies: 0, bytes: 4, at: () => -1, write() {} },
    freed,
    blocksStartBytes: 0,
    fixed: ExtentSet.EMPTY,
    tailBytes: 0,
    endAlignBytes: 1,
    structureAt: () => undefined,
  };
}

function slots(): Slots {
  return new Slots(layoutOf(new SimulatedFile(MANY * BLOCK), new BlockTable(1)));
}

test("what is trimmed of a whole disk between two flushes is released at once, and used again", async () => {
  const freed = slots();
  for (let slot = 0; slot < MANY; slot++) freed.drop(slot);
  await freed.release();
  assert.ok(freed.hasSpare);
  assert.equal(freed.take(), MANY - 1);
});

test("an image of very many rooms is written to", () => {
  const roomy = slots();
  roomy.offer(Array.from({ length: MANY }, (_, i) => i));
  assert.equal(roomy.take(), MANY - 1);
});

test("H24: a guest that never flushes does not make its changes wait without end", async () => {
  const table = new BlockTable(MANY);
  for (let block = 0; block < MANY; block++) table.set(block, block);
  const file = new SimulatedFile(MANY * BLOCK, { trace: [] });
  const writer = new BlockWriter(layoutOf(file, table, ABSENT), {});
  for (let start = 0; start < MANY * BLOCK; start += 1000 * BLOCK) {
    await writer.discard({ start, end: start + 1000 * BLOCK });
  }
  const flushes = file.trace!.filter(({ op }) => op === "flush").length;
  assert.ok(flushes >= 4, `${flushes} flushes for ${MANY} blocks`);
});
