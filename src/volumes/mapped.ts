/**
 * Volumes made of stretches of one or several disks: one behind the other, striped, mirrored.
 *
 *   linear      copies 1, one column     | 0 |  | 1 |  | 2 |           one segment for each stretch
 *   striped     copies 1, n columns      | 0 2 4 |     | 1 3 5 |       chunk by chunk
 *   mirrored    copies n, n columns      | 0 |         | 0 |
 *   near        copies c, n columns      | 0 1 3 |     | 0 2 3 |     | 1 2 4 |
 *
 * One formula holds for all: copy `j` of chunk `k` is number `k · copies + j` of the slots, which are counted across the
 * columns, row by row. Nothing is kept for a chunk.
 */
import type { Extent } from "../bytes/extents.ts";
import type { BlockDevice, Place, Run } from "../device/device.ts";
import type { Volume } from "./volume.ts";

/** A stretch of one of the disks. */
export interface Stretch extends Extent {
  readonly disk: number;
}

export interface Segment {
  /** Of equal length, at least one chunk each. */
  readonly columns: readonly Stretch[];
  readonly chunkBytes: number;
  /** On how many columns each chunk lies. */
  readonly copies: number;
}

/** Bytes as they lie on one disk, copies of the same being all of them. */
export function linear(stretch: Stretch, ...copies: readonly Stretch[]): Segment {
  return {
    columns: [stretch, ...copies],
    chunkBytes: stretch.end - stretch.start,
    copies: 1 + copies.length,
  };
}

export type Identity = Pick<Volume, "name" | "label" | "type" | "refusal">;

/** A volume that consists of `segments`, one behind the other. */
export function mappedVolume(
  identity: Identity,
  disks: readonly BlockDevice[],
  segments: readonly Segment[],
): Volume {
  const map = new SegmentMap(segments);
  return {
    ...identity,
    device: new MappedDevice(disks, map),
    *places(range) {
      for (const part of map.parts(range)) {
        for (let copy = 0; copy < part.segment.copies; copy++) {
          yield { ...placeOf(part, copy), bytes: part.bytes };
        }
      }
    },
    find: (disk, at) => map.find(disk, at),
  };
}

/** What of one chunk lies in a range. */
interface Part {
  readonly segment: Segment;
  /** Counted in the segment. */
  readonly chunk: number;
  /** Where it begins in the chunk, and in the volume. */
  readonly inChunk: number;
  readonly at: number;
  readonly bytes: number;
}

function placeOf({ segment, chunk, inChunk }: Part, copy: number): { disk: number; at: number } {
  const { columns, chunkBytes, copies } = segment;
  const slot = chunk * copies + copy;
  const { disk, start } = columns[slot % columns.length]!;
  return { disk, at: start + Math.floor(slot / columns.length) * chunkBytes + inChunk };
}

function bytesOf({ columns, chunkBytes, copies }: Segment): number {
  const rows = Math.floor((columns[0]!.end - columns[0]!.start) / chunkBytes);
  return Math.floor((rows * columns.length) / copies) * chunkBytes;
}

class SegmentMap {
  readonly bytes: number;
  readonly #segments: readonly Segment[];
  /** Where each segment begins, and behind the last one where the volume ends. */
  readonly #starts: readonly number[];

  constructor(segments: readonly Segment[]) {
    const starts = [0];
    for (const segment of segments) starts.push(starts.at(-1)! + bytesOf(segment));
    this.#segments = segments;
    this.#starts = starts;
    this.bytes = starts.at(-1)!;
  }

  *parts({ start, end }: Extent): Generator<Part> {
    for (let i = this.#segmentAt(start); i < this.#segments.length && this.#starts[i]! < end; i++) {
      const segment = this.#segments[i]!;
      const base = this.#starts[i]!;
      const to = Math.min(end, this.#starts[i + 1]!);
      for (let at = Math.max(start, base); at < to;) {
        const chunk = Math.floor((at - base) / segment.chunkBytes);
        const inChunk = at - base - chunk * segment.chunkBytes;
        const bytes = Math.min(segment.chunkBytes - inChunk, to - at);
        yield { segment, chunk, inChunk, at, bytes };
        at += bytes;
      }
    }
  }

  find(disk: number, at: number): number | undefined {
    for (const [i, { columns, chunkBytes, copies }] of this.#segments.entries()) {
      const column = columns.findIndex((one) => one.disk === disk && one.start <= at && at < one.end);
      if (column < 0) continue;
      const row = Math.floor((at - columns[column]!.start) / chunkBytes);
      const inChunk = at - columns[column]!.start - row * chunkBytes;
      const chunk = Math.floor((row * columns.length + column) / copies);
      const found = this.#starts[i]! + chunk * chunkBytes + inChunk;
      return found < this.#starts[i + 1]! ? found : undefined;
    }
    return undefined;
  }

  /** Number of the segment that holds `at`. */
  #segmentAt(at: number): number {
    let low = 0;
    let high = this.#segments.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#starts[middle + 1]! <= at) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Reads the first copy. */
class MappedDevice implements BlockDevice {
  readonly bytes: number;
  readonly #disks: readonly BlockDevice[];
  readonly #map: SegmentMap;

  constructor(disks: readonly BlockDevice[], map: SegmentMap) {
    this.#disks = disks;
    this.#map = map;
    this.bytes = map.bytes;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    for (const part of this.#map.parts({ start: at, end: at + into.length })) {
      const place = placeOf(part, 0);
      await this.#disks[place.disk]!.read(place.at, into.subarray(part.at - at, part.at - at + part.bytes));
    }
  }

  async *map(range: Extent): AsyncIterable<readonly Run[]> {
    for (const part of this.#map.parts(range)) {
      const { disk, at } = placeOf(part, 0);
      const by = part.at - at;
      for await (const runs of this.#disks[disk]!.map({ start: at, end: at + part.bytes })) {
        yield runs.map((run) => ({ ...run, start: run.start + by, end: run.end + by }));
      }
    }
  }

  /** What lies in several places is not written through one of them. */
  locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    const [first, second] = this.#map.parts({ start: at, end: at + bytes });
    if (first === undefined || second !== undefined) return undefined;
    if (access === "write" && first.segment.copies > 1) return undefined;
    const place = placeOf(first, 0);
    return this.#disks[place.disk]!.locate?.(place.at, bytes, access);
  }

  /** The disks belong to whoever opened them. */
  async [Symbol.asyncDispose](): Promise<void> {}
}
