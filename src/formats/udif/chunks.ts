/**
 * Where the bytes of a UDIF disk lie: the block tables (`mish`) of the property list. Big-endian.
 *
 *   resource-fork → blkx → [ { Name, Data: | mish, first sector, … , checksum | chunk | chunk | … | end | } , … ]
 *
 *   chunk   type, sector (from the table's first), sectors, offset (from the data fork's and the table's), length
 *
 * Specification: libmodi's "Mac OS disk image types", "Block table". The limits are QEMU's.
 */
import { ascii, raw, skip, struct, u32be, u64be } from "../../bytes/struct.ts";
import { readBytes, type ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { parsePlist, type Plist } from "../apple/plist.ts";
import { Checksum, checksumOf, corrupt, SECTOR_BYTES, type Udif } from "./trailer.ts";

const Table = struct({
  magic: ascii(4),
  version: u32be,
  sector: u64be,
  sectors: u64be,
  data_offset: u64be,
  buffers: u32be,
  descriptors: u32be,
  reserved: skip(24),
  checksum: raw(Checksum.bytes),
  chunks: u32be,
});

const Entry = struct({
  type: u32be,
  comment: u32be,
  sector: u64be,
  sectors: u64be,
  offset: u64be,
  length: u64be,
});

const TERMINATOR = 0xffff_ffff;
const COMMENT = 0x7fff_fffe;
const KINDS: Readonly<Record<number, Chunk["kind"]>> = {
  0: "zero",
  1: "raw",
  2: "ignore",
  0x8000_0005: "zlib",
  0x8000_0006: "bzip2",
};
const UNREAD: Readonly<Record<number, string>> = {
  0x8000_0004: "ADC",
  0x8000_0007: "LZFSE",
  0x8000_0008: "LZMA",
};
/** What one compressed chunk may hold, packed and unpacked. */
const CHUNK_BYTES_MAX = 64 * 2 ** 20;

export interface Chunk {
  readonly kind: "zero" | "raw" | "ignore" | "zlib" | "bzip2";
  /** The bytes of the disk that it holds. */
  readonly start: number;
  readonly end: number;
  /** File offset and length of what holds them. */
  readonly at: number;
  readonly length: number;
}

/** A table: a partition of the disk, mostly. */
export interface Block {
  readonly name: string;
  readonly start: number;
  readonly end: number;
  /** CRC-32 of what the disk holds there. */
  readonly checksum: number | undefined;
}

export interface Blocks {
  /** Ascending, without overlaps. */
  readonly chunks: readonly Chunk[];
  /** As the property list has them. */
  readonly blocks: readonly Block[];
}

/** @throws DiskError `corrupt`; `unsupported` for a compression that is not read */
export async function readBlocks(file: ReadableFile, udif: Udif): Promise<Blocks> {
  const { start, end } = udif.plist;
  const list = parsePlist(await readBytes(file, start, end - start), "UDIF property list");
  const blocks: Block[] = [];
  const chunks: Chunk[] = [];
  for (const { name, table } of tablesOf(list)) blocks.push(readTable(name, table, udif, chunks));
  chunks.sort((a, b) => a.start - b.start);
  for (let i = 1; i < chunks.length; i++) {
    if (chunks[i]!.start >= chunks[i - 1]!.end) continue;
    throw corrupt(
      "chunk",
      chunks[i]!.at,
      `disk offset ${chunks[i]!.start} again`,
      "every byte of the disk once",
    );
  }
  return { chunks, blocks };
}

function* tablesOf(list: ReadonlyMap<string, Plist>): Generator<{ name: string; table: Uint8Array }> {
  const resources = list.get("resource-fork");
  const tables = resources instanceof Map ? (resources as ReadonlyMap<string, Plist>).get("blkx") : undefined;
  if (!Array.isArray(tables))
    throw new DiskError("corrupt", "UDIF property list: it has no blkx, the block tables");
  for (const [i, entry] of (tables as readonly Plist[]).entries()) {
    const values = entry instanceof Map ? (entry as ReadonlyMap<string, Plist>) : undefined;
    const table = values?.get("Data");
    if (!(table instanceof Uint8Array))
      throw new DiskError("corrupt", `UDIF property list: blkx ${i} has no Data`);
    const name = values!.get("Name");
    yield { name: typeof name === "string" ? name : `block table ${i}`, table };
  }
}

function readTable(name: string, bytes: Uint8Array, udif: Udif, chunks: Chunk[]): Block {
  const table = Table.decode(bytes);
  const what = `block table ${JSON.stringify(name.slice(0, 80))}`;
  if (table.magic !== "mish") throw corrupt(what, udif.plist.start, JSON.stringify(table.magic), "mish");
  if (Table.bytes + table.chunks * Entry.bytes > bytes.length) {
    throw corrupt(what, udif.plist.start, `${table.chunks} chunks`, `what fits into ${bytes.length} bytes`);
  }
  const start = table.sector * SECTOR_BYTES;
  const end = start + table.sectors * SECTOR_BYTES;
  if (end > udif.bytes) throw corrupt(what, udif.plist.start, `an end at ${end}`, `a disk of ${udif.bytes}`);
  for (let i = 0; i < table.chunks; i++) {
    const entry = Entry.decode(bytes, Table.bytes + i * Entry.bytes);
    if (entry.type === TERMINATOR) break;
    if (entry.type === COMMENT || entry.sectors === 0) continue;
    const kind = KINDS[entry.type];
    if (kind === undefined) throw unread(entry.type);
    const chunk: Chunk = {
      kind,
      start: start + entry.sector * SECTOR_BYTES,
      end: start + (entry.sector + entry.sectors) * SECTOR_BYTES,
      at: udif.data.start + table.data_offset + entry.offset,
      length: entry.length,
    };
    requireSound(chunk, `${what}: chunk ${i}`, end, udif);
    chunks.push(chunk);
  }
  return { name, start, end, checksum: checksumOf(table.checksum) };
}

function requireSound(chunk: Chunk, what: string, tableEnd: number, { data, plist }: Udif): void {
  const { kind, start, end, at, length } = chunk;
  if (end > tableEnd)
    throw corrupt(what, plist.start, `an end at ${end}`, `one inside its table, ${tableEnd}`);
  if (kind === "zero" || kind === "ignore") return;
  if (at + length > data.end)
    throw corrupt(what, at, `an end at ${at + length}`, `a data fork up to ${data.end}`);
  if (kind === "raw" ? length !== end - start : Math.max(length, end - start) > CHUNK_BYTES_MAX) {
    throw corrupt(
      what,
      at,
      `${length} bytes for ${end - start}`,
      `the same; packed, up to ${CHUNK_BYTES_MAX}`,
    );
  }
}

function unread(type: number): DiskError {
  const name = UNREAD[type];
  const what =
    name === undefined ? `chunks of type 0x${type.toString(16)}` : `chunks compressed with ${name}`;
  return new DiskError("unsupported", `the UDIF image has ${what}, which are not read`, {
    hint: "convert it: hdiutil convert -format UDZO, on a Mac",
  });
}

/** Number of the first chunk that ends after `at`. */
export function seek(chunks: readonly Chunk[], at: number): number {
  let low = 0;
  let high = chunks.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (chunks[middle]!.end <= at) low = middle + 1;
    else high = middle;
  }
  return low;
}
