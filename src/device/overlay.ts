/**
 * Writes that stay in memory: the device below is only read. A dirty journal is replayed into one (H2).
 *
 *   overlay   |   | w |   |   | w | w |       blocks that were written
 *   below     |###|###|###|###|###|###|       read where nothing was written
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import { DiskError } from "../error.ts";
import type { BlockDevice, Run, WritableDevice } from "./device.ts";

export interface Overlay extends WritableDevice {
  /** Everything that was ever written, zeroed or discarded here. */
  written(): ExtentSet;
}

export interface OverlayOptions {
  /** How much may be held before a write fails with `unsupported`: what a disk can choose needs a limit (H24). */
  readonly memoryBytesMax?: number;
}

const BLOCK_BYTES = 4096;
const ZEROS = new Uint8Array(BLOCK_BYTES);

export function overlay(below: BlockDevice, options: OverlayOptions = {}): Overlay {
  return new MemoryOverlay(below, options.memoryBytesMax ?? 256 * 1024 * 1024);
}

class MemoryOverlay implements Overlay {
  readonly bytes: number;
  readonly #below: BlockDevice;
  readonly #blocksMax: number;
  readonly #blocks = new Map<number, Uint8Array>();
  #fresh = new ExtentBuilder();
  #written = ExtentSet.EMPTY;

  constructor(below: BlockDevice, memoryBytesMax: number) {
    this.#below = below;
    this.bytes = below.bytes;
    this.#blocksMax = Math.floor(memoryBytesMax / BLOCK_BYTES);
  }

  written(): ExtentSet {
    this.#written = this.#written.union(this.#fresh.build());
    this.#fresh = new ExtentBuilder();
    return this.#written;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    const end = at + into.length;
    for (let start = at; start < end;) {
      const isHeld = this.#blocks.has(Math.floor(start / BLOCK_BYTES));
      let stop = start;
      while (stop < end && this.#blocks.has(Math.floor(stop / BLOCK_BYTES)) === isHeld)
        stop = nextBlock(stop);
      stop = Math.min(stop, end);
      const target = into.subarray(start - at, stop - at);
      if (isHeld) this.#copyOut(start, target);
      else await this.#below.read(start, target);
      start = stop;
    }
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    const end = at + from.length;
    for (let start = at; start < end; start = nextBlock(start)) {
      const stop = Math.min(end, nextBlock(start));
      const block = await this.#own(start, stop);
      block.set(from.subarray(start - at, stop - at), start % BLOCK_BYTES);
    }
    this.#fresh.add(at, end);
  }

  async zero({ start, end }: Extent): Promise<void> {
    for (let at = start; at < end; at = nextBlock(at)) {
      const stop = Math.min(end, nextBlock(at));
      if (stop - at === BLOCK_BYTES) this.#hold(at / BLOCK_BYTES, ZEROS);
      else (await this.#own(at, stop)).fill(0, at % BLOCK_BYTES, (at % BLOCK_BYTES) + stop - at);
    }
    this.#fresh.add(start, end);
  }

  async discard({ start, end }: Extent): Promise<void> {
    this.#fresh.add(start, end);
  }

  flush(): Promise<void> {
    return Promise.resolve();
  }

  async *map(range: Extent): AsyncIterable<readonly Run[]> {
    const held = this.#held();
    for await (const runs of this.#below.map(range)) {
      yield runs.flatMap((run) => (held.touches(run) ? covered(run, held) : [run]));
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }

  #held(): ExtentSet {
    const builder = new ExtentBuilder(this.#blocks.size);
    for (const block of this.#blocks.keys()) builder.add(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
    return builder.build();
  }

  #copyOut(at: number, into: Uint8Array): void {
    for (let done = 0; done < into.length;) {
      const block = this.#blocks.get(Math.floor((at + done) / BLOCK_BYTES))!;
      const part = block.subarray((at + done) % BLOCK_BYTES).subarray(0, into.length - done);
      into.set(part, done);
      done += part.length;
    }
  }

  /** The block that holds `[start, end)`, ours to change; filled from below when only part of it will be. */
  async #own(start: number, end: number): Promise<Uint8Array> {
    const number = Math.floor(start / BLOCK_BYTES);
    const held = this.#blocks.get(number);
    if (held !== undefined && held !== ZEROS) return held;
    const block = new Uint8Array(BLOCK_BYTES);
    if (held === undefined && end - start < BLOCK_BYTES) {
      const base = number * BLOCK_BYTES;
      await this.#below.read(base, block.subarray(0, Math.min(BLOCK_BYTES, this.bytes - base)));
    }
    this.#hold(number, block);
    return block;
  }

  #hold(number: number, block: Uint8Array): void {
    if (!this.#blocks.has(number) && this.#blocks.size >= this.#blocksMax) {
      throw new DiskError(
        "unsupported",
        `more than ${this.#blocksMax * BLOCK_BYTES} bytes written in memory`,
      );
    }
    this.#blocks.set(number, block);
  }
}

function nextBlock(at: number): number {
  return at - (at % BLOCK_BYTES) + BLOCK_BYTES;
}

/** A run of the device below, with what the overlay holds laid over it. */
function covered(run: Run, held: ExtentSet): Run[] {
  const out: Run[] = [];
  let at = run.start;
  const below = (end: number): Run => ({
    ...run,
    start: at,
    end,
    ...(run.place && {
      place: { file: run.place.file, at: run.place.at + at - run.start, bytes: end - at },
    }),
  });
  for (const { start, end } of held.within(run)) {
    if (start > at) out.push(below(start));
    out.push({ start, end, kind: "data", shared: false, depth: 0 });
    at = end;
  }
  if (at < run.end) out.push(below(run.end));
  return out;
}
