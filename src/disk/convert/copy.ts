/**
 * From one image into another: one piece is read while the one before it is written.
 *
 *   source  --read--> |piece A|   |piece B| --write--> destination
 *   piece   |##..#.##|            whole blocks of zeros are left out: the copy reads zeros there already
 *
 * Where the destination can tell where a range will lie (`claim`), blocks are written to that place in their true
 * extent, or shared with the source's file without being read (reflink). Otherwise pieces begin and end at multiples of
 * its grain, which compressed formats need.
 */
import { type Extent, ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice, HostFile, Place } from "../../device/device.ts";
import { joined } from "../../device/runs.ts";
import { DiskError } from "../../error.ts";
import type { WritableImage } from "../../formats/format.ts";

export interface Copying {
  readonly source: BlockDevice;
  readonly target: WritableImage;
  /** What is read from the source. */
  readonly data: ExtentSet;
  /** The target has a parent: zeros have to be written, and pieces hold what the guest reads around the data. */
  readonly hasParent: boolean;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((doneBytes: number) => void) | undefined;
}

export interface CopiedBytes {
  readonly copiedBytes: number;
  readonly sharedBytes: number;
}

const PIECE_BYTES = 4 * 1024 * 1024;
/** What zeros are looked for in. */
const BLOCK_BYTES = 4096;
/** Fewer zeros between two blocks are written with them: a hole there costs more than it saves. */
const GAP_BYTES_MAX = 16 * 1024;
/** Larger grains are not filled up: formats that have them write parts of one. */
const WHOLE_GRAIN_BYTES_MAX = 128 * 1024;

/** @throws DiskError `interrupted`, and whatever the devices throw; the target is then worthless */
export async function copy(copying: Copying): Promise<CopiedBytes> {
  const { target, data, hasParent } = copying;
  const writer = new Writer(target, hasParent);
  let sharedBytes = 0;
  let rest = data;
  if (writer.claims) {
    const shared = await share(copying, writer);
    sharedBytes = shared.bytes;
    rest = data.subtract(shared);
  }
  await pump(copying, writer, rest);
  return { copiedBytes: data.bytes, sharedBytes };
}

async function pump(copying: Copying, writer: Writer, data: ExtentSet): Promise<void> {
  const { source, hasParent, signal, onProgress } = copying;
  const buffers = [Buffer.alloc(PIECE_BYTES), Buffer.alloc(PIECE_BYTES)] as const;
  let writing: Promise<void> = Promise.resolve();
  let doneBytes = copying.data.bytes - data.bytes;
  let turn = 0;
  try {
    for (const piece of pieces(writer.aligned(data, source.bytes))) {
      throwIfAborted(signal);
      const buffer = buffers[turn]!.subarray(0, piece.end - piece.start);
      turn = 1 - turn;
      // What is shared between the rest is read too: it would be overwritten with zeros otherwise.
      await fill(source, piece, hasParent ? undefined : copying.data, buffer);
      await writing;
      writing = writer.write(piece.start, buffer);
      // It is awaited with the next piece; until then its failure is nobody's.
      writing.catch(() => {});
      doneBytes += data.within(piece).bytes;
      onProgress?.(doneBytes);
    }
  } finally {
    await writing;
  }
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new DiskError("interrupted", "interrupted; nothing was made");
}

/** Ranges of at most `PIECE_BYTES`, each with as many neighbours as fit and little between them. */
function* pieces(set: ExtentSet): Generator<Extent> {
  let open: { start: number; end: number } | undefined;
  for (const { start, end } of set) {
    for (let at = start; at < end;) {
      const boundary = (Math.floor(at / PIECE_BYTES) + 1) * PIECE_BYTES;
      const stop = Math.min(end, boundary);
      if (open !== undefined && at - open.end <= GAP_BYTES_MAX && stop - open.start <= PIECE_BYTES) {
        open.end = stop;
      } else {
        if (open !== undefined) yield open;
        open = { start: at, end: stop };
      }
      at = stop;
    }
  }
  if (open !== undefined) yield open;
}

/** Fills a buffer with a piece: the wanted parts, and zeros between them. */
async function fill(
  source: BlockDevice,
  { start, end }: Extent,
  wanted: ExtentSet | undefined,
  into: Uint8Array,
): Promise<void> {
  const within = { start, end: Math.min(end, source.bytes) };
  let known = start;
  for (const part of wanted?.within(within) ?? [within]) {
    into.fill(0, known - start, part.start - start);
    await source.read(part.start, into.subarray(part.start - start, part.end - start));
    known = part.end;
  }
  into.fill(0, known - start);
}

class Writer {
  readonly claims: boolean;
  readonly #target: WritableImage;
  readonly #hasParent: boolean;
  #place:
    | { readonly start: number; readonly file: HostFile; readonly at: number; readonly bytes: number }
    | undefined;

