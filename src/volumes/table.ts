/**
 * What all schemes share: volumes made of pieces of a disk, refused tables, and names for what lies outside of
 * volumes.
 *
 *   disk    |   |  piece 1  |      |  piece 0  |      |
 *                    \______________/______
 *                          ________/       \
 *   volume              |  piece 0  |  piece 1  |
 */
import { type Extent, ExtentSet } from "../bytes/extents.ts";
import { concat } from "../device/concat.ts";
import type { BlockDevice } from "../device/device.ts";
import { slice } from "../device/slice.ts";
import { DiskError, type Refusal } from "../error.ts";
import type { Volume, VolumeTable } from "./volume.ts";

/** A stretch of the disk that has a name and is no volume. */
export interface Region extends Extent {
  readonly name: string;
}

type Identity = Pick<Volume, "name" | "label" | "type" | "refusal">;

/** A volume that consists of `pieces` of one disk, in this order. */
export function volumeOf(identity: Identity, disk: BlockDevice, pieces: readonly Extent[]): Volume {
  const parts = pieces.map((piece) => slice(disk, piece));
  const starts: number[] = [];
  let bytes = 0;
  for (const piece of pieces) {
    starts.push(bytes);
    bytes += piece.end - piece.start;
  }
  return {
    ...identity,
    device: parts.length === 1 ? parts[0]! : concat(parts),
    *places({ start, end }) {
      for (let i = lastAtOrBefore(starts, start); i < pieces.length && starts[i]! < end; i++) {
        const { start: at, end: pieceEnd } = pieces[i]!;
        const skipped = Math.max(0, start - starts[i]!);
        const wanted = Math.min(pieceEnd - at, end - starts[i]!) - skipped;
        if (wanted > 0) yield { disk: 0, at: at + skipped, bytes: wanted };
      }
    },
    find(diskNumber, at) {
      const i = pieces.findIndex((piece) => piece.start <= at && at < piece.end);
      return diskNumber !== 0 || i < 0 ? undefined : starts[i]! + at - pieces[i]!.start;
    },
  };
}

/** Index of the last of the ascending `starts` that is not past `at`; 0 where there is none. */
function lastAtOrBefore(starts: readonly number[], at: number): number {
  let low = 0;
  let high = starts.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (starts[middle]! <= at) low = middle + 1;
    else high = middle;
  }
  return Math.max(0, low - 1);
}

/**
 * Reads a table; what its bytes make impossible becomes a refusal, so that every byte counts as used.
 * @throws DiskError `io`
 */
export async function tableOrRefusal(
  scheme: string,
  disk: BlockDevice,
  hint: string,
  read: () => Promise<VolumeTable>,
): Promise<VolumeTable> {
  try {
    return await read();
  } catch (error) {
    if (!(error instanceof DiskError) || error.kind === "io" || error.kind === "interrupted") throw error;
    return {
      scheme,
      volumes: [],
      gaps: [ExtentSet.EMPTY],
      refusal: { code: error.code ?? `${scheme}-damaged`, message: error.message, hint: error.hint ?? hint },
      notes: [],
      describe: () => `disk of ${disk.bytes} bytes with an untrusted ${scheme} table`,
    };
  }
}

/** The first two of `regions` that share a byte. */
export function firstOverlap(regions: readonly Region[]): readonly [Region, Region] | undefined {
  const sorted = regions.toSorted((a, b) => a.start - b.start);
  for (let i = 1; i < sorted.length; i++) {
    const before = sorted[i - 1]!;
    if (sorted[i]!.start < before.end) return [before, sorted[i]!];
  }
  return undefined;
}

/** @throws DiskError `corrupt` naming the first two regions that share a byte */
export function rejectOverlaps(regions: readonly Region[], code: string): void {
  const overlap = firstOverlap(regions);
  if (overlap === undefined) return;
  const [a, b] = overlap.map(({ name, start, end }) => `${name} at ${start}-${end}`);
  throw new DiskError("corrupt", `${a} overlaps ${b}`, { code });
}

/** Boot loaders live before the first partition; RAID, LDM and backup tables in the last MiB. Smaller gaps align. */
const RESERVE_BYTES = 1024 * 1024;

/**
 * What lies between and behind `partitions` up to `end`, and is neither alignment nor reserve: what nobody needs.
 * @param reserved what else lies there
 */
export function gapsBetween(
  disk: BlockDevice,
  partitions: readonly Extent[],
  reserved: readonly Extent[],
  end = disk.bytes,
): ExtentSet {
  const space = {
    start: Math.min(...partitions.map((partition) => partition.start)),
    end: Math.min(end, disk.bytes - RESERVE_BYTES),
  };
  if (space.start >= space.end) return ExtentSet.EMPTY;
  return ExtentSet.of(space)
    .subtract(ExtentSet.from([...partitions, ...reserved]))
    .atLeast(RESERVE_BYTES);
}

/** Names the byte at `at`: the region that holds it, or where it lies among the volumes. */
export function describeOutside(at: number, regions: readonly Region[], volumes: readonly Extent[]): string {
  const region = regions.find(({ start, end }) => start <= at && at < end);
  if (region !== undefined) return region.name;
  const before = volumes.some(({ end }) => end <= at);
  const behind = volumes.some(({ start }) => start > at);
  if (before && behind) return "gap between partitions";
  if (before) return "space behind the last partition";
  return behind ? "space before the first partition" : "disk without partitions";
}

/** A filesystem found there may be a member of something larger, so the partition counts as used entirely (H5). */
export function memberRefusal(of: string): Refusal {
  return {
    code: "multi-disk-member",
    message: `the partition type says that it belongs to ${of}`,
    hint: "everything in it counts as used",
  };
}
