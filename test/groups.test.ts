/**
 * Guests with several disks (H36): a striped volume over two images, judged only when both are there. LVM writes the
 * metadata and the kernel the filesystem; the stripes are dealt out here as `lvs` says that they lie.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  closeSync,
  copyFileSync,
  linkSync,
  openSync,
  readFileSync,
  readSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { convert, explain, info, reclaim, survey, type SurveyOptions } from "../src/disk.ts";
import { openWritable } from "../src/disk/open.ts";
import { DiskError } from "../src/error.ts";
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
  const { volumes, usedBytes, freeBytes, unknownBytes, virtualBytes } = await survey(disks[0], {
    companions: [qcow2],
  });
  assert.equal(usedBytes + freeBytes + unknownBytes, virtualBytes);
  const root = volumes.find(({ name }) => name === "vg0/root")!;
  assert.equal(root.state, "clean", root.reason?.message);
  assert.equal(root.bytes, VOLUME.end / 2);
  assert.equal(root.usedBytes + root.freeBytes, root.bytes);
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

test("a disk counts once, whatever it is called", async (t) => {
  if (!available(t)) return;
  const { disks } = group(t);
  const folder = scratch(t);
  const [hard, soft] = [join(folder, "hard.raw"), join(folder, "soft.raw")];
  linkSync(disks[0], hard);
  symlinkSync(disks[1], soft);
  const done = await reclaim(disks[0], { format: "raw", companions: [hard, disks[1], soft] });
  assert.ok(done.applied && done.reclaimedBytes > MiB);
});

test("H36: who uses another member is in the way, and nobody else is", async (t) => {
  if (!available(t)) return;
  const { disks } = group(t);
  const stranger = blankDisk(t, MiB);
  const copy = join(scratch(t), "copy.raw");
  const isBusy = (error: unknown) => error instanceof DiskError && error.kind === "busy";
  const locked = (path: string) => openWritable(path, { format: "raw" });
  {
    await using _ = await locked(disks[1]);
    const options = { format: "raw", companions: [disks[1]] };
    assert.equal((await survey(disks[0], options)).exact, false);
    await assert.rejects(reclaim(disks[0], options), isBusy);
    await assert.rejects(convert(disks[0], copy, options), isBusy);
  }
  await using _ = await locked(stranger);
  const options = { format: "raw", candidates: [stranger, disks[1]] };
  assert.equal((await survey(disks[0], options)).exact, true);
  assert.equal((await reclaim(disks[0], options)).applied, true);
  assert.equal((await convert(disks[0], copy, options)).destination, copy);
});

test("H3: a guest that sleeps on another of its disks keeps everything on this one", async (t) => {
  if (!available(t)) return;
  const [disk, other] = [blankDisk(t, 16 * MiB), blankDisk(t, 4 * MiB)];
  run(
    "sfdisk",
    ["-q", disk],
    "label: gpt\nstart=2048, size=16384\nstart=28672, size=2048, type=21686148-6449-6E6F-744E-656564454649\n",
  );
  makeFilesystem(disk, { start: MiB, end: 9 * MiB }, ["-t", "ext4"]);
  run("mkswap", [other]);
  run("dd", [`of=${other}`, "bs=1", "seek=4086", "conv=notrunc", "status=none"], "S1SUSPEND\0");
  const foundWith = async (options: SurveyOptions) => {
    const { volumes, witnesses } = await survey(disk, { format: "raw", also: ["gaps"], ...options });
    const gaps = witnesses.find(({ witness }) => witness === "gaps")!;
    return [volumes[0]!.reason?.code, gaps.bytes > 0];
  };
  assert.deepEqual(await foundWith({ companions: [other] }), ["hibernated", false]);
  assert.deepEqual(await foundWith({ candidates: [other] }), [undefined, true]);
});

test("H17: nothing is judged through an image that is damaged", async (t) => {
  if (!available(t)) return;
  const { disks } = group(t);
  const qcow2 = join(scratch(t), "b.qcow2");
  run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", disks[1], qcow2]);
  const bytes = readFileSync(qcow2);
  const counts = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(48))));
  bytes.writeUInt16BE(0, counts + 2 * 5);
  writeFileSync(qcow2, bytes);
  for (const dryRun of [true, false]) {
    await assert.rejects(reclaim(disks[0], { companions: [qcow2], dryRun }), /b\.qcow2 has 2 errors/);
  }
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

test("a group on the volumes of another group", async (t) => {
  if (!available(t)) return;
  const inner = group(t);
  const outer = lvmDisks(t, [2 * DISK_BYTES, 2 * DISK_BYTES], ([a, b]) => [
    ["vgcreate", "-s", "1M", "host", a!, b!],
    lvcreate("-L", `${DISK_BYTES}b`, "-n", "first", "host", a!),
    lvcreate("-L", `${DISK_BYTES}b`, "-n", "second", "host", b!),
  ]) as [string, string];
  for (const [i, disk] of inner.disks.entries())
    run("dd", [`if=${disk}`, `of=${outer[i]}`, "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"]);
  const [disk, companion] = outer;
  const options = { format: "raw", companions: [companion] };
  const { volumes } = await survey(disk, options);
  const root = volumes.find(({ name }) => name === "vg0/root");
  assert.equal(root?.state, "clean", root?.reason?.message);
  const { offsets } = await explain(disk, { ...options, offsets: [EXTENTS_AT + EXTENTS_AT + 1080] });
  assert.equal(offsets[0]!.owner, "superblock");
  assert.match(offsets[0]!.trail.join(", "), /volume host\/first .*, lvm2 volume vg0\/root/);
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
