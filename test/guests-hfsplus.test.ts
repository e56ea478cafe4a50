/**
 * HFS+ volumes in which a kernel lived: their free space, their reclaim, and what a power failure leaves.
 *
 *   boot 1: fill, delete, fill again, print all hashes; one volume loses power
 *   here:   survey, reclaim
 *   boot 2: print all hashes again
 */
import assert from "node:assert/strict";
import { statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import type { Extent } from "../src/bytes/extents.ts";
import { reclaim, survey } from "../src/disk.ts";
import { hfsplus } from "../src/filesystems/hfsplus.ts";
import { prove } from "../src/reclaim/prove.ts";
import { fileDevice } from "../src/testing/file-device.ts";
import { makeHfsPlus, makeWrapped, type HfsPlusOptions } from "../src/testing/hfsplus.ts";
import { otherKernel } from "../src/testing/other-kernel.ts";
import { requires, run, scratch } from "../src/testing/tools.ts";
import { apm } from "../src/volumes/apm.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

/** Each is all of a disk, or in a wrapper, or in the second partition of an Apple partition map. */
const VOLUMES: Readonly<
  Record<string, HfsPlusOptions & { readonly at?: number; readonly isPartition?: boolean }>
> = {
  "blocks of 4 KiB": { bytes: 6 * MiB + 2560, nodeBytes: 8192 },
  "HFSX, blocks of 512 bytes, in a partition": {
    bytes: 4 * MiB,
    at: MiB,
    isPartition: true,
    blockBytes: 512,
    nodeBytes: 4096,
    kind: "HFSX, case-sensitive",
    hasAttributes: true,
  },
  "blocks of 64 KiB, a journal": { bytes: 16 * MiB, blockBytes: 64 * KiB, journal: "empty" },
  "in an HFS wrapper": { bytes: 6 * MiB, at: 38 * KiB },
  "without power": { bytes: 4 * MiB },
};

const MODULES = ["hfsplus", "nls_utf8"];

/** A driver that writes past a journal has to be forced to. */
const MOUNT = "mount -t hfsplus -o force";

/** Leaves no long stretch free, so that the last file needs many extents. */
const LIVE = `
live() {
  mkdir -p /mnt/many /mnt/deep/er
  set -- $(df -k /mnt | tail -n 1)
  head -c $(($4 * 800)) /dev/urandom > /tmp/pool
  split -a 3 -b $(($4 * 8)) /tmp/pool /mnt/many/
  sync
  rm /mnt/many/*[acegikmoqsuwy]
  head -c $(($4 * 300)) /tmp/pool > /mnt/deep/large
  ln /mnt/deep/large /mnt/hard
  ln -s ../deep/large /mnt/deep/er/soft
  mkfifo /mnt/deep/pipe
  echo äöü > "/mnt/deep/Größe ñ 漢"
  setfattr -n user.ullage -v value /mnt/deep/large
}`;

const PRINT = `
print() {
  cd /mnt
  find . | sort | while read -r name; do
    if [ -f "$name" ]; then sha256sum "$name"; else ls -ld "$name"; fi
  done
  cd /
}`;

test("HFS+ volumes that a kernel filled are reclaimed, and keep all that is in them", async (t) => {
  if (!requires(t, "setfattr", "parted")) return;
  const folder = scratch(t);
  const disks = Object.entries(VOLUMES).map(([name, { at, isPartition, ...options }]) => {
    const path = join(folder, name);
    if (isPartition) partition(path, { start: at!, end: at! + options.bytes });
    if (isPartition || at === undefined) makeHfsPlus(path, { at: at ?? 0, ...options });
    else makeWrapped(path, { ...options, at });
    return path;
  });
  const devices = ["a", "b2", "c", "d"];
  const before = await otherKernel(t, {
    modules: MODULES,
    disks,
    tools: ["setfattr", "split"],
    powerFailsAt: "without power",
    script: `${LIVE}${PRINT}
      for disk in ${devices.join(" ")}; do
        ${MOUNT} /dev/vd$disk /mnt; live; umount /mnt
        ${MOUNT},ro /dev/vd$disk /mnt; echo "disk $disk"; print; umount /mnt
      done
      ${MOUNT} /dev/vde /mnt; live; sync; rm /mnt/many/*[bdfhjlnp]; sync
      echo without power; sleep 1000`,
  });
  if (before === undefined) return;
  const lost = disks.pop()!;
  for (const disk of disks) await t.test(disk.slice(folder.length + 1), (each) => reclaimOf(each, disk));
  const after = await otherKernel(t, {
    modules: MODULES,
    disks,
    script: `${PRINT}
      for disk in ${devices.join(" ")}; do
        ${MOUNT},ro /dev/vd$disk /mnt; echo "disk $disk"; print; umount /mnt
      done
      echo without power`,
  });
  assert.equal(after, before);
  assert.match(before, /hard[^]*Größe[^]*deep\/large/);

  const [volume] = (await survey(lost)).volumes;
  assert.equal(volume!.reason?.code, "not-clean");
  assert.equal((await reclaim(lost, { confirm: async () => true })).applied, false);
});

/** Makes an Apple partition map whose second partition is `extent`. */
function partition(path: string, { start, end }: Extent): void {
  writeFileSync(path, "");
  truncateSync(path, end + MiB);
  run("parted", ["-s", path, "mklabel", "mac", "mkpart", "primary", "hfs+", `${start}B`, `${end - 1}B`]);
}

async function reclaimOf(t: TestContext, disk: string): Promise<void> {
  const whole = await fileDevice(disk);
  t.after(() => whole[Symbol.asyncDispose]());
  const [volume] = (await apm.probe(whole)) ? (await apm.open([whole])).volumes : [];
  const filesystem = await hfsplus.open([volume?.device ?? whole], { replay: false });
  const { leakedBytes, refusal } = await prove(filesystem, "full");
  assert.equal(refusal, undefined);
  assert.equal(leakedBytes, 0, "what is not free is reached");
  assert.ok((await filesystem.find("/deep/large"))!.extents.length > 8, "the overflow file is in use");
  assert.deepEqual(await filesystem.find("/hard"), await filesystem.find("/deep/large"));
  const listed = [...(await filesystem.list("/"))!, ...(await filesystem.list("/deep"))!];
  const allocated = (wanted: string) => listed.find(({ name }) => name === wanted)!.allocatedBytes;
  assert.ok(allocated("large") > 0);
  assert.equal(allocated("hard"), allocated("large"));
  assert.ok(await filesystem.find("/deep/Größe ñ 漢"));
  const folded = await filesystem.find("/DEEP/GRÖSSE Ñ 漢".replace("SS", "ß"));
  assert.equal(folded === undefined, filesystem.name === "hfsx", "names as the volume compares them");

  const hostBytes = () => statSync(disk).blocks * 512;
  const held = hostBytes();
  const { reclaimableBytes } = await survey(disk);
  assert.ok(reclaimableBytes > 256 * KiB, `${reclaimableBytes}`);
  const done = await reclaim(disk, { confirm: async () => true, verify: true });
  assert.equal(done.applied, true);
  assert.ok(held - hostBytes() >= reclaimableBytes - 64 * KiB);
}
