/**
 * Logs of volumes that the kernel here does not mount: version 4, an old log; and with quotas. The power of another
 * kernel fails, and it is also the judge: with rubbish in all that we call free it must replay to the same files.
 */
import assert from "node:assert/strict";
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileDevice } from "../../testing/file-device.ts";
import { otherKernel } from "../../testing/other-kernel.ts";
import { attempt, requires, scratch } from "../../testing/tools.ts";
import { makeXfs, spoil, xfsDbFree } from "../../testing/xfs.ts";
import { xfs } from "../xfs.ts";
import { freeExtents } from "./free-space.ts";
import { openVolume } from "./recovery.ts";
import { readSuperblock } from "./superblock.ts";

const DISKS = [
  { make: "-m crc=0", mount: "defaults" },
  {
    make: "-m crc=0 -n ftype=0 -i attr=1,size=256 -b size=512 -l version=1,lazy-count=0",
    mount: "attr2",
  },
  { make: "-m rmapbt=0", mount: "uquota,gquota,pquota" },
];
const MODULES = ["crc32c_generic", "xfs"];
const BYTES = 48 * 2 ** 20;

const LIFE = `${DISKS.map(
  ({ mount }, index) => `
  mkdir /mnt/${index}; mount -t xfs -o ${mount} /dev/vd${"abc"[index]} /mnt/${index}; cd /mnt/${index}
  mkdir -p many few; for i in $(seq 100); do echo "content $i" > "many/a rather long name, number $i"; done
  dd if=/dev/urandom of=gone bs=64k count=8 2>/dev/null; sync; rm gone many/*3*
  for i in $(seq 25); do dd if=/dev/urandom of=pieces bs=512 count=1 seek=$((i * 16)) conv=notrunc 2>/dev/null; done
  ln many/*"number 44" few/hard; ln -s "$(seq -s / 200)" few/long; mknod few/device c 5 1; chown 7:8 few
  for i in $(seq 30); do dd if=/dev/urandom of=few/$i bs=1k count=$i 2>/dev/null; done; dd if=/dev/urandom of=few/last bs=1k count=9 conv=fsync 2>/dev/null; cd /`,
).join("\n")}\necho end; sleep 100`;

const PRINT = DISKS.map(({ mount }, index) =>
  ["abc", "def"]
    .map(
      (letters) => `mount -t xfs -o ${mount} /dev/vd${letters[index]} /mnt; cd /mnt; echo "disk"
        find . -exec stat -c "%n %s %h %u %F" {} + | sort; find . -type f -exec sha256sum {} + | sort
        cd /; umount /mnt`,
    )
    .join("\n"),
).join("\n");

test("the log of a disk whose other kernel lost its power", async (t) => {
  if (!requires(t, "mkfs.xfs", "xfs_db", "xfs_repair")) return;
  const folder = scratch(t);
  const images = DISKS.map(({ make }, index) => {
    const image = join(folder, `disk${index}`);
    makeXfs(image, make, `${BYTES}`);
    return image;
  });
  const life = await otherKernel(t, { modules: MODULES, disks: images, script: LIFE, powerFailsAt: "end" });
  if (life === undefined) return;
  const judged = images.map((image) => `${image}.judged`);
  const after = await Promise.all(
    images.map(async (image, index) => {
      copyFileSync(image, judged[index]!);
      await using device = await fileDevice(image);
      const { volume } = await openVolume(device, await readSuperblock(device), true);
      const filesystem = await xfs.open([device], { replay: true });
      const [free] = await filesystem.free();
      await filesystem.walk((_, start, end, owner) => {
        assert.ok(!free!.touches({ start, end }), `${owner} at ${start} is free`);
      });
      assert.equal(filesystem.refusal, undefined);
      assert.ok(filesystem.isUnclean && free!.bytes > BYTES / 3);
      const all = await freeExtents(volume, "stale");
      spoil(image, 0, free!);
      return all;
    }),
  );
  const disks = [...images, ...judged];
  const prints = (await otherKernel(t, { modules: MODULES, disks, script: PRINT }))!.split("disk\n").slice(1);
  for (const [index, image] of images.entries()) {
    assert.ok(prints[index * 2]!.split("\n").length > 200, prints[index * 2]);
    assert.equal(prints[index * 2], prints[index * 2 + 1]);
    // The kernel also takes back what it had given to files in advance.
    assert.equal(after[index]!.subtract(xfsDbFree(judged[index]!)).bytes, 0);
    const { status, stderr } = attempt("xfs_repair", ["-n", image]);
    assert.equal(status, 0, stderr);
  }
});
