/**
 * What all schemes share: volumes made of pieces of a disk, refused tables, and names for what lies outside of
 * volumes.
 */
import { type Extent, ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import { DiskError, type Refusal } from "../error.ts";
import { type Identity, linear, mappedVolume } from "./mapped.ts";
import type { Volume, VolumeTable } from "./volume.ts";

/** A stretch of the disk that has a name and is no volume. */
export interface Region extends Extent {
  readonly name: string;
}

/** A volume that consists of `pieces` of one disk, in this order. */
export function volumeOf(identity: Identity, disk: BlockDevice, pieces: readonly Extent[]): Volume {
  return mappedVolume(
    identity,
    [disk],
    pieces.map((piece) => linear({ disk: 0, ...piece })),
  );
}

/**
 * Reads a table; what its bytes make impossible becomes a refusal, so that every byte counts as used.
 * @param disks how many disks the table is of; `disk` is the first
 * @throws DiskError `io`
 */
export async function tableOrRefusal(
  scheme: string,
  disk: BlockDevice,
  hint: string,
  read: () => Promise<VolumeTable>,
  disks = 1,
): Promise<VolumeTable> {
  try {
    return await read();
  } catch (error) {
    if (!(error instanceof DiskError) || error.kind === "io" || error.kind === "interrupted") throw error;
    return {
      scheme,
      volumes: [],
      gaps: Array.from({ length: disks }, () => ExtentSet.EMPTY),
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