  constructor(target: WritableImage, hasParent: boolean) {
    this.#target = target;
    this.#hasParent = hasParent;
    this.claims = !hasParent && target.claim !== undefined;
  }

  /** What has to be written for the target to hold `data`. */
  aligned(data: ExtentSet, sourceBytes: number): ExtentSet {
    const { bytes, grainBytes } = this.#target;
    if (this.claims || grainBytes > WHOLE_GRAIN_BYTES_MAX || PIECE_BYTES % grainBytes !== 0) return data;
    const end = this.#hasParent ? Math.min(bytes, sourceBytes) : bytes;
    return data.alignOutward(grainBytes).within({ start: 0, end });
  }

  /** Writes a piece without its blocks of zeros. */
  async write(at: number, piece: Buffer): Promise<void> {
    if (this.#hasParent) return this.#target.write(at, piece);
    const blockBytes = this.claims ? BLOCK_BYTES : Math.max(BLOCK_BYTES, this.#wholeGrain());
    for (const { start, end } of contentOf(piece, at, blockBytes)) {
      for (let from = start; from < end;) {
        const part = piece.subarray(from - at, end - at);
        from += await this.#put(from, part);
      }
    }
  }

  #wholeGrain(): number {
    const { grainBytes } = this.#target;
    return grainBytes <= WHOLE_GRAIN_BYTES_MAX && PIECE_BYTES % grainBytes === 0 ? grainBytes : 0;
  }

  /** Writes the beginning of `part`; returns how much of it. */
  async #put(at: number, part: Buffer): Promise<number> {
    const place = await this.placeOf(at, part.length);
    if (place === undefined) {
      await this.#target.write(at, part);
      return part.length;
    }
    await place.file.write(place.at, part.subarray(0, place.bytes));
    return place.bytes;
  }

  /** Where the first part of a range is to be written; undefined: the target writes. */
  async placeOf(at: number, bytes: number): Promise<(Place & { readonly file: HostFile }) | undefined> {
    if (!this.claims) return undefined;
    let place = this.#place;
    if (place === undefined || at < place.start || at >= place.start + place.bytes) {
      const { grainBytes } = this.#target;
      const start = Math.floor(at / grainBytes) * grainBytes;
      const end = Math.min(this.#target.bytes, Math.ceil((at + bytes) / grainBytes) * grainBytes);
      const claimed = await this.#target.claim!({ start, end });
      if (claimed === undefined) return undefined;
      this.#place = place = { ...claimed, start };
    }
    const offset = at - place.start;
    return { file: place.file, at: place.at + offset, bytes: Math.min(bytes, place.bytes - offset) };
  }
}

/** The parts of a piece that are not blocks of zeros; blocks are aligned on the guest's disk. */
function contentOf(piece: Buffer, at: number, blockBytes: number): ExtentSet {
  const content = new ExtentBuilder();
  let last = -Infinity;
  for (let start = at; start < at + piece.length;) {
    const end = Math.min(at + piece.length, (Math.floor(start / blockBytes) + 1) * blockBytes);
    if (!isZero(piece, start - at, end - at)) {
      content.add(start - last <= GAP_BYTES_MAX ? last : start, end);
      last = end;
    }
    start = end;
  }
  return content.build();
}

const ZEROS = Buffer.alloc(PIECE_BYTES);

function isZero(piece: Buffer, start: number, end: number): boolean {
  return piece[start] === 0 && piece.compare(ZEROS, 0, end - start, start, end) === 0;
}

/** Shares as much as the host can of what lies in files one to one; returns what was shared. */
async function share(copying: Copying, writer: Writer): Promise<ExtentSet> {
  const { source, target, data, signal, onProgress } = copying;
  const { blockBytes } = await target.files.get("")!.stat();
  const shared = new ExtentBuilder();
  let sharedBytes = 0;
  for (const range of data) {
    for await (const runs of joined(source.map(range))) {
      for (const { kind, place, start, end } of runs) {
        throwIfAborted(signal);
        if (kind !== "data" || place === undefined) continue;
        const first = start + (Math.ceil(place.at / blockBytes) * blockBytes - place.at);
        const stop = first + Math.floor((end - first) / blockBytes) * blockBytes;
        for (let at = first; at < stop;) {
          const into = await writer.placeOf(at, Math.min(stop - at, PIECE_BYTES));
          if (into === undefined || into.at % blockBytes !== 0) break;
          const from = place.at + at - start;
          if (!(await into.file.cloneFrom?.(place.file, from, into.at, into.bytes))) return shared.build();
          shared.add(at, at + into.bytes);
          at += into.bytes;
          sharedBytes += into.bytes;
        }
      }
    }
    onProgress?.(sharedBytes);
  }
  return shared.build();
}
