/**
 * Volumes that the kernel here does not mount: version 4, names without case; and with quotas. Another kernel fills them.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { test } from "node:test";
import { readBytes } from "../../device/device.ts";
import { fileDevice } from "../../testing/file-device.ts";
import { otherKernel } from "../../testing/other-kernel.ts";
import { attempt, requires, scratch } from "../../testing/tools.ts";
import { balances, makeXfs, spoil } from "../../testing/xfs.ts";
import { xfs } from "../xfs.ts";

const DISKS = [
  { make: "-m crc=0", mount: "defaults" },
  { make: "-m crc=0 -n ftype=0 -i attr=1,size=256 -b size=512 -l version=1,lazy-count=0", mount: "attr2" },
  { make: "-n version=ci -m rmapbt=0", mount: "uquota,gquota,pquota" },
];

/** Fills each disk, deletes, and prints what every file reads. */
const SCRIPT = DISKS.map(
  ({ mount }, index) => `
  mount -t xfs -o ${mount} /dev/vd${"abc"[index]} /mnt; cd /mnt
  for i in $(seq 50); do dd if=/dev/urandom of=pieces bs=512 count=1 seek=$((i * 16)) conv=notrunc 2>/dev/null; done
  mkdir -p many few/deep Case
  for i in $(seq 400); do echo "content $i" > "many/a rather long name, number $i"; done
  rm many/*3*
  dd if=/dev/urandom of=few/deep/large bs=64k count=8 2>/dev/null
  dd if=/dev/urandom of=gone bs=64k count=8 2>/dev/null; sync; rm gone
  ln few/deep/large few/hard
  ln -s "$(seq -s / 250)" few/long; ln -s short few/short
  echo lower > Case/MiXed
  echo "disk ${index}"; find . -type f -exec sha256sum {} +
  cd /; umount /mnt`,
).join("\n");

test("disks filled by another kernel balance, and survive rubbish", async (t) => {
  if (!requires(t, "mkfs.xfs", "xfs_db", "xfs_repair")) return;
  const folder = scratch(t);
  const images = DISKS.map(({ make }, index) => {
    const image = join(folder, `disk${index}`);
    makeXfs(image, make, "48M");
    return image;
  });
  const printed = await otherKernel(t, {
    modules: ["crc32c_generic", "xfs"],
    disks: images,
    script: SCRIPT,
  });
  if (printed === undefined) return;
  for (const [index, list] of printed
    .split(/^disk \d\n/m)
    .slice(1)
    .entries()) {
    const image = images[index]!;
    await using device = await fileDevice(image);
    const filesystem = await xfs.open([device], { replay: false });
    const owners = await balances(filesystem, image);
    const files = [...list.matchAll(/^([0-9a-f]{64}) {2}\.(\/.*)$/gm)];
    assert.ok(files.length > 200, list);
    for (const [, hash, path] of files.filter((_, i) => i % 20 === 0 || i > files.length - 20)) {
      const found = (await filesystem.find(index === 2 ? path!.toUpperCase() : path!))!;
      const content = new Uint8Array(found.bytes);
      for (const { fileOffset, at, bytes } of found.extents) {
        content.set(await readBytes(device, at, Math.min(bytes, found.bytes - fileOffset)), fileOffset);
      }
      assert.equal(createHash("sha256").update(content).digest("hex"), hash, path);
    }
    const { owner } = (await filesystem.find("/few/deep/large"))!;
    assert.match((await filesystem.describe(owner)).path!, /^\/few\/(deep\/large|hard)$/);
    assert.equal(
      (await filesystem.list("/many"))!.length,
      files.filter(([, , path]) => /many/.test(path!)).length,
    );
    if (index === 2) {
      const names = await Promise.all(
        [...owners.keys()].map(async (owner) => (await filesystem.describe(owner)).name),
      );
      assert.deepEqual(names.filter((name) => name.endsWith("quota")).sort(), [
        "group quota",
        "project quota",
        "user quota",
      ]);
    }
    spoil(image, 0, (await filesystem.free())[0]!);
    const { status, stdout, stderr } = attempt("xfs_repair", ["-n", image]);
    assert.equal(status, 0, stdout + stderr);
  }
});
