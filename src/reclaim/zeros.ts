/**
 * The bytes themselves as a witness: aligned runs that hold only zeros, found by reading every one of them (H8).
 *
 *   chunk     |00000000|0000x000|00x00000|
 *   halves     zero      ---- ^            down to the grain, comparing natively; a first word that is
 *                                          not zero ends the matter without a comparison
 *
 * The next chunk is read while one is searched, so that this goes as fast as the medium. Memory: two chunks.
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import { assert, DiskError } from "../error.ts";

export interface ZeroOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
}

const CHUNK_BYTES = 1024 * 1024;
/** Ranges so close together are read in one go. */
const GAP_BYTES_MAX = 16 * 1024;

/**
 * The runs of zeros inside `within`, aligned to `grainBytes`.
 * @param grainBytes a power of two of at least 8
 * @throws DiskError `interrupted` when the signal is aborted, and whatever the device throws
 */
export async function zeroRuns(
  device: BlockDevice,
  within: ExtentSet,
  grainBytes: number,
  options: ZeroOptions = {},
): Promise<ExtentSet> {
  assert(grainBytes >= 8 && Number.isInteger(Math.log2(grainBytes)), `${grainBytes} is a grain`);
  const wanted = within.alignInward(grainBytes);
  const chunkBytes = Math.max(CHUNK_BYTES, grainBytes);
  const search = new Search(grainBytes, chunkBytes);
  let [current, spare] = [Buffer.alloc(chunkBytes), Buffer.alloc(chunkBytes)];
  let doneBytes = 0;
  let previous: Span | undefined;
  for (const span of spans(wanted, chunkBytes)) {
    throwIfAborted(options.signal);
    const reading = device.read(span.start, spare.subarray(0, span.end - span.start));
    if (previous) doneBytes += search.add(wanted, previous, current);
    await reading;
    [current, spare] = [spare, current];
    previous = span;
    options.onProgress?.(doneBytes, wanted.bytes);
  }
  if (previous) doneBytes += search.add(wanted, previous, current);
  options.onProgress?.(doneBytes, wanted.bytes);
  return search.found.build();
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new DiskError("interrupted", "interrupted while looking for zeros");
}

/** A range to read at once: extents `first` to `last` of the wanted set, or a part of one. */
interface Span extends Extent {
  readonly first: number;
  readonly last: number;
}

/** Cuts the set into reads of at most `chunkBytes`; close neighbours share one. */
function* spans(set: ExtentSet, chunkBytes: number): Generator<Span> {
  for (let first = 0; first < set.count;) {
    const start = set.start(first);
    let last = first;
    while (
      last + 1 < set.count &&
      set.start(last + 1) - set.end(last) <= GAP_BYTES_MAX &&
      set.end(last + 1) - start <= chunkBytes
    ) {
      last++;
    }
    const end = set.end(last);
    for (let at = start; at < end; at += chunkBytes) {
      yield { start: at, end: Math.min(end, at + chunkBytes), first, last };
    }
    first = last + 1;
  }
}

class Search {
  readonly found = new ExtentBuilder();
  readonly #grainBytes: number;
  readonly #zeros: Buffer;

  constructor(grainBytes: number, chunkBytes: number) {
    this.#grainBytes = grainBytes;
    this.#zeros = Buffer.alloc(chunkBytes);
  }

  /** Searches what was read of `span`; returns how many wanted bytes that were. */
  add(wanted: ExtentSet, span: Span, bytes: Buffer): number {
    const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    let searched = 0;
    for (let i = span.first; i <= span.last; i++) {
      const start = Math.max(wanted.start(i), span.start);
      const end = Math.min(wanted.end(i), span.end);
      this.#halve(span.start, bytes, words, start - span.start, end - span.start);
      searched += end - start;
    }
    return searched;
  }

  #halve(base: number, bytes: Buffer, words: Int32Array, start: number, end: number): void {
    const isZero = words[start >>> 2] === 0 && bytes.compare(this.#zeros, 0, end - start, start, end) === 0;
    if (isZero) return this.found.add(base + start, base + end);
    const grains = (end - start) / this.#grainBytes;
    if (grains === 1) return;
    const middle = start + Math.floor(grains / 2) * this.#grainBytes;
    this.#halve(base, bytes, words, start, middle);
    this.#halve(base, bytes, words, middle, end);
  }
}

/** @throws DiskError `refused` when `ranges` hold anything but zeros */
export async function requireZeros(ranges: ExtentSet, guest: Pick<BlockDevice, "read">): Promise<void> {
  const zeros = Buffer.alloc(CHUNK_BYTES);
  const chunk = Buffer.alloc(CHUNK_BYTES);
  for (const { start, end } of ranges) {
    for (let at = start; at < end; at += CHUNK_BYTES) {
      const bytes = Math.min(CHUNK_BYTES, end - at);
      await guest.read(at, chunk.subarray(0, bytes));
      if (chunk.compare(zeros, 0, bytes, 0, bytes) === 0) continue;
      throw new DiskError("refused", `guest bytes ${at}-${at + bytes} cannot be made zero in place`, {
        code: "shared-cluster",
        hint: "a snapshot, a parent or a compressed cluster holds them: write zeros there in the guest",
      });
    }
  }
}
