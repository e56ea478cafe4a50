/**
 * The sparse extents of ESX, which are only read: COWD (`vmfsSparse`, redo logs and snapshots) and seSparse.
 *
 *   COWD      | header | … grain directory | grain table, 4096 entries of 32 bits | grains …
 *   seSparse  | header | volatile header | journal | directory | tables | free bitmap | backmap | grains of 4 KiB …
 *               entry, 64 bits:   | type, 4 bits | low 12 bits of the grain | high 48 bits |
 *
 * Specification: libyal/libvmdk, "VMWare Virtual Disk Format"; seSparse is not documented but by those who read it:
 * QEMU's block/vmdk.c.
 */
import { ascii, bits64le, raw, struct, u32le, u64le, viewOf } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { ExtentSet } from "../../bytes/extents.ts";
import type { ReadableFile } from "../../device/device.ts";
import type { BlockLayout } from "../blocks/layout.ts";
import { BlockTable, SLOTS_MAX, ZERO } from "../blocks/table.ts";
import { damaged, hex } from "../blocks/damaged.ts";
import { mustLieInside } from "./damaged.ts";
import { SECTOR_BYTES, SECTORS_MAX } from "./descriptor.ts";
import { coveredBy, readDirectory, tableAt, tablesOf, wildEntry } from "./grains.ts";

export const COWD_MAGIC = "COWD";

export const CowdHeader = struct({
  magicNumber: ascii(4),
  version: u32le,
  flags: u32le,
  numSectors: u32le,
  grainSize: u32le,
  gdOffset: u32le,
  numGDEntries: u32le,
  freeSector: u32le,
});

const COWD_ENTRIES = 4096;
const COWD_GRAIN_SECTORS_MAX = 2048;

/** @throws DiskError `corrupt`, `unsupported` */
export async function openCowd<F extends ReadableFile>(
  file: F,
  fileName: string,
  parent: BlockDevice | undefined,
): Promise<BlockLayout<F>> {
  mustLieInside(file, "COWD header", 0, CowdHeader.bytes);
  const header = CowdHeader.decode(await readBytes(file, 0, CowdHeader.bytes));
  const { magicNumber, version, numSectors, grainSize, gdOffset, numGDEntries } = header;
  if (magicNumber !== COWD_MAGIC) throw damaged("COWD header", 0, "no magic", `"${COWD_MAGIC}"`);
  if (version !== 1) throw new DiskError("unsupported", `COWD header: version ${version}, expected 1`);
  if (numSectors === 0 || grainSize === 0 || grainSize > COWD_GRAIN_SECTORS_MAX) {
    throw damaged(
      "COWD header",
      12,
      `${numSectors} sectors in grains of ${grainSize}`,
      "at least one of each",
    );
  }
  const table = new BlockTable(Math.ceil(numSectors / grainSize));
  const count = Math.ceil(table.blocks / COWD_ENTRIES);
  if (numGDEntries < count) throw damaged("COWD header", 24, `${numGDEntries} grain tables`, `${count}`);
  const directory = await readDirectory(file, {
    name: "grain directory",
    at: gdOffset * SECTOR_BYTES,
    count,
    tableBytes: COWD_ENTRIES * 4,
  });
  const fixed = coveredBy([directory]).union(ExtentSet.of({ start: 0, end: SECTOR_BYTES }));
  for await (const { number, view } of tablesOf(file, directory)) {
    const first = number * COWD_ENTRIES;
    for (let i = 0; i < Math.min(COWD_ENTRIES, table.blocks - first); i++) {
      const entry = view.getUint32(i * 4, true);
      if (entry >= SLOTS_MAX) throw wildEntry(first + i, entry);
      // An entry of 1 says in some products that the grain reads as zeros; sector 1 is the header's.
      if (entry !== 0) table.set(first + i, entry === 1 ? ZERO : entry);
    }
  }
  return readOnly({
    fileName,
    file,
    bytes: numSectors * SECTOR_BYTES,
    parent,
    blockBytes: grainSize * SECTOR_BYTES,
    baseBytes: 0,
    unitBytes: SECTOR_BYTES,
    table,
    fixed,
    structureAt: (at) => (at < SECTOR_BYTES ? "header" : tableAt(directory, at)),
  });
}

