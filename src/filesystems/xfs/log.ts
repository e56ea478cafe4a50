/**
 * The log: a ring of records. Whether it is empty is decided here; replay.ts is for one that is not.
 *
 *   | cycle n … record | unmount record | head → cycle n - 1, or 0: never written … |
 *
 *   record:  | headers | data: operations, each | id u32 | length u32 | client u8 | flags u8 | 0 u16 | … | |
 *
 * Where the cycle changes is the head: the ring was written last there. The log is empty when the record that ends at
 * the head has a single operation, with the flag that an unmount leaves. The kernel looks for it in the same way, so
 * that what is empty here is not replayed there. Journaling_log.asciidoc of "XFS Algorithms & Data Structures";
 * fs/xfs/xfs_log_recover.c of Linux.
 */
import { viewOf } from "../../bytes/struct.ts";
import type { BlockDevice } from "../../device/device.ts";
import { Refused } from "../refused.ts";
import { hasVersion } from "./features.ts";
import {
  cycleOf,
  decodeHeader,
  hasChecksum,
  IN_FLIGHT_SECTORS,
  isHeader,
  LogRing,
  RECORD_SECTORS_MAX,
  SECTOR_BYTES,
} from "./log-ring.ts";
import { damaged } from "./refused.ts";
import { blockAt, type Superblock } from "./superblock.ts";

const UNMOUNT_FLAG = 0x20;
const OPERATION_FLAGS_AT = 9;

/** The blocks of the log, counted through all AGs. @throws Refused when it lies on another device, or nowhere */
export function logExtent(sb: Superblock): { readonly start: number; readonly end: number } {
  if (sb.logStart === 0) {
    throw new Refused(
      "journal-missing",
      "superblock: the log lies on a device of its own, so that nobody can tell here whether it is empty",
      "all of this filesystem counts as used",
    );
  }
  const start = blockAt(sb, sb.logStart, sb.logBlocks);
  if (start < 0 || sb.logBlocks === 0) {
    throw damaged(`superblock: a log of ${sb.logBlocks} blocks at ${sb.logStart} found`);
  }
  return { start, end: start + sb.logBlocks };
}

/** @throws Refused when it lies elsewhere */
export function logRing(device: BlockDevice, sb: Superblock): LogRing {
  const { start, end } = logExtent(sb);
  return new LogRing(device, start * sb.blockBytes, ((end - start) * sb.blockBytes) / SECTOR_BYTES);
}

/** @throws Refused `journal-dirty` unless the last thing written to the log was that of an unmount */
export async function checkLog(device: BlockDevice, sb: Superblock): Promise<void> {
  await checkEmpty(logRing(device, sb), hasVersion(sb, "logv2"));
}

export function dirty(message: string): Refused {
  return new Refused(
    "journal-dirty",
    `${message}: the guest was not shut down cleanly`,
    "boot the guest and shut it down cleanly, or mount and unmount the filesystem in it, or --allow replay",
  );
}

interface LastRecord {
  /** Sectors from its start to the place before which it was looked for. */
  readonly distance: number;
  readonly sectors: number;
  readonly isUnmount: boolean;
}

/** @throws Refused when anything was written after an unmount, or did not arrive */
async function checkEmpty(ring: LogRing, isVersion2: boolean): Promise<void> {
  const [first, last] = [await ring.cycleAt(0), await ring.cycleAt(ring.sectors - 1)];
  if (first === 0) throw dirty("log: it was never written");
  const change = first === last ? 0 : await ring.firstOf(last);
  let head = change;
  let record = await recordBefore(ring, head, isVersion2);
  if (record !== undefined && record.distance > record.sectors) {
    // A record that is not whole does not count. xfs_repair and xfs_admin leave one when they clear the log.
    await checkCycles(ring, change, record.distance, (cycle) => cycle !== last);
    head = ring.step(change, -record.distance);
    record = await recordBefore(ring, head, isVersion2);
  }
  if (record === undefined || record.sectors !== record.distance) {
    throw dirty(`log: no whole record ends at sector ${head}`);
  }
  const window = Math.min(IN_FLIGHT_SECTORS, ring.sectors);
  await checkCycles(ring, head, window, (cycle, sector) => cycle === (sector < change ? first : last));
  if (!record.isUnmount) {
    throw dirty(`log: the record that ends at sector ${head} is not that of an unmount`);
  }
}

/** @throws Refused for the first of the `count` sectors before `head` whose cycle does not fit */
async function checkCycles(
  ring: LogRing,
  head: number,
  count: number,
  fits: (cycle: number, sector: number) => boolean,
): Promise<void> {
  const before = await ring.readBefore(head, count);
  for (let index = 0; index < count; index++) {
    const sector = ring.step(head, index - count);
    const cycle = cycleOf(before, index);
    if (fits(cycle, sector)) continue;
    throw dirty(`log: cycle ${cycle} at sector ${sector} found, another expected`);
  }
}

/** The last record that begins before `head`; undefined where there is none, or it is not whole. */
async function recordBefore(
  ring: LogRing,
  head: number,
  isVersion2: boolean,
): Promise<LastRecord | undefined> {
  const window = Math.min(RECORD_SECTORS_MAX, ring.sectors);
  const bytes = await ring.readBefore(head, window);
  let index = window - 1;
  while (index >= 0 && !isHeader(bytes, index * SECTOR_BYTES)) index--;
  if (index < 0) return undefined;
  const at = index * SECTOR_BYTES;
  const header = decodeHeader(bytes, at, isVersion2);
  const distance = window - index;
  if (header === undefined || header.sectors > distance) return undefined;
  const record = bytes.subarray(at, at + header.sectors * SECTOR_BYTES);
  if (header.checksum !== 0 && !hasChecksum(record, header)) return undefined;
  const flags = viewOf(record).getUint8(header.headers * SECTOR_BYTES + OPERATION_FLAGS_AT);
  const isUnmount = header.operations === 1 && (flags & UNMOUNT_FLAG) !== 0;
  return { distance, sectors: header.sectors, isUnmount };
}
