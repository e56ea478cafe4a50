/**
 * What becomes of a file's space where zeros are made, and whether a part of it is a hole.
 */
import assert from "node:assert/strict";
import { openSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { Zeroing } from "../device/device.ts";
import { windowed } from "../device/window.ts";
import { scratch } from "../testing/tools.ts";
import { LockedFile } from "./locked-file.ts";
import { mediumOf } from "./medium.ts";
import { SystemError } from "./native.ts";
import { type Platform, platform } from "./platform.ts";
import { hostSource } from "./source.ts";

const KIB = 1024;
const BYTES = 256 * KIB;
/** Neither end on a block. */
const RANGE = { start: 4096 + 100, end: 200 * KIB + 7 };

const notSupported = () => {
  throw new SystemError("fallocate", "ENOTSUP");
};

/** A file without holes, flushed, on a host some of whose calls are replaced. */
async function filled(t: TestContext, calls: Partial<Platform> = {}) {
  const path = join(scratch(t), "a");
  const content = Buffer.alloc(BYTES, 0xab);
  writeFileSync(path, content);
  const file = new LockedFile(openSync(path, "r+"), path, { ...platform()!, ...calls });
  t.after(() => file[Symbol.asyncDispose]());
  await file.flush();
  return { path, file, content, blocks: () => statSync(path).blocks * 512 };
}

for (const [name, how, isKept] of [
  ["kept", { keep: true }, true],
  ["given back", { keep: false }, false],
  ["given back quickly", { keep: false, fast: true }, false],
  ["kept quickly", { keep: true, fast: true }, true],
] satisfies [string, Zeroing, boolean][]) {
  test(`zeros are exact, and their space is ${name}`, async (t) => {
    const { path, file, content, blocks } = await filled(t);
    const before = blocks();
    await file.zero(RANGE, how);
    assert.deepEqual(readFileSync(path), content.fill(0, RANGE.start, RANGE.end));
    await file.flush();
    // 8 KiB to 200 KiB are whole blocks.
    assert.equal(before - blocks(), isKept ? 0 : 192 * KIB);
  });
}

test("a host that would have to write zeros is asked for quick ones, and alters nothing", async (t) => {
  const { path, file, content } = await filled(t, { zeroRange: notSupported, punch: notSupported });
  for (const keep of [undefined, true, false]) {
    const how: Zeroing = keep === undefined ? { fast: true } : { keep, fast: true };
    await assert.rejects(file.zero({ start: 0, end: BYTES + 5 }, how), { kind: "unsupported" });
  }
  assert.deepEqual(readFileSync(path), content);
  await file.zero(RANGE, { keep: true });
  assert.deepEqual(readFileSync(path), content.fill(0, RANGE.start, RANGE.end));
});

test("what is to stay allocated is never punched", async (t) => {
  const { path, file, content, blocks } = await filled(t, { zeroRange: notSupported });
  const before = blocks();
  await assert.rejects(file.zero(RANGE, { keep: true, fast: true }), { kind: "unsupported" });
  await file.zero(RANGE, { keep: true });
  assert.deepEqual(readFileSync(path), content.fill(0, RANGE.start, RANGE.end));
  assert.equal(blocks(), before);
  await file.zero(RANGE, { fast: true });
  assert.ok(blocks() < before, "any means: a hole is the quick one");
});

test("where the host zeroes whole blocks alone, the edges are written", async (t) => {
  const path = join(scratch(t), "a");
  const content = Buffer.alloc(BYTES, 0xab);
  writeFileSync(path, content);
  const fd = openSync(path, "r+");
  await using file = new LockedFile(fd, path, platform()!, { ...mediumOf(fd, path), alignBytes: 4096 });
  for (const how of [{}, { keep: true }, { keep: false }]) {
    await file.write(0, content.fill(0xab));
    await file.zero(RANGE, how);
    const isExact = readFileSync(path).equals(content.fill(0, RANGE.start, RANGE.end));
    assert.ok(isExact, JSON.stringify(how));
  }
});

test("a hole is one until somebody writes there, durable or not", async (t) => {
  const { file } = await filled(t);
  const [first, second] = [
    { start: 0, end: 64 * KIB },
    { start: 64 * KIB, end: 128 * KIB },
  ];
  assert.equal(file.isHole(first), false);
  await file.punch({ start: 0, end: 128 * KIB });
  assert.deepEqual([file.isHole(first), file.isHole(second)], [true, true]);
  await file.write(127 * KIB, new Uint8Array(1));
  assert.deepEqual([file.isHole(first), file.isHole(second)], [true, false]);
  const blind = await filled(t, { isHole: () => false });
  await blind.file.punch(first);
  assert.equal(blind.file.isHole(first), false);
});

test("a part of a file is zeroed and asked like the whole", async (t) => {
  const path = join(scratch(t), "a");
  writeFileSync(path, Buffer.alloc(BYTES, 1));
  await using file = await windowed(hostSource(path), { offset: 64 * KIB, bytes: 64 * KIB }).openWritable!();
  await file.zero({ start: 0, end: 64 * KIB }, { keep: false });
  assert.equal(file.isHole!({ start: 0, end: 64 * KIB }), true);
  assert.equal(file.tryWrite!(10, Buffer.from("xab"), 1, 2), 2);
  const into = Buffer.alloc(4);
  assert.equal(file.tryRead!(9, into, 0, 4), 4);
  assert.equal(into.toString("latin1"), "\0ab\0");
  assert.equal(readFileSync(path).toString("latin1", 64 * KIB + 10, 64 * KIB + 12), "ab");
  assert.equal(statSync(path).blocks * 512, 192 * KIB + 4096);
  assert.throws(() => file.tryRead!(64 * KIB - 1, into, 0, 2), /lies in/);
});
