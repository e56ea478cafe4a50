/**
 * The guard over real images: a guest's whole disk is trimmed and comes back, other commands see what is guarded, and a
 * foreign writer is noticed.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { chmodSync, existsSync, readFileSync, statSync, utimesSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { readBytes } from "../src/device/device.ts";
import { Borrowed } from "../src/device/filter.ts";
import { openGuard } from "../src/disk/guarded.ts";
import { open, openWritable } from "../src/disk/open.ts";
import { convert, explain, reclaim, survey, undo } from "../src/disk.ts";
import type { DiskError } from "../src/error.ts";
import type { Guard } from "../src/live/guard.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";

const MIB = 1024 * 1024;
const DISK_BYTES = 24 * MIB;

/** A raw ext4 disk with files in it. */
function guest(folder: string): string {
  const raw = join(folder, "guest.raw");
  const content = join(folder, "content");
  run("mkdir", [content, join(content, "sub")]);
  for (let i = 0; i < 12; i++) {
    const name = join(content, i % 2 ? "sub" : ".", `file${i}`);
    run("sh", ["-c", `head -c ${50_000 * (i + 1)} /dev/urandom > ${name}`]);
  }
  run("mke2fs", ["-q", "-t", "ext4", "-d", content, raw, `${DISK_BYTES / 1024}k`]);
  return raw;
}

/** Of every file, as debugfs reads it. */
function hashes(folder: string, raw: string): Record<string, string> {
  const found: Record<string, string> = {};
  for (let i = 0; i < 12; i++) {
    const name = `${i % 2 ? "/sub" : ""}/file${i}`;
    const copy = join(folder, "dump");
    attempt("debugfs", ["-R", `dump ${name} ${copy}`, raw]);
    found[name] = existsSync(copy) ? createHash("sha256").update(readFileSync(copy)).digest("hex") : "";
    run("rm", ["-f", copy]);
  }
  return found;
}

/** Opens an image with its guard, works on it, and closes both. */
async function served(path: string, work: (guard: Guard) => Promise<void>, now = Date.now): Promise<void> {
  let sealed = async (): Promise<void> => {};
  {
    await using disk = await openWritable(path, { withGuard: true });
    const opened = await openGuard(disk, new Borrowed(disk.image), {
      forMs: 24 * 3600 * 1000,
      maxBytes: 1024 * MIB,
      now,
    });
    await work(opened.guard);
    await opened.guard[Symbol.asyncDispose]();
    sealed = () => opened.seal();
  }
  await sealed();
}

function imageOf(t: TestContext, format: string): { folder: string; raw: string; path: string } {
  const folder = scratch(t);
  const raw = guest(folder);
  const path = join(folder, `disk.${format}`);
  if (format === "raw") run("cp", [raw, path]);
  else run("qemu-img", ["convert", "-f", "raw", "-O", format, raw, path]);
  return { folder, raw, path };
}

const rawOf = (folder: string, path: string, format: string): string => {
  const copy = join(folder, "copy.raw");
  run("qemu-img", ["convert", "-f", format, "-O", "raw", path, copy]);
  return copy;
};

/** Where so many bytes of files lie in one piece. */
function placeOfData(disk: Buffer, bytes: number): number {
  const zeros = Buffer.alloc(512);
  const isData = (at: number): boolean => disk.compare(zeros, 0, 512, at, at + 512) !== 0;
  for (let at = 0, from = 0; at < disk.length; at += 512) {
    if (!isData(at)) from = at + 512;
    else if (at + 512 - from >= bytes + 512) return from;
  }
  throw new Error("no such place");
}

