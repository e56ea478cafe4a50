/**
 * A writable image is an array of bytes: whatever is written, zeroed or discarded in whatever order.
 */
import assert from "node:assert/strict";
import { readBytes } from "../../device/device.ts";
import type { WritableImage } from "../../formats/format.ts";
import type { Random } from "../seeds.ts";
import { type Bench, copyOf } from "./bench.ts";
import { inPieces, writeInPlace, zeroed } from "./changes.ts";
import { tally } from "./judge.ts";
import { mustEqual } from "./reading.ts";
import { writerCrashesAreSafe } from "./writer-crash.ts";

const OPERATIONS = 150;
const SECTOR_BYTES = 512;

export async function behavesLikeBytes(bench: Bench): Promise<void> {
  const files = copyOf(bench.sample.files);
  const model = new Uint8Array(bench.sample.content);
  for (let sitting = 0; sitting < 2; sitting++) {
    await using image = await bench.openWritable(files);
    for (let i = 0; i < OPERATIONS; i++) await doSomething(image, model, bench.random, `${bench.label} ${i}`);
    await image.flush();
    mustEqual(await readBytes(image, 0, image.bytes), model, 0, bench.label);
  }
  await using image = await bench.open(files);
  mustEqual(await readBytes(image, 0, image.bytes), model, 0, `${bench.label} opened anew`);
  const { errors, leaks, first } = await tally(image);
  assert.deepEqual([errors, leaks], [0, 0], `${bench.label}: ${first}`);
  await bench.sample.judge?.(files, model);
}

/** Of whoever writes: every sector is old or new. */
export async function writerCrashes(bench: Bench): Promise<void> {
  await writerCrashesAreSafe(
    bench.sample.files,
    { open: (files) => bench.open(files), openWritable: (files) => bench.openWritable(files) },
    bench.random,
    bench.label,
  );
}

/** One random change, of the image and of the model alike. */
export async function doSomething(
  image: WritableImage,
  model: Uint8Array,
  random: Random,
  label: string,
): Promise<void> {
  const grain = random.pick([1, SECTOR_BYTES, 4096, image.grainBytes]);
  const start = Math.floor(random.below(model.length) / grain) * grain;
  const length = random.between(1, random.pick([2, 9, 70])) * grain;
  const range = { start, end: Math.min(model.length, start + length) };
  switch (random.below(7)) {
    case 0:
      if (await zeroed(image, range, random, label)) model.fill(0, range.start, range.end);
      break;
    case 1:
      await image.discard(range);
      await acceptDiscard(image, model, range, label);
      break;
    case 2:
      mustEqual(
        await readBytes(image, range.start, range.end - range.start),
        model.subarray(range.start, range.end),
        range.start,
        label,
      );
      break;
    case 3:
      if (random.oneIn(4)) await image.flush();
      break;
    case 4:
      for (const piece of inPieces(image, start, random)) {
        await image.discard(piece);
        await acceptDiscard(image, model, piece, label);
      }
      break;
    case 5: {
      const data = random.bytes(range.end - range.start);
      model.set(data.subarray(0, await writeInPlace(image, range.start, data, label)), range.start);
      break;
    }
    default: {
      const data = random.bytes(range.end - range.start);
      await image.write(range.start, data);
      model.set(data, range.start);
    }
  }
}

/** After a discard every sector is as it was or zeros (H9); which of them, the model learns from the image. */
export async function acceptDiscard(
  image: WritableImage,
  model: Uint8Array,
  { start, end }: { start: number; end: number },
  label: string,
): Promise<void> {
  const now = await readBytes(image, start, end - start);
  for (let at = start; at < end; at++) {
    const byte = now[at - start];
    if (byte !== 0 && byte !== model[at]) assert.fail(`${label}: discarded byte ${at} is ${byte} (H9)`);
  }
  model.set(now, start);
}
