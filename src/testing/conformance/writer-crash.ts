/**
 * A crash of whoever writes to an image: every sector is what was flushed last, or what it held since; and the image's
 * structures leak at worst.
 *
 *   change, change, …  flush  | change, change, …  close
 *   crashes in between          and here: what was flushed is there
 */
import assert from "node:assert/strict";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import type { Image, WritableImage } from "../../formats/format.ts";
import { crashStates, type Files, recording } from "../crash.ts";
import type { Random } from "../seeds.ts";
import { type Operation, SimulatedFile } from "../simulated-file.ts";
import { inPieces, writeInPlace, zeroed } from "./changes.ts";

const SECTOR_BYTES = 512;
const CHANGES = 6;
const STATES_PER_FLUSH = 6;

/** How an image lies in some files, and is opened there. */
export interface Openers {
  open(files: Files): Promise<Image>;
  openWritable(files: Files): Promise<WritableImage>;
}

export async function writerCrashesAreSafe(
  before: Files,
  openers: Openers,
  random: Random,
  label: string,
): Promise<void> {
  const { files, trace } = recording(before);
  const image = await openers.openWritable(files);
  const opened = await durable(before, trace);
  const history = new History(await contentOf(image));
  await changeSome(image, random, history);
  await image.flush();
  await assertCrashes(before, trace, { openers, history, random }, label);

  history.flushed();
  const flushed = await durable(opened, trace);
  const survivor = await openers.open(flushed);
  const lost = history.foreignSector(await contentOf(survivor));
  assert.equal(lost, -1, `${label}: what was flushed is durable`);
  const length = trace.length;
  await changeSome(image, random, history);
  await image[Symbol.asyncDispose]();
  await assertCrashes(flushed, trace.slice(length), { openers, history, random }, `${label}, later`);
}

const contentOf = (device: BlockDevice): Promise<Uint8Array> => readBytes(device, 0, device.bytes);

/** What each sector may hold after a crash: what was flushed last, and everything that it held since. */
class History {
  #versions: Uint8Array[];

  constructor(content: Uint8Array) {
    this.#versions = [content];
  }

  add(content: Uint8Array): void {
    this.#versions.push(content);
  }

  flushed(): void {
    this.#versions = this.#versions.slice(-1);
  }

  /** Offset of the first sector of `content` that holds none of what it may hold; -1: none does. */
  foreignSector(content: Uint8Array): number {
    const found = Buffer.from(content.buffer, content.byteOffset, content.length);
    for (let at = 0; at < found.length; at += SECTOR_BYTES) {
      const end = Math.min(found.length, at + SECTOR_BYTES);
      if (!this.#versions.some((version) => found.compare(version, at, end, at, end) === 0)) return at;
    }
    return -1;
  }
}

/** Some changes, and what the disk held after each of them. */
async function changeSome(image: WritableImage, random: Random, history: History): Promise<void> {
  const sectors = Math.ceil(image.bytes / SECTOR_BYTES);
  for (let i = 0; i < CHANGES; i++) {
    const start = random.below(sectors) * SECTOR_BYTES;
    const bytes = (1 + random.below(random.pick([4, 400]))) * SECTOR_BYTES;
    const range = { start, end: Math.min(image.bytes, start + bytes) };
    switch (random.below(8)) {
      case 0:
        await zeroed(image, range, random, "zeros");
        break;
      case 1:
        await image.discard(range);
        break;
      case 2:
        for (const piece of inPieces(image, start, random)) await image.discard(piece);
        break;
      case 3:
        await writeInPlace(image, start, random.bytes(range.end - start), "in place");
        break;
      default:
        await image.write(start, random.bytes(range.end - range.start));
    }
    history.add(await contentOf(image));
  }
}

/** The files as a crash leaves them that loses whatever no flush of theirs covered. */
export async function durable(
  before: Files,
  trace: readonly Operation[],
): Promise<Map<string, SimulatedFile>> {
  const files = new Map(Array.from(before, ([name, file]) => [name, file.fork()]));
  for (const { file: name } of trace) if (!files.has(name)) files.set(name, new SimulatedFile(0, { name }));
  for (const [name, file] of files) {
    const end = trace.findLastIndex((operation) => operation.file === name && operation.op === "flush");
    for (const operation of trace.slice(0, Math.max(0, end))) {
      if (operation.file !== name) continue;
      if (operation.op === "write") await file.write(operation.at, operation.data);
      else if (operation.op === "truncate") await file.truncate(operation.bytes);
      else if (operation.op !== "flush") await file[operation.op](operation.range);
    }
  }
  return files;
}

interface Judge {
  readonly openers: Openers;
  readonly history: History;
  readonly random: Random;
}

/** Every crash leaves an image whose check finds leaks at worst, and a content that the history admits. */
async function assertCrashes(
  before: Files,
  trace: readonly Operation[],
  { openers, history, random }: Judge,
  label: string,
): Promise<void> {
  const options = { random, statesPerFlush: STATES_PER_FLUSH };
  for await (const state of crashStates(before, trace, options)) {
    const survivor = await openers.open(state.files);
    for await (const { kind, message } of survivor.check()) {
      assert.equal(kind, "leak", `${label}, ${state.label}: ${message}`);
    }
    const at = history.foreignSector(await contentOf(survivor));
    assert.equal(at, -1, `${label}, ${state.label}: the sector at ${at} is neither old nor new`);
  }
}
