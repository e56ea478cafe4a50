/**
 * APFS containers that the Linux driver filled, reclaimed by the product, and read again by the driver.
 *
 *   mkapfs → driver fills, deletes, takes a snapshot, prints hashes → reclaim → apfsck → driver prints hashes: the same
 *                                                                                         └ then it is killed
 *
 * The driver cannot delete what a snapshot keeps; the second container has no snapshot, and more deletions.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { closeSync, openSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { ExtentSet } from "../src/bytes/extents.ts";
import { readBytes, type BlockDevice } from "../src/device/device.ts";
import { reclaim } from "../src/disk.ts";
import { openContainer } from "../src/filesystems/apfs/checkpoint.ts";
import { apfs } from "../src/filesystems/apfs.ts";
import type { FileSystem } from "../src/filesystems/filesystem.ts";
import { inAppleKernel, makeContainer } from "../src/testing/apfs.ts";
import { fileDevice } from "../src/testing/file-device.ts";
import { partcloneFree } from "../src/testing/partclone.ts";
import { contentOf, unreachedOf } from "../src/testing/reach.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";

const HELPERS = `
fill() {
  mkdir -p $1/deep/er $1/many
  i=0; while [ $i -lt 45 ]; do head -c $((i * 301)) /dev/urandom > $1/many/file-$i; i=$((i+1)); done
  dd if=/dev/urandom of=$1/large bs=64k count=20 2>/dev/null
  yes gone | head -c 12000000 > $1/gone
  dd if=/dev/urandom of=$1/holes bs=64k count=1 seek=90 2>/dev/null
  ln $1/large $1/deep/link; ln -s er $1/deep/short
  sync
  rm $1/gone $1/many/file-1*
  dd if=/dev/urandom of=$1/large bs=64k count=3 seek=7 conv=notrunc 2>/dev/null
  sync
}
hashes() { (cd $1; find . -type f | sort | xargs sha256sum); }
`;

const FILL = `${HELPERS}
mkdir /a /b
mount -t apfs -o readwrite /dev/vda /a; fill /a
mount -t apfs -o readwrite /dev/vdb /b; fill /b
snapshot /a first
hashes /a > /tmp/first
head -c 999999 /dev/urandom > /a/deep/er/late; mv /a/many/file-22 /a/deep/moved
rm /b/large /b/deep/link
sync
echo == a; hashes /a; echo == b; hashes /b; echo == first; cat /tmp/first
umount /a; umount /b
`;

const READ_AND_DIE = `${HELPERS}
mkdir /a /b /c
mount -t apfs /dev/vda /a; mount -t apfs /dev/vdb /b; mount -t apfs -o snap=first /dev/vda /c
echo == a; hashes /a; echo == b; hashes /b; echo == first; hashes /c
mkdir /d; mount -t apfs -o readwrite /dev/vdc /d; fill /d
i=0; while [ $i -lt 30 ]; do head -c $((i * 999)) /dev/urandom > /d/deep/late-$i; i=$((i+1)); done
rm /d/many/file-2*
echo now; sleep 100
`;

/** Every file that the driver printed lies where `find` says. */
async function assertFound(filesystem: FileSystem, device: BlockDevice, printed: string): Promise<void> {
  const lines = [...printed.matchAll(/^([0-9a-f]{64}) {2}\.(\/.+)$/gm)];
  assert.ok(lines.length > 25);
  for (const [, hash, path] of lines) {
    const found = await filesystem.find(path!);
    assert.ok(found, path);
    assert.equal(
      createHash("sha256")
        .update(await contentOf(device, found))
        .digest("hex"),
      hash,
      path,
    );
  }
}

/** Takes the newest checkpoint away, as if its superblock had never been written. */
async function stepBack(image: string): Promise<void> {
  const device = await fileDevice(image);
  const { sb, earlier, descriptorBase, blockBytes } = await openContainer(device);
  const blockOf = ({ descriptorIndex, descriptorLength }: typeof sb) =>
    descriptorBase + ((descriptorIndex + descriptorLength - 1) % sb.descriptorBlocks);
  const before = await readBytes(device, blockOf(earlier[0]!) * blockBytes, blockBytes);
  await device[Symbol.asyncDispose]();
  const file = openSync(image, "r+");
  writeSync(file, before, 0, blockBytes, 0);
  writeSync(file, new Uint8Array(blockBytes), 0, blockBytes, blockOf(sb) * blockBytes);
  closeSync(file);
}

/** Nothing that can be reached in `image` is in `free`. */
async function assertKept(t: TestContext, image: string, free: ExtentSet): Promise<void> {
  const device = await fileDevice(image);
  t.after(() => device[Symbol.asyncDispose]());
  const filesystem = await apfs.open([device], { replay: false });
  await filesystem.walk((_member, start, end) => assert.ok(!free.touches({ start, end }), `${start}-${end}`));
  assert.equal(filesystem.refusal, undefined);
}

test("containers that the driver filled: nothing that it or apfsck reads is given away", async (t) => {
  if (!requires(t, "mkapfs", "apfsck", "partclone.apfs")) return;
  const folder = scratch(t);
  const images = [makeContainer(folder, ["-L", "a"]), makeContainer(folder, ["-s", "-L", "b"])];
  const printed = await inAppleKernel(t, folder, images, FILL);
  if (printed === undefined) return;
  const parts = printed.split(/^== .*$/m);
  const verdicts = images.map((image) => attempt("apfsck", ["-cuw", image]));
  assert.equal(verdicts[1]!.status, 0, "without a snapshot the old apfsck has nothing to say");
  for (const [index, image] of images.entries()) {
    const device = await fileDevice(image);
    t.after(() => device[Symbol.asyncDispose]());
    const filesystem = await apfs.open([device], { replay: false });
    const [free] = await filesystem.free();
    assert.deepEqual([...(await unreachedOf(filesystem))], [...partcloneFree("apfs", image)]);
    await assertFound(filesystem, device, parts[index + 1]!);
    const earlier = join(folder, "earlier");
    run("cp", ["--sparse=always", image, earlier]);
    await stepBack(earlier);
    await assertKept(t, earlier, free!);
    const theirs = attempt("apfsck", ["-uw", earlier]);
    const before = statSync(image).blocks;
    const done = await reclaim(image, { format: "raw", proof: "full", verify: true });
    assert.equal(done.applied, true);
    assert.ok(
      statSync(image).blocks * 512 < before * 512 - 10_000_000,
      "the deleted files' blocks came back",
    );
    run("cp", ["--sparse=always", image, earlier]);
    await stepBack(earlier);
    assert.deepEqual(attempt("apfsck", ["-uw", earlier]), theirs, "one checkpoint back");
  }
  assert.deepEqual(
    images.map((image) => attempt("apfsck", ["-cuw", image])),
    verdicts,
  );

  const killed = makeContainer(folder, ["-L", "killed"]);
  const again = await inAppleKernel(t, folder, [...images, killed], READ_AND_DIE, "now");
  assert.equal(again, `${printed}now\n`);
  const device = await fileDevice(killed);
  t.after(() => device[Symbol.asyncDispose]());
  const filesystem = await apfs.open([device], { replay: false });
  assert.match(filesystem.notes.join(), /not shut down in order/);
  const unreached = await unreachedOf(filesystem);
  const [free] = await filesystem.free();
  assert.ok(free!.subtract(unreached).bytes === 0 && unreached.subtract(free!).bytes < 2 ** 20);
  assert.equal(attempt("apfsck", ["-uw", killed]).status, 0);
});
