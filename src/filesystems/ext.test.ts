import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { clearRuns } from "./ext/bitmaps.ts";
import { ext } from "./ext.ts";
import type { BlockDevice } from "../device/device.ts";
import type { FileSystem } from "./filesystem.ts";
import { dumpe2fsFree } from "../testing/ext.ts";
import { fileDevice } from "../testing/file-device.ts";
import { attempt, requires, requiresRoot, run, scratch } from "../testing/tools.ts";

/** What mke2fs is asked for; each with a small and with a larger size, whose last group is cut. */
const MAKES = [
  "-t ext2 -r 0",
  "-t ext2 -b 1024",
  "-t ext2 -b 4096",
  "-t ext3 -b 2048",
  "-t ext4 -b 1024",
  "-t ext4",
  "-t ext4 -b 8192",
  "-t ext4 -b 16384",
  "-t ext4 -b 65536",
  "-t ext4 -O ^has_journal",
  "-t ext4 -O ^resize_inode,meta_bg -b 1024",
  "-t ext4 -O ^resize_inode,meta_bg,^flex_bg",
  "-t ext4 -O bigalloc -C 65536",
  "-t ext4 -O bigalloc -C 8192 -b 1024",
  "-t ext4 -O sparse_super2",
  "-t ext4 -O ^sparse_super,^resize_inode",
  "-t ext4 -O ^64bit,^metadata_csum,uninit_bg",
  "-t ext4 -O ^64bit,^metadata_csum,uninit_bg,^flex_bg",
  "-t ext4 -O ^64bit",
  "-t ext4 -O ^flex_bg",
  "-t ext4 -O mmp",
  "-t ext4 -O quota,project",
  "-t ext4 -O inline_data,encrypt,casefold,verity,large_dir,ea_inode,stable_inodes,orphan_file,metadata_csum_seed",
  "-t ext4 -O ^extra_isize -I 128",
  "-t ext4 -E packed_meta_blocks=1",
  "-t ext4 -E lazy_itable_init=0",
  "-t ext4 -g 256 -b 1024 -O ^resize_inode",
  "-t ext4 -g 256 -b 1024 -O ^resize_inode,meta_bg",
];

async function deviceOf(t: TestContext, path: string): Promise<BlockDevice> {
  const device = await fileDevice(path);
  t.after(() => device[Symbol.asyncDispose]());
  assert.ok(await ext.probe(device));
  return device;
}

async function opened(t: TestContext, path: string): Promise<FileSystem> {
  return ext.open([await deviceOf(t, path)], { replay: false });
}

for (const make of MAKES) {
  test(`free space agrees with dumpe2fs: mke2fs ${make}`, async (t) => {
    if (!requires(t, "mke2fs", "dumpe2fs")) return;
    const folder = scratch(t);
    for (const size of ["64M", "1000001K"]) {
      const image = join(folder, size);
      run("mke2fs", ["-q", "-F", ...make.split(" "), image, size]);
      const filesystem = await opened(t, image);
      const [free] = await filesystem.free();
      assert.equal(filesystem.refusal, undefined);
      assert.deepEqual([...free!], [...dumpe2fsFree(image)]);
    }
  });
}

test("an empty journal may be longer than any that is replayed", async (t) => {
  if (!requires(t, "mke2fs")) return;
  const image = join(scratch(t), "image");
  run("mke2fs", ["-q", "-F", "-t", "ext4", "-J", "size=5000", "-E", "lazy_journal_init=1", image, "12G"]);
  assert.equal((await opened(t, image)).refusal, undefined);
});

test("runs of clear bits end where they should, at every place of a word", () => {
  for (let start = 0; start < 66; start++) {
    for (let end = start + 1; end <= 66; end++) {
      const bitmap = new Uint8Array(12).fill(0xff);
      for (let bit = start; bit < end; bit++) bitmap[bit >> 3]! &= ~(1 << (bit & 7));
      const runs: number[][] = [];
      clearRuns(bitmap, 66, (from, to) => runs.push([from, to]));
      assert.deepEqual(runs, [[start, end]]);
    }
  }
});

