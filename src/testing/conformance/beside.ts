/**
 * Writes in place beside changes that take their time, as a server makes them: neither may undo the other, and each
 * flush covers what was written before it.
 *
 *   change A   ├──────── await ───────┤
 *   in place        │ B
 *   flush              ├──── await ────┤ flush ├──┤ crash: B is there
 */
import assert from "node:assert/strict";
import type { Extent } from "../../bytes/extents.ts";
import { readBytes } from "../../device/device.ts";
import type { WritableImage } from "../../formats/format.ts";
import { recording } from "../crash.ts";
import type { Random } from "../seeds.ts";
import type { Operation } from "../simulated-file.ts";
import { type Bench, copyOf } from "./bench.ts";
import { inPieces, writeInPlace } from "./changes.ts";
import { mustEqual } from "./reading.ts";
import { durable } from "./writer-crash.ts";
import { acceptDiscard } from "./writing.ts";

const ROUNDS = 150;
const UNIT = 4096;
/** So many turns of the microtask queue a change is let run before somebody writes beside it. */
const TURNS_MAX = 60;

export async function writesBesideChanges(bench: Bench): Promise<void> {
  const { random, label } = bench;
  const { files, trace } = recording(copyOf(bench.sample.files));
  const before = copyOf(files);
  const model = new Uint8Array(bench.sample.content);
  const image = await bench.openWritable(files);
  const snapshots = await contents(image);
  let found = 0;
  for (let i = 0; i < ROUNDS; i++) {
    const [changed, beside] = neighbours(image, random);
    const change = begun(image, changed, model, random);
    await turns(random.below(TURNS_MAX));
    const data = random.bytes(beside.end - beside.start);
    const bytes = await writeInPlace(image, beside.start, data, label);
    if (bytes > 0) found++;
    model.set(data.subarray(0, bytes), beside.start);
    await change.done;
    if (change.isDiscard) await acceptDiscard(image, model, changed, `${label} ${i}`);
    const now = await readBytes(image, beside.start, beside.end - beside.start);
    mustEqual(now, model.subarray(beside.start, beside.end), beside.start, `${label} beside ${i}`);
  }
  for (let i = 0; i < ROUNDS / 5; i++) await besideTheLastPiece(image, model, random, `${label} piece ${i}`);
  for (let i = 0; i < ROUNDS / 5; i++) {
    const at = random.below(Math.floor(image.bytes / UNIT)) * UNIT;
    await image.write(at, model.subarray(at, at + UNIT));
    const flushing = image.flush();
    await turns(random.below(TURNS_MAX));
    const data = random.bytes(UNIT);
    model.set(data.subarray(0, await writeInPlace(image, at, data, label)), at);
    await flushing;
    await image.flush();
    mustBeFlushed(trace, `${label} flush ${i}`);
  }
  mustEqual(await readBytes(image, 0, image.bytes), model, 0, label);
  for (const [i, now] of (await contents(image)).entries()) {
    mustEqual(now, snapshots[i]!, 0, `${label}: snapshot ${i} keeps what it holds`);
  }
  assert.ok(found > 0 || image.parent !== undefined, `${label}: some writes found a place`);
  const survivor = await bench.open(await durable(before, trace));
  mustEqual(await readBytes(survivor, 0, image.bytes), model, 0, `${label}: what was flushed is durable`);
  await image[Symbol.asyncDispose]();
}

/** What the snapshots hold. */
async function contents(image: WritableImage): Promise<Uint8Array[]> {
  const found: Uint8Array[] = [];
  for (const snapshot of await image.snapshots()) {
    await using device = await snapshot.open();
    found.push(await readBytes(device, 0, device.bytes));
  }
  return found;
}

/** The last piece of a block is trimmed, so that it may lose its entry, while somebody writes to another one. */
async function besideTheLastPiece(
  image: WritableImage,
  model: Uint8Array,
  random: Random,
  label: string,
): Promise<void> {
  const pieces = inPieces(image, random.below(image.bytes), random);
  const last = pieces.pop()!;
  for (const piece of pieces) {
    await image.discard(piece);
    await acceptDiscard(image, model, piece, label);
  }
  const discarding = image.discard(last);
  await turns(random.below(TURNS_MAX / 2));
  const target = pieces.pop();
  if (target !== undefined) {
    const data = random.bytes(Math.min(UNIT, target.end - target.start));
    const bytes = await writeInPlace(image, target.start, data, label);
    model.set(data.subarray(0, bytes), target.start);
  }
  await discarding;
  await acceptDiscard(image, model, last, label);
  mustEqual(await readBytes(image, 0, image.bytes), model, 0, label);
}

function mustBeFlushed(trace: readonly Operation[], label: string): void {
  for (const name of new Set(trace.map(({ file }) => file))) {
    const last = trace.findLast(({ file, op }) => file === name && op !== "punch");
    assert.equal(last?.op, "flush", `${label}: the last operation on ${name} before it returned`);
  }
}

/** Two ranges that do not touch, mostly in one block of the table. */
function neighbours(image: WritableImage, random: Random): [Extent, Extent] {
  const units = Math.floor(image.bytes / UNIT);
  const first = random.below(units - 3);
  const cut = random.between(first + 1, Math.min(units - 1, first + random.pick([3, 8, 24])));
  const end = random.between(cut + 1, Math.min(units, cut + random.pick([2, 8, 24])) + 1);
  const pair: [Extent, Extent] = [
    { start: first * UNIT, end: cut * UNIT },
    { start: cut * UNIT, end: end * UNIT },
  ];
  return random.oneIn(2) ? pair : [pair[1], pair[0]];
}

/** A change that is under way, and known to the model. */
function begun(
  image: WritableImage,
  range: Extent,
  model: Uint8Array,
  random: Random,
): { readonly done: Promise<void>; readonly isDiscard: boolean } {
  switch (random.below(5)) {
    case 0:
      return { done: image.discard(range), isDiscard: true };
    case 1:
      model.fill(0, range.start, range.end);
      return {
        done: image.zero(range, random.pick([{}, { keep: true }, { keep: false }])),
        isDiscard: false,
      };
    case 2: {
      const data = random.bytes(range.end - range.start);
      model.set(data, range.start);
      return { done: image.write(range.start, data), isDiscard: false };
    }
    default:
      return { done: image.flush(), isDiscard: false };
  }
}

async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await Promise.resolve();
}
