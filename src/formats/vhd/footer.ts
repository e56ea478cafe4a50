/**
 * The footer of a VHD, which says what the disk is: in the last sector of the file, and in images with a block table
 * once more in the first.
 *
 *   | footer copy | dynamic header | … | footer |        dynamic, differencing
 *   | the guest's bytes                | footer |        fixed
 *
 * Specification: Microsoft's Virtual Hard Disk Image Format Specification 1.0, "Hard Disk Footer Format" and the
 * appendix on geometry. All numbers are big-endian.
 */
import {
  ascii,
  type Decoded,
  raw,
  skip,
  struct,
  u16be,
  u32be,
  u64be,
  u8,
  bits64be,
} from "../../bytes/struct.ts";
import { type ReadableFile, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { damaged } from "../blocks/damaged.ts";

export const COOKIE = "conectix";
export const SECTOR_BYTES = 512;

export const Footer = struct({
  cookie: ascii(8),
  features: u32be,
  version: u32be,
  /** Where the dynamic header lies; all ones in fixed images. */
  dataOffset: bits64be,
  /** Seconds since 2000. */
  timeStamp: u32be,
  creatorApplication: ascii(4),
  creatorVersion: u32be,
  creatorHostOs: ascii(4),
  originalSize: u64be,
  currentSize: u64be,
  cylinders: u16be,
  heads: u8,
  sectorsPerTrack: u8,
  diskType: u32be,
  checksum: u32be,
  uniqueId: raw(16),
  savedState: u8,
  reserved: skip(427),
});

export type FooterFields = Decoded<typeof Footer.fields>;

export const DiskType = { fixed: 2, dynamic: 3, differencing: 4 } as const;
export type VhdKind = keyof typeof DiskType;

/** Temporary, and a bit that is always set. */
const FEATURES_KNOWN = 0x3;
export const VERSION = 0x0001_0000;
/** What 32-bit sector numbers of the block table reach. */
export const DISK_BYTES_MAX = 2 ** 32 * SECTOR_BYTES;

export interface FooterCopy {
  readonly bytes: Uint8Array;
  readonly fields: FooterFields;
}

/** The footer that counts, and what is wrong with its copies. */
export interface Footers {
  readonly kind: VhdKind;
  readonly footer: FooterCopy;
  /** Whether it stands at the end of the file. A writer may be cut off while a new block lies over the old footer. */
  readonly isAtEnd: boolean;
  /** Why the image must not be written: one sentence each. */
  readonly faults: readonly string[];
}

/** The complement of the sum of all bytes but the checksum itself, which the specification uses everywhere. */
export function checksumOf(bytes: Uint8Array, checksumAt: number): number {
  let sum = 0;
  for (const [i, byte] of bytes.entries()) if (i < checksumAt || i >= checksumAt + 4) sum += byte;
  return ~sum >>> 0;
}

/** Whether a footer lies at either end, whatever follows from it. */
export async function hasCookie(file: ReadableFile): Promise<boolean> {
  if (file.bytes < SECTOR_BYTES) return false;
  for (const at of [0, file.bytes - SECTOR_BYTES]) {
    if (isFooter(await readBytes(file, at, COOKIE.length))) return true;
  }
  return false;
}

const isFooter = (bytes: Uint8Array): boolean =>
  Buffer.from(bytes.subarray(0, COOKIE.length)).toString("latin1") === COOKIE;

const isSummed = (bytes: Uint8Array): boolean =>
  checksumOf(bytes, Footer.at.checksum) === Buffer.from(bytes).readUInt32BE(Footer.at.checksum);

/** @throws DiskError `corrupt` where no copy is whole, `unsupported` */
export async function readFooters(file: ReadableFile): Promise<Footers> {
  if (file.bytes < SECTOR_BYTES) throw damaged("VHD footer", 0, `${file.bytes} bytes`, "at least 512");
  const ends = [
    await readBytes(file, 0, SECTOR_BYTES),
    await readBytes(file, file.bytes - SECTOR_BYTES, SECTOR_BYTES),
  ] as const;
  const [first, last] = ends.map((bytes) => (isFooter(bytes) && isSummed(bytes) ? copyOf(bytes) : undefined));
  // A fixed image begins with the guest's bytes, which may look like anything: the end decides.
  if (last?.fields.diskType === DiskType.fixed) {
    const faults = faultsOf(last);
    if (first !== undefined && first.fields.diskType !== DiskType.fixed) {
      faults.push("a footer at the start of the file says that it is not fixed, as the one at its end does");
    }
    return { kind: "fixed", footer: understood(last), isAtEnd: true, faults };
  }
  const footer = first ?? last ?? twiceTheSame(ends);
  const isAtEnd = isFooter(ends[1]);
  const faults = faultsOf(footer);
  if (first === undefined && last === undefined) faults.push("the checksum of both footers is wrong");
  else if (first === undefined) faults.push("the copy of the footer at the start of the file is damaged");
  else if (last === undefined && isAtEnd) faults.push("the footer at the end of the file is damaged");
  else if (last !== undefined && Buffer.compare(first.bytes, last.bytes) !== 0)
    faults.push("the two copies of the footer differ");
  return { kind: kindOf(footer.fields.diskType), footer: understood(footer), isAtEnd, faults };
}

const copyOf = (bytes: Uint8Array): FooterCopy => ({ bytes, fields: Footer.decode(bytes) });

/** Two copies that agree were written so: whoever made them computes the checksum wrongly. */
function twiceTheSame([first, last]: readonly [Uint8Array, Uint8Array]): FooterCopy {
  if (isFooter(first) && Buffer.compare(first, last) === 0) return copyOf(first);
  throw new DiskError("corrupt", "VHD footer: neither the copy at 0x0 nor that at the end is whole", {
    code: "vhd-footer",
    hint: "if it is a raw disk whose guest wrote that signature, say --format raw",
  });
}

function kindOf(type: number): VhdKind {
  if (type === DiskType.dynamic) return "dynamic";
  if (type === DiskType.differencing) return "differencing";
  throw new DiskError(
    "unsupported",
    `VHD disk type ${type} is not known here: expected 3 or 4, or 2 at the end`,
  );
}

function understood(footer: FooterCopy): FooterCopy {
  const { version, currentSize } = footer.fields;
  if (version >>> 16 !== VERSION >>> 16) {
    throw new DiskError(
      "unsupported",
      `VHD version ${version >>> 16}.${version & 0xffff}: only 1.0 is supported`,
    );
  }
  if (currentSize % SECTOR_BYTES !== 0 || currentSize > DISK_BYTES_MAX) {
    throw damaged(
      "current size",
      Footer.at.currentSize,
      currentSize,
      `sectors, at most ${DISK_BYTES_MAX} bytes`,
    );
  }
  return footer;
}

/** Creators whose current size QEMU takes for the length of the disk; of others, the geometry. */
const MEAN_THEIR_SIZE: ReadonlySet<string> = new Set(["win ", "qem2", "d2v ", "d2v", "tap", "CTXS"]);

function faultsOf({ fields }: FooterCopy): string[] {
  const faults: string[] = [];
  if (fields.savedState !== 0)
    faults.push("the machine is in saved state: it will resume and write what it remembers");
  // blktap's map of blocks that are entirely written would say so of blocks that are gone.
  if (fields.creatorApplication === "tap")
    faults.push("Xen's blktap made it, and keeps a map of its own in it");
  const { cylinders, heads, sectorsPerTrack, currentSize, creatorApplication } = fields;
  const sectors = cylinders * heads * sectorsPerTrack;
  // The largest geometry says nothing: disk2vhd writes it for every disk.
  const isByGeometry = !MEAN_THEIR_SIZE.has(creatorApplication) && sectors < GEOMETRY_SECTORS_MAX;
  if (isByGeometry && fields.diskType !== DiskType.fixed && sectors * SECTOR_BYTES > currentSize)
    faults.push("the geometry reaches past the current size: a guest of QEMU may use what lies there");
  const unknown = fields.features & ~FEATURES_KNOWN;
  if (unknown !== 0) faults.push(`features 0x${(unknown >>> 0).toString(16)} are not known`);
  return faults;
}

export interface Geometry {
  readonly cylinders: number;
  readonly heads: number;
  readonly sectorsPerTrack: number;
}

/** The largest geometry; disks from there on have it too. */
const GEOMETRY_SECTORS_MAX = 65535 * 16 * 255;

/** The geometry of a disk of so many sectors, as the appendix of the specification computes it. */
export function geometryOf(sectors: number): Geometry {
  const total = Math.min(sectors, GEOMETRY_SECTORS_MAX);
  const of = (sectorsPerTrack: number, heads: number) => {
    const tracks = Math.floor(total / sectorsPerTrack);
    return { cylinders: Math.floor(tracks / heads), heads, sectorsPerTrack };
  };
  if (total >= 65535 * 16 * 63) return of(255, 16);
  const tracks = Math.floor(total / 17);
  const heads = Math.max(4, Math.ceil(tracks / 1024));
  if (heads <= 16 && tracks < heads * 1024) return of(17, heads);
  return Math.floor(total / 31) < 16 * 1024 ? of(31, 16) : of(63, 16);
}

/** The smallest whole geometry that holds so many sectors; beyond the largest one, just as many. */
export function wholeGeometry(sectors: number): number {
  for (let tried = sectors; tried < GEOMETRY_SECTORS_MAX; tried++) {
    const { cylinders, heads, sectorsPerTrack } = geometryOf(tried);
    const whole = cylinders * heads * sectorsPerTrack;
    if (whole >= sectors) return whole;
  }
  return sectors;
}
