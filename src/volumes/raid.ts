/**
 * Devices that are only a part of something: a RAID set, a mirror over the network, a pool, a cached disk.
 *
 *   | filesystem, as if it were alone … | superblock of the set |
 *
 * A mirror's half shows a whole filesystem from its first byte on, and only a superblock near the end tells that
 * there is a second half. Nothing is read here but that superblock's magic; the device counts as used entirely (H5).
 */
import { viewOf } from "../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { tableOrRefusal } from "./table.ts";
import type { VolumeScheme } from "./volume.ts";

const KiB = 1024;
const SECTOR_BYTES = 512;
const ZFS_UBERBLOCK = "\x0c\xb1\xba\0\0\0\0\0";
const BCACHE = "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";
const BCACHEFS = "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";
const PROMISE = [63, 255, 256, 16, 399, 591, 675, 735, 911, 974, 991, 951, 3087];

const FSTRIM = "everything on it counts as used; run `fstrim` in the guest";
const ZPOOL_TRIM = "everything on it counts as used; run `zpool trim` in the guest";

interface Signature {
  readonly set: string;
  /** What the user can do instead, where it is not the same for all. */
  readonly hint?: string;
  readonly magic: string;
  /** Where the magic lies on a device of so many bytes. */
  at(bytes: number): number;
  /** For short signatures: what else must hold of the sector that begins with the magic, or so far before it. */
  readonly verify?: (sector: DataView) => boolean;
  readonly before?: number;
  /** From the same sector. */
  readonly version?: (sector: DataView) => string;
}

interface Found {
  readonly set: string;
  readonly at: number;
  readonly hint: string | undefined;
}

const fromStart = (at: number) => () => at;
const fromEnd = (at: number) => (bytes: number) => bytes - at;
/** In the sector of that number, counted from the last, which is 1. */
const sectorFromEnd =
  (number: number, at = 0) =>
  (bytes: number) =>
    (Math.floor(bytes / SECTOR_BYTES) - number) * SECTOR_BYTES + at;

const SIGNATURES: readonly Signature[] = [
  { set: "an Intel RAID set", magic: "Intel Raid ISM Cfg Sig. ", at: fromEnd(2 * 512) },
  { set: "an Intel RAID set", magic: "Intel Raid ISM Cfg Sig. ", at: fromEnd(2 * 4096) },
  { set: "a DDF RAID set", magic: "\xde\x11\xde\x11", at: fromEnd(512) },
  { set: "an Adaptec RAID set", magic: "DPTM", at: sectorFromEnd(1, 256) },
  { set: "a HighPoint RAID set", magic: "\xf0\x16\x78\x5a", at: fromStart(0x1220) },
  { set: "a HighPoint RAID set", magic: "\xfd\x16\x78\x5a", at: fromStart(0x1220) },
  { set: "a HighPoint RAID set", magic: "\xf3\x16\x78\x5a", at: sectorFromEnd(11) },
  { set: "a HighPoint RAID set", magic: "\xfd\x16\x78\x5a", at: sectorFromEnd(11) },
  { set: "a JMicron RAID set", magic: "JM", at: sectorFromEnd(1), verify: isJMicron },
  { set: "an LSI RAID set", magic: "$XIDE$", at: sectorFromEnd(1) },
  { set: "an NVIDIA RAID set", magic: "NVIDIA", at: sectorFromEnd(2) },
  ...PROMISE.map((number) => ({
    set: "a Promise RAID set",
    magic: "Promise Technology, Inc.",
    at: sectorFromEnd(number),
  })),
  {
    set: "a Silicon Image RAID set",
    magic: "\0\0\0\x2f",
    at: sectorFromEnd(1, 0x60),
    before: 0x60,
    verify: isSilicon,
  },
  { set: "a VIA RAID set", magic: "\x55\xaa", at: sectorFromEnd(1), verify: isVia },
  { set: "a DRBD mirror", magic: "\x83\x74\x02\x6b", at: fromEnd(4 * KiB - 60) },
  { set: "a DRBD mirror", magic: "\x83\x74\x02\x6c", at: fromEnd(4 * KiB - 60) },
  { set: "a DRBD mirror", magic: "\x83\x74\x02\x6d", at: fromEnd(4 * KiB - 60) },
  // The oldest bcachefs has bcache's magic; only bcache says in which sector its superblock lies.
  { set: "a bcache set", magic: BCACHE, at: fromStart(4 * KiB + 24), before: 24, verify: isBcache },
  { set: "a bcachefs", hint: FSTRIM, magic: BCACHE, at: fromStart(4 * KiB + 24) },
  { set: "a bcachefs", hint: FSTRIM, magic: BCACHEFS, at: fromStart(4 * KiB + 24) },
  {
    set: "a ZFS pool",
    hint: ZPOOL_TRIM,
    magic: "\0\0\0\x07version",
    at: fromStart(16 * KiB + 20),
    version: (sector) => `${sector.getBigUint64(20)}`,
  },
  // ZFS leaves the first 8 KiB alone, where an older superblock may have survived; its labels stand behind.
  { set: "a ZFS pool", hint: ZPOOL_TRIM, magic: ZFS_UBERBLOCK, at: fromStart(128 * KiB) },
  { set: "a ZFS pool", hint: ZPOOL_TRIM, magic: ZFS_UBERBLOCK, at: fromStart(132 * KiB) },
  { set: "a ZFS pool", hint: ZPOOL_TRIM, magic: ZFS_UBERBLOCK, at: fromStart(136 * KiB) },
];

