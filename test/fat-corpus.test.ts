/**
 * Every FAT and exFAT image of other people's tests, many of them damaged on purpose.
 *
 * What the foreign checker finds damaged must be refused. Whatever is not refused bears the proof that counts: with
 * rubbish in everything that was called free, the checker says the same as before.
 */
import assert from "node:assert/strict";
import { closeSync, openSync, rmSync, statSync, writeSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { test } from "node:test";
import type { ExtentSet } from "../src/bytes/extents.ts";
import { exfat } from "../src/filesystems/exfat.ts";
import { fat } from "../src/filesystems/fat.ts";
import type { FileSystemReader } from "../src/filesystems/filesystem.ts";
import { prove } from "../src/reclaim/prove.ts";
import { corpus, corpusFiles, unpack } from "../src/testing/corpus.ts";
import { fileDevice } from "../src/testing/file-device.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";
import { survey } from "../src/disk.ts";

const EXFAT = /^exfatprogs\+.*exfat\.img\.tar\.xz$|images-fs\/exfat\.img\.xz$/;
const FAT = /(images-fs|blkid\/tests)\/(small-)?fat.*\.img\.(xz|bz2)$|img_fs_vfat\.img\.xz$/;

/** Why an image is refused that its checker lets pass, or cannot be judged by it. */
const STRICTER: Readonly<Record<string, string>> = {
  directory_no_clu: "damaged", // a directory without clusters: no error in 1.2.0
  fat16_noheads: "truncated", // the image was cut in half
};

/** What fsck.fat has against the labels of these is no damage. */
const LABELS = /volume label|Label /i;

interface Verdict {
  readonly isClean: boolean;
  readonly told: string;
}

function fsck(reader: FileSystemReader, image: string): Verdict {
  const checker = reader === exfat ? "fsck.exfat" : "fsck.fat";
  const { status, stdout, stderr } = attempt(checker, ["-n", image]);
  const told = (stdout + stderr).replaceAll(image, "image");
  return { isClean: status === 0 || (reader === fat && LABELS.test(told)), told };
}

const RUBBISH = Buffer.alloc(1 << 20, 0xa5);

/** Writes rubbish over what is free; of very large free space, over both ends of every piece. */
function spoil(image: string, free: ExtentSet): void {
  const file = openSync(image, "r+");
  for (const { start, end } of free) {
    for (let at = start; at < end; at += RUBBISH.length) {
      if (free.bytes > 64 << 20 && at > start && at + RUBBISH.length < end) continue;
      writeSync(file, RUBBISH, 0, Math.min(RUBBISH.length, end - at), at);
    }
  }
  closeSync(file);
}

for (const [reader, pattern] of [
  [exfat, EXFAT],
  [fat, FAT],
] as const) {
  test(`the ${reader.name} images of others are refused, or survive rubbish in all their free space`, async (t) => {
    if (corpus(t) === undefined || !requires(t, "fsck.exfat", "fsck.fat", "tar", "xz", "bzip2")) return;
    const copy = join(scratch(t), "copy");
    let accepted = 0;
    for (const name of corpusFiles(pattern)) {
      const isTar = name.includes(".tar");
      const image = isTar ? join(unpack(t, name), "exfat.img") : unpack(t, name);
      const short = isTar ? basename(dirname(name)) : basename(image, ".img");
      await using device = await fileDevice(image);
      assert.ok(await reader.probe(device), name);
      const { free, refusal } = await prove(await reader.open([device], { replay: false }), "full");
      const before = fsck(reader, image);
      if (refusal !== undefined) {
        if (before.isClean || short in STRICTER) assert.equal(refusal.code, STRICTER[short], name);
      } else {
        assert.ok(before.isClean && !(short in STRICTER), `${name}: ${before.told}`);
        run("cp", ["--sparse=always", image, copy]);
        spoil(copy, free[0]!);
        assert.equal(fsck(reader, copy).told.replaceAll(copy, "image"), before.told, name);
        accepted++;
      }
      if (statSync(image).size > 64 << 20) rmSync(image);
    }
    assert.ok(accepted > 2, `${accepted}`);
  });
}

test("H34: BitLocker To Go is no FAT32, though it looks like one", async (t) => {
  if (corpus(t) === undefined) return;
  for (const name of corpusFiles(/bdetogo\.raw$/)) {
    const { volumes, reclaimableBytes } = await survey(unpack(t, name), { format: "raw" });
    assert.notEqual(volumes[0]!.state, "clean", name);
    assert.equal(reclaimableBytes, 0, name);
  }
});