export const SESPARSE_MAGIC = 0xcafe_babe;
const SESPARSE_VOLATILE_MAGIC = 0xcafe_cafen;
/** Version 2.1. */
const SESPARSE_VERSION = 0x2_0000_0001n;

export const SeSparseHeader = struct({
  magic: bits64le,
  version: bits64le,
  capacity: u64le,
  grainSize: u64le,
  grainTableSize: u64le,
  flags: bits64le,
  reserved: raw(32),
  volatileHeaderOffset: u64le,
  volatileHeaderSize: u64le,
  journalHeaderOffset: u64le,
  journalHeaderSize: u64le,
  journalOffset: u64le,
  journalSize: u64le,
  grainDirectoryOffset: u64le,
  grainDirectorySize: u64le,
  grainTablesOffset: u64le,
  grainTablesSize: u64le,
  freeBitmapOffset: u64le,
  freeBitmapSize: u64le,
  backmapOffset: u64le,
  backmapSize: u64le,
  grainsOffset: u64le,
  grainsSize: u64le,
});

export const SeSparseVolatileHeader = struct({
  magic: bits64le,
  freeTableNumber: bits64le,
  nextTransaction: bits64le,
  replayJournal: bits64le,
});

const SE_GRAIN_SECTORS = 8;
const SE_TABLE_SECTORS = 64;
const SE_TABLE_BYTES = SE_TABLE_SECTORS * SECTOR_BYTES;
const SE_ENTRIES = SE_TABLE_BYTES / 8;
/** The high word of an entry of the directory that has a table. */
const SE_HAS_TABLE = 0x1000_0000;
const SeGrain = { unallocated: 0, unmapped: 1, zeroed: 2, allocated: 3 } as const;

/** @throws DiskError `corrupt`, `unsupported` */
export async function openSeSparse<F extends ReadableFile>(
  file: F,
  fileName: string,
  parent: BlockDevice | undefined,
): Promise<BlockLayout<F>> {
  const header = await readSeSparseHeader(file);
  const at = {
    directory: header.grainDirectoryOffset * SECTOR_BYTES,
    tables: header.grainTablesOffset * SECTOR_BYTES,
    grains: header.grainsOffset * SECTOR_BYTES,
  };
  const table = new BlockTable(Math.ceil(header.capacity / SE_GRAIN_SECTORS));
  const count = Math.ceil(table.blocks / SE_ENTRIES);
  if (header.grainDirectorySize * SECTOR_BYTES < count * 8) {
    throw damaged(
      "seSparse grain directory",
      at.directory,
      `${header.grainDirectorySize} sectors`,
      `${count} entries`,
    );
  }
  mustLieInside(file, "seSparse grain directory", at.directory, count * 8);
  const directory = viewOf(await readBytes(file, at.directory, count * 8));
  const seen = new Set<number>();
  for (let i = 0; i < count; i++) {
    const [number, kind] = [directory.getUint32(i * 8, true), directory.getUint32(i * 8 + 4, true)];
    if (kind === 0 && number === 0) continue;
    const place = at.tables + number * SE_TABLE_BYTES;
    if (kind !== SE_HAS_TABLE || seen.has(number)) {
      throw damaged("seSparse grain directory", at.directory + i * 8, hex(kind), "a grain table of its own");
    }
    seen.add(number);
    mustLieInside(file, `seSparse grain table ${i}`, place, SE_TABLE_BYTES);
    readSeTable(viewOf(await readBytes(file, place, SE_TABLE_BYTES)), table, i * SE_ENTRIES);
  }
  const tables = { start: at.tables, end: at.tables + header.grainTablesSize * SECTOR_BYTES };
  const directories = { start: at.directory, end: at.directory + count * 8 };
  return readOnly({
    fileName,
    file,
    bytes: header.capacity * SECTOR_BYTES,
    parent,
    blockBytes: SE_GRAIN_SECTORS * SECTOR_BYTES,
    baseBytes: at.grains,
    unitBytes: SE_GRAIN_SECTORS * SECTOR_BYTES,
    table,
    fixed: ExtentSet.of(directories, tables).within({ start: 0, end: at.grains }),
    structureAt: (offset) =>
      offset >= tables.start && offset < tables.end
        ? "grain tables"
        : offset < at.grains
          ? "header"
          : undefined,
  });
}