/** The first 64 words add up to nothing, or to one. */
function isJMicron(sector: DataView): boolean {
  let sum = 0;
  for (let at = 0; at < 128; at += 2) sum += sector.getUint16(at, true);
  return (sum & 0xffff) <= 1;
}

/** The words before the checksum, with it, add up to nothing. */
function isSilicon(sector: DataView): boolean {
  let sum = 0;
  for (let at = 0; at <= 0x13e; at += 2) sum += sector.getUint16(at, true);
  return (sum & 0xffff) === 0;
}

function isVia(sector: DataView): boolean {
  let sum = 0;
  for (let at = 0; at < 50; at++) sum += sector.getUint8(at);
  return sector.getUint8(2) <= 2 && (sum & 0xff) === sector.getUint8(50);
}

function isBcache(sector: DataView): boolean {
  return sector.getBigUint64(8, true) === 8n;
}

export const raid: VolumeScheme = {
  name: "raid",
  hidesContent: true,
  async probe(disk) {
    return (await findSignature(disk)) !== undefined;
  },
  open([disk]) {
    const hint = "everything on it counts as used; trim in the guest";
    return tableOrRefusal("raid", disk!, hint, async () => {
      const found = await findSignature(disk!);
      const where = found === undefined ? "a set" : `${found.set}: its superblock lies at ${found.at}`;
      throw new DiskError("unsupported", `the device is a part of ${where}`, {
        code: "multi-disk-member",
        ...(found?.hint && { hint: found.hint }),
      });
    });
  },
};

async function findSignature(disk: BlockDevice): Promise<Found | undefined> {
  for (const { set, magic, before = 0, verify, version, hint, ...signature } of SIGNATURES) {
    const at = signature.at(disk.bytes);
    if (at - before < 0 || at + magic.length > disk.bytes) continue;
    if (Buffer.from(await readBytes(disk, at, magic.length)).toString("latin1") !== magic) continue;
    const sector = new Uint8Array(SECTOR_BYTES);
    const start = at - before;
    sector.set(await readBytes(disk, start, Math.min(SECTOR_BYTES, disk.bytes - start)));
    const view = viewOf(sector);
    if (verify === undefined || verify(view))
      return { set: version === undefined ? set : `${set} of version ${version(view)}`, at, hint };
  }
  return undefined;
}
