/**
 * F2FS volumes that sload.f2fs filled, of which only the blocks that are not zero are kept; see `apfs.ts`.
 *
 * Checksums of superblock, checkpoints and inodes are set anew. What is proven free must hold nothing that fsck.f2fs
 * reads.
 */
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import type { ExtentSet } from "../../src/bytes/extents.ts";
import { assert } from "../../src/error.ts";
import { f2fs as reader } from "../../src/filesystems/f2fs.ts";
import { makeVolume, reseal } from "../../src/testing/f2fs.ts";
import { chunksOf, type FuzzTarget, outcome, type Sample } from "../../src/testing/fuzz.ts";
import { attempt, run } from "../../src/testing/tools.ts";
import {
  type Blocks,
  blocksDevice,
  packBlocks,
  readBlocks,
  unpackBlocks,
} from "../../src/testing/volume-blocks.ts";
import { readThrough } from "./filesystem.ts";

const BLOCK_BYTES = 4096;
const MEBIBYTES = 100;
const VOLUME_BYTES = MEBIBYTES * 2 ** 20;
const JUDGED_ONE_IN = 10;
const PAYLOAD = Buffer.from("ullage".padEnd(128, "."));

/** Without checksums of inodes, which only a driver would set anew. */
const VARIANTS: Readonly<Record<string, readonly string[]>> = {
  default: [],
  "extra fields": ["-O", "extra_attr,sb_checksum,inode_crtime,compression"],
};

/** Where the packed blocks lie, by sample. */
const orders = new Map<string, readonly number[]>();

export const f2fs: FuzzTarget = {
  name: "f2fs",
  needs: ["mkfs.f2fs", "sload.f2fs", "fsck.f2fs"],

  samples(folder) {
    const tree = join(folder, "tree");
    mkdirSync(join(tree, "deep"), { recursive: true });
    for (let i = 0; i < 30; i++) writeFileSync(join(tree, `file-${i}`), Buffer.alloc(i * 300, PAYLOAD));
    writeFileSync(join(tree, "deep/large"), Buffer.alloc(4_500_000));
    symlinkSync("large", join(tree, "deep/link"));
    return Promise.resolve(
      Object.entries(VARIANTS).map(([name, options]) => makeSample(folder, tree, name, options)),
    );
  },

  run(bytes, random, sample, folder) {
    return outcome(async () => {
      const blocks = unpackBlocks(orders.get(sample.name)!, bytes);
      const filesystem = await reader.open([blocksDevice(blocks, VOLUME_BYTES)], { replay: false });
      const free = await readThrough(filesystem, VOLUME_BYTES, ["/", "/file-7", "/deep", "/deep/large"]);
      if (typeof free === "string") return free;
      if (random.oneIn(JUDGED_ONE_IN)) judge(blocks, free, folder);
      return "proven";
    });
  },
};

function makeSample(folder: string, tree: string, name: string, options: readonly string[]): Sample {
  const image = makeVolume(folder, `sample-${name.replace(" ", "-")}`, options, MEBIBYTES);
  run("sload.f2fs", ["-f", tree, image]);
  const { order, bytes } = packBlocks(readBlocks(image).blocks);
  orders.set(name, order);
  const spots = chunksOf(bytes, (chunk) => PAYLOAD.equals(chunk));
  return { name, bytes, spots, fix: resealAll };
}

function resealAll(bytes: Uint8Array): void {
  for (let at = 0; at + BLOCK_BYTES <= bytes.length; at += BLOCK_BYTES) {
    reseal(bytes.subarray(at, at + BLOCK_BYTES));
  }
}

/** Rubbish in what is free must not change a word of what fsck.f2fs says. */
function judge(blocks: Blocks, free: ExtentSet, folder: string): void {
  const said = (rubbish: boolean): string => {
    const image = join(folder, "judged.img");
    const file = openSync(image, "w");
    ftruncateSync(file, VOLUME_BYTES);
    const put = (block: number, bytes: Uint8Array) =>
      writeSync(file, bytes, 0, BLOCK_BYTES, block * BLOCK_BYTES);
    for (const [block, bytes] of blocks) put(block, bytes);
    const junk = new Uint8Array(BLOCK_BYTES).fill(0xdb);
    if (rubbish) {
      for (const block of blocks.keys()) if (free.has(block * BLOCK_BYTES)) put(block, junk);
      for (const { start, end } of free)
        [start, end - BLOCK_BYTES].forEach((at) => put(at / BLOCK_BYTES, junk));
    }
    closeSync(file);
    return (attempt("fsck.f2fs", ["--dry-run", image]).stdout.match(/^\[FSCK\].*$/gm) ?? []).join("\n");
  };
  const [before, after] = [said(false), said(true)];
  assert(before === after, `rubbish in free blocks is seen by fsck.f2fs:\n${before}\n${after}`);
}
