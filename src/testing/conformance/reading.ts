/**
 * What can be asked of an image without writing to it.
 */
import assert from "node:assert/strict";
import { ExtentSet } from "../../bytes/extents.ts";
import { type BlockDevice, readBytes, type Run, wholeMap } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { Image } from "../../formats/format.ts";
import { type Bench, copyOf } from "./bench.ts";
import { tally } from "./judge.ts";

const SMALL_READS = 200;
const SMALL_READ_BYTES_MAX = 100_000;

export async function readsEqual(bench: Bench): Promise<void> {
  await using image = await bench.open();
  const { content } = bench.sample;
  assert.equal(image.bytes, content.length);
  assert.deepEqual(await tally(image), { errors: 0, leaks: 0, first: undefined }, bench.label);
  mustEqual(await readBytes(image, 0, image.bytes), content, 0, bench.label);
  for (let i = 0; i < SMALL_READS; i++) {
    const at = bench.random.below(content.length);
    const end = bench.random.between(at, Math.min(content.length, at + SMALL_READ_BYTES_MAX) + 1);
    mustEqual(await readBytes(image, at, end - at), content.subarray(at, end), at, bench.label);
  }
}

export function mustEqual(found: Uint8Array, expected: Uint8Array, at: number, label: string): void {
  if (Buffer.compare(found, expected) === 0) return;
  const difference = found.findIndex((byte, i) => byte !== expected[i]);
  assert.fail(`${label}: byte ${at + difference} is ${found[difference]}, expected ${expected[difference]}`);
}

export async function mapIsTrue(bench: Bench): Promise<void> {
  await using image = await bench.open();
  const known = new Set<BlockDevice>();
  for (let layer: Image | undefined = image; layer; layer = layer.parent) {
    for (const file of layer.files.values()) known.add(file);
  }
  await mustBeTrue(await wholeMap(image), { start: 0, end: image.bytes }, image, known, bench);
  for (let i = 0; i < 10; i++) {
    const start = bench.random.below(image.bytes);
    const range = { start, end: bench.random.between(start, image.bytes) + 1 };
    await mustBeTrue(await wholeMap(image, range), range, image, known, bench);
  }
}

async function mustBeTrue(
  runs: readonly Run[],
  range: { start: number; end: number },
  image: Image,
  known: ReadonlySet<BlockDevice>,
  { sample: { content }, label }: Bench,
): Promise<void> {
  let at = range.start;
  for (const { start, end, kind, place, depth } of runs) {
    assert.ok(start === at && end > start, `${label}: a run begins at ${at}, found ${start}-${end}`);
    at = end;
    const expected = content.subarray(start, end);
    if (kind === "hole" || kind === "zero") {
      mustEqual(new Uint8Array(end - start), expected, start, `${label} ${kind}`);
    }
    if (kind !== "data") continue;
    if (!place) continue;
    assert.ok(known.has(place.file), `${label}: the place at ${start} is in a file of the image`);
    assert.ok(
      depth > 0 || [...image.files.values()].includes(place.file as never),
      `${label}: depth of ${start}`,
    );
    assert.equal(place.bytes, end - start, `${label}: the place at ${start} is as long as its run`);
    mustEqual(await readBytes(place.file, place.at, place.bytes), expected, start, `${label} place`);
  }
  assert.equal(at, range.end, `${label}: the map reaches the end`);
}

const DAMAGES = 60;
/** Where most tables lie; the rest of the damage is spread over the file. */
const HEAD_BYTES = 2048;

/** H23, H24: flips, boundary numbers and cuts in the file; nothing may hang, grow without bound or throw a bug. */
export async function damageIsReported(bench: Bench): Promise<void> {
  const { random, sample } = bench;
  for (let i = 0; i < DAMAGES; i++) {
    const files = copyOf(sample.files);
    // Of a bundle any file.
    const file = files.get(sample.image) ?? random.pick([...files.values()]);
    if (file.bytes === 0) return;
    const what: string[] = [];
    for (let n = random.between(1, 4); n > 0; n--) {
      const at = random.below(random.oneIn(2) ? Math.min(HEAD_BYTES, file.bytes) : file.bytes);
      const bytes = random.pick(BOUNDARIES);
      await file.write(at, random.oneIn(2) ? bytes : random.bytes(random.between(1, 9)));
      what.push(`${at}`);
    }
    if (random.oneIn(10)) await file.truncate(random.below(file.bytes));
    try {
      await useAll(bench, files);
    } catch (error) {
      if (error instanceof DiskError) continue;
      throw new Error(`${bench.label}: damage ${i} at ${what.join()}: ${String(error)}`, { cause: error });
    }
  }
}

/** Numbers at which arithmetic goes wrong, big-endian. */
const BOUNDARIES = [
  "00",
  "ffffffffffffffff",
  "7fffffffffffffff",
  "80000000",
  "0020000000000000",
  "00000000",
  "01",
].map((hex) => Uint8Array.from(Buffer.from(hex, "hex")));

const DAMAGED_DISK_BYTES_MAX = 64 * 1024 * 1024;

async function useAll(bench: Bench, files: Bench["sample"]["files"]): Promise<void> {
  await using image = await bench.open(files);
  const buffer = new Uint8Array(64 * 1024);
  const end = Math.min(image.bytes, DAMAGED_DISK_BYTES_MAX);
  for await (const runs of image.map({ start: 0, end })) {
    for (const { start, end: stop } of runs) {
      await image.read(start, buffer.subarray(0, Math.min(buffer.length, stop - start)));
    }
  }
  await tally(image);
  await image.tableBytes();
  for (const snapshot of await image.snapshots()) await (await snapshot.open())[Symbol.asyncDispose]();
  const wish = { free: bench.wish().free.within({ start: 0, end: image.bytes }), blank: ExtentSet.EMPTY };
  for (const method of ["punch", "pack"] as const) {
    for await (const batch of (await bench.plan(image, wish, method)).batches())
      if (batch.length > 1e6) return;
  }
}
