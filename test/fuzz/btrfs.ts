/**
 * Fuzzing of the Btrfs reader. Its judge is btrfs check: junk in what a mutant is proven to have free must not change
 * a word of what it says (H1), and neither by an older root (H4).
 */
import { mkdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { ExtentSet } from "../../src/bytes/extents.ts";
import { assert } from "../../src/error.ts";
import { btrfs as reader } from "../../src/filesystems/btrfs.ts";
import { SUPERBLOCK_AT, SuperblockLayout } from "../../src/filesystems/btrfs/superblock.ts";
import {
  chunksOf,
  type FuzzTarget,
  fuzzDevice,
  outcome,
  type Sample,
  spotOf,
} from "../../src/testing/fuzz.ts";
import { attempt, run } from "../../src/testing/tools.ts";
import { fixChecksums, usedLength } from "./btrfs-checksums.ts";
import { readThrough } from "./filesystem.ts";

const PAYLOAD = Buffer.from("ullage".padEnd(128, "."));
const MiB = 2 ** 20;
const JUDGED_ONE_IN = 6;

/** Data and metadata together, which alone makes so small a Btrfs. */
const VARIANTS: Readonly<Record<string, readonly string[]>> = {
  mixed: [],
  "no free space tree": ["-R", "^free-space-tree"],
  old: ["-O", "^extref,^skinny-metadata,^no-holes", "-R", "^free-space-tree"],
};

const DEVICE_BYTES = 24 * MiB;

export const btrfs: FuzzTarget = {
  name: "btrfs",
  needs: ["mkfs.btrfs", "btrfs"],

  async samples(folder) {
    const tree = join(folder, "tree");
    growTree(tree);
    return Object.keys(VARIANTS).map((name) => makeSample(folder, tree, name));
  },

  run(bytes, random, sample, folder) {
    return outcome(async () => {
      const device = fuzzDevice(bytes, sample.deviceBytes!);
      await reader.membership!(device);
      const filesystem = await reader.open([device], { replay: random.oneIn(2) });
      const free = await readThrough(filesystem, device.bytes, [
        "/",
        "/many/file-17",
        "/holes",
        "/deep/er/link",
        "/many",
      ]);
      if (typeof free === "string") return free;
      if (random.oneIn(JUDGED_ONE_IN)) judge(bytes, sample.deviceBytes!, free, folder);
      return "proven";
    });
  },
};

function growTree(tree: string): void {
  const file = (name: string, bytes: number) => writeFileSync(join(tree, name), Buffer.alloc(bytes, PAYLOAD));
  for (const folder of ["", "many", "deep", "deep/er"]) mkdirSync(join(tree, folder));
  for (let i = 0; i < 60; i++) file(`many/file-${i}`, (i * 37) % 2500);
  for (const name of ["large", "larger"]) file(name, 300_000);
  symlinkSync("er/link", join(tree, "deep/short"));
  symlinkSync("long/".repeat(40), join(tree, "deep/er/link"));
}

function makeSample(folder: string, tree: string, name: string): Sample {
  const image = join(folder, "btrfs.img");
  writeFileSync(image, "");
  truncateSync(image, DEVICE_BYTES);
  run("mkfs.btrfs", ["-q", "-f", "--mixed", "-r", tree, ...VARIANTS[name]!, image]);
  const whole = readFileSync(image);
  const bytes = new Uint8Array(whole.subarray(0, usedLength(whole)));
  const chunks = chunksOf(bytes, (chunk) => PAYLOAD.equals(chunk));
  const superblock = spotOf(SuperblockLayout, SUPERBLOCK_AT);
  const often = Array.from({ length: Math.ceil(chunks.length / 3) }, () => superblock);
  return { name, bytes, deviceBytes: DEVICE_BYTES, spots: [...often, ...chunks], fix: fixChecksums };
}

function judge(bytes: Uint8Array, deviceBytes: number, free: ExtentSet, folder: string): void {
  const image = join(folder, "judged.img");
  const check = (content: Uint8Array, ...options: readonly string[]) => {
    writeFileSync(image, content);
    truncateSync(image, deviceBytes);
    const { status, stdout, stderr } = attempt("timeout", [
      "10",
      "btrfs",
      "check",
      "--readonly",
      ...options,
      image,
    ]);
    return status !== 0 && status !== 1 ? "it broke down" : `${status} ${stdout}${stderr}`;
  };
  const junk = new Uint8Array(deviceBytes);
  junk.set(bytes);
  for (const { start, end } of free) junk.fill(0xdb, start, end);
  for (const options of [[], ["--backup"]]) {
    const [before, after] = [check(bytes, ...options), check(junk, ...options)];
    // A backup's node that cannot be read is not kept; what lies in its place is none of ours.
    if (options.length > 0 && /checksum verify failed|cannot open/.test(before)) continue;
    assert(before === after, `junk in free space is seen by btrfs check:\n${before}\n${after}`);
  }
}