async function readSeSparseHeader(file: BlockDevice) {
  mustLieInside(file, "seSparse header", 0, SECTOR_BYTES);
  const header = SeSparseHeader.decode(await readBytes(file, 0, SECTOR_BYTES));
  if (header.magic !== BigInt(SESPARSE_MAGIC))
    throw damaged("seSparse header", 0, hex(header.magic), hex(SESPARSE_MAGIC));
  const { version, flags, grainSize, grainTableSize, capacity, reserved } = header;
  const isKnown = version === SESPARSE_VERSION && flags === 0n && reserved.every((byte) => byte === 0);
  if (!isKnown || grainSize !== SE_GRAIN_SECTORS || grainTableSize !== SE_TABLE_SECTORS) {
    const found = `version ${hex(version)}, flags ${hex(flags)}, grains of ${grainSize}, tables of ${grainTableSize}`;
    throw new DiskError(
      "unsupported",
      `seSparse header: ${found}, expected version 2.1 with 8 and 64 sectors`,
    );
  }
  for (const [name, value] of Object.entries(header)) {
    if (typeof value !== "number" || value <= SECTORS_MAX) continue;
    throw damaged(`seSparse header: ${name}`, 0, value, `at most ${SECTORS_MAX}`);
  }
  if (capacity === 0) throw damaged("seSparse header: capacity", 16, 0, "at least one sector");
  const at = header.volatileHeaderOffset * SECTOR_BYTES;
  mustLieInside(file, "seSparse volatile header", at, SECTOR_BYTES);
  const { magic, replayJournal } = SeSparseVolatileHeader.decode(await readBytes(file, at, SECTOR_BYTES));
  if (magic !== SESPARSE_VOLATILE_MAGIC) {
    throw damaged("seSparse volatile header", at, hex(magic), hex(SESPARSE_VOLATILE_MAGIC));
  }
  if (replayJournal !== 0n) {
    throw new DiskError("unsupported", "the journal of the seSparse extent waits to be replayed", {
      hint: "start and shut down its virtual machine on ESXi",
    });
  }
  return header;
}

function readSeTable(view: DataView, table: BlockTable, first: number): void {
  for (let i = 0; i < Math.min(SE_ENTRIES, table.blocks - first); i++) {
    const [low, high] = [view.getUint32(i * 8, true), view.getUint32(i * 8 + 4, true)];
    const type = high >>> 28;
    if (type === SeGrain.unallocated && low === 0 && high === 0) continue;
    if (type === SeGrain.unmapped || type === SeGrain.zeroed) {
      table.set(first + i, ZERO);
      continue;
    }
    const grain = ((high >>> 16) & 0xfff) + ((high & 0xffff) * 2 ** 32 + low) * 0x1000;
    if (type !== SeGrain.allocated || grain >= SLOTS_MAX) throw wildEntry(first + i, grain);
    table.set(first + i, grain);
  }
}

type Facts<F extends ReadableFile> = Omit<
  BlockLayout<F>,
  "headBytes" | "entries" | "freed" | "blocksStartBytes" | "tailBytes" | "endAlignBytes"
>;

/** A layout whose table nobody writes. */
function readOnly<F extends ReadableFile>(facts: Facts<F>): BlockLayout<F> {
  return {
    ...facts,
    headBytes: 0,
    entries: { copies: 0, bytes: 4, at: () => -1, write: () => {} },
    freed: undefined,
    blocksStartBytes: Math.max(SECTOR_BYTES, facts.baseBytes),
    tailBytes: 0,
    endAlignBytes: SECTOR_BYTES,
  };
}