/** Copies of the files under a mounted filesystem, as a killed guest would leave them. The first file is mounted. */
function killed(t: TestContext, options: string, ...files: readonly string[]): string[] {
  const folder = scratch(t);
  const copies = files.map((_, index) => join(folder, `killed${index}`));
  const mountPoint = join(folder, "mnt");
  mkdirSync(mountPoint);
  run("mount", ["-o", options, files[0]!, mountPoint]);
  try {
    for (let i = 0; i < 50; i++) writeFileSync(join(mountPoint, `file${i}`), Buffer.alloc(20_000, i));
    mkdirSync(join(mountPoint, "directory"));
    run("sync", ["-f", mountPoint]);
    for (let i = 0; i < 50; i += 2) rmSync(join(mountPoint, `file${i}`));
    writeFileSync(join(mountPoint, "directory", "late"), Buffer.alloc(300_000, 1));
    run("sync", ["-f", mountPoint]);
    copies.forEach((copy, index) => copyFileSync(files[index]!, copy));
  } finally {
    run("umount", [mountPoint]);
  }
  return copies;
}

test("a killed guest is refused, explained all the same, and replayed when allowed (H2)", async (t) => {
  if (!requires(t, "mke2fs", "e2fsck", "dumpe2fs", "mount") || !requiresRoot(t)) return;
  const image = join(scratch(t), "image");
  run("mke2fs", ["-q", "-F", "-t", "ext4", image, "64M"]);
  const [copy] = killed(t, "loop", image);
  const device = await deviceOf(t, copy!);

  const refused = await ext.open([device], { replay: false });
  assert.equal(refused.refusal?.code, "journal-dirty");
  assert.equal(refused.name, "ext4");
  assert.equal((await refused.free())[0]!.bytes, 0);
  assert.equal((await refused.describe(8)).kind, "journal");

  const replayed = await ext.open([device], { replay: true });
  const [free] = await replayed.free();
  await replayed.walk((_, start, end) => assert.ok(!free!.touches({ start, end })));
  assert.equal(replayed.refusal, undefined);
  assert.match(replayed.notes.join(), /replayed in memory/);
  assert.ok(await replayed.find("/directory/late"));

  attempt("e2fsck", ["-fy", copy!]);
  const afterwards = dumpe2fsFree(copy!);
  assert.equal(free!.subtract(afterwards).bytes, 0, "nothing is free that e2fsck calls used");
  assert.ok(free!.bytes > afterwards.bytes * 0.8, "and most of the rest is");
});

test("an external journal: missing, found among the members, and recognised alone", async (t) => {
  if (!requires(t, "mke2fs", "losetup", "mount") || !requiresRoot(t)) return;
  const folder = scratch(t);
  const [journal, image] = [join(folder, "journal"), join(folder, "image")];
  run("mke2fs", ["-q", "-F", "-O", "journal_dev", "-b", "4096", journal, "16M"]);
  const loop = run("losetup", ["--show", "-f", journal]).trim();
  let copies: string[];
  try {
    run("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "4096", "-J", `device=${loop}`, image, "64M"]);
    assert.equal((await opened(t, image)).refusal, undefined, "clean: the journal is not needed");
    copies = killed(t, `loop,journal_path=${loop}`, image, journal);
  } finally {
    run("losetup", ["-d", loop]);
  }
  const [device, journalDevice] = [await deviceOf(t, copies[0]!), await deviceOf(t, copies[1]!)];
  assert.equal((await ext.open([journalDevice], { replay: false })).refusal?.code, "journal-device");
  assert.equal((await ext.open([device], { replay: true })).refusal?.code, "journal-missing");
  const replayed = await ext.open([device, journalDevice], { replay: true });
  const [free] = await replayed.free();
  await replayed.walk((_, start, end) => assert.ok(!free!.touches({ start, end })));
  assert.equal(replayed.refusal, undefined);
  assert.ok(free!.bytes > 0 && (await replayed.find("/directory/late")));
});
