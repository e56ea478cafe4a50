/**
 * Whole reclaims of small guests' disks through the library, judged by e2fsck and by the host.
 */
import assert from "node:assert/strict";
import {
  closeSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { create, explain, type ReclaimOptions, reclaim, survey } from "../src/disk.ts";
import { DiskError } from "../src/error.ts";
import { makeGuest } from "../src/testing/guest.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";

const MIB = 2 ** 20;
const yes: ReclaimOptions = { confirm: async () => true };

const hostBytes = (file: string) => statSync(file).blocks * 512;

function refusedAs(code: string) {
  return (error: unknown) => error instanceof DiskError && error.kind === "refused" && error.code === code;
}

test("a raw disk gives back what was promised, and stays clean", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "e2fsck")) return;
  const disk = makeGuest({ folder: scratch(t), name: "disk.raw", bytes: 32 * MIB });
  const { reclaimableBytes } = await survey(disk);
  assert.ok(reclaimableBytes > 256 * 1024, `${reclaimableBytes}`);
  const before = hostBytes(disk);
  const done = await reclaim(disk, { ...yes, verify: true });
  assert.equal(done.predictedBytes, reclaimableBytes);
  assert.equal(done.verified, true);
  assert.ok(
    Math.abs(before - hostBytes(disk) - reclaimableBytes) <= 8192,
    "only the host's own metadata differs",
  );
  assert.equal(attempt("e2fsck", ["-fn", disk]).status, 0);
  assert.equal((await survey(disk)).reclaimableBytes, 0, "nothing is left");
});

test("H33: an image that is somebody's parent is refused, unless the user swears", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  const folder = scratch(t);
  const disk = makeGuest({ folder, name: "base.raw", bytes: 16 * MIB });
  run("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", join(folder, "child.img")]);
  await assert.rejects(reclaim(disk, yes), refusedAs("has-children"));
  await assert.rejects(reclaim(disk, { ...yes, dryRun: true }), refusedAs("has-children"));
  assert.equal((await reclaim(disk, { ...yes, allow: { children: true } })).applied, true);
});

test("H33: a rebased child reads its parent's free blocks, which is why", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  const folder = scratch(t);
  const before = makeGuest({ folder, name: "before.raw", bytes: 16 * MIB });
  const disk = join(folder, "base.raw");
  run("cp", [before, disk]);
  const child = join(folder, "child.qcow2");
  run("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "before.raw", "-F", "raw", child]);
  run("debugfs", ["-w", "-R", "rm /dir/file1", disk]);
  run("qemu-img", ["rebase", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", child]);
  const flat = join(folder, "flat");
  const hash = () => {
    run("qemu-img", ["convert", "-O", "raw", child, flat]);
    return run("sha256sum", [flat]);
  };
  const content = hash();
  await reclaim(disk, { ...yes, allow: { children: true } });
  assert.notEqual(hash(), content, "the oath was false, and the child shows it");
});

test("a dirty journal refuses the volume, by default", async (t) => {
  if (!requires(t, "mke2fs", "debugfs")) return;
  const disk = makeGuest({ folder: scratch(t), name: "disk.raw", bytes: 32 * MIB });
  run("debugfs", ["-w", "-R", "feature needs_recovery", disk]);
  const before = hostBytes(disk);
  const { volumes, reclaimableBytes, unknownBytes, virtualBytes } = await survey(disk);
  assert.equal(volumes[0]!.state, "refused");
  assert.equal(volumes[0]!.reason!.code, "journal-dirty");
  assert.equal(reclaimableBytes, 0);
  assert.ok(unknownBytes > 0 && unknownBytes <= virtualBytes);
  assert.equal((await reclaim(disk, yes)).applied, false);
  assert.equal(hostBytes(disk), before);
});

test("--also zeros returns zeros of any volume, and nothing else", async (t) => {
  if (!requires(t, "fallocate")) return;
  const disk = join(scratch(t), "strange.raw");
  const content = Buffer.alloc(8 * MIB, 0x5a);
  content.fill(0, MIB, 3 * MIB);
  content.fill(0, 4 * MIB + 100, 5 * MIB);
  // In one piece: a host needs a block of its own for the list of many.
  run("fallocate", ["-l", String(content.length), disk]);
  writeFileSync(disk, content, { flag: "r+" });
  assert.equal((await survey(disk)).reclaimableBytes, 0);
  const done = await reclaim(disk, { ...yes, also: ["zeros"], verify: true });
  assert.equal(done.reclaimedBytes, 2 * MIB + MIB - 4096);
  assert.ok(readFileSync(disk).equals(content));
});

test("a disk that was preallocated on purpose stays, unless allowed", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "fallocate")) return;
  const folder = scratch(t);
  const disk = makeGuest({ folder, name: "disk.raw", bytes: 32 * MIB });
  run("fallocate", ["-l", String(32 * MIB), disk]);
  const kept = await survey(disk);
  const { reclaimableBytes } = await survey(disk, { allow: { preallocated: true } });
  assert.ok(reclaimableBytes > kept.reclaimableBytes + 16 * MIB);
  await reclaim(disk, yes);
  assert.ok(hostBytes(disk) > 16 * MIB);
  await reclaim(disk, { ...yes, allow: { preallocated: true } });
  assert.ok(hostBytes(disk) < 8 * MIB);
});

