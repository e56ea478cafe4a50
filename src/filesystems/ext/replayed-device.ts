/**
 * A device on which a replay seems to have happened: redirected blocks are read from the journal, all others from
 * below. Nothing is copied; a redirection costs 17 bytes.
 *
 *   below:    | 0 | 1 | 2 | 3 | 4 | 5 | …
 *   redirect:       v           v
 *   journal:  … | data | … | data | …
 */
import { type Extent, ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice, Run } from "../../device/device.ts";

export interface Redirection {
  /** Where the block's content lies on the journal's device, in bytes. */
  readonly from: number;
  /** The content's first four bytes are `escapedBytes` there, not what is stored. */
  readonly escaped: boolean;
}

export interface Redirections {
  readonly blockBytes: number;
  /** The device that `from` counts on. */
  readonly journal: BlockDevice;
  readonly escapedBytes: Uint8Array;
  /** By number of the block below. */
  readonly blocks: ReadonlyMap<number, Redirection>;
}

export class ReplayedDevice implements BlockDevice {
  readonly bytes: number;
  /** What is redirected or patched, in bytes. */
  readonly writes: ExtentSet;
  readonly #below: BlockDevice;
  readonly #journal: BlockDevice;
  readonly #blockBytes: number;
  readonly #escapedBytes: Uint8Array;
  readonly #targets: Float64Array;
  readonly #sources: Float64Array;
  readonly #escaped: Uint8Array;
  readonly #patch: { readonly at: number; readonly bytes: Uint8Array } | undefined;

  /** @param patch bytes that replace what is read at `at`, whatever lies there */
  constructor(below: BlockDevice, redirections: Redirections, patch?: { at: number; bytes: Uint8Array }) {
    const { blocks, blockBytes } = redirections;
    this.#below = below;
    this.bytes = below.bytes;
    this.#journal = redirections.journal;
    this.#blockBytes = blockBytes;
    this.#escapedBytes = redirections.escapedBytes;
    this.#targets = Float64Array.from(blocks.keys()).sort();
    this.#sources = this.#targets.map((block) => blocks.get(block)!.from);
    this.#escaped = new Uint8Array(this.#targets.length);
    this.#targets.forEach((block, i) => (this.#escaped[i] = blocks.get(block)!.escaped ? 1 : 0));
    this.#patch = patch;
    const writes = new ExtentBuilder(this.#targets.length + 1);
    for (const block of this.#targets) writes.add(block * blockBytes, (block + 1) * blockBytes);
    if (patch !== undefined) writes.add(patch.at, patch.at + patch.bytes.length);
    this.writes = writes.build().alignOutward(blockBytes);
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    await this.#below.read(at, into);
    const blockBytes = this.#blockBytes;
    const end = at + into.length;
    for (let i = this.#seek(Math.floor(at / blockBytes)); i < this.#targets.length; i++) {
      const block = this.#targets[i]! * blockBytes;
      if (block >= end) break;
      const from = Math.max(at, block);
      const part = into.subarray(from - at, Math.min(end, block + blockBytes) - at);
      await this.#journal.read(this.#sources[i]! + from - block, part);
      if (this.#escaped[i] === 1) lay(this.#escapedBytes, block, into, at);
    }
    if (this.#patch !== undefined) lay(this.#patch.bytes, this.#patch.at, into, at);
  }

  /** A promise of the table below that a range is zero may be broken by the replay: all of it is data. */
  async *map(range: Extent): AsyncIterable<readonly Run[]> {
    if (range.start < range.end) yield [{ ...range, kind: "data", shared: false, depth: 0 }];
  }

  /** The devices below belong to others. */
  async [Symbol.asyncDispose](): Promise<void> {}

  /** Index of the first redirected block that is at least `block`. */
  #seek(block: number): number {
    let low = 0;
    let high = this.#targets.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#targets[middle]! < block) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Copies those of `bytes`, which begin at `bytesAt`, that fall into `into`, which begins at `at`. */
function lay(bytes: Uint8Array, bytesAt: number, into: Uint8Array, at: number): void {
  const start = Math.max(bytesAt, at);
  const end = Math.min(bytesAt + bytes.length, at + into.length);
  if (start < end) into.set(bytes.subarray(start - bytesAt, end - bytesAt), start - at);
}
