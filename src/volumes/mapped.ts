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
import type { BlockDevice, Place as HostPlace, Run } from "../device/device.ts";
import { assert } from "../error.ts";
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

export type Identity = Pick<Volume, "name" | "label" | "type" | "refusal" | "unlessMember">;

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
    places: (range) => map.places(range, "every copy"),
    footprint: (range) => map.footprint(range),
    find: (disk, at) => map.find(disk, at),
  };
}

function bytesOf({ columns, chunkBytes, copies }: Segment): number {
  const rows = Math.floor((columns[0]!.end - columns[0]!.start) / chunkBytes);
  return Math.floor((rows * columns.length) / copies) * chunkBytes;
}

interface Place {
  readonly disk: number;
  readonly at: number;
  readonly bytes: number;
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

  /** Ascending in the volume. In one loop: a volume may have millions of chunks. */
  *places({ start, end }: Extent, which: "every copy" | "first copies"): Generator<Place> {
    for (let i = this.#segmentAt(start); i < this.#segments.length && this.#starts[i]! < end; i++) {
      const { columns, chunkBytes, copies } = this.#segments[i]!;
      const base = this.#starts[i]!;
      const to = Math.min(end, this.#starts[i + 1]!);
      let at = Math.max(start, base);
      const slot = Math.floor((at - base) / chunkBytes) * copies;
      let column = slot % columns.length;
      let rowAt = Math.floor(slot / columns.length) * chunkBytes;
      while (at < to) {
        const inChunk = (at - base) % chunkBytes;
        const bytes = Math.min(chunkBytes - inChunk, to - at);
        for (let copy = 0; copy < copies; copy++) {
          const { disk, start: columnAt } = columns[column]!;
          if (copy === 0 || which === "every copy") yield { disk, at: columnAt + rowAt + inChunk, bytes };
          if (++column === columns.length) {
            column = 0;
            rowAt += chunkBytes;
          }
        }
        at += bytes;
      }
    }
  }

  /** The places of a range in no order; what lies in whole rows is one piece a column. */
  *footprint({ start, end }: Extent): Generator<Place> {
    for (let i = this.#segmentAt(start); i < this.#segments.length && this.#starts[i]! < end; i++) {
      const { columns, chunkBytes, copies } = this.#segments[i]!;
      const base = this.#starts[i]!;
      const from = Math.max(start, base);
      const to = Math.min(end, this.#starts[i + 1]!);
      const firstChunk = Math.ceil((from - base) / chunkBytes);
      const endChunk = Math.floor((to - base) / chunkBytes);
      const width = columns.length;
      const firstRow = Math.ceil((firstChunk * copies) / width);
      const endRow = Math.floor((endChunk * copies) / width);
      if (firstRow >= endRow) {
        yield* this.places({ start: from, end: to }, "every copy");
        continue;
      }
      const row = (number: number, { disk, start: columnAt }: Stretch, rows = 1): Place => {
        return { disk, at: columnAt + number * chunkBytes, bytes: rows * chunkBytes };
      };
      yield* this.places({ start: from, end: base + firstChunk * chunkBytes }, "every copy");
      for (let slot = firstChunk * copies; slot < firstRow * width; slot++)
        yield row(firstRow - 1, columns[slot % width]!);
      for (const column of columns) yield row(firstRow, column, endRow - firstRow);
      for (let slot = endRow * width; slot < endChunk * copies; slot++)
        yield row(endRow, columns[slot % width]!);
      yield* this.places({ start: base + endChunk * chunkBytes, end: to }, "every copy");
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

  copiesAt(at: number): number {
    return this.#segments[this.#segmentAt(at)]!.copies;
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
    assert(at >= 0 && at + into.length <= this.bytes, `${at}+${into.length} lies in ${this.bytes} bytes`);
    let done = 0;
    for (const place of this.#map.places({ start: at, end: at + into.length }, "first copies")) {
      await this.#disks[place.disk]!.read(place.at, into.subarray(done, done + place.bytes));
      done += place.bytes;
    }
  }

  async *map(range: Extent): AsyncIterable<readonly Run[]> {
    let done = range.start;
    for (const { disk, at, bytes } of this.#map.places(range, "first copies")) {
      const by = done - at;
      for await (const runs of this.#disks[disk]!.map({ start: at, end: at + bytes })) {
        yield runs.map((run) => ({ ...run, start: run.start + by, end: run.end + by }));
      }
      done += bytes;
    }
  }

  /** Of the first chunk alone. What lies in several places is not written through one of them. */
  locate(at: number, bytes: number, access: "read" | "write"): HostPlace | undefined {
    const [first] = this.#map.places({ start: at, end: at + bytes }, "first copies");
    if (first === undefined || (access === "write" && this.#map.copiesAt(at) > 1)) return undefined;
    return this.#disks[first.disk]!.locate?.(first.at, first.bytes, access);
  }

  /** The disks belong to whoever opened them. */
  async [Symbol.asyncDispose](): Promise<void> {}
}
