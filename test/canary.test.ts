/**
 * Canaries around the volumes (H5): on disks of which every byte is something, `--also gaps` may return the gaps that
 * the drawing shows, and not one byte more.
 */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { type TestContext, test } from "node:test";
import { ExtentBuilder } from "../src/bytes/extents.ts";
import { reclaim } from "../src/disk.ts";
import { draw } from "../src/testing/draw.ts";
import { lvcreate, runLvm } from "../src/testing/lvm.ts";
import { blankDisk, withLoop } from "../src/testing/partitions.ts";
import { Random } from "../src/testing/seeds.ts";
import { attempt, requires, requiresRoot, run } from "../src/testing/tools.ts";

const MiB = 2 ** 20;
const DISK_BYTES = 32 * MiB;

/** Writes a table with `make` onto a disk full of noise, reclaims the gaps, and draws what became zeros. */
async function returned(t: TestContext, make: (disk: string) => void): Promise<string> {
  const disk = blankDisk(t, 0);
  writeFileSync(
    disk,
    new Random(1).bytes(DISK_BYTES).map((byte) => byte | 1),
  );
  make(disk);
  const before = readFileSync(disk);
  const { applied, verified } = await reclaim(disk, { format: "raw", also: ["gaps"], verify: true });
  assert.equal(applied, true);
  assert.equal(verified, true);
  const after = readFileSync(disk);
  const zeroed = new ExtentBuilder();
  for (let at = 0; at < DISK_BYTES; at += 512) {
    const sector = after.subarray(at, at + 512);
    if (sector.equals(before.subarray(at, at + 512))) continue;
    assert.ok(
      sector.every((byte) => byte === 0),
      `the sector at ${at} is neither as it was nor zeros`,
    );
    zeroed.add(at, at + 512);
  }
  return draw(zeroed.build(), DISK_BYTES, MiB);
}

function sfdisk(disk: string, script: string): void {
  run("sfdisk", ["-q", "--wipe", "never", "--no-reread", "--no-tell-kernel", disk], script);
}

test("GPT: boot loader, both tables and all partitions stay", async (t) => {
  if (!requires(t, "sfdisk", "sgdisk")) return;
  let path = "";
  const script =
    "label: gpt\nstart=2MiB, size=1MiB, type=21686148-6449-6E6F-744E-656564454649\nstart=3MiB, size=2MiB\n";
  const picture = await returned(t, (disk) => sfdisk((path = disk), `${script}start=12MiB, size=8MiB\n`));
  //                          0       8       16      24
  assert.equal(picture, ".....#######........###########.");
  const { stdout } = attempt("sgdisk", ["--verify", path]);
  assert.match(stdout, /No problems found/);
});

test("GPT of 4096-byte sectors", async (t) => {
  if (!requires(t, "sfdisk", "losetup") || !requiresRoot(t)) return;
  const picture = await returned(t, (disk) =>
    withLoop(disk, 4096, (device) =>
      sfdisk(device, "label: gpt\nstart=512, size=2MiB\nstart=3072, size=8MiB\n"),
    ),
  );
  assert.equal(picture, "....########........###########.");
});

test("MBR: boot loader, boot records of logical partitions and all partitions stay", async (t) => {
  if (!requires(t, "sfdisk")) return;
  const primary = "label: dos\nstart=2MiB, size=2MiB\nstart=8MiB, size=16MiB, type=5\n";
  const picture = await returned(t, (disk) =>
    sfdisk(disk, `${primary}start=9MiB, size=2MiB\nstart=16MiB, size=2MiB\n`),
  );
  assert.equal(picture, "....####...####...#############.");
});

test("LVM2: label, metadata and all logical volumes stay", async (t) => {
  if (!requires(t, "pvcreate", "losetup", "vgck") || !requiresRoot(t)) return;
  const check = (device: string) => runLvm(t, [device], [["vgck", "vg"]]);
  let path = "";
  const picture = await returned(t, (disk) => {
    path = disk;
    withLoop(disk, 512, (device) =>
      runLvm(
        t,
        [device],
        [
          ["pvcreate", "-y", "-ff", "--metadatacopies", "2", device],
          ["vgcreate", "-s", "1M", "vg", device],
          lvcreate("-l", "4", "-n", "root", "vg"),
          lvcreate("-l", "4", "-n", "home", "vg"),
          lvcreate("-l", "4", "-n", "data", "vg"),
          ["lvremove", "-y", "vg/home"],
        ],
      ),
    );
  });
  assert.equal(picture, ".....####....##################.");
  withLoop(path, 512, check);
});
