/**
 * Persistent dirty bitmaps: which parts of the disk changed since a backup. Big-endian, but bits count from the low
 * end of each byte.
 *
 *   bitmaps extension → directory: | table offset, table size, flags, type, granularity, name | … |
 *                                       |
 *                                       +→ table: | 0: all zeros | 1: all ones | offset of a cluster of bits | … |
 *
 * Whoever changes the disk sets the bits of every `auto` bitmap. A reclaim turns data into zeros, which is a change;
 * where a whole cluster of bits was never allocated its entry becomes "all ones": nothing is ever allocated here, and
 * a bit too many only makes the next backup larger (H11).
 *
 * Specification: QEMU's docs/interop/qcow2.txt, "Bitmaps".
 */
import { bits64be, struct, u16be, u32be, u8, viewOf } from "../../bytes/struct.ts";
import type { ExtentSet } from "../../bytes/extents.ts";
import { readBytes, type ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { differences, type PatchStep } from "../../reclaim/differences.ts";
import { corrupt, hex, quoted, type Stretch } from "./corrupt.ts";
import { BitmapsExtension, ExtensionType } from "./extensions.ts";
import { Autoclear, type Header, tableAt } from "./header.ts";

const BITMAPS_MAX = 65535;
const DIRECTORY_BYTES_MAX = BITMAPS_MAX * 1024;
const TABLE_ENTRIES_MAX = 2 ** 24;
const NAME_BYTES_MAX = 1023;
const GRANULARITY_BITS = { min: 9, max: 31 };
const ALL_ONES = 1n;
const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;
const RESERVED_MASK = 0xff00_0000_0000_01fen;

const DirectoryEntry = struct({
  tableAt: bits64be,
  tableEntries: u32be,
  flags: u32be,
  type: u8,
  granularityBits: u8,
  nameBytes: u16be,
  extraBytes: u32be,
});

/** Where the flags lie in a directory entry. */
export const FLAGS_AT = DirectoryEntry.at.flags;
const Flag = { inUse: 1, auto: 2, extraDataCompatible: 4 } as const;
const FLAGS_KNOWN = Flag.inUse | Flag.auto | Flag.extraDataCompatible;
const DIRTY_TRACKING = 1;

export interface Bitmap {
  readonly name: string;
  /** Guest bytes under one bit. */
  readonly granularityBytes: number;
  /** Somebody had it open for writing and did not come back: its bits mean nothing. */
  readonly isInUse: boolean;
  /** Every writer has to keep it up to date. */
  readonly isAuto: boolean;
  /** Whether all of it is known to us, so that we can keep it up to date. */
  readonly isUnderstood: boolean;
  readonly flags: number;
  /** File offset of its entry in the directory, which begins with the offset of the table. */
  readonly entryAt: number;
  readonly table: Stretch;
}

/**
 * The bitmaps of an image; none where the autoclear bit does not vouch for them, for then they are garbage.
 * @throws DiskError `corrupt`
 */
export async function readBitmaps(file: ReadableFile, header: Header): Promise<readonly Bitmap[]> {
  const directory = bitmapDirectory(file, header);
  if (!directory) return [];
  const bytes = await readBytes(file, directory.at, directory.bytes);
  const bitmaps: Bitmap[] = [];
  let at = 0;
  for (let index = 0; index < directory.count; index++) {
    if (at + DirectoryEntry.bytes > bytes.length) {
      throw corrupt("bitmap directory", directory.at, `${index} entries`, `${directory.count}`);
    }
    const entry = DirectoryEntry.decode(bytes, at);
    const nameAt = at + DirectoryEntry.bytes + entry.extraBytes;
    const where = `bitmap directory entry ${index}`;
    if (entry.nameBytes > NAME_BYTES_MAX || nameAt + entry.nameBytes > bytes.length) {
      const found = `${entry.extraBytes} extra bytes and a name of ${entry.nameBytes}`;
      throw corrupt(where, directory.at + at, found, `at most ${NAME_BYTES_MAX} and the directory's end`);
    }
    bitmaps.push({
      name: Buffer.from(bytes.subarray(nameAt, nameAt + entry.nameBytes)).toString("utf8"),
      granularityBytes: 2 ** entry.granularityBits,
      isInUse: (entry.flags & Flag.inUse) !== 0,
      isAuto: (entry.flags & Flag.auto) !== 0,
      isUnderstood:
        (entry.flags & ~FLAGS_KNOWN) === 0 &&
        entry.type === DIRTY_TRACKING &&
        (entry.extraBytes === 0 || (entry.flags & Flag.extraDataCompatible) !== 0),
      flags: entry.flags,
      entryAt: directory.at + at,
      table: readTable(file, header, where, entry),
    });
    at = Math.ceil((nameAt + entry.nameBytes) / 8) * 8;
  }
  return bitmaps;
}

/** Where the directory lies, within QEMU's limits (H23). */
function bitmapDirectory(file: ReadableFile, header: Header): Header["bitmaps"] {
  const { bitmaps } = header;
  if (!bitmaps || (header.autoclear & Autoclear.bitmaps) === 0n || bitmaps.count === 0) return undefined;
  if (bitmaps.count > BITMAPS_MAX)
    throw corrupt("nb_bitmaps", bitmaps.at, bitmaps.count, `at most ${BITMAPS_MAX}`);
  if (bitmaps.bytes > DIRECTORY_BYTES_MAX) {
    throw corrupt("bitmap_directory_size", bitmaps.at, bitmaps.bytes, `at most ${DIRECTORY_BYTES_MAX}`);
  }
  tableAt(file, header.clusterBytes, "bitmap directory", bitmaps.at, bitmaps.bytes);
  return bitmaps;
}

function readTable(
  file: ReadableFile,
  header: Header,
  where: string,
  entry: { tableAt: bigint; tableEntries: number; granularityBits: number },
): Stretch {
  const at = Number(entry.tableAt);
  const { granularityBits, tableEntries } = entry;
  if (granularityBits < GRANULARITY_BITS.min || granularityBits > GRANULARITY_BITS.max) {
    throw corrupt(where, at, `granularity_bits ${granularityBits}`, "9 to 31");
  }
  if (tableEntries > TABLE_ENTRIES_MAX) {
    throw corrupt(where, at, `${tableEntries} table entries`, `at most ${TABLE_ENTRIES_MAX}`);
  }
  return { at: tableAt(file, header.clusterBytes, where, at, tableEntries * 8), bytes: tableEntries * 8 };
}

/** A stretch of the file, and where the eight bytes lie that name it. */
export interface PointedStretch extends Stretch {
  readonly what: string;
  readonly pointerAt: number;
  readonly kind: "directory" | "table" | "bits";
}

/** Every stretch of the file that belongs to bitmaps. @throws DiskError `corrupt` */
export async function* bitmapStretches(file: ReadableFile, header: Header): AsyncGenerator<PointedStretch> {
  const directory = bitmapDirectory(file, header);
  if (!directory) return;
  const extension = header.extensions.find(({ type }) => type === ExtensionType.bitmaps)!;
  const pointerAt = extension.at + BitmapsExtension.at.directoryAt;
  yield { kind: "directory", what: "bitmap directory", at: directory.at, bytes: directory.bytes, pointerAt };
  for (const { name, table, entryAt } of await readBitmaps(file, header)) {
    const what = `bitmap ${quoted(name)}`;
    yield { kind: "table", what: `${what} table`, ...table, pointerAt: entryAt };
    const entries = viewOf(await readBytes(file, table.at, table.bytes));
    for (let at = 0; at < table.bytes; at += 8) {
      const bitsAt = bitsUnder(entries.getBigUint64(at), header, { name, table }, at);
      if (bitsAt === undefined) continue;
      yield { kind: "bits", what, at: bitsAt, bytes: header.clusterBytes, pointerAt: table.at + at };
    }
  }
}

/** File offset of the cluster of bits that a table entry names, if it names one. */
function bitsUnder(
  entry: bigint,
  header: Header,
  bitmap: Pick<Bitmap, "name" | "table">,
  entryAt: number,
): number | undefined {
  const offset = Number(entry & OFFSET_MASK);
  const isReservedUsed = (entry & RESERVED_MASK) !== 0n || (offset !== 0 && (entry & ALL_ONES) !== 0n);
  if (isReservedUsed || offset % header.clusterBytes !== 0) {
    const what = `bitmap ${quoted(bitmap.name)} table entry`;
    throw corrupt(what, bitmap.table.at + entryAt, hex(entry), "0, 1 or the offset of a cluster");
  }
  return offset === 0 ? undefined : offset;
}

/** The bitmaps that a change of the disk has to be told to. @throws DiskError `unsupported` when one is not understood */
export async function trackingBitmaps(file: ReadableFile, header: Header): Promise<readonly Bitmap[]> {
  const tracking = (await readBitmaps(file, header)).filter((bitmap) => bitmap.isAuto && !bitmap.isInUse);
  const stranger = tracking.find((bitmap) => !bitmap.isUnderstood);
  if (stranger) {
    throw new DiskError("unsupported", `bitmap ${quoted(stranger.name)} is of an unknown kind`, {
      code: "unknown-bitmap",
      hint: "remove it with `qemu-img bitmap --remove`; the next backup will then be a full one",
    });
  }
  return tracking;
}

/** Patches that set the bits of `changed`, a set of guest ranges, in one bitmap. */
export async function* markChanged(
  file: ReadableFile,
  header: Header,
  bitmap: Bitmap,
  changed: ExtentSet,
): AsyncGenerator<PatchStep> {
  const spanBytes = header.clusterBytes * 8 * bitmap.granularityBytes;
  const marked = changed.alignOutward(bitmap.granularityBytes);
  const before = await readBytes(file, bitmap.table.at, bitmap.table.bytes);
  const after = before.slice();
  const table = viewOf(after);
  for (const span of marked.spans(spanBytes)) {
    const entryAt = span * 8;
    if (entryAt >= table.byteLength) {
      const what = `bitmap ${quoted(bitmap.name)} table`;
      throw corrupt(what, bitmap.table.at, `${table.byteLength / 8} entries`, `more than ${span}`);
    }
    const entry = table.getBigUint64(entryAt);
    const at = bitsUnder(entry, header, bitmap, entryAt);
    if (at === undefined) {
      table.setBigUint64(entryAt, ALL_ONES);
      continue;
    }
    const old = await readBytes(file, at, header.clusterBytes);
    const bits = old.slice();
    const spanStart = span * spanBytes;
    for (const { start, end } of marked.within({ start: spanStart, end: spanStart + spanBytes })) {
      setBits(
        bits,
        (start - spanStart) / bitmap.granularityBytes,
        (end - spanStart) / bitmap.granularityBytes,
      );
    }
    yield* differences("", at, old, bits);
  }
  yield* differences("", bitmap.table.at, before, after);
}

function setBits(bits: Uint8Array, start: number, end: number): void {
  const first = Math.ceil(start / 8);
  const last = Math.floor(end / 8);
  if (first > last) {
    bits[last]! |= (0xff << (start % 8)) & ~(0xff << (end % 8));
    return;
  }
  if (start % 8 !== 0) bits[first - 1]! |= 0xff << (start % 8);
  bits.fill(0xff, first, last);
  if (end % 8 !== 0) bits[last]! |= ~(0xff << (end % 8));
}