for (const format of ["raw", "qcow2"]) {
  test(`${format}: a disk that is trimmed as a whole comes back, file by file`, async (t) => {
    if (!requires(t, "mke2fs", "debugfs", "e2fsck", "qemu-img")) return;
    const { folder, raw, path } = imageOf(t, format);
    const before = hashes(folder, raw);
    const began = Date.now();
    await served(path, async (guard) => {
      await guard.discard({ start: 0, end: DISK_BYTES });
      await guard.flush();
      assert.ok(
        (await readBytes(guard, 0, DISK_BYTES)).every((byte) => byte === 0),
        "reads zeros",
      );
    });
    const { guard, regions } = await survey(path);
    assert.ok(guard !== null && guard.maskedBytes > 3 * MIB);
    assert.equal(regions.get("guarded")!.bytes, guard.maskedBytes);
    const shown = await undo(path, { last: true, dryRun: true });
    assert.equal(shown.restoredBytes, guard.guardedBytes);
    const done = await undo(path, { since: began });
    assert.equal(done.restoredBytes, guard.guardedBytes);
    assert.ok(!existsSync(`${path}.ullage-guard`), "an empty guard leaves nothing behind");
    const copy = rawOf(folder, path, format);
    assert.equal(Buffer.compare(readFileSync(copy), readFileSync(raw)), 0, "byte by byte");
    assert.deepEqual(hashes(folder, copy), before);
    run("e2fsck", ["-fn", copy]);
  });

  test(`${format}: zeroed, stopped, written to: what was not written since comes back, and all of it over writes`, async (t) => {
    if (!requires(t, "mke2fs", "qemu-img")) return;
    const { folder, raw, path } = imageOf(t, format);
    const original = readFileSync(raw);
    let now = 1_700_000_000_000;
    const clock = (): number => now;
    await served(path, (guard) => guard.zero({ start: 0, end: DISK_BYTES }), clock);
    const zeros = readFileSync(rawOf(folder, path, format));
    assert.ok(
      zeros.every((byte) => byte === 0),
      "other tools read the zeros that the guest was promised",
    );
    now += 60_000;
    const data = Buffer.alloc(100_000, 7);
    const at = placeOfData(original, data.length);
    await served(path, (guard) => guard.write(at, data), clock);
    const plan = await undo(path, { since: now - 60_000, dryRun: true });
    assert.equal(plan.writtenBytes, data.length);
    await undo(path, { since: now - 60_000 });
    const expected = Buffer.from(original);
    data.copy(expected, at);
    assert.equal(readFileSync(rawOf(folder, path, format)).compare(expected), 0);
    await undo(path, { since: now - 60_000, overWrites: true });
    assert.equal(readFileSync(rawOf(folder, path, format)).compare(original), 0);
    await undo(path, { since: 0, dryRun: true }).then(
      () => assert.fail("nothing is left"),
      (error: DiskError) => assert.equal(error.code, "no-guard"),
    );
  });

  test(`${format}: an overlay shows the disk as it was; the image stays as it is`, async (t) => {
    if (!requires(t, "mke2fs", "qemu-img")) return;
    const { folder, raw, path } = imageOf(t, format);
    let now = 1_700_000_000_000;
    await served(
      path,
      async (guard) => {
        await guard.discard({ start: 0, end: 4 * MIB });
        now += 3_600_000;
        await guard.discard({ start: 4 * MIB, end: DISK_BYTES });
      },
      () => now,
    );
    const bytes = readFileSync(path);
    const to = join(folder, "undone.qcow2");
    const done = await undo(path, { last: true, to });
    assert.ok(done.applied && done.destination === to);
    assert.equal(readFileSync(path).compare(bytes), 0, "the image is as it was");
    const expected = Buffer.from(readFileSync(raw));
    expected.fill(0, 0, 4 * MIB);
    assert.equal(readFileSync(rawOf(folder, to, "qcow2")).compare(expected), 0);
    run("qemu-img", ["check", "-q", to]);
  });
}

test("writers are refused while something is guarded, and readers see what the guest does", async (t) => {
  if (!requires(t, "mke2fs", "qemu-img")) return;
  const { folder, path } = imageOf(t, "qcow2");
  chmodSync(path, 0o600);
  await served(path, (guard) => guard.discard({ start: 0, end: 8 * MIB }));
  assert.equal(statSync(`${path}.ullage-guard`).mode & 0o777, 0o600, "old bytes are as private as the image");
  for (const refused of [
    () => reclaim(path),
    () => reclaim(path, { dryRun: true }),
    () => openWritable(path),
  ]) {
    await assert.rejects(refused, (error: DiskError) => error.kind === "refused" && error.code === "guarded");
  }
  const seen = await survey(path);
  assert.equal(seen.usedBytes + seen.freeBytes + seen.unknownBytes, seen.virtualBytes);
  assert.equal(
    [...seen.regions.values()].reduce((sum, set) => sum + set.bytes, 0),
    seen.virtualBytes,
  );
  assert.equal(seen.reclaimableBytes, 0);
  const { start } = [...seen.regions.get("guarded")!][0]!;
  const [explained] = (await explain(path, { offsets: [start] })).offsets;
  assert.equal(explained!.class, "guarded");
  await using disk = await open(path);
  assert.ok((await readBytes(disk.image, 0, 8 * MIB)).every((byte) => byte === 0));
  const copy = join(folder, "copy.raw");
  await convert(path, copy, { includeFree: true });
  assert.ok(
    readFileSync(copy)
      .subarray(0, 8 * MIB)
      .every((byte) => byte === 0),
    "a copy holds no trimmed bytes",
  );
  const forgotten = await undo(path, { forget: true });
  assert.ok(forgotten.forgotten);
  assert.ok(!existsSync(`${path}.ullage-guard`));
  await using after = await open(path);
  assert.ok((await readBytes(after.image, 0, 8 * MIB)).every((byte) => byte === 0));
});

