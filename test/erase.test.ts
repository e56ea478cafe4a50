/**
 * Erasures of real guests' disks, judged by what a search of the host's file still finds, and by the guest's own tools.
 */
import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { convert, erase, type Erased, type EraseOptions, reclaim, survey } from "../src/disk.ts";
import { openWritable } from "../src/disk/open.ts";
import { Erasing } from "../src/live/erase.ts";
import { mounted } from "../src/testing/mounted.ts";
import { inNtfs, makeNtfs, NTFS_TOOLS } from "../src/testing/ntfs.ts";
import { qemuCheck } from "../src/testing/qemu.ts";
import { Random } from "../src/testing/seeds.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const SECRET = "THE-SECRET-OF-THE-TEST";
const yes: EraseOptions = { confirm: async () => true };

/** How often the secret lies in a file of the host: what a carver would find. */
function sightings(path: string): number {
  const content = readFileSync(path);
  let count = 0;
  for (let at = content.indexOf(SECRET); at >= 0; at = content.indexOf(SECRET, at + 1)) count++;
  return count;
}

function secret(bytes: number): Buffer {
  return Buffer.alloc(bytes, `${SECRET} abcdefghijklmnopqrstuvwxyz 0123456789\n`);
}

/** ext4 with 1 KiB blocks, four in a block of the host: of each pair of small files, one with a secret is deleted. */
function guestWithSecrets(folder: string): string {
  const random = new Random(1);
  const tree = join(folder, "tree");
  mkdirSync(tree);
  const deleted: string[] = [];
  for (let i = 0; i < 60; i++) {
    writeFileSync(join(tree, `${i}keep`), random.bytes(1 + random.below(9 * KIB)));
    writeFileSync(join(tree, `${i}secret`), secret(1 + random.below(i % 10 === 0 ? 200 * KIB : 5 * KIB)));
    deleted.push(`rm /${i}secret`);
  }
  const path = join(folder, "guest.raw");
  writeFileSync(path, "");
  run("truncate", ["-s", String(16 * MIB), path]);
  run("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "1024", "-d", tree, path]);
  run("debugfs", ["-w", "-f", "-", path], deleted.join("\n"));
  return path;
}

/** Hashes of all files of an ext filesystem, as debugfs reads them. */
function hashes(raw: string, folder: string): string {
  const out = join(folder, "dump");
  run("rm", ["-rf", out]);
  mkdirSync(out);
  run("debugfs", ["-R", `rdump / ${out}`, raw]);
  return run("sh", ["-c", `cd "$1" && find . -type f | sort | xargs sha256sum`, "sh", out]);
}

function requireErased(done: Erased): void {
  assert.equal(done.applied, true);
  assert.equal(done.grade, "logical", "nothing below this test is known to be a disk that turns");
  assert.ok(done.canaries !== null && done.canaries.planted > 10, JSON.stringify(done.canaries));
  assert.equal(done.canaries.found, 0);
  assert.ok(done.samples !== null && done.samples.taken > 0);
  assert.equal(done.samples.found, 0);
  assert.equal(done.verified, true);
  assert.ok(done.erasedBytes > 0);
  assert.deepEqual(done.check, { errors: 0, leaks: 0 });
}

for (const format of ["raw", "qcow2", "vhdx", "vmdk"] as const) {
  test(`${format}: nothing of a deleted file is found after an erasure, and every other file is whole`, async (t) => {
    if (!requires(t, "mke2fs", "debugfs", "e2fsck", "qemu-img")) return;
    const folder = scratch(t);
    const guest = guestWithSecrets(folder);
    const before = hashes(guest, folder);
    const disk = join(folder, `disk.${format}`);
    if (format === "raw") copyFileSync(guest, disk);
    else await convert(guest, disk, { format: "raw", to: format, includeFree: true });
    assert.ok(sightings(disk) > 5000, "a carver finds it before");
    const pattern = format === "qcow2" ? "zeros" : "random";
    const done = await erase(disk, { ...yes, verify: true, pattern });
    requireErased(done);
    assert.equal(sightings(disk), 0);
    assert.equal(done.sharedBytes + done.compressedBytes, 0);
    const after = join(folder, "after.raw");
    run("qemu-img", ["convert", "-f", format, "-O", "raw", disk, after]);
    assert.equal(attempt("e2fsck", ["-fn", after]).status, 0);
    assert.equal(hashes(after, folder), before);
    assert.equal(sightings(after), 0);
    if (format === "qcow2") assert.deepEqual(qemuCheck(disk), { errors: 0, leaks: 0 });
    assert.equal((await survey(disk)).reclaimableBytes, 0);
    const again = await erase(disk, yes);
    assert.ok(again.erasedBytes < 256 * KIB, "holes have nothing to overwrite; small pieces are done again");
  });
}

for (const format of ["raw", "qcow2"] as const) {
  test(`${format}: a hole leaves a deleted file on the device below, an erasure does not`, async (t) => {
    if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
    const source = join(scratch(t), "source");
    const guest = guestWithSecrets(scratch(t));
    if (format === "raw") copyFileSync(guest, source);
    else await convert(guest, source, { format: "raw", to: format, includeFree: true });
    for (const give of [reclaim, erase]) {
      const point = mounted(t, "ext4", 64);
      if (point === undefined) return;
      const disk = join(point, "disk");
      run("cp", [source, disk]);
      run("sync", ["-f", point]);
      await give(disk, {});
      run("sync", ["-f", point]);
      const left = sightings(join(point, "../image"));
      if (give === reclaim) assert.ok(left > 1000, `${left}`);
      else assert.equal(left, 0);
    }
  });
}

test("a file of the image that lies on another device counts for the grade", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  const folder = scratch(t);
  const guest = guestWithSecrets(folder);
  const point = mounted(t, "btrfs", 160);
  if (point === undefined) return;
  const disk = join(folder, "disk.qcow2");
  const data = `data_file=${join(point, "data")},data_file_raw=off`;
  run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", "-o", data, guest, disk]);
  const options: EraseOptions = { format: "qcow2", allow: { outside: [point] } };
  const planned = await erase(disk, { ...options, dryRun: true });
  const done = await erase(disk, { ...yes, ...options });
  for (const { reasons } of [planned, done]) assert.match(reasons.join("; "), /btrfs is not known/);
});

