/**
 * F2FS volumes that the kernel filled, reclaimed by the product, and read again by the kernel.
 *
 *   mkfs.f2fs → kernel fills, deletes, prints hashes → reclaim → fsck.f2fs → kernel prints hashes: the same
 *                                                                              └ then it is killed
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { closeSync, openSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { readBytes, type BlockDevice } from "../src/device/device.ts";
import { reclaim } from "../src/disk.ts";
import { readCheckpoints } from "../src/filesystems/f2fs/checkpoint.ts";
import { BLOCK_BYTES, readSuperblock, SEGMENT_BLOCKS } from "../src/filesystems/f2fs/superblock.ts";
import { f2fs } from "../src/filesystems/f2fs.ts";
import type { FileSystem } from "../src/filesystems/filesystem.ts";
import { makeVolume } from "../src/testing/f2fs.ts";
import { fileDevice } from "../src/testing/file-device.ts";
import { partcloneFree } from "../src/testing/partclone.ts";
import { contentOf, unreachedOf } from "../src/testing/reach.ts";
import { otherKernel } from "../src/testing/other-kernel.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";

const HELPERS = `
fill() {
  mkdir -p $1/deep/er $1/many
  i=0; while [ $i -lt 90 ]; do head -c $((i * 131)) /dev/urandom > $1/many/file-$i; i=$((i+1)); done
  dd if=/dev/urandom of=$1/large bs=64k count=80 2>/dev/null
  yes gone | head -c 16000000 > $1/gone
  dd if=/dev/urandom of=$1/holes bs=4k count=3 seek=9000 2>/dev/null
  dd if=/dev/urandom of=$1/holes bs=4k count=3 seek=3000000 conv=notrunc 2>/dev/null
  ln $1/large $1/deep/link; ln -s er $1/deep/short; mknod $1/deep/device b 8 1
  sync
  rm $1/gone $1/many/file-1*
  dd if=/dev/urandom of=$1/large bs=64k count=3 seek=7 conv=notrunc 2>/dev/null
  mv $1/many/file-22 $1/deep/er/moved
  sync
}
hashes() { (cd $1; find . -type f -size -100000 | sort | xargs sha256sum); }
mkdir /a /b /c
`;
const FILL = `${HELPERS}
mount -t f2fs -o nodiscard /dev/vda /a; fill /a; mount -t f2fs -o nodiscard,noinline_data /dev/vdb /b; fill /b
echo == a; hashes /a; echo == b; hashes /b
umount /a; umount /b
`;
const READ_AND_DIE = `${HELPERS}
mount -t f2fs -o ro /dev/vda /a; mount -t f2fs -o ro /dev/vdb /b
echo == a; hashes /a; echo == b; hashes /b
mount -t f2fs /dev/vdc /c; head -c 99999 /dev/urandom > /c/late; sync; dd if=/dev/zero of=/c/later bs=4k count=3 conv=fsync 2>/dev/null
echo now; sleep 100
`;
/** Where `holes` has content: offsets and lengths in bytes. */
const HOLES_BETWEEN = [9000, 3_000_000].map((block) => [block * BLOCK_BYTES, 3 * BLOCK_BYTES]);
const MODULES = ["crc32_generic", "quota_v2", "f2fs"];
const OPTIONS = [
  [],
  ["-O", "extra_attr,inode_checksum,flexible_inline_xattr,inode_crtime,sb_checksum,project_quota,quota"],
];

async function opened(
  t: TestContext,
  path: string,
): Promise<{ device: BlockDevice; filesystem: FileSystem }> {
  const device = await fileDevice(path);
  t.after(() => device[Symbol.asyncDispose]());
  return { device, filesystem: await f2fs.open([device], { replay: false }) };
}

