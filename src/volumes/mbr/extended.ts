/**
 * Logical partitions: a chain of boot records inside the extended partition.
 *
 *   extended      | EBR |gap| logical 5 |...| EBR |gap| logical 6 |
 *                 0  |   first entry ^        ^
 *                    '-- second entry: next --'
 *
 * The first entry counts from its own boot record, the second from the start of the extended partition. The chain is
 * the disk's word: it ends at a limit, never visits a record twice and never leaves the extended partition (H24).
 */
import type { Extent } from "../../bytes/extents.ts";
import type { BlockDevice } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { isExtended, type MbrEntry, readEntries, SECTOR_BYTES } from "../boot-record.ts";

const LOGICALS_MAX = 256;

export interface Logical extends Extent {
  readonly type: number;
}

export interface Extended {
  readonly logicals: readonly Logical[];
  /** A boot record each, with the room up to its partition, where boot loaders live. */
  readonly records: readonly Extent[];
}

/** @throws DiskError `corrupt` when the chain is broken */
export async function readExtended(disk: BlockDevice, extended: Extent): Promise<Extended> {
  const logicals: Logical[] = [];
  const records: Extent[] = [];
  const visited = new Set<number>();
  for (let at: number | undefined = extended.start; at !== undefined;) {
    if (visited.has(at)) throw broken(at, "links back to itself");
    if (visited.size === LOGICALS_MAX) throw broken(at, `is past the limit of ${LOGICALS_MAX} records`);
    visited.add(at);
    const record: { logical?: Logical; next?: number } = await readRecord(disk, extended, at);
    if (record.logical !== undefined) logicals.push(record.logical);
    records.push({ start: at, end: record.logical?.start ?? at + SECTOR_BYTES });
    at = record.next;
  }
  return { logicals, records };
}

async function readRecord(
  disk: BlockDevice,
  extended: Extent,
  at: number,
): Promise<{ logical?: Logical; next?: number }> {
  const entries = await readEntries(disk, at);
  if (entries === undefined) throw broken(at, "has no valid entries and signature 55AA");
  const links = entries.filter(isExtended);
  const partitions = entries.filter((entry) => !isExtended(entry));
  if (links.length > 1 || partitions.length > 1) {
    throw broken(
      at,
      `has ${partitions.length} partitions and ${links.length} links, expected at most one each`,
    );
  }
  const [link] = links;
  const [partition] = partitions;
  return {
    ...(partition && { logical: logicalOf(partition, extended, at) }),
    ...(link && { next: nextOf(link, extended, at) }),
  };
}

function logicalOf(entry: MbrEntry, extended: Extent, at: number): Logical {
  const start = at + entry.firstSector * SECTOR_BYTES;
  const end = start + entry.sectors * SECTOR_BYTES;
  if (end > extended.end)
    throw broken(at, `has a partition to ${end}, the extended one ends at ${extended.end}`);
  return { start, end, type: entry.type };
}

function nextOf(entry: MbrEntry, extended: Extent, at: number): number {
  const next = extended.start + entry.firstSector * SECTOR_BYTES;
  if (next + SECTOR_BYTES > extended.end) {
    throw broken(at, `links to ${next}, the extended partition ends at ${extended.end}`);
  }
  return next;
}

function broken(at: number, what: string): DiskError {
  return new DiskError("corrupt", `extended boot record at ${at} ${what}`, { code: "mbr-extended" });
}
