import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import {
  chmodSync,
  openSync,
  readdirSync,
  readFileSync,
  statfsSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { Extent } from "../bytes/extents.ts";
import { attached, type Mountable, mounted } from "../testing/mounted.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { requires, requiresRoot, run, scratch } from "../testing/tools.ts";
import { assumeHoles, probeHoles, probeImage, whyNoHoles } from "./probe.ts";
import { hostFree, settle } from "./space.ts";

const settledAtOnce = async () => {};

for (const filesystem of ["ext4", "xfs", "btrfs", "tmpfs"] satisfies Mountable[]) {
  test(`${filesystem} is seen to punch holes, and nothing is left behind (H18)`, async (t) => {
    const folder = mounted(t, filesystem, 128);
    if (folder === undefined) return;
    const before = readdirSync(folder);
    assert.deepEqual(await probeHoles(folder), { holes: true, proven: true });
    assert.deepEqual(readdirSync(folder), before);
    assert.equal((await hostFree(folder)).filesystem, filesystem);
    assert.equal((await hostFree(folder)).mount, folder);
  });
}

test("a filesystem without holes is found out", async (t) => {
  if (!requires(t, "mount") || !requiresRoot(t)) return;
  const point = scratch(t);
  run("mount", ["-t", "ramfs", "ramfs", point]);
  try {
    assert.deepEqual(await probeHoles(point), {
      holes: false,
      proven: true,
      reason: "the host's filesystem does not punch holes",
    });
    assert.deepEqual(readdirSync(point), []);
  } finally {
    run("umount", [point]);
  }
});

/** Fills a filesystem to its last block. */
function fill(folder: string): void {
  const fd = openSync(join(folder, "filler"), "a");
  for (const bytes of [1024 * 1024, 4096, 1024]) {
    const chunk = randomBytes(bytes);
    try {
      for (;;) writeSync(fd, chunk);
    } catch (error) {
      assert.equal((error as NodeJS.ErrnoException).code, "ENOSPC");
    }
  }
}

for (const filesystem of ["ext4", "tmpfs"] satisfies Mountable[]) {
  test(`a full ${filesystem} is trusted by its name: it is the very case that people come with`, async (t) => {
    const folder = mounted(t, filesystem, 16);
    if (folder === undefined) return;
    fill(folder);
    assert.equal(statfsSync(folder).bavail, 0);
    assert.equal((await hostFree(folder)).freeBytes, 0);
    const verdict = await probeHoles(folder);
    assert.deepEqual({ ...verdict, reason: undefined }, { holes: true, proven: false, reason: undefined });
    assert.match(verdict.reason!, new RegExp(`${filesystem} is known to punch holes`));
    assert.deepEqual(
      readdirSync(folder).filter((name) => name !== "lost+found"),
      ["filler"],
    );
  });
}

test("a directory that takes no scratch file is judged by its filesystem", async (t) => {
  const folder = mounted(t, "ext4", 16);
  if (folder === undefined) return;
  run("mount", ["-o", "remount,ro", folder]);
  const verdict = await probeHoles(folder);
  assert.equal(verdict.holes, true);
  assert.equal(verdict.proven, false);
  assert.match(verdict.reason!, /read-only.*ext4 is known to punch holes/);
  await assert.rejects(probeHoles(join(folder, "missing")), { kind: "io", code: "not-found" });
});

test("an image is probed beside where it really lies; a device by its discard", async (t) => {
  const folder = mounted(t, "tmpfs", 16);
  const home = scratch(t);
  if (folder === undefined) return;
  writeFileSync(join(folder, "a"), "content");
  run("ln", ["-s", join(folder, "a"), join(home, "a")]);
  chmodSync(home, 0o500);
  assert.deepEqual(await probeImage(join(home, "a")), { holes: true, proven: true });
  // A file mounted over another one: its directory is of another filesystem.
  writeFileSync(join(home, "b"), "");
  run("mount", ["--bind", join(folder, "a"), join(home, "b")]);
  try {
    const verdict = await probeImage(join(home, "b"));
    assert.deepEqual([verdict.holes, verdict.proven], [true, false]);
    assert.match(verdict.reason!, /tmpfs is known/);
  } finally {
    run("umount", [join(home, "b")]);
  }
  writeFileSync(join(folder, "disk"), Buffer.alloc(1024 * 1024));
  const device = attached(t, join(folder, "disk"));
  if (device === undefined) return;
  assert.deepEqual(await probeImage(device), { holes: true, proven: false });
});

test("a survey assumes, and writes nothing", async (t) => {
  const folder = mounted(t, "tmpfs", 16);
  if (folder === undefined) return;
  writeFileSync(join(folder, "a"), "content");
  run("mount", ["-o", "remount,ro", folder]);
  const verdict = await assumeHoles(join(folder, "a"));
  assert.deepEqual(verdict, {
    holes: true,
    proven: false,
    reason: "not tried; tmpfs is known to punch holes",
  });
  assert.equal((await assumeHoles("/proc/self/status")).holes, false);
  await assert.rejects(assumeHoles(join(folder, "missing")), { kind: "io", code: "not-found" });
});

/** A host that lies: a file whose punches are told otherwise. */
class LyingFile extends SimulatedFile {
  readonly #told: (truth: (range: Extent) => Promise<void>, range: Extent) => Promise<void>;

  constructor(told: (truth: (range: Extent) => Promise<void>, range: Extent) => Promise<void>) {
    super(0, { blockBytes: 4096 });
    this.#told = told;
  }

  override punch(range: Extent): Promise<void> {
    return this.#told((truly) => super.punch(truly), range);
  }
}

test("an honest simulated file passes", async () => {
  assert.equal(await whyNoHoles(new SimulatedFile(0, { blockBytes: 65536 }), settledAtOnce), undefined);
});

test("hosts that lie are found out (H18)", async () => {
  const lies: readonly [lie: LyingFile, reason: RegExp][] = [
    [new LyingFile(async () => {}), /does not read as zeros/],
    [
      new LyingFile((punch, { start, end }) => punch({ start: start - 4096, end })),
      /changed the block before it/,
    ],
    [new LyingFile((punch, { start, end }) => punch({ start, end: end + 1 })), /changed the block after it/],
    [
      new LyingFile((punch, { start, end }) => punch({ start, end: end + 8192 })),
      /changed the block (far )?after it/,
    ],
    [
      new LyingFile(async function (this: void, punch, range) {
        await punch(range);
        await shortened.truncate(3 * 4096);
      }),
      /changed the length of a file from 16384 to 12288 bytes/,
    ],
    [
      new LyingFile(async (_, { start, end }) => written.write(start, new Uint8Array(end - start))),
      /a punch of 4096 bytes gave 0 bytes back/,
    ],
  ];
  const shortened = lies[4]![0];
  const written = lies[5]![0];
  for (const [lie, reason] of lies) assert.match((await whyNoHoles(lie, settledAtOnce)) ?? "nothing", reason);
});

test("accounts that are settled late are waited for (H35)", async () => {
  let late: (() => Promise<void>) | undefined;
  const file = new LyingFile(async (punch, range) => {
    await file.write(range.start, new Uint8Array(range.end - range.start));
    late = () => punch(range);
  });
  let settles = 0;
  const reason = await whyNoHoles(file, async () => {
    settles++;
    await late!();
  });
  assert.equal(reason, undefined);
  assert.equal(settles, 1);
});

test("settling is advice and never fails", async (t) => {
  const folder = scratch(t);
  await settle(folder);
  await settle(join(folder, "missing"));
});

test("free space is what df calls available", async (t) => {
  if (!requires(t, "df", "findmnt")) return;
  const folder = mounted(t, "tmpfs", 16);
  if (folder === undefined) return;
  writeFileSync(join(folder, "a"), randomBytes(1024 * 1024));
  const available = run("df", ["--output=avail", "--block-size=1", folder]).split("\n")[1];
  assert.equal((await hostFree(folder)).freeBytes, Number(available));
  const { mount, filesystem } = await hostFree(import.meta.dirname);
  const [target, type] = run("findmnt", [
    "--noheadings",
    "--output=TARGET,FSTYPE",
    "--target",
    import.meta.dirname,
  ])
    .trim()
    .split(/\s+/);
  assert.deepEqual([mount, filesystem], [target, type]);
  assert.equal(readFileSync(join(folder, "a")).length, 1024 * 1024);
});
