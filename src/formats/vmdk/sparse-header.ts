/**
 * The header of a hosted sparse extent, which `monolithicSparse`, `twoGbMaxExtentSparse` and `streamOptimized` share.
 *
 *   | header | descriptor | redundant directory, tables | directory, tables | grains …               written in place
 *   | header | descriptor | marker, grain | … | marker, table | … | directory | footer | end marker |  compressed
 *                                                               a footer is a header that knows where the directory is
 *
 * Specification: VMware, Virtual Disk Format 5.0, "Hosted Sparse Extents" and "Stream-Optimized Compressed Sparse Extents".
 */
import { bits64le, ascii, raw, skip, struct, u16le, u32le, u64le, u8 } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { damaged, hex } from "../blocks/damaged.ts";
import { mustLieInside } from "./damaged.ts";
import { DESCRIPTOR_BYTES_MAX, SECTOR_BYTES, SECTORS_MAX } from "./descriptor.ts";

export const MAGIC = "KDMV";

export const SparseExtentHeader = struct({
  magicNumber: ascii(4),
  version: u32le,
  flags: u32le,
  capacity: u64le,
  grainSize: u64le,
  descriptorOffset: u64le,
  descriptorSize: u64le,
  numGTEsPerGT: u32le,
  rgdOffset: bits64le,
  gdOffset: bits64le,
  overHead: u64le,
  uncleanShutdown: u8,
  /** Line ends, which a transfer as text would have changed. */
  lineEnds: raw(4),
  compressAlgorithm: u16le,
  pad: skip(433),
});

export const Flag = {
  lineEnds: 1,
  /** There is a redundant grain directory with tables of its own. */
  redundant: 2,
  /** An entry of 1 says: reads as zeros. */
  zeroedGrains: 4,
  compressed: 0x1_0000,
  markers: 0x2_0000,
} as const;
const KNOWN_FLAGS = 0x3_0007;

export const LINE_ENDS = Uint8Array.from(Buffer.from("\n \r\n", "latin1"));
export const GD_AT_END = 0xffff_ffff_ffff_ffffn;
export const DEFLATE = 1;
export const ENTRIES_PER_TABLE = 512;
/** VMware's grains have 128 sectors, QEMU takes up to 2^21: a grain is held in memory. */
const GRAIN_SECTORS_MAX = 2048;
/** So many grains of 64 KiB have 64 TiB. */
const GRAINS_MAX = 2 ** 30;

export const MarkerType = { endOfStream: 0, grainTable: 1, grainDirectory: 2, footer: 3 } as const;

/** What precedes a grain, a table, a directory or the footer of a stream; a grain's data begin at `type`. */
export const Marker = struct({ value: u64le, dataBytes: u32le, type: u32le });

export interface SparseHeader {
  readonly version: number;
  readonly flags: number;
  readonly sectors: number;
  readonly grainSectors: number;
  readonly descriptorAt: number;
  readonly descriptorBytes: number;
  /** File offset of the grain directory. */
  readonly directoryAt: number;
  /** File offset of the redundant one. */
  readonly redundantAt: number | undefined;
  readonly overheadBytes: number;
  readonly isUnclean: boolean;
  readonly isCompressed: boolean;
  readonly hasMarkers: boolean;
  readonly hasZeroedGrains: boolean;
  /** Bits of `flags` that no specification names. */
  readonly unknownFlags: number;
}

/** @throws DiskError `corrupt`, `unsupported` */
export async function readSparseHeader(file: BlockDevice): Promise<SparseHeader> {
  mustLieInside(file, "sparse extent header", 0, SECTOR_BYTES);
  const bytes = await readBytes(file, 0, SECTOR_BYTES);
  if (!hasMagic(bytes, 0)) throw damaged("sparse extent header", 0, "no magic", `"${MAGIC}"`);
  const first = SparseExtentHeader.decode(bytes);
  // A footer, where there is one, takes the header's place.
  const found = first.gdOffset === GD_AT_END ? await readFooter(file) : first;
  if (found.version < 1 || found.version > 3) {
    throw new DiskError("unsupported", `sparse extent header: version ${found.version}, expected 1 to 3`);
  }
  if (found.flags & Flag.lineEnds && Buffer.compare(found.lineEnds, LINE_ENDS) !== 0) {
    throw damaged(
      "line ends of the sparse extent header",
      73,
      Buffer.from(found.lineEnds).toString("hex"),
      "0a200d0a",
    );
  }
  refuseSizes(found);
  return {
    version: found.version,
    flags: found.flags,
    sectors: found.capacity,
    grainSectors: found.grainSize,
    descriptorAt: first.descriptorOffset * SECTOR_BYTES,
    descriptorBytes: first.descriptorOffset === 0 ? 0 : first.descriptorSize * SECTOR_BYTES,
    directoryAt: sectorOf("grain directory", found.gdOffset),
    redundantAt:
      found.flags & Flag.redundant ? sectorOf("redundant grain directory", found.rgdOffset) : undefined,
    overheadBytes: found.overHead * SECTOR_BYTES,
    isUnclean: found.uncleanShutdown !== 0,
    isCompressed: isCompressed(found),
    hasMarkers: (found.flags & Flag.markers) !== 0,
    hasZeroedGrains: (found.flags & Flag.zeroedGrains) !== 0,
    unknownFlags: (found.flags & ~KNOWN_FLAGS) >>> 0,
  };
}

