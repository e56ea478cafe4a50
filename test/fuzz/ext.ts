/**
 * Fuzzing of the ext reader. Its judge is e2fsck: what a mutant is proven to have free, e2fsck's own walk of the same
 * mutant must not find in use (H1).
 */
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ExtentBuilder, type ExtentSet } from "../../src/bytes/extents.ts";
import { assert } from "../../src/error.ts";
import { ext as reader } from "../../src/filesystems/ext.ts";
import { SUPERBLOCK_AT, SuperblockLayout } from "../../src/filesystems/ext/superblock.ts";
import {
  chunksOf,
  type FuzzTarget,
  fuzzDevice,
  outcome,
  type Sample,
  type Spot,
  spotOf,
} from "../../src/testing/fuzz.ts";
import { attempt, run } from "../../src/testing/tools.ts";
import { fixChecksums } from "./ext-checksums.ts";
import { readThrough } from "./filesystem.ts";

const PAYLOAD = Buffer.from("ullage".padEnd(128, "."));

const DIRTY = "ext4, dirty journal";

const VARIANTS: Readonly<Record<string, readonly string[]>> = {
  "ext4, 1k": ["-t", "ext4", "-b", "1024"],
  [DIRTY]: ["-t", "ext4", "-b", "1024", "-J", "size=1"],
  "ext4, 4k, no checksums": ["-t", "ext4", "-b", "4096", "-O", "^metadata_csum,uninit_bg"],
  "ext2, 1k": ["-t", "ext2", "-b", "1024"],
  "ext2, 1k, old": ["-t", "ext2", "-b", "1024", "-r", "0"],
  "ext3, 2k": ["-t", "ext3", "-b", "2048", "-I", "128"],
  bigalloc: ["-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "4096"],
  "inline data": ["-t", "ext4", "-b", "1024", "-O", "inline_data"],
  "meta_bg, two backups": ["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,sparse_super2"],
  "small groups": ["-t", "ext4", "-b", "1024", "-g", "512", "-O", "^metadata_csum,^flex_bg"],
};

export const ext: FuzzTarget = {
  name: "ext",
  needs: ["mke2fs", "e2fsck", "debugfs", "dumpe2fs"],

  async samples(folder) {
    const tree = join(folder, "tree");
    growTree(tree);
    return Object.entries(VARIANTS).map(([name, options]) => makeSample(folder, tree, name, options));
  },

  run(bytes, random, sample, folder) {
    return outcome(async () => {
      const device = fuzzDevice(bytes, sample.bytes.length);
      const filesystem = await reader.open([device], { replay: random.oneIn(2) });
      const free = await readThrough(filesystem, device.bytes, [
        "/",
        "/many/file-17",
        "/holes",
        "/deep/er/link",
      ]);
      if (typeof free === "string") return free;
      if (sample.name !== DIRTY && bytes.length === sample.bytes.length && random.oneIn(JUDGED_ONE_IN))
        judge(bytes, free, folder);
      return "proven";
    });
  },
};

const JUDGED_ONE_IN = 4;

function growTree(tree: string): void {
  const file = (name: string, bytes: number) => writeFileSync(join(tree, name), Buffer.alloc(bytes, PAYLOAD));
  for (const folder of ["", "many", "deep", "deep/er"]) mkdirSync(join(tree, folder));
  for (let i = 0; i < 60; i++) file(`many/file-${i}`, (i * 37) % 2500);
  file("large", 400_000);
  run("sh", [
    "-ec",
    `cd "$0"; for i in 0 3 9 200 5000; do dd if=large of=holes bs=1k count=2 seek=$i conv=notrunc status=none; done`,
    tree,
  ]);
  symlinkSync("er/link", join(tree, "deep/short"));
  symlinkSync("long/".repeat(40), join(tree, "deep/er/link"));
}

function makeSample(folder: string, tree: string, name: string, options: readonly string[]): Sample {
  const image = join(folder, "ext.img");
  writeFileSync(image, new Uint8Array(3 * 2 ** 20));
  run("mke2fs", ["-q", "-F", "-N", "160", "-d", tree, ...options, image]);
  if (name === DIRTY) leaveDirty(folder, image);
  const bytes = new Uint8Array(readFileSync(image));
  const chunks = chunksOf(bytes, (chunk) => PAYLOAD.equals(chunk));
  return { name, bytes, spots: [...favourites(chunks, bytes), ...chunks], fix: fixChecksums };
}

/** Leaves a transaction in the journal that writes the root's inode table block as it is. */
function leaveDirty(folder: string, image: string): void {
  const block = Number(/Inode table at (\d+)/.exec(run("dumpe2fs", [image]))![1]);
  const content = join(folder, "block");
  run("dd", [`if=${image}`, `of=${content}`, "bs=1k", "count=1", `skip=${block}`, "status=none"]);
  run("debugfs", ["-w", "-f", "-", image], `jo -c\njw -b ${block} ${content}\njc\n`);
}

/** The superblock and what follows it count as often as all the rest. */
function favourites(chunks: readonly Spot[], bytes: Uint8Array): Spot[] {
  const superblock = spotOf(SuperblockLayout, SUPERBLOCK_AT);
  const { logBlockSize } = SuperblockLayout.decode(bytes, SUPERBLOCK_AT);
  const blockBytes = 1024 << logBlockSize;
  const descriptors = chunks.filter(({ at }) => at >= blockBytes && at >= 2048 && at < 2048 + blockBytes);
  const often = [superblock, ...descriptors];
  return Array.from({ length: Math.ceil(chunks.length / 2) }, (_, i) => often[i % often.length]!);
}

/**
 * e2fsck names blocks that it finds in use and the bitmap does not: none of them may be ours to give. And junk in what
 * is free must not change a word of what it says.
 */
function judge(bytes: Uint8Array, free: ExtentSet, folder: string): void {
  const image = join(folder, "judged.img");
  writeFileSync(image, bytes);
  const { stdout } = attempt("e2fsck", ["-fn", image]);
  const unmarked = new ExtentBuilder();
  const { logBlockSize } = SuperblockLayout.decode(bytes, SUPERBLOCK_AT);
  const blockBytes = 1024 << logBlockSize;
  for (const [, list] of stdout.matchAll(/^Block bitmap differences: (.*)$/gm)) {
    for (const [, range, end, single] of list!.matchAll(/\+(?:\((\d+)--(\d+)\)|(\d+))/g)) {
      const first = Number(range ?? single);
      unmarked.add(first * blockBytes, (Number(end ?? first) + 1) * blockBytes);
    }
  }
  const wrong = [...unmarked.build().intersect(free)].map(({ start, end }) => `${start}-${end}`);
  assert(wrong.length === 0, `proven free, but e2fsck finds ${wrong.join(", ")} in use\n${stdout}`);
  const junk = bytes.slice();
  for (const { start, end } of free) junk.fill(0xdb, start, end);
  writeFileSync(image, junk);
  const second = attempt("e2fsck", ["-fn", image]).stdout;
  assert(second === stdout, `junk in free blocks is seen by e2fsck:\n${stdout}\n${second}`);
}
