/**
 * What becomes of blocks that are trimmed in pieces: nothing is left of them that a trim of the whole would not leave,
 * and nobody who lies about holes makes bytes vanish (H8).
 */
import assert from "node:assert/strict";
import type { Extent } from "../../bytes/extents.ts";
import { readBytes, wholeMap } from "../../device/device.ts";
import type { WritableImage } from "../../formats/format.ts";
import type { Files } from "../crash.ts";
import { type Bench, copyOf } from "./bench.ts";
import { inPieces } from "./changes.ts";
import { mustEqual } from "./reading.ts";
import { acceptDiscard } from "./writing.ts";

const BLOCKS = 4;

export async function piecesGoLikeTheWhole(bench: Bench): Promise<void> {
  const { random, label } = bench;
  for (let i = 0; i < BLOCKS; i++) {
    const files = copyOf(bench.sample.files);
    const at = random.below(bench.sample.content.length);
    const block = await withBlock(bench, files, at);
    const whole = copyOf(files);
    await discarding(bench, whole, () => [block]);
    const pieces = copyOf(files);
    await discarding(bench, pieces, (image) => inPieces(image, at, random, unitOf(files)));
    const expected = await kindsOf(bench, whole, block);
    const found = await kindsOf(bench, pieces, block);
    assert.deepEqual(found, expected, `${label}: block ${block.start} in pieces`);
    const spare = 2 * pieces.size * unitOf(files);
    const [left, most] = [hostBytes(pieces), hostBytes(whole) + spare];
    assert.ok(left <= most, `${label}: the host holds ${left} bytes, at most ${most}`);
  }
}

/** What the hosts of all files can punch. */
function unitOf(files: Files): number {
  return Math.max(...Array.from(files.values(), ({ blockBytes }) => blockBytes));
}

/** Fills the block around `at`, all of which is the image's own then. */
async function withBlock(bench: Bench, files: Files, at: number): Promise<Extent> {
  await using image = await bench.openWritable(files);
  const start = at - (at % image.grainBytes);
  const block = { start, end: Math.min(image.bytes, start + image.grainBytes) };
  await image.write(start, bench.random.bytes(block.end - start));
  return block;
}

async function discarding(
  bench: Bench,
  files: Files,
  ranges: (image: WritableImage) => readonly Extent[],
): Promise<void> {
  await using image = await bench.openWritable(files);
  for (const range of ranges(image)) await image.discard(range);
}

async function kindsOf(bench: Bench, files: Files, block: Extent): Promise<string[]> {
  await using image = await bench.open(files);
  return (await wholeMap(image, block)).map(({ kind, start, end }) => `${kind} ${start}-${end}`);
}

function hostBytes(files: Files): number {
  let bytes = 0;
  for (const file of files.values()) bytes += file.hostBytes;
  return bytes;
}

/** A host that takes everything for holes. */
export async function lyingHostLosesNothing(bench: Bench): Promise<void> {
  const { random, label } = bench;
  const files = new Map(copyOf(bench.sample.files));
  const image = await bench.openWritable(files);
  for (const file of files.values()) file.isHole = () => true;
  const model = new Uint8Array(bench.sample.content);
  for (let i = 0; i < 20; i++) {
    const [first, second] = inPieces(image, random.below(image.bytes), random);
    const data = random.bytes(second ? second.end - second.start : 0);
    if (second) await image.write(second.start, data);
    if (second) model.set(data, second.start);
    await image.discard(first!);
    await acceptDiscard(image, model, first!, label);
  }
  mustEqual(await readBytes(image, 0, image.bytes), model, 0, `${label}: beside what was trimmed`);
  await image[Symbol.asyncDispose]();
}