test("what lies behind a promise of zeros in a data file is erased too", async (t) => {
  if (!requires(t, "mke2fs", "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  const tree = join(folder, "tree");
  mkdirSync(tree);
  writeFileSync(join(tree, "file"), secret(MIB));
  const guest = join(folder, "guest.raw");
  run("mke2fs", ["-q", "-F", "-t", "ext4", "-d", tree, guest, "16M"]);
  const start = Math.ceil(readFileSync(guest).indexOf(SECRET) / (64 * KIB)) * 64 * KIB;
  const [disk, data] = [join(folder, "disk.qcow2"), join(folder, "data")];
  const external = `data_file=${data},data_file_raw=off`;
  run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", "-o", external, guest, disk]);
  run("qemu-io", ["-f", "qcow2", disk, "-c", `write -z ${start} 512k`]);
  const inZeros = (): number =>
    readFileSync(data)
      .subarray(start, start + 512 * KIB)
      .indexOf(SECRET);
  assert.ok(inZeros() >= 0, "QEMU leaves it there");
  await erase(disk, { ...yes, format: "qcow2", verify: true });
  assert.equal(inZeros(), -1);
  assert.ok(readFileSync(data).indexOf(SECRET) >= 0, "the rest of the file is used");
  assert.deepEqual(qemuCheck(disk), { errors: 0, leaks: 0 });
});

test("on hosts that write elsewhere, or tell nothing, the grade says why it is no more than logical", async (t) => {
  if (!requires(t, "mke2fs", "debugfs")) return;
  const guest = guestWithSecrets(scratch(t));
  for (const [host, reason] of [
    ["btrfs", /btrfs is not known to overwrite.*the host moved blocks/],
    ["tmpfs", /tmpfs is not known to overwrite.*is not known/],
    ["xfs", /below loop\d+ is not known/],
  ] as const) {
    const point = mounted(t, host, 160);
    if (point === undefined) return;
    const disk = join(point, "disk");
    run("cp", ["--reflink=never", guest, disk]);
    const done = await erase(disk, { ...yes, verify: true });
    requireErased(done);
    assert.match(done.reasons.join("; "), reason);
    assert.doesNotMatch(done.reasons.join("; "), host === "xfs" ? /moved/ : /^$/);
    assert.equal(sightings(disk), 0);
  }
});

test("NTFS: nothing of a deleted file is found after an erasure", async (t) => {
  if (!requires(t, ...NTFS_TOOLS, "qemu-img")) return;
  const folder = scratch(t);
  const guest = makeNtfs(join(folder, "guest.raw"), 24 * MIB);
  writeFileSync(join(folder, "secret"), secret(3 * MIB));
  inNtfs(guest, `cp "${folder}/secret" s; head -c 2000000 /dev/urandom > keep; sync; rm s`);
  const before = inNtfs(guest, "sha256sum keep");
  const disk = join(folder, "disk.qcow2");
  await convert(guest, disk, { format: "raw", includeFree: true });
  assert.ok(sightings(disk) > 10_000);
  requireErased(await erase(disk, { ...yes, verify: true }));
  assert.equal(sightings(disk), 0);
  const after = join(folder, "after.raw");
  run("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", disk, after]);
  assert.equal(inNtfs(after, "sha256sum keep"), before);
});

test("H11: what a snapshot holds is never touched, and is reported", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  const folder = scratch(t);
  const guest = guestWithSecrets(folder);
  const disk = join(folder, "disk.qcow2");
  run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", guest, disk]);
  run("qemu-img", ["snapshot", "-c", "one", disk]);
  const inSnapshot = sightings(disk);
  writeFileSync(join(folder, "secrets"), secret(512 * KIB));
  run("qemu-io", ["-f", "qcow2", "-c", `write -s ${folder}/secrets 13M 512k`, disk]);
  const snapshot = (): string => {
    const raw = join(folder, "snapshot.raw");
    run("qemu-img", ["convert", "-l", "snapshot.name=one", "-f", "qcow2", "-O", "raw", disk, raw]);
    return run("sha256sum", [raw]);
  };
  const before = snapshot();
  assert.ok(sightings(disk) > inSnapshot);
  const done = await erase(disk, { ...yes, verify: true });
  assert.ok(done.sharedBytes > 100 * KIB, `${done.sharedBytes}`);
  assert.ok(done.erasedBytes > 100 * KIB, `${done.erasedBytes}`);
  assert.equal(snapshot(), before);
  assert.equal(sightings(disk), inSnapshot, "the snapshot's own copy, and nothing else");
  assert.deepEqual(qemuCheck(disk), { errors: 0, leaks: 0 });
});

