/**
 * The header and the index nodes of an Apple sparse image. All numbers are big-endian.
 *
 *   | header node: 4096 bytes | band | band | … 1008 of them | index node: 4096 | band | … 1010 of them | …
 *
 *   header   sprs, 3, sectors in a band, 1, sectors (low half), next node, sectors, …    entries from byte 64
 *   index    sprs, number, 1, next node, …                                               entries from byte 56
 *   entry    of the band that lies there: its number on the disk plus one; 0: nothing lies there
 *
 * Specification: libmodi's "Mac OS sparse image format", which knows the first node only; the further nodes are those of
 * fsdump's AppleSparseimage, where an entry of 0 is the last one of its node.
 */
import { ascii, skip, struct, u32be, u64be, viewOf } from "../../bytes/struct.ts";
import { readBytes, type ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";

export const NODE_BYTES = 4096;
export const SECTOR_BYTES = 512;
export const ENTRY_BYTES = 4;
export const MAGIC = "sprs";
export const VERSION = 3;
/** Entries of the header node. */
export const HEADER_ENTRIES = 1008;
/** 16,777,216 sectors, as hdiutil(1) has it for bands of bundles. */
export const BAND_BYTES_MAX = 8 * 2 ** 30;
/** The table of more is not held in memory. */
const BANDS_MAX = 2 ** 27;

export const Header = struct({
  magic: ascii(4),
  version: u32be,
  band_sectors: u32be,
  flags: u32be,
  sectors_low: u32be,
  next: u64be,
  sectors: u64be,
  reserved: skip(28),
});

const Index = struct({ magic: ascii(4), number: u32be, flags: u32be, next: u64be, reserved: skip(36) });

/** A stretch of bands that lie one behind the other, and where their entries are. */
export interface Node {
  readonly at: number;
  readonly entriesAt: number;
  readonly entries: number;
  /** File offset of the first band. */
  readonly bandsAt: number;
}

export interface Index {
  readonly bytes: number;
  readonly bandBytes: number;
  /** How many bands the disk has. */
  readonly bands: number;
  readonly nodes: readonly Node[];
}

export async function hasMagic(file: ReadableFile): Promise<boolean> {
  if (file.bytes < NODE_BYTES) return false;
  return Buffer.from(await readBytes(file, 0, MAGIC.length)).toString("latin1") === MAGIC;
}

export function corrupt(what: string, at: number, found: string | number, expected: string): DiskError {
  return new DiskError("corrupt", `sparse image ${what} at ${at}: found ${found}, expected ${expected}`, {
    hint: "restore the image from a copy",
  });
}

/** @throws DiskError `corrupt`, `unsupported` */
export async function readIndex(file: ReadableFile): Promise<Index> {
  if (file.bytes < NODE_BYTES) throw corrupt("header", 0, `${file.bytes} bytes`, `${NODE_BYTES}`);
  const header = Header.decode(await readBytes(file, 0, Header.bytes));
  if (header.magic !== MAGIC) throw corrupt("header: magic", 0, "other bytes", MAGIC);
  if (header.version !== VERSION) {
    throw new DiskError("unsupported", `sparse image of version ${header.version}; only ${VERSION} is known`);
  }
  const bandBytes = header.band_sectors * SECTOR_BYTES;
  if (bandBytes === 0 || bandBytes > BAND_BYTES_MAX) {
    throw corrupt("header: sectors in a band", Header.at.band_sectors, header.band_sectors, "1 to 16777216");
  }
  // Images of old know the low half only.
  const sectors = header.sectors === 0 ? header.sectors_low : header.sectors;
  const bytes = sectors * SECTOR_BYTES;
  if (sectors % 2 ** 32 !== header.sectors_low || !Number.isSafeInteger(bytes)) {
    throw corrupt("header: sectors", Header.at.sectors, sectors, `${header.sectors_low} in its low half`);
  }
  const bands = Math.ceil(bytes / bandBytes);
  if (bands > BANDS_MAX)
    throw new DiskError("unsupported", `sparse image of ${bands} bands; at most ${BANDS_MAX}`);
  const first: Node = { at: 0, entriesAt: Header.bytes, entries: HEADER_ENTRIES, bandsAt: NODE_BYTES };
  return { bytes, bandBytes, bands, nodes: await readNodes(file, first, header.next, bandBytes) };
}

/** Each lies behind the last band of the one before: so their chain has an end. */
async function readNodes(file: ReadableFile, first: Node, next: number, bandBytes: number): Promise<Node[]> {
  const nodes = [first];
  for (let node = first; next !== 0;) {
    const at = node.bandsAt + node.entries * bandBytes;
    if (next !== at || at + NODE_BYTES > file.bytes) {
      throw corrupt("next index node", node.at, next, `${at}, inside a file of ${file.bytes}`);
    }
    const index = Index.decode(await readBytes(file, at, Index.bytes));
    if (index.magic !== MAGIC) throw corrupt("index node: magic", at, "other bytes", MAGIC);
    const entries = (NODE_BYTES - Index.bytes) / ENTRY_BYTES;
    node = { at, entriesAt: at + Index.bytes, entries, bandsAt: at + NODE_BYTES };
    nodes.push(node);
    next = index.next;
  }
  return nodes;
}

/** Calls `visit` for each band that has a place. @throws DiskError `corrupt` */
export async function eachBand(
  file: ReadableFile,
  { nodes, bands, bandBytes }: Index,
  visit: (band: number, at: number) => void,
): Promise<void> {
  for (const { entriesAt, entries, bandsAt } of nodes) {
    const view = viewOf(await readBytes(file, entriesAt, entries * ENTRY_BYTES));
    for (let i = 0; i < entries; i++) {
      const number = view.getUint32(i * ENTRY_BYTES);
      if (number === 0) continue;
      const at = entriesAt + i * ENTRY_BYTES;
      if (number > bands) throw corrupt("entry", at, number, `a band up to ${bands}`);
      visit(number - 1, bandsAt + i * bandBytes);
    }
  }
}

/** Where the entry of what lies at `at` is. */
export function entryAt({ nodes, bandBytes }: Index, at: number): number {
  const node = nodes.findLast(({ bandsAt }) => bandsAt <= at)!;
  return node.entriesAt + ((at - node.bandsAt) / bandBytes) * ENTRY_BYTES;
}