test("explain: structures, files and freed blocks of a bare filesystem", async (t) => {
  if (!requires(t, "mke2fs", "debugfs")) return;
  const disk = makeGuest({ folder: scratch(t), name: "disk.raw", bytes: 32 * MIB });
  const block = (file: string, index: number) =>
    Number(run("debugfs", ["-R", `bmap ${file} ${index}`, disk]).trim()) * 4096;
  const third = block("/dir/file1", 2);
  const freed = run("debugfs", ["-R", "ffb 1", disk]);
  const freeBlock = Number(/\d+/.exec(freed.replace(/^.*:/, ""))![0]) * 4096;
  const { offsets } = await explain(disk, { offsets: [1024, third, freeBlock] });
  assert.equal(offsets[0]!.class, "metadata");
  assert.match(offsets[0]!.owner!, /superblock/);
  assert.equal(offsets[1]!.class, "used");
  assert.equal(offsets[1]!.ownerPath, "/dir/file1");
  assert.equal(offsets[1]!.fileOffset, third);
  assert.ok(["returnable", "hole"].includes(offsets[2]!.class), offsets[2]!.class);
});

test("explain --path: the pieces of a file lie where debugfs says", async (t) => {
  if (!requires(t, "mke2fs", "debugfs")) return;
  const disk = makeGuest({ folder: scratch(t), name: "disk.raw", bytes: 32 * MIB });
  const { file } = await explain(disk, { file: "/dir/file3" });
  const blocks = run("debugfs", ["-R", "blocks /dir/file3", disk]).trim().split(/\s+/).map(Number);
  const found = file!.pieces.flatMap(({ offset, bytes }) =>
    Array.from({ length: Math.ceil(bytes / 4096) }, (_, i) => offset / 4096 + i),
  );
  assert.deepEqual(found, blocks);
  await assert.rejects(explain(disk, { file: "/no/such" }), { kind: "usage" });
});

test("H5: a filesystem on a member of a RAID set is not read as if it were alone", async (t) => {
  if (!requires(t, "mke2fs", "debugfs")) return;
  const disk = makeGuest({ folder: scratch(t), name: "disk.raw", bytes: 16 * MIB });
  run("truncate", ["-s", String(17 * MIB), disk]);
  const image = openSync(disk, "r+");
  writeSync(image, Buffer.from("fc4e2ba9", "hex"), 0, 4, 17 * MIB - 65536);
  closeSync(image);
  const { volumes, reclaimableBytes } = await survey(disk);
  assert.match(volumes[0]!.reason!.message, /RAID/);
  assert.equal(reclaimableBytes, 0);
});

test("H21: a descriptor is no guest's work: the extents of a VMDK are reclaimed without more words", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  const folder = scratch(t);
  const guest = makeGuest({ folder, name: "disk.raw", bytes: 16 * MIB });
  for (const subformat of ["twoGbMaxExtentSparse", "monolithicFlat"]) {
    const disk = join(folder, `${subformat}.vmdk`);
    run("qemu-img", ["convert", "-f", "raw", "-O", "vmdk", "-o", `subformat=${subformat}`, guest, disk]);
    const { applied, reclaimedBytes } = await reclaim(disk, yes);
    assert.equal(applied, true);
    assert.ok(reclaimedBytes! > 0, subformat);
  }
});