test("what the image itself left lying about is erased too", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  const secrets = join(folder, "secrets");
  writeFileSync(secrets, secret(MIB));
  const write = (disk: string, ...commands: string[]) =>
    run("qemu-io", ["-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), disk]);
  await t.test("clusters that a deleted snapshot held", async () => {
    const disk = join(folder, "dropped.qcow2");
    run("qemu-img", ["create", "-q", "-f", "qcow2", disk, "16M"]);
    write(disk, `write -s ${secrets} 0 1M`);
    run("qemu-img", ["snapshot", "-c", "one", disk]);
    write(disk, "write -P 7 0 1M");
    const kept = `driver=qcow2,pass-discard-snapshot=off,file.driver=file,file.filename=${disk}`;
    run("qemu-img", ["snapshot", "-d", "one", "--image-opts", kept]);
    assert.ok(sightings(disk) > 1000, "they are free in the image, and still there");
    requireErased(await erase(disk, { ...yes, verify: true }));
    assert.equal(sightings(disk), 0);
    write(disk, "read -P 7 0 1M");
  });
  await t.test("clusters that a zero flag hides, and not those that their guest reads", async () => {
    const disk = join(folder, "hidden.qcow2");
    run("qemu-img", ["create", "-q", "-f", "qcow2", disk, "16M"]);
    write(disk, `write -s ${secrets} 0 1M`, "write -P 9 1M 1M", "write -z 0 1M");
    assert.ok(sightings(disk) > 1000, "the table promises zeros over them");
    requireErased(await erase(disk, { ...yes, verify: true }));
    assert.equal(sightings(disk), 0);
    write(disk, "read -P 0 0 1M", "read -P 9 1M 1M");
    assert.deepEqual(qemuCheck(disk), { errors: 0, leaks: 0 });
  });
  await t.test("subclusters that were never written, in clusters that somebody else had", async () => {
    const disk = join(folder, "pieces.qcow2");
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "extended_l2=on", disk, "16M"]);
    write(disk, `write -s ${secrets} 0 1M`);
    const kept = `driver=qcow2,discard=unmap,pass-discard-request=off,file.driver=file,file.filename=${disk}`;
    const pieces = Array.from({ length: 16 }, (_, i) => ["-c", `write -P 4 ${4096 + i * 64}k 2k`]).flat();
    run("qemu-io", ["--image-opts", "-c", "discard 0 1M", ...pieces, kept]);
    assert.ok(sightings(disk) > 1000, "the new owner of a cluster wrote a piece of it");
    requireErased(await erase(disk, { ...yes, verify: true }));
    assert.equal(sightings(disk), 0);
    write(disk, "read -P 0 0 4M", "read -P 4 4M 2k", "read -P 0 4098k 62k");
    assert.deepEqual(qemuCheck(disk), { errors: 0, leaks: 0 });
  });
});

