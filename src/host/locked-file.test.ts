import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { closeSync, linkSync, openSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { readBytes, type Run, wholeMap } from "../device/device.ts";
import { attached, type Mountable, mounted } from "../testing/mounted.ts";
import { requires, run, scratch } from "../testing/tools.ts";
import { LockedFile } from "./locked-file.ts";
import { SystemError } from "./native.ts";
import { type Platform, platform } from "./platform.ts";
import { hostSource } from "./source.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

function drawn(runs: readonly Run[]): string[] {
  return runs.map((run) => `${run.start}-${run.end} ${run.kind}${run.shared ? " shared" : ""}`);
}

test("reads and writes are whole, wherever they lie", async (t) => {
  const path = join(scratch(t), "a");
  const bytes = randomBytes(9 * MIB + 7);
  await using file = await hostSource(path).create();
  await file.write(0, bytes);
  await file.write(3, bytes.subarray(100, 200));
  bytes.copyWithin(3, 100, 200);
  assert.equal(file.bytes, bytes.length);
  assert.deepEqual(readFileSync(path), bytes);
  assert.deepEqual(Buffer.from(await readBytes(file, 0, bytes.length)), bytes);
  assert.deepEqual(
    Buffer.from(await readBytes(file, 5 * MIB - 1, 3)),
    bytes.subarray(5 * MIB - 1, 5 * MIB + 2),
  );
});

test("a read past the end names the file, the offset and the end", async (t) => {
  const path = join(scratch(t), "a");
  writeFileSync(path, "0123456789");
  await using file = await hostSource(path).open();
  await assert.rejects(file.read(8, new Uint8Array(4)), {
    kind: "io",
    code: "short",
    message: `${path}: read of 4 bytes at 8: the file ends at 10`,
  });
});

test("a file that is cut while it is read gives an error, not old bytes", async (t) => {
  const path = join(scratch(t), "a");
  writeFileSync(path, randomBytes(64 * KIB));
  await using file = await hostSource(path).open();
  truncateSync(path, 4 * KIB);
  await assert.rejects(readBytes(file, 0, 64 * KIB), { kind: "io", code: "short" });
});

test("large reads give the event loop its turns", async (t) => {
  const path = join(scratch(t), "a");
  writeFileSync(path, "");
  truncateSync(path, 1024 * MIB);
  await using file = await hostSource(path).open();
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  const into = new Uint8Array(MIB);
  for (let at = 0; at < file.bytes; at += MIB) await file.read(at, into);
  clearInterval(timer);
  assert(turns > 0);
});

for (const filesystem of ["ext4", "xfs", "btrfs", "tmpfs"] satisfies Mountable[]) {
  test(`${filesystem}: a punch gives space back, keeps the length and its neighbours`, async (t) => {
    const folder = mounted(t, filesystem, 128);
    if (folder === undefined) return;
    const path = join(folder, "a");
    const bytes = randomBytes(4 * MIB);
    await using file = await hostSource(path).create();
    await file.write(0, bytes);
    await file.flush();
    const before = await file.stat();
    assert.equal(before.hostBytes, statSync(path).blocks * 512);
    assert.equal(before.blockBytes, Number(run("stat", ["--file-system", "--format=%S", path])));

    await file.punch({ start: MIB, end: MIB + 8 * KIB });
    await file.punch({ start: 2 * MIB + 1, end: 2 * MIB + 3 });
    await file.flush();
    bytes.fill(0, MIB, MIB + 8 * KIB);
    bytes.fill(0, 2 * MIB + 1, 2 * MIB + 3);
    assert.deepEqual(readFileSync(path), bytes);
    assert.equal((await file.stat()).hostBytes, before.hostBytes! - 8 * KIB);
    const hole = { start: MIB, end: MIB + 8 * KIB };
    const holes = (await wholeMap(file)).filter((run) => run.kind === "hole");
    assert.deepEqual(
      holes.map(({ start, end }) => ({ start, end })),
      [hole],
    );
  });

  test(`${filesystem}: zeroed ranges read as zeros, beyond the end too`, async (t) => {
    const folder = mounted(t, filesystem, 128);
    if (folder === undefined) return;
    const path = join(folder, "a");
    const bytes = randomBytes(MIB);
    await using file = await hostSource(path).create();
    await file.write(0, bytes);
    await file.zero({ start: 1000, end: 200_000 });
    await file.zero({ start: MIB - 5, end: MIB + 5000 });
    bytes.fill(0, 1000, 200_000).fill(0, MIB - 5);
    assert.deepEqual(readFileSync(path), Buffer.concat([bytes, Buffer.alloc(5000)]));
    assert.equal(file.bytes, MIB + 5000);
  });
}

test("unwritten extents are zeros that still take up space, and not holes (H8)", async (t) => {
  if (!requires(t, "fallocate")) return;
  const folder = mounted(t, "ext4", 64);
  if (folder === undefined) return;
  const path = join(folder, "a");
  writeFileSync(path, randomBytes(64 * KIB));
  run("fallocate", ["--length", `${MIB}`, path]);
  run("fallocate", ["--punch-hole", "--offset", "16KiB", "--length", "16KiB", path]);
  await using file = await hostSource(path).open();
  const map = await wholeMap(file);
  assert.deepEqual(drawn(map), [
    "0-16384 data",
    "16384-32768 hole",
    "32768-65536 data",
    "65536-1048576 zero",
  ]);
  assert.deepEqual(map[3]!.place, { file, at: 65536, bytes: MIB - 65536 });
  assert.equal(map[1]!.place, undefined);
  const middle = { start: 20_000, end: 70_000 };
  assert.deepEqual(drawn(await wholeMap(file, middle)), [
    "20000-32768 hole",
    "32768-65536 data",
    "65536-70000 zero",
  ]);
});

test("what is written and not yet on the disk is data (H8)", async (t) => {
  const folder = mounted(t, "ext4", 64);
  if (folder === undefined) return;
  await using file = await hostSource(join(folder, "a")).create();
  await file.truncate(MIB);
  await file.write(64 * KIB, randomBytes(4 * KIB));
  assert.deepEqual(drawn(await wholeMap(file)), ["0-65536 hole", "65536-69632 data", "69632-1048576 hole"]);
});

test("reflinked extents are shared (H35)", async (t) => {
  const folder = mounted(t, "btrfs", 128);
  if (folder === undefined) return;
  const path = join(folder, "a");
  writeFileSync(path, randomBytes(MIB));
  run("cp", ["--reflink=always", path, join(folder, "b")]);
  await using file = await hostSource(path).openWritable();
  await file.write(0, randomBytes(64 * KIB));
  assert.deepEqual(drawn(await wholeMap(file)), ["0-65536 data", "65536-1048576 data shared"]);
});

test("a map of more extents than a batch holds is gapless", async (t) => {
  const folder = mounted(t, "tmpfs", 128);
  const extFolder = mounted(t, "ext4", 128);
  if (folder === undefined || extFolder === undefined) return;
  for (const path of [join(folder, "a"), join(extFolder, "a")]) {
    await using file = await hostSource(path).create();
    await file.truncate(10_000 * 8 * KIB);
    const block = randomBytes(4 * KIB);
    for (let i = 0; i < 10_000; i++) await file.write(i * 8 * KIB, block);
    let batches = 0;
    let at = 0;
    for await (const batch of file.map({ start: 0, end: file.bytes })) {
      batches++;
      for (const run of batch) {
        assert.equal(run.start, at);
        assert.equal(run.kind, at % (8 * KIB) === 0 ? "data" : "hole");
        at = run.end;
      }
    }
    assert.equal(at, file.bytes);
    assert(batches > 1);
  }
});

test("on a full host: writes fail with their place, punches work, and make room", async (t) => {
  const folder = mounted(t, "ext4", 16);
  if (folder === undefined) return;
  await using file = await hostSource(join(folder, "a")).create();
  const failed = async () => {
    for (let at = 0; ; at += MIB) await file.write(at, randomBytes(MIB));
  };
  await assert.rejects(failed(), {
    kind: "io",
    code: "no-space",
    message: /a: write of \d+ bytes at \d+: no space/,
  });
  await file.punch({ start: 0, end: MIB });
  await file.zero({ start: MIB, end: 3 * MIB });
  await file.flush();
  await file.write(0, randomBytes(MIB));
  await file.flush();
  assert.deepEqual(Buffer.from(await readBytes(file, MIB, 2 * MIB)), Buffer.alloc(2 * MIB));
});

/** The real platform with some calls replaced. */
function pretended(calls: Partial<Platform>): Platform {
  return { ...platform()!, ...calls };
}

function lockedFile(path: string, host: Platform): LockedFile {
  return new LockedFile(openSync(path, "r+"), path, host);
}

test("a host without holes says so, and discard is advice", async (t) => {
  const path = join(scratch(t), "a");
  const bytes = randomBytes(64 * KIB);
  writeFileSync(path, bytes);
  const notSupported = () => {
    throw new SystemError("fallocate", "ENOTSUP");
  };
  await using file = lockedFile(path, pretended({ punch: notSupported, zeroRange: notSupported }));
  await assert.rejects(file.punch({ start: 0, end: 4096 }), { kind: "unsupported", code: "no-holes" });
  await file.discard({ start: 0, end: 4096 });
  assert.deepEqual(readFileSync(path), bytes);
  await file.zero({ start: 5, end: 60_000 });
  assert.deepEqual(readFileSync(path), bytes.fill(0, 5, 60_000));
});

test("a punch that moves the end of the file breaks it, at once or before the next flush", async (t) => {
  const path = join(scratch(t), "a");
  writeFileSync(path, randomBytes(64 * KIB));
  const shorten = () => truncateSync(path, 60 * KIB);
  await using first = lockedFile(path, pretended({ punch: shorten }));
  await assert.rejects(first.punch({ start: 0, end: 4096 }), { kind: "io", code: "host-lies" });

  truncateSync(path, 64 * KIB);
  let punches = 0;
  await using second = lockedFile(path, pretended({ punch: () => ++punches > 1 && shorten() }));
  await second.punch({ start: 0, end: 4096 });
  await second.punch({ start: 0, end: 4096 });
  await assert.rejects(second.flush(), {
    kind: "io",
    code: "host-lies",
    message: `${path}: the file has ${60 * KIB} bytes after a punch; expected ${64 * KIB}`,
  });
  await assert.rejects(second.write(0, new Uint8Array(1)), { kind: "io", message: /not written any more/ });
});

test("after a flush that failed nothing more is written or flushed (H13)", async (t) => {
  const folder = scratch(t);
  const path = join(folder, "a");
  writeFileSync(path, randomBytes(4096));
  const fd = openSync(path, "r+");
  const file = new LockedFile(fd, path, platform()!);
  closeSync(fd); // fdatasync now fails, as it would with EIO.
  await assert.rejects(file.flush(), { kind: "io", message: /a: flush/ });
  const again = openSync(path, "r+");
  assert.equal(again, fd, "the descriptor works again, and is still not used");
  await assert.rejects(file.flush(), { kind: "io", message: /not written any more/ });
  await assert.rejects(file.write(0, new Uint8Array(1)), { kind: "io", message: /not written any more/ });
  await assert.rejects(file.punch({ start: 0, end: 4096 }), { kind: "io", message: /not written any more/ });
  await assert.rejects(file.truncate(0), { kind: "io", message: /not written any more/ });
  await file[Symbol.asyncDispose]();
});

test("the same file has the same identity by any name", async (t) => {
  const folder = scratch(t);
  writeFileSync(join(folder, "a"), "");
  writeFileSync(join(folder, "c"), "");
  linkSync(join(folder, "a"), join(folder, "b"));
  const identity = async (name: string) => {
    await using file = await hostSource(join(folder, name)).open();
    return (await file.stat()).identity;
  };
  assert.equal(await identity("a"), await identity("b"));
  assert.notEqual(await identity("a"), await identity("c"));
});

test("block devices have a length, read, write, punch and zero, at any offset", async (t) => {
  const path = join(scratch(t), "disk");
  const bytes = randomBytes(4 * MIB);
  writeFileSync(path, bytes);
  const device = attached(t, path);
  if (device === undefined) return;
  await using file = await hostSource(device).openWritable();
  assert.equal(file.bytes, Number(run("blockdev", ["--getsize64", device])));
  const status = await file.stat();
  assert.equal(status.hostBytes, null);
  assert.equal(status.blockBytes, 4096);
  assert.deepEqual(drawn(await wholeMap(file)), [`0-${4 * MIB} data`]);
  await file.punch({ start: MIB + 100, end: 2 * MIB + 700 });
  await file.zero({ start: 3 * MIB + 1, end: 3 * MIB + 10 });
  await file.zero({ start: 3 * MIB + 600, end: 3 * MIB + 9000 });
  await file.write(5, bytes.subarray(1000, 1010));
  await file.flush();
  bytes.copyWithin(5, 1000, 1010);
  bytes.fill(0, MIB + 100, 2 * MIB + 700);
  bytes.fill(0, 3 * MIB + 1, 3 * MIB + 10).fill(0, 3 * MIB + 600, 3 * MIB + 9000);
  assert.deepEqual(Buffer.from(await readBytes(file, 0, 4 * MIB)), bytes);
  assert.deepEqual(readFileSync(path), bytes);
  assert(statSync(path).blocks * 512 < 3.1 * MIB, "the punch reached the file behind the loop device");
  await assert.rejects(file.truncate(0), { kind: "unsupported" });
});
