/**
 * Guests with several disks (H36): a striped volume over two images, judged only when both are there. LVM writes the
 * metadata and the kernel the filesystem; the stripes are dealt out here as `lvs` says that they lie.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { closeSync, copyFileSync, openSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { explain, info, reclaim, survey } from "../src/disk.ts";
import { e2fsck, liveIn, makeFilesystem, printOf } from "../src/testing/kernel-guest.ts";
import { lvcreate, lvmDisks } from "../src/testing/lvm.ts";
import { blankDisk } from "../src/testing/partitions.ts";
import { requires, requiresRoot, run, scratch } from "../src/testing/tools.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const DISK_BYTES = 64 * MiB;
const VOLUME = { start: 0, end: 40 * MiB };
const STRIPE_BYTES = 64 * KiB;
const EXTENTS_AT = MiB;

interface Group {
  readonly disks: readonly [string, string];
  /** What the kernel shows of the filesystem. */
  readonly print: string;
}

function group(t: TestContext): Group {
  const disks = lvmDisks(t, [DISK_BYTES, DISK_BYTES], ([a, b]) => [
    ["vgcreate", "-s", "1M", "vg0", a!, b!],
    lvcreate("-L", `${VOLUME.end}b`, "-i", "2", "-I", "64k", "-n", "root", "vg0"),
  ]) as [string, string];
  const volume = blankDisk(t, VOLUME.end);
  makeFilesystem(volume, VOLUME, ["-t", "ext4", "-b", "1024"]);
  liveIn(volume, VOLUME, 7);
  deal(volume, disks, "to disks");
  return { disks, print: printOf(volume, VOLUME) };
}

/** Copies the volume to its stripes, or back. */
function deal(volume: string, disks: readonly string[], way: "to disks" | "to volume"): void {
  const handles = [volume, ...disks].map((path) => openSync(path, "r+"));
  const buffer = Buffer.alloc(STRIPE_BYTES);
  for (let stripe = 0; stripe * STRIPE_BYTES < VOLUME.end; stripe++) {
    const inVolume = { handle: handles[0]!, at: stripe * STRIPE_BYTES };
    const row = Math.floor(stripe / disks.length);
    const onDisk = { handle: handles[1 + (stripe % disks.length)]!, at: EXTENTS_AT + row * STRIPE_BYTES };
    const [from, to] = way === "to disks" ? [inVolume, onDisk] : [onDisk, inVolume];
    readSync(from.handle, buffer, 0, buffer.length, from.at);
    writeSync(to.handle, buffer, 0, buffer.length, to.at);
  }
  for (const handle of handles) closeSync(handle);
}

const available = (t: TestContext) =>
  requires(t, "mke2fs", "e2fsck", "lvcreate", "losetup", "qemu-img") && requiresRoot(t);

test("H36: one of two disks alone is refused, with what is missing", async (t) => {
  if (!available(t)) return;
  const { disks } = group(t);
  const [volume] = (await survey(disks[0], { format: "raw" })).volumes;
  assert.deepEqual([volume!.state, volume!.reason?.code], ["refused", "members-missing"]);
  assert.match(volume!.reason!.message, /one of 2 devices of LVM2 volume group vg0/);
  assert.equal((await reclaim(disks[0], { format: "raw" })).applied, false);
});

test("H36: a disk and its copy are no group", async (t) => {
  if (!available(t)) return;
  const { disks } = group(t);
  const copy = join(scratch(t), "copy.raw");
  copyFileSync(disks[1], copy);
  const { volumes } = await survey(disks[0], { format: "raw", companions: [disks[1], copy] });
  assert.equal(volumes[0]!.reason?.code, "members-twice");
});

test("H36: both disks give back what is free on them, and the volume stays whole", async (t) => {
  if (!available(t)) return;
  const { disks, print } = group(t);
  const qcow2 = join(scratch(t), "b.qcow2");
  run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", disks[1], qcow2]);
  const both = [disks[0], qcow2];
  const { volumes } = await survey(disks[0], { companions: [qcow2] });
  const root = volumes.find(({ name }) => name === "vg0/root")!;
  assert.equal(root.state, "clean", root.reason?.message);
  assert.equal(root.bytes, VOLUME.end / 2);
  assert.deepEqual(root.members, [
    { path: disks[0], bytes: VOLUME.end / 2 },
    { path: qcow2, bytes: VOLUME.end / 2 },
  ]);
  for (const path of both) {
    const companions = both.filter((other) => other !== path);
    const done = await reclaim(path, { companions, verify: true });
    assert.equal(done.applied, true);
    assert.ok(done.reclaimedBytes > MiB, `${done.reclaimedBytes} bytes of ${path}`);
  }
  run("qemu-img", ["check", qcow2]);
  const second = join(scratch(t), "b.raw");
  run("qemu-img", ["convert", "-O", "raw", qcow2, second]);
  const volume = blankDisk(t, VOLUME.end);
  deal(volume, [disks[0], second], "to volume");
  const { status, stdout } = e2fsck(volume, VOLUME);
  assert.equal(status, 0, stdout);
  assert.equal(printOf(volume, VOLUME), print);
});

test("a volume over two disks is described, and its files are found on each", async (t) => {
  if (!available(t)) return;
  const { disks } = group(t);
  const companions = [disks[1]];
  const { volumes } = await info(disks[0], { companions });
  assert.deepEqual(
    volumes.map(({ name, filesystem }) => [name, filesystem]),
    [
      ["", "LVM2 volume group"],
      ["vg0/root", "ext4"],
    ],
  );
  const { file } = await explain(disks[0], { companions, file: "/life7/linked" });
  const other = (await explain(disks[1], { companions: [disks[0]], file: "/life7/linked" })).file!;
  const pieces = [...file!.pieces, ...other.pieces];
  assert.equal(
    pieces.reduce((sum, { bytes }) => sum + bytes, 0),
    9 * KiB,
  );
  const [piece] = pieces;
  const [path, others] = file!.pieces.length > 0 ? [disks[0], companions] : [disks[1], [disks[0]]];
  const { offsets } = await explain(path, { companions: others, offsets: [piece!.offset] });
  assert.match(offsets[0]!.ownerPath!, /^\/life7\/(linked|deep\/link)$/);
  assert.match(offsets[0]!.trail.join(", "), /member of LVM2 volume group vg0, lvm2 volume vg0\/root/);
});

test("the command line takes all images of a call, and --with, for one guest", (t) => {
  if (!available(t)) return;
  const { disks } = group(t);
  const states = (...words: string[]) => {
    const main = join(import.meta.dirname, "..", "src", "cli", "main.ts");
    const done = spawnSync(process.execPath, [main, "survey", "--json", ...words], { encoding: "utf8" });
    return JSON.parse(done.stdout).images.map((image: { volumes: { state: string }[] }) =>
      image.volumes.map(({ state }) => state).join(),
    );
  };
  assert.deepEqual(states(...disks), ["clean", "clean"]);
  assert.deepEqual(states(disks[0], "--with", disks[1]), ["clean"]);
  assert.deepEqual(states(disks[0]), ["refused"]);
});
