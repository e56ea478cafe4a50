/**
 * APFS containers: a container of mkapfs with one file, of which only the blocks that are not zero are kept.
 *
 *   sample   | block 0 | block 1 | … | block 21017 |      packed; the mutant is unpacked to where each block lies
 *
 * Checksums are set anew, so that mutations reach what lies behind them. What is proven free must hold nothing that
 * apfsck reads.
 */
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import type { ExtentSet } from "../../src/bytes/extents.ts";
import { assert } from "../../src/error.ts";
import { apfs as reader } from "../../src/filesystems/apfs.ts";
import { ContainerBlocks, CONTAINER_BYTES, makeContainer, reseal } from "../../src/testing/apfs.ts";
import { FILE, withFile } from "../../src/testing/apfs-file.ts";
import { chunksOf, type FuzzTarget, outcome, type Sample } from "../../src/testing/fuzz.ts";
import { attempt } from "../../src/testing/tools.ts";
import {
  blocksDevice,
  type Blocks,
  changedBlocks,
  packBlocks,
  unpackBlocks,
} from "../../src/testing/volume-blocks.ts";
import { readThrough } from "./filesystem.ts";

const BLOCK_BYTES = 4096;
const JUDGED_ONE_IN = 8;
/** The middle of a bitmap says nothing; its chunks would be most of the sample. */
const BITMAP = Buffer.alloc(128, 0xff);

/** Where the packed blocks lie, by sample. */
const orders = new Map<string, readonly number[]>();

export const apfs: FuzzTarget = {
  name: "apfs",
  needs: ["mkapfs", "apfsck"],

  samples(folder) {
    const base = new ContainerBlocks(makeContainer(folder));
    return Promise.resolve([
      packed("empty", base.blocks),
      packed("a file", changedBlocks(base.blocks, withFile(base), reseal)),
    ]);
  },

  run(bytes, random, sample, folder) {
    return outcome(async () => {
      const blocks = unpackBlocks(orders.get(sample.name)!, bytes);
      const filesystem = await reader.open([blocksDevice(blocks, CONTAINER_BYTES)], { replay: false });
      const free = await readThrough(filesystem, CONTAINER_BYTES, ["/", `/${FILE.name}`, "/untitled/x"]);
      if (typeof free === "string") return free;
      if (random.oneIn(JUDGED_ONE_IN)) judge(blocks, free, folder);
      return "proven";
    });
  },
};

function packed(name: string, blocks: Blocks): Sample {
  const { order, bytes } = packBlocks(blocks);
  orders.set(name, order);
  const spots = chunksOf(bytes, (chunk) => BITMAP.equals(chunk));
  return { name, bytes, spots, fix: resealAll };
}

function resealAll(bytes: Uint8Array): void {
  for (let at = 0; at + BLOCK_BYTES <= bytes.length; at += BLOCK_BYTES) {
    reseal(bytes.subarray(at, at + BLOCK_BYTES));
  }
}

/** Rubbish in what is free must not change a word of what apfsck says. */
function judge(blocks: Blocks, free: ExtentSet, folder: string): void {
  const said = (rubbish: boolean): string => {
    const image = join(folder, "judged.img");
    const file = openSync(image, "w");
    ftruncateSync(file, CONTAINER_BYTES);
    for (const [block, bytes] of blocks) writeSync(file, bytes, 0, BLOCK_BYTES, block * BLOCK_BYTES);
    if (rubbish) {
      for (const { start, end } of free) {
        for (const at of [start, Math.max(start, end - BLOCK_BYTES)]) {
          writeSync(file, new Uint8Array(BLOCK_BYTES).fill(0xdb), 0, BLOCK_BYTES, at);
        }
      }
      for (const block of blocks.keys()) {
        if (free.has(block * BLOCK_BYTES))
          writeSync(file, new Uint8Array(BLOCK_BYTES).fill(0xdb), 0, BLOCK_BYTES, block * BLOCK_BYTES);
      }
    }
    closeSync(file);
    return attempt("apfsck", ["-cuw", image]).stdout;
  };
  const [before, after] = [said(false), said(true)];
  assert(before === after, `rubbish in free blocks is seen by apfsck:\n${before}\n${after}`);
}