test("H35: what the host shares with another file is left, and told", async (t) => {
  const point = mounted(t, "xfs", 300);
  if (point === undefined || !requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  const folder = scratch(t);
  const guest = guestWithSecrets(folder);
  const image = join(folder, "image.qcow2");
  await convert(guest, image, { format: "raw", includeFree: true });
  await leavesReflinks(point, guest);
  await leavesReflinks(point, image);
});

async function leavesReflinks(point: string, source: string): Promise<void> {
  const disk = join(point, "disk");
  run("rm", ["-f", disk]);
  run("cp", ["--sparse=never", source, disk]);
  const copy = join(point, "copy");
  run("cp", ["--reflink=always", disk, copy]);
  const before = readFileSync(copy);
  const shared = await erase(disk, { ...yes, dryRun: true });
  assert.ok(shared.sharedBytes > 500 * KIB, `${shared.sharedBytes}`);
  assert.equal(shared.erasedBytes, 0, "all of it is shared");
  run("cp", ["--reflink=never", source, disk]);
  const done = await erase(disk, { ...yes, verify: true });
  assert.equal(done.sharedBytes, 0);
  requireErased(done);
  assert.equal(sightings(disk), 0);
  assert.ok(readFileSync(copy).equals(before));
}

test("an erasure that is stopped leaves a whole image, and the next one does the rest", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "e2fsck", "qemu-img")) return;
  const folder = scratch(t);
  const guest = guestWithSecrets(folder);
  const before = hashes(guest, folder);
  const stop = new AbortController();
  let steps = 0;
  const stopped = erase(guest, {
    ...yes,
    signal: stop.signal,
    onProgress: ({ phase }) => {
      if (phase === "erasing" && ++steps === 5) stop.abort();
    },
  });
  await assert.rejects(stopped, { kind: "interrupted" });
  assert.equal(attempt("e2fsck", ["-fn", guest]).status, 0);
  assert.equal(hashes(guest, folder), before);
  assert.ok(sightings(guest) > 0);
  requireErased(await erase(guest, { ...yes, verify: true }));
  assert.equal(sightings(guest), 0);
});

