/**
 * The disklabel of the BSDs: up to sixteen partitions inside of an MBR partition, or of a whole disk.
 *
 *   slice   | boot | label | boot … | a … | b: swap | e …         |        c: all of it
 *           0      512
 *
 *   label:  magic, drive, …, 132: magic, checksum, number of partitions, …, 148: { length, offset, …, type, … } …
 *
 * Offsets count sectors from the start of the slice (FreeBSD), or of the disk (NetBSD, OpenBSD), and only the raw
 * partition c, or OpenBSD's bounds, tell where the slice itself begins. Partitions of other slices, which OpenBSD's
 * label repeats, are left to the MBR.
 *
 * Source: FreeBSD, sys/sys/disklabel.h; OpenBSD, sys/sys/disklabel.h; Linux, block/partitions/msdos.c.
 */
import { ExtentSet } from "../bytes/extents.ts";
import { skip, struct, u16le, u32le, u8, viewOf } from "../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../device/device.ts";
import { overlay } from "../device/overlay.ts";
import { DiskError } from "../error.ts";
import { describeOutside, type Region, rejectOverlaps, tableOrRefusal, volumeOf } from "./table.ts";
import type { VolumeScheme, VolumeTable } from "./volume.ts";

export const LABEL_AT = 512;
const MAGIC = 0x82_56_45_57;
const PARTITIONS_MAX = 16;
const PARTITIONS_AT = 148;
const LABEL_BYTES = 404;
/** The raw partition, c. */
const RAW = 2;
const SECTOR_SIZES = [512, 1024, 2048, 4096];

export const Disklabel = struct({
  magic: u32le,
  drive: skip(36),
  sectorBytes: u32le,
  geometry: skip(32),
  startHigh: u16le,
  endHigh: u16le,
  start: u32le,
  end: u32le,
  flags: skip(24),
  sectorsHigh: u16le,
  version: u16le,
  spare: skip(16),
  magicToo: u32le,
  checksum: u16le,
  partitions: u16le,
});

/** Of version 1 (OpenBSD), the third word holds the upper halves of the first two. */
export const Partition = struct({ sectors: u32le, offset: u32le, third: u32le, type: u8, rest: skip(3) });

const TYPES: Readonly<Record<number, string>> = {
  1: "BSD swap",
  7: "BSD UFS",
  8: "MS-DOS",
  9: "BSD LFS",
  11: "HPFS or NTFS",
  12: "ISO 9660",
  14: "BSD vinum",
  17: "ext2",
  18: "NTFS",
  19: "BSD RAID",
  20: "BSD ccd",
  22: "BSD softraid",
  27: "ZFS",
};
/** A part of something larger. */
const MEMBERS: ReadonlySet<number> = new Set([14, 19, 20, 22, 27]);

export const bsd: VolumeScheme = {
  name: "bsd",
  async probe(disk) {
    if (LABEL_AT + LABEL_BYTES > disk.bytes) return false;
    const { magic, magicToo } = Disklabel.decode(await readBytes(disk, LABEL_AT, Disklabel.bytes));
    return magic === MAGIC && magicToo === MAGIC;
  },
  open([disk]) {
    const hint = "see what `disklabel` says about it in the guest";
    return tableOrRefusal("bsd", disk!, hint, () => readTable(disk!));
  },
};

interface Found extends Region {
  readonly letter: string;
  readonly type: number;
}