/** Every file that the kernel printed lies where `find` says. */
async function assertFound(
  { device, filesystem }: Awaited<ReturnType<typeof opened>>,
  printed: string,
): Promise<void> {
  const lines = [...printed.matchAll(/^([0-9a-f]{64}) {2}\.(\/.+)$/gm)];
  assert.ok(lines.length > 60);
  for (const [, hash, path] of lines) {
    const found = await filesystem.find(path!);
    assert.ok(found, path);
    if (found.fixed === "inline") continue;
    assert.equal(
      createHash("sha256")
        .update(await contentOf(device, found))
        .digest("hex"),
      hash,
      path,
    );
  }
}

/** Takes the newer checkpoint away. */
async function stepBack(image: string): Promise<void> {
  const device = await fileDevice(image);
  const sb = await readSuperblock(device);
  const { newest } = await readCheckpoints(device, sb);
  const first = await readBytes(device, sb.cp * BLOCK_BYTES, BLOCK_BYTES);
  const isFirst = Buffer.from(first).readBigUInt64LE() === BigInt(newest.fields.version);
  await device[Symbol.asyncDispose]();
  const file = openSync(image, "r+");
  writeSync(
    file,
    new Uint8Array(BLOCK_BYTES),
    0,
    BLOCK_BYTES,
    (sb.cp + (isFirst ? 0 : SEGMENT_BLOCKS)) * BLOCK_BYTES,
  );
  closeSync(file);
}

const fsck = (image: string) => {
  const { status, stdout } = attempt("fsck.f2fs", ["--dry-run", image]);
  return { status, found: stdout.match(/^\[FSCK\].*$/gm) };
};

test("volumes that the kernel filled: nothing that it or fsck.f2fs reads is given away", async (t) => {
  if (!requires(t, "mkfs.f2fs", "fsck.f2fs", "partclone.f2fs")) return;
  const folder = scratch(t);
  const images = OPTIONS.map((options, index) => makeVolume(folder, `image${index}`, options, 120));
  const printed = await otherKernel(t, { modules: MODULES, disks: images, script: FILL });
  if (printed === undefined) return;
  const parts = printed.split(/^== .*$/m);
  for (const [index, image] of images.entries()) {
    const { device, filesystem } = await opened(t, image);
    const [free] = await filesystem.free();
    const unreached = await unreachedOf(filesystem);
    assert.deepEqual([...unreached], [...partcloneFree("f2fs", image)]);
    assert.equal(free!.subtract(unreached).bytes, 0);
    await assertFound({ device, filesystem }, parts[index + 1]!);
    const places = (await filesystem.find("/holes"))!.extents.map(({ fileOffset, bytes: length }) => [
      fileOffset,
      length,
    ]);
    assert.deepEqual(places, HOLES_BETWEEN, "by an indirect and by a double indirect node");
    const earlier = join(folder, "earlier");
    const before = fsck(image);
    assert.equal(before.status, 0);
    run("cp", ["--sparse=always", image, earlier]);
    await stepBack(earlier);
    const stepped = fsck(earlier);
    const host = statSync(image).blocks;
    assert.equal((await reclaim(image, { format: "raw", proof: "full", verify: true })).applied, true);
    assert.ok(statSync(image).blocks * 512 < host * 512 - 10_000_000, "the deleted files' blocks came back");
    assert.deepEqual(fsck(image), before);
    run("cp", ["--sparse=always", image, earlier]);
    await stepBack(earlier);
    assert.deepEqual(fsck(earlier), stepped, "one checkpoint back");
  }
  const killed = makeVolume(folder, "killed", [], 60);
  const disks = [...images, killed];
  const again = await otherKernel(t, { modules: MODULES, disks, script: READ_AND_DIE, powerFailsAt: "now" });
  assert.equal(again, `${printed}now\n`);
  const { filesystem } = await opened(t, killed);
  assert.equal(filesystem.refusal?.code, "not-clean");
  assert.equal((await filesystem.free())[0]!.count, 0);
  assert.equal((await filesystem.list("/"))?.length, 1, "and yet it is read, as of its last checkpoint");
});
