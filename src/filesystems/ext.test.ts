import assert from "node:assert/strict";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { clearRuns } from "./ext/bitmaps.ts";
import { ext } from "./ext.ts";
import type { FileSystem } from "./filesystem.ts";
import { dumpe2fsFree } from "../testing/ext.ts";
import { fileDevice } from "../testing/file-device.ts";
import { requires, run, scratch } from "../testing/tools.ts";

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

async function opened(t: TestContext, path: string): Promise<FileSystem> {
  const device = await fileDevice(path);
  t.after(() => device[Symbol.asyncDispose]());
  assert.ok(await ext.probe(device));
  return ext.open([device], { replay: false });
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
