/**
 * Slots of a large disk of small blocks: a VMDK's grains are 64 KiB.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { ExtentSet } from "../../bytes/extents.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { Slots } from "./slots.ts";
import { BlockTable } from "./table.ts";

const BLOCK = 4096;
const MANY = 300_000;

function slots(): Slots {
  const file = new SimulatedFile(MANY * BLOCK);
  return new Slots({
    fileName: "",
    file,
    bytes: MANY * BLOCK,
    parent: undefined,
    blockBytes: BLOCK,
    headBytes: 0,
    baseBytes: 0,
    unitBytes: BLOCK,
    table: new BlockTable(1),
    entries: { copies: 0, bytes: 4, at: () => -1, write() {} },
    freed: undefined,
    blocksStartBytes: 0,
    fixed: ExtentSet.EMPTY,
    tailBytes: 0,
    endAlignBytes: 1,
    structureAt: () => undefined,
  });
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
