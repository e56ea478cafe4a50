/**
 * FAT and exFAT volumes that Linux has filled, from the mount to the hashes after a reclaim; and some that lost power.
 */
import assert from "node:assert/strict";
import { statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { reclaim, survey } from "../src/disk.ts";
import { exfat } from "../src/filesystems/exfat.ts";
import { fat } from "../src/filesystems/fat.ts";
import { balanceOf, contentOf, openedVolume, sha256 } from "../src/testing/cluster-volume.ts";
import { exfatFree } from "../src/testing/exfat.ts";
import { fatFree } from "../src/testing/fat.ts";
import { otherKernel } from "../src/testing/other-kernel.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";

const MIB = 2 ** 20;

const KERNEL = { modules: ["vfat", "exfat", "nls_cp437", "nls_iso8859-1", "nls_utf8", "nls_ascii"] };

const VOLUMES = [
  { name: "fat16", make: ["mkfs.fat", "-F", "16", "-S", "4096", "-s", "1"], mebibytes: 24 },
  { name: "fat32", make: ["mkfs.fat", "-F", "32", "-s", "1", "-a"], mebibytes: 40 },
  { name: "exfat, small clusters", make: ["mkfs.exfat", "-c", "1024"], mebibytes: 16 },
  { name: "exfat, large clusters", make: ["mkfs.exfat", "-c", "64K"], mebibytes: 24 },
];

/** Files that grow in turn, are cut, renamed and deleted; what is deleted had reached the disk. */
const FILL = `
random() { dd if=/dev/urandom "$@" 2>/dev/null; }
fill() {
  mount -t $2 -o $3 $1 /mnt; cd /mnt
  mkdir many deep deep/er "A directory with a long name"
  i=0; while [ $i -lt 30 ]; do
    random of="many/file number $i.bin" bs=1400 count=$i; i=$((i + 1))
  done
  for i in 1 2 3 4 5 6 7 8; do
    random bs=9000 count=1 >> one; random bs=5000 count=1 >> deep/two
  done
  random of=gone bs=64k count=50; sync; rm gone
  i=0; while [ $i -lt 30 ]; do rm "many/file number $i.bin"; i=$((i + 3)); done
  random of=filler bs=1k count=300; : > empty
  truncate -s 100000 one; truncate -s 20001 deep/two; mv deep/two "A directory with a long name/Zwei ä.txt"
  cd /; umount /mnt
}
hashes() {
  echo "volume $1"; mount -t $2 -o ro,$3 $1 /mnt; cd /mnt
  find . -type f -exec sha256sum {} +; cd /; umount /mnt
}
`;

const OPTIONS = { vfat: "utf8", exfat: "iocharset=utf8" };
const typeOf = (name: string): keyof typeof OPTIONS => (name.startsWith("exfat") ? "exfat" : "vfat");

/** A line of the script for each volume. */
function each(line: (device: string, type: keyof typeof OPTIONS) => string): string {
  return VOLUMES.map(({ name }, i) => line(`/dev/vd${"abcdefgh"[i]}`, typeOf(name))).join("\n");
}

const HASHES = each((device, type) => `hashes ${device} ${type} ${OPTIONS[type]}`);

/** Left mounted in the middle of a change; a volume that was just synced would be clean. */
const spoil = (device: string, type: string): string =>
  `mkdir -p /tmp${device}; mount -t ${type} ${device} /tmp${device}; ` +
  `random of=/tmp${device}/late bs=64k count=9`;

/** Hashes by path, of each volume that was printed. */
function printedHashes(printed: string): Map<string, string>[] {
  return printed
    .split(/^volume .*$/m)
    .slice(1)
    .map((part) => {
      const files = [...part.matchAll(/^([0-9a-f]{64}) {2}\.(\/.*)$/gm)];
      return new Map(files.map(([, hash, path]) => [path!, hash!]));
    });
}

function isClean(image: string, name: string): boolean {
  const checker = name.startsWith("exfat") ? "fsck.exfat" : "fsck.fat";
  return attempt(checker, ["-n", image]).status === 0;
}

test("what Linux wrote balances, survives a reclaim, and is refused after a power failure", async (t) => {
  const tools = ["mkfs.fat", "fsck.fat", "mkfs.exfat", "fsck.exfat", "dump.exfat", "blkls"];
  if (!requires(t, ...tools)) return;
  const folder = scratch(t);
  const disks = VOLUMES.map(({ make, mebibytes }, i) => {
    const disk = join(folder, `disk${i}.raw`);
    writeFileSync(disk, "");
    truncateSync(disk, mebibytes * MIB);
    run(make[0]!, [...make.slice(1), disk]);
    return disk;
  });
  const fills = each((device, type) => `fill ${device} ${type} ${OPTIONS[type]}`);
  const script = `${FILL}\n${fills}\n${HASHES}`;
  const printed = await otherKernel(t, { ...KERNEL, disks, script });
  if (printed === undefined) return;
  const hashes = printedHashes(printed);
  assert.equal(hashes.length, VOLUMES.length, printed);

  for (const [i, { name }] of VOLUMES.entries()) {
    const disk = disks[i]!;
    assert.ok(isClean(disk, name), name);
    const volume = await openedVolume(t, name.startsWith("exfat") ? exfat : fat, disk);
    const { free, leakedBytes } = await balanceOf(volume.filesystem);
    assert.equal(leakedBytes, 0, name);
    assert.deepEqual([...free], [...(name.startsWith("exfat") ? exfatFree : fatFree)(disk)], name);
    assert.ok(hashes[i]!.size > 20, name);
    for (const [path, hash] of hashes[i]!) assert.equal(sha256(await contentOf(volume, path)), hash, path);

    const before = statSync(disk).blocks;
    const { reclaimableBytes } = await survey(disk);
    assert.ok(reclaimableBytes > 2 * MIB, `${name}: ${reclaimableBytes}`);
    assert.equal((await reclaim(disk, { confirm: async () => true, verify: true })).verified, true);
    assert.ok((before - statSync(disk).blocks) * 512 > reclaimableBytes * 0.9, name);
    assert.ok(isClean(disk, name), name);
  }

  const again = await otherKernel(t, {
    ...KERNEL,
    disks,
    powerFailsAt: "now",
    script: `${FILL}\n${HASHES}\n${each(spoil)}\necho now; sleep 100`,
  });
  assert.deepEqual(printedHashes(again!), hashes, "every file reads as before the reclaim");
  for (const [i, disk] of disks.entries()) {
    const { volumes, reclaimableBytes } = await survey(disk);
    assert.equal(volumes[0]!.reason?.code, "not-clean", VOLUMES[i]!.name);
    assert.equal(reclaimableBytes, 0);
  }
});