type Found = ReturnType<typeof SparseExtentHeader.decode>;

function hasMagic(bytes: Uint8Array, at: number): boolean {
  return Buffer.from(bytes.subarray(at, at + MAGIC.length)).toString("latin1") === MAGIC;
}

async function readFooter(file: BlockDevice): Promise<Found> {
  const at = file.bytes - 3 * SECTOR_BYTES;
  if (at < SECTOR_BYTES || file.bytes % SECTOR_BYTES !== 0) {
    throw damaged(
      "footer",
      Math.max(0, at),
      `a file of ${file.bytes} bytes`,
      "whole sectors, the last three its footer",
    );
  }
  const bytes = await readBytes(file, at, 3 * SECTOR_BYTES);
  const marker = Marker.decode(bytes);
  const end = Marker.decode(bytes, 2 * SECTOR_BYTES);
  const isEnclosed =
    marker.type === MarkerType.footer &&
    marker.dataBytes === 0 &&
    end.type === MarkerType.endOfStream &&
    end.dataBytes === 0;
  if (!isEnclosed || !hasMagic(bytes, SECTOR_BYTES)) {
    throw damaged("footer", at, "something else", "a footer between its marker and the end of the stream");
  }
  const footer = SparseExtentHeader.decode(bytes, SECTOR_BYTES);
  if (footer.gdOffset === GD_AT_END) throw damaged("footer", at, "no grain directory", "where it is");
  return footer;
}

/** @throws DiskError `corrupt`, `unsupported` (H23, H24) */
function refuseSizes(found: Found): void {
  const { capacity, grainSize, numGTEsPerGT, descriptorSize, descriptorOffset, overHead } = found;
  const limit = (what: string, value: number, most: number) => {
    if (value > most)
      throw new DiskError("unsupported", `sparse extent header: ${what} is ${value}, at most ${most}`);
  };
  if (capacity === 0) throw damaged("capacity of the sparse extent", 12, 0, "at least one sector");
  limit("capacity", capacity, SECTORS_MAX);
  limit("overHead", overHead, SECTORS_MAX);
  limit("descriptorOffset", descriptorOffset, SECTORS_MAX);
  limit("descriptorSize", descriptorSize, DESCRIPTOR_BYTES_MAX / SECTOR_BYTES);
  limit("grainSize", grainSize, GRAIN_SECTORS_MAX);
  if (grainSize === 0 || (grainSize & (grainSize - 1)) !== 0) {
    throw damaged("grain size of the sparse extent", 20, grainSize, "a power of two");
  }
  limit("the number of grains", Math.ceil(capacity / grainSize), GRAINS_MAX);
  if (numGTEsPerGT !== ENTRIES_PER_TABLE) {
    throw damaged("entries in a grain table", 44, numGTEsPerGT, String(ENTRIES_PER_TABLE));
  }
}

function isCompressed({ flags, compressAlgorithm }: Found): boolean {
  if (compressAlgorithm > DEFLATE) {
    throw new DiskError(
      "unsupported",
      `sparse extent header: compression ${compressAlgorithm}, expected 0 or 1`,
    );
  }
  const says = (flags & Flag.compressed) !== 0;
  if (says !== (compressAlgorithm === DEFLATE)) {
    throw damaged(
      "flags of the sparse extent",
      8,
      hex(flags),
      `what compression ${compressAlgorithm} asks for`,
    );
  }
  return says;
}

function sectorOf(what: string, sector: bigint): number {
  if (sector === 0n || sector > BigInt(SECTORS_MAX)) {
    throw damaged(`offset of the ${what}`, 0, `sector ${sector}`, "a sector of the file");
  }
  return Number(sector) * SECTOR_BYTES;
}