test("H21: a guest's own qcow2 header does not reach into another file", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  const folder = scratch(t);
  const victim = makeGuest({ folder, name: "victim.raw", bytes: 16 * MIB });
  const attacker = join(folder, "attacker.raw");
  const options = `data_file=${victim},data_file_raw=on`;
  run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, attacker, String(16 * MIB)]);
  run("qemu-img", ["amend", "-q", "-f", "qcow2", "-o", "data_file=victim.raw", attacker]);
  run("cp", [makeGuest({ folder, name: "again.raw", bytes: 16 * MIB }), victim]);
  const before = hostBytes(victim);
  await assert.rejects(reclaim(attacker, { ...yes, allow: { children: true } }), refusedAs("format-guessed"));
  assert.equal(hostBytes(victim), before);
  const stated = { ...yes, allow: { children: true }, format: "qcow2" };
  assert.equal((await reclaim(attacker, stated)).applied, true);
  assert.ok(hostBytes(victim) < before);
});

test("H33: a neighbour that cannot be understood may be a child", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  const folder = scratch(t);
  const disk = makeGuest({ folder, name: "base.raw", bytes: 16 * MIB });
  const child = join(folder, "child.qcow2");
  run("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", child]);
  const image = openSync(child, "r+");
  writeSync(image, Buffer.from([0x80]), 0, 1, 72); // An incompatible feature that nobody knows.
  closeSync(image);
  await assert.rejects(reclaim(disk, yes), refusedAs("has-children"));
});

test("H33: a child that knows its parent by an identifier alone is found under any name", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  const folder = scratch(t);
  const guest = makeGuest({ folder, name: "guest.raw", bytes: 16 * MIB });
  const disk = join(folder, "base.vdi");
  run("qemu-img", ["convert", "-f", "raw", "-O", "vdi", guest, disk]);
  const options = { backing_file: "base.vdi" };
  await create({ path: join(folder, "child.vdi"), format: "vdi", virtualBytes: 16 * MIB, options });
  renameSync(disk, join(folder, "renamed"));
  await assert.rejects(reclaim(join(folder, "renamed"), yes), refusedAs("has-children"));
  rmSync(join(folder, "child.vdi"));
  assert.equal((await reclaim(join(folder, "renamed"), yes)).applied, true);
});

test("H3: a hibernated guest keeps everything", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "sfdisk")) return;
  const folder = scratch(t);
  const guest = makeGuest({ folder, name: "guest.raw", bytes: 16 * MIB });
  const disk = join(folder, "disk.raw");
  run("truncate", ["-s", String(24 * MIB), disk]);
  run("sfdisk", ["-q", disk], "label: dos\nstart=2048, size=32768, type=83\nstart=34816, type=82\n");
  run("dd", [`if=${guest}`, `of=${disk}`, "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"]);
  const awake = await survey(disk);
  assert.equal(awake.volumes[0]!.state, "clean");
  const image = openSync(disk, "r+");
  writeSync(image, Buffer.from("S1SUSPEND"), 0, 9, 34816 * 512 + 4086);
  closeSync(image);
  const asleep = await survey(disk);
  assert.equal(asleep.volumes[0]!.reason!.code, "hibernated");
  assert.equal(asleep.reclaimableBytes, 0);
});

test("H21: a filesystem below the signature of another owner is not believed", async (t) => {
  if (!requires(t, "mke2fs", "debugfs")) return;
  for (const [at, magic] of [
    [0, "LUKS\xba\xbe"],
    [0x10040, "_BHRfS_M"],
  ] as const) {
    const disk = makeGuest({ folder: scratch(t), name: "disk.raw", bytes: 16 * MIB });
    const file = openSync(disk, "r+");
    writeSync(file, magic, at, "latin1");
    closeSync(file);
    const { volumes, reclaimableBytes } = await survey(disk);
    assert.equal(volumes[0]!.reason!.code, "ambiguous", magic);
    assert.equal(reclaimableBytes, 0);
  }
});
