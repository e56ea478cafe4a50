import assert from "node:assert/strict";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import { checked } from "../device/checked.ts";
import { prove } from "../reclaim/prove.ts";
import { dumpedFree } from "../testing/btrfs.ts";
import { live, makeBtrfs, withBtrfs } from "../testing/btrfs-guest.ts";
import { fileDevice } from "../testing/file-device.ts";
import { requires, requiresRoot, scratch } from "../testing/tools.ts";
import { btrfs } from "./btrfs.ts";

/** What mkfs.btrfs is asked for, with how many devices, and how it is mounted. */
const MAKES: readonly { readonly options: string; readonly devices?: number; readonly mount?: string }[] = [
  { options: "" },
  { options: "-n 4096 --csum xxhash", mount: "compress-force=zstd" },
  { options: "-n 65536 --csum sha256", mount: "compress=lzo" },
  { options: "--csum blake2", mount: "compress=zlib" },
  { options: "--mixed -n 4096" },
  { options: "-O ^extref,^skinny-metadata,^no-holes -R ^free-space-tree", mount: "space_cache=v1" },
  { options: "-m single -d single -R quota" },
  { options: "-m dup -d dup", mount: "nodatasum" },
  { options: "-m raid0 -d raid0", devices: 3 },
  { options: "-m raid1 -d raid1 -R quota", devices: 2 },
  { options: "-m raid1c3 -d raid1c4", devices: 4 },
  { options: "-m raid10 -d raid10", devices: 4 },
  { options: "-m raid10 -d single", devices: 4 },
];

export async function devicesOf(t: TestContext, paths: readonly string[]): Promise<BlockDevice[]> {
  return Promise.all(
    paths.map(async (path) => {
      const device = checked(await fileDevice(path));
      t.after(() => device[Symbol.asyncDispose]());
      return device;
    }),
  );
}

for (const { options, devices = 1, mount = "rw" } of MAKES) {
  test(`free space agrees with dump-tree, and all else is reached: mkfs.btrfs ${options}`, async (t) => {
    if (!requires(t, "mkfs.btrfs", "btrfs", "losetup", "chattr") || !requiresRoot(t)) return;
    const folder = scratch(t);
    const mebibytes = devices === 1 ? 256 : 160;
    const paths = Array.from({ length: devices }, (_, index) => join(folder, `disk${index}`));
    makeBtrfs(paths, mebibytes, options.split(" ").filter(Boolean));
    withBtrfs(paths, mount, (root) => live(root, 1));

    const filesystem = await btrfs.open(await devicesOf(t, paths), { replay: false });
    const free = await filesystem.free();
    assert.equal(filesystem.refusal, undefined);
    const bytes = mebibytes * 2 ** 20;
    const { now, kept, isWhole } = dumpedFree(paths, bytes);
    const reached = paths.map(() => new ExtentBuilder());
    await filesystem.walk((member, start, end) => reached[member]!.add(start, end));
    assert.equal(filesystem.refusal, undefined);
    free.forEach((set, index) => {
      const expected = kept.get(index + 1)!;
      // What is left of a backup that dump-tree cannot read whole is kept, too.
      if (isWhole) assert.deepEqual([...set], [...expected]);
      else assert.equal(set.subtract(expected).bytes, 0);
      const walked = reached[index]!.build();
      assert.equal(set.intersect(walked).bytes, 0, "nothing free is reached");
      const used = ExtentSet.of({ start: 0, end: bytes }).subtract(now.get(index + 1)!);
      assert.equal(used.subtract(walked).bytes, 0, "all that is used is reached");
    });
    assert.equal((await prove(filesystem, "full")).refusal, undefined);
    if (!isWhole) t.diagnostic("an older generation was overwritten in part");
  });
}
