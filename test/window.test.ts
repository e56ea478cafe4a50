/**
 * A raw disk that is a part of a file: what lies around it is neither read nor written.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { convert, explain, info, reclaim, survey } from "../src/disk.ts";
import { formatOf } from "../src/disk/open.ts";
import { DiskError } from "../src/error.ts";
import type { ImageFormat } from "../src/formats/format.ts";
import { makeGuest } from "../src/testing/guest.ts";
import { Random } from "../src/testing/seeds.ts";
import { SimulatedFile } from "../src/testing/simulated-file.ts";
import { sourceOf } from "../src/testing/simulated-source.ts";
import { attempt, requires, scratch } from "../src/testing/tools.ts";

const MiB = 2 ** 20;
const BINARY = path.resolve(import.meta.dirname, "../bin/ullage.js");

/** No byte of a canary is zero. */
const canary = (seed: number) => new Random(seed).bytes(MiB + 512).map((byte) => byte | 1);

// Sector 63 is where the first partition began for thirty years; no host block begins there.
for (const offset of [MiB, 63 * 512]) {
  test(`a disk at ${offset} is reclaimed between its canaries`, async (t) => {
    if (!requires(t, "mke2fs", "debugfs", "e2fsck")) return;
    const folder = scratch(t);
    const disk = readFileSync(makeGuest({ folder, name: "inner.raw", bytes: 32 * MiB }));
    const file = path.join(folder, "outer.raw");
    const before = Buffer.concat([canary(1).subarray(0, offset), disk, canary(2)]);
    writeFileSync(file, before);
    const window = { offset, bytes: disk.length };

    const { reclaimableBytes, virtualBytes, fileBytes, hostBytes } = await survey(file, { window });
    assert.equal(virtualBytes, disk.length);
    assert.equal(fileBytes, disk.length);
    assert.ok(hostBytes! <= disk.length);
    assert.ok(reclaimableBytes > 256 * 1024);
    const stored = statSync(file).blocks * 512;
    const done = await reclaim(file, { window, verify: true });
    assert.equal(done.verified, true);
    const returned = stored - statSync(file).blocks * 512;
    if (offset === MiB)
      assert.ok(Math.abs(returned - reclaimableBytes) <= 8192, `${returned}, not ${reclaimableBytes}`);
    else assert.ok(returned > reclaimableBytes / 2, `${returned} of ${reclaimableBytes}`);

    const after = readFileSync(file);
    assert.deepEqual(after.subarray(0, offset), before.subarray(0, offset));
    assert.deepEqual(after.subarray(offset + disk.length), before.subarray(offset + disk.length));
    const inner = path.join(folder, "after.raw");
    writeFileSync(inner, after.subarray(offset, offset + disk.length));
    assert.equal(attempt("e2fsck", ["-fn", inner]).status, 0);

    const copy = path.join(folder, "copy.raw");
    await convert(file, copy, { window, verify: true });
    assert.equal(attempt("e2fsck", ["-fn", copy]).status, 0);
    assert.equal(statSync(copy).size, disk.length);
    const superblock = (await explain(file, { window, offsets: [1024] })).offsets[0]!;
    assert.equal(superblock.class, "metadata");
  });
}

test("a part that does not lie in the file, or is to be anything but raw, is a usage error", async (t) => {
  const file = path.join(scratch(t), "outer.raw");
  writeFileSync(file, canary(1));
  const usage = { kind: "usage" };
  for (const window of [
    { offset: 2 * MiB },
    { offset: 512, bytes: MiB + 1 },
    { offset: -512 },
    { offset: NaN },
  ]) {
    await assert.rejects(info(file, { window }), usage, JSON.stringify(window));
    await assert.rejects(reclaim(file, { window }), usage, JSON.stringify(window));
  }
  await assert.rejects(info(file, { window: { offset: 0 }, format: "qcow2" }), usage);
  assert.equal((await info(file, { window: { offset: 512 } })).virtualBytes, MiB);
  const { stdout } = spawnSync(process.execPath, [
    BINARY,
    "info",
    "--json",
    "--offset",
    "1K",
    "--length",
    "512K",
    file,
  ]);
  assert.equal(JSON.parse(stdout.toString()).images[0].virtualBytes, 512 * 1024);
});

test("H21: a content that is two formats at once is refused, unless the user says which it is", async () => {
  const named = (name: string, found: boolean) =>
    ({ name, probe: async () => found }) as unknown as ImageFormat;
  const source = sourceOf(SimulatedFile.from(new Uint8Array(512), { name: "x" }));
  const formats = [named("qcow2", true), named("other", false), named("vhd", true), named("raw", true)];
  await assert.rejects(formatOf(source, {}, formats), (error) => {
    assert.ok(error instanceof DiskError);
    assert.equal(error.code, "format-ambiguous");
    assert.match(error.message, /qcow2 and vhd/);
    return true;
  });
  assert.equal((await formatOf(source, { format: "raw" }, formats)).name, "raw");
  assert.equal((await formatOf(source, {}, formats.slice(1))).name, "vhd");
});