test("a dry run and a no change nothing; guard and erasure exclude each other; dirty guests are refused", async (t) => {
  if (!requires(t, "mke2fs", "debugfs")) return;
  const disk = guestWithSecrets(scratch(t));
  const content = readFileSync(disk);
  const blocks = statSync(disk).blocks;
  const untouched = (): boolean => readFileSync(disk).equals(content) && statSync(disk).blocks === blocks;
  const dry = await erase(disk, { dryRun: true });
  assert.deepEqual([dry.applied, dry.grade, dry.bestGrade, dry.canaries], [false, "none", "logical", null]);
  assert.ok(dry.erasedBytes > 500 * KIB);
  let asked = 0;
  const refused = await erase(disk, {
    confirm: async (_, __, intent) => {
      asked = intent.bytes;
      assert.equal(intent.grade, "logical");
      return false;
    },
  });
  assert.deepEqual([refused.applied, refused.erasedBytes, asked], [false, 0, dry.erasedBytes]);
  writeFileSync(`${disk}.ullage-guard`, Buffer.alloc(8192, "something"));
  for (const dryRun of [true, false])
    await assert.rejects(erase(disk, { ...yes, dryRun }), { kind: "refused", code: "guarded" });
  run("rm", [`${disk}.ullage-guard`]);
  assert.ok(untouched());
  run("debugfs", ["-w", "-R", "feature needs_recovery", disk]);
  assert.equal((await erase(disk, yes)).applied, false);
  assert.ok(sightings(disk) > 1000);
});

/** Opens an image for a server that erases. */
async function served(path: string) {
  const disk = await openWritable(path);
  return { disk, device: new Erasing(disk.image, { pattern: "random" }) };
}

test("live: a TRIM of a snapshot's clusters leaves them alone, of compressed ones is counted, of its own erases", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  const secrets = join(folder, "secrets");
  writeFileSync(secrets, secret(MIB));
  const path = join(folder, "disk.qcow2");
  const write = (...commands: string[]) =>
    run("qemu-io", ["-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), path]);
  run("qemu-img", ["create", "-q", "-f", "qcow2", path, "16M"]);
  write(`write -s ${secrets} 0 1M`);
  run("qemu-img", ["snapshot", "-c", "one", path]);
  const inSnapshot = sightings(path);
  write(`write -s ${secrets} 4M 1M`, "write -P 5 6M 1M", "write -c -P 3 8M 64k");
  write("write -P 5 10M 1M", `write -s ${secrets} 10489856 1040384`);
  {
    const { disk, device } = await served(path);
    await device.discard({ start: 0, end: 5 * MIB });
    await device.discard({ start: 8 * MIB, end: 8 * MIB + 64 * KIB });
    await device.discard({ start: 10 * MIB + 1000, end: 11 * MIB - 1000 });
    await device.settled();
    assert.deepEqual(device.counters, {
      overwrittenBytes: 2 * MIB - 2000,
      sharedBytes: MIB,
      compressedBytes: 64 * KIB,
      failedBytes: 0,
      waitingBytes: 0,
      flushes: 1,
    });
    await device.flush();
    await disk[Symbol.asyncDispose]();
  }
  assert.equal(sightings(path), inSnapshot);
  write("read -P 0 1M 4M", "read -P 5 6M 1M", "read -P 0 8M 64k");
  write("read -P 5 10M 1000", "read -P 0 10486760 1046576", "read -P 5 11533336 1000");
  assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 });
  run("qemu-img", ["snapshot", "-a", "one", path]);
  const raw = join(folder, "snapshot.raw");
  run("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", path, raw]);
  assert.ok(readFileSync(raw).subarray(0, MIB).equals(readFileSync(secrets)));
});