test("a foreign writer is noticed: nothing is masked, and nothing is zeroed", async (t) => {
  if (!requires(t, "mke2fs", "qemu-img", "qemu-io")) return;
  const { folder, path } = imageOf(t, "qcow2");
  await served(path, (guard) => guard.discard({ start: 0, end: 8 * MIB }));
  const { mtimeMs } = statSync(path);
  run("qemu-io", ["-f", "qcow2", "-c", "write -P 5 1M 64k", path]);
  assert.notEqual(statSync(path).mtimeMs, mtimeMs);
  await using disk = await open(path);
  assert.ok(
    (await readBytes(disk.image, MIB, 65_536)).every((byte) => byte === 5),
    "his bytes are there",
  );
  const isStale = (error: DiskError): boolean => error.kind === "refused" && error.code === "guard-stale";
  await assert.rejects(
    served(path, () => Promise.resolve()),
    isStale,
  );
  await assert.rejects(undo(path, { last: true }), isStale);
  const shown = await undo(path, { last: true, dryRun: true });
  assert.notEqual(shown.doubt, null);
  await undo(path, { forget: true });
  const content = readFileSync(rawOf(folder, path, "qcow2"));
  assert.ok(
    content.subarray(MIB, MIB + 65_536).every((byte) => byte === 5),
    "his bytes are still there",
  );
});

test("a copy of image and guard fits; an image that only looks older does not", async (t) => {
  if (!requires(t, "mke2fs", "qemu-img")) return;
  const { folder, path } = imageOf(t, "qcow2");
  await served(path, (guard) => guard.discard({ start: 0, end: 8 * MIB }));
  const copy = join(folder, "moved.qcow2");
  run("cp", ["-p", path, copy]);
  run("cp", ["-p", `${path}.ullage-guard`, `${copy}.ullage-guard`]);
  assert.equal((await undo(copy, { last: true, dryRun: true })).doubt, null);
  utimesSync(copy, new Date(0), new Date(0));
  assert.notEqual((await undo(copy, { last: true, dryRun: true })).doubt, null);
});

test("the command shows, asks, brings back, and says so in JSON and by its exit code", async (t) => {
  if (!requires(t, "mke2fs", "qemu-img")) return;
  const { folder, raw, path } = imageOf(t, "qcow2");
  const ullage = (...words: string[]) =>
    attempt(process.execPath, [join(import.meta.dirname, "../src/cli/main.ts"), "undo", path, ...words]);
  assert.equal(ullage().status, 2, "nothing is guarded");
  await served(path, (guard) => guard.discard({ start: 0, end: DISK_BYTES }));
  const listed = ullage();
  assert.equal(listed.status, 0);
  assert.match(listed.stdout, /trimmed/);
  assert.equal(ullage("--last").status, 2, "nobody can be asked");
  assert.equal(ullage("--since", "yesterday").status, 2);
  assert.equal(ullage("--over-writes").status, 2, "nothing says what to take back");
  const dry = ullage("--last", "--dry-run", "--json");
  const [plan] = (JSON.parse(dry.stdout) as { images: { applied: boolean; restoredBytes: number }[] }).images;
  assert.ok(!plan!.applied && plan!.restoredBytes > 3 * MIB);
  const done = ullage("--since", "2026-01-01", "--yes");
  assert.equal(done.status, 0, done.stderr);
  assert.match(done.stdout, /are back/);
  assert.equal(readFileSync(rawOf(folder, path, "qcow2")).compare(readFileSync(raw)), 0);
});