async function readTable(disk: BlockDevice): Promise<VolumeTable> {
  if (!(await bsd.probe(disk))) throw damaged("is missing");
  const bytes = await readBytes(disk, LABEL_AT, LABEL_BYTES);
  const label = Disklabel.decode(bytes);
  rejectLabel(label, bytes);
  const found = partitionsOf(label, bytes, disk.bytes);
  rejectOverlaps(found, "bsd-overlap");
  const regions = [{ name: "BSD disklabel", start: LABEL_AT, end: LABEL_AT + 512 }];
  // The boot blocks are a part of the first partition, which would show the same label again.
  const withoutLabel = overlay(disk);
  await withoutLabel.write(LABEL_AT, new Uint8Array(LABEL_BYTES));
  return {
    scheme: "bsd",
    volumes: found.map((partition) => {
      const type = TYPES[partition.type] ?? `BSD type ${partition.type}`;
      const identity = { name: partition.letter, label: "", type };
      const device = partition.start === 0 ? withoutLabel : disk;
      if (!MEMBERS.has(partition.type)) return volumeOf(identity, device, [partition]);
      const message = `the disklabel says that it belongs to a set: ${type}`;
      const unlessMember = { code: "multi-disk-member", message, hint: "everything in it counts as used" };
      return volumeOf({ ...identity, unlessMember }, device, [partition]);
    }),
    gaps: [ExtentSet.EMPTY],
    notes: [],
    describe: (_, at) => describeOutside(at, regions, found),
  };
}

type Label = ReturnType<typeof Disklabel.decode>;

function rejectLabel(label: Label, bytes: Uint8Array): void {
  if (label.partitions === 0 || label.partitions > PARTITIONS_MAX)
    throw damaged(`has ${label.partitions} partitions, expected 1 to ${PARTITIONS_MAX}`);
  const view = viewOf(bytes);
  let sum = 0;
  for (let at = 0; at < PARTITIONS_AT + label.partitions * Partition.bytes; at += 2) {
    sum ^= view.getUint16(at, true);
  }
  if (sum !== 0)
    throw damaged(`has checksum 0x${label.checksum.toString(16)}, which is off by 0x${sum.toString(16)}`);
  if (label.version > 1) throw new DiskError("unsupported", `BSD disklabel has version ${label.version}`);
  if (!SECTOR_SIZES.includes(label.sectorBytes)) throw damaged(`has sectors of ${label.sectorBytes} bytes`);
}

/** Those in use that lie in the slice. @throws DiskError when one does so only in part */
function partitionsOf(label: Label, bytes: Uint8Array, sliceBytes: number): Found[] {
  const all = Array.from({ length: label.partitions }, (_, i) => {
    const found = Partition.decode(bytes, PARTITIONS_AT + i * Partition.bytes);
    const isLong = label.version === 1;
    const high = (shift: number): number => (isLong ? ((found.third >>> shift) & 0xffff) * 2 ** 32 : 0);
    const start = (found.offset + high(0)) * label.sectorBytes;
    const end = start + (found.sectors + high(16)) * label.sectorBytes;
    return { letter: String.fromCharCode(97 + i), type: found.type, start, end };
  });
  const slice = sliceOf(label, all[RAW], sliceBytes);
  const used = all.filter(({ type, start, end }, i) => i !== RAW && type !== 0 && end > start);
  return used.flatMap(({ letter, type, start, end }) => {
    if (slice.isShared && (end <= slice.start || start >= slice.end)) return [];
    if (start < slice.start || end > slice.end)
      throw damaged(
        `has partition ${letter} at ${start}-${end}, outside of its slice at ${slice.start}-${slice.end}`,
      );
    const name = `BSD partition ${letter}`;
    return [{ name, letter, type, start: start - slice.start, end: end - slice.start }];
  });
}

/** Where the slice lies, in the label's own offsets; shared: the label also names partitions elsewhere. */
function sliceOf(
  label: Label,
  raw: { readonly start: number; readonly end: number } | undefined,
  sliceBytes: number,
): { start: number; end: number; isShared: boolean } {
  if (raw !== undefined && raw.end - raw.start > sliceBytes) {
    const start = (label.start + label.startHigh * 2 ** 32) * label.sectorBytes;
    const end = (label.end + label.endHigh * 2 ** 32) * label.sectorBytes;
    if (label.version === 1 && start < end && end - start <= sliceBytes)
      return { start, end, isShared: true };
    throw damaged(`has a raw partition of ${raw.end - raw.start} bytes in a slice of ${sliceBytes}`);
  }
  const start = raw?.start ?? 0;
  return { start, end: start + sliceBytes, isShared: false };
}

function damaged(what: string): DiskError {
  return new DiskError("corrupt", `BSD disklabel at ${LABEL_AT} ${what}`, { code: "bsd-damaged" });
}
