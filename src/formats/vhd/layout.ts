/**
 * The blocks of a dynamic or differencing VHD.
 *
 *   | footer | header | block table | bitmap, block 7 | bitmap, block 0 | … | footer |
 *              table[7] = first sector ↑ of the bitmap      0xffffffff: absent
 *
 * A bit of the bitmap stands for a sector, the first for the highest bit of the first byte. In a differencing image
 * a set bit says that the sector is here and not in the parent. Without a parent it says which sectors were ever
 * written; QEMU and Hyper-V set them all and heed none, and neither do we: what lies under a clear bit is read as
 * data, and stays unless the guest freed it.
 * Specification: Virtual Hard Disk Image Format Specification 1.0, "Block Allocation Table and Data Blocks".
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import { type ReadableFile, readBytes } from "../../device/device.ts";
import { damaged } from "../blocks/damaged.ts";
import { type BlockLayout, slotAt } from "../blocks/layout.ts";
import { ABSENT, BlockTable, SLOTS_MAX } from "../blocks/table.ts";
import type { Image } from "../format.ts";
import { Footer, type Footers, SECTOR_BYTES } from "./footer.ts";
import { type DynamicHeader, Header } from "./header.ts";

/** A structure of the file, by name. */
interface Structure extends Extent {
  readonly name: string;
}

export interface VhdLayout<F extends ReadableFile> extends BlockLayout<F> {
  /** 0 while no footer stands at the end of the file. */
  tailBytes: number;
  /** Blocks of a differencing image that are held entirely, whatever their bitmaps say yet. */
  readonly complete: Set<number>;
}

/** @throws DiskError `corrupt` when an entry is none */
export async function layOut<F extends ReadableFile>(
  file: F,
  header: DynamicHeader,
  { kind, footer, isAtEnd }: Footers,
  parent: Image | undefined,
): Promise<VhdLayout<F>> {
  const { blockSize, tableOffset, maxTableEntries } = header.fields;
  const tailBytes = isAtEnd ? Footer.bytes : 0;
  if (tableOffset + maxTableEntries * 4 > file.bytes - tailBytes) {
    throw damaged("block table", tableOffset, `${maxTableEntries} entries`, "entries before the footer");
  }
  const table = await readTable(file, header);
  const structures = structuresOf(header);
  const isDifferencing = kind === "differencing";
  const { blocksStartBytes, fixed } = divide(structures, table);
  const complete = new Set<number>();
  const layout: VhdLayout<F> = {
    fileName: "",
    file,
    bytes: footer.fields.currentSize,
    parent,
    blockBytes: blockSize,
    headBytes: bitmapBytes(blockSize),
    baseBytes: 0,
    unitBytes: SECTOR_BYTES,
    table,
    entries: {
      copies: 1,
      bytes: 4,
      at: (block) => tableOffset + block * 4,
      write: (view, at, _block, slot) => view.setUint32(at, slot),
    },
    // There is no entry that says zeros: above a parent a block without content is punched (H9).
    freed: isDifferencing ? undefined : ABSENT,
    blocksStartBytes,
    fixed,
    tailBytes,
    endAlignBytes: SECTOR_BYTES,
    ...(isDifferencing && { held: heldIn(() => layout) }),
    structureAt: (at) =>
      structures.find(({ start, end }) => at >= start && at < end)?.name ?? footerAt(layout, at),
    complete,
  };
  return layout;
}

/** Length of the bitmap before a block: whole sectors. */
export function bitmapBytes(blockSize: number): number {
  return Math.ceil(blockSize / SECTOR_BYTES / 8 / SECTOR_BYTES) * SECTOR_BYTES;
}

const CHUNK_ENTRIES = 64 * 1024;

async function readTable(file: ReadableFile, { fields }: DynamicHeader): Promise<BlockTable> {
  const { tableOffset, maxTableEntries: blocks } = fields;
  const table = new BlockTable(blocks);
  for (let first = 0; first < blocks; first += CHUNK_ENTRIES) {
    const count = Math.min(CHUNK_ENTRIES, blocks - first);
    const view = viewOf(await readBytes(file, tableOffset + first * 4, count * 4));
    for (let i = 0; i < count; i++) {
      const slot = view.getUint32(i * 4);
      if (slot !== ABSENT && slot >= SLOTS_MAX) {
        throw damaged(
          `entry of block ${first + i}`,
          tableOffset + (first + i) * 4,
          slot,
          "a sector, or 0xffffffff",
        );
      }
      table.set(first + i, slot);
    }
  }
  return table;
}

function structuresOf({ at, fields, locators }: DynamicHeader): Structure[] {
  const { tableOffset, maxTableEntries } = fields;
  const structures = [
    { name: "footer copy", start: 0, end: Footer.bytes },
    { name: "dynamic header", start: at, end: at + Header.bytes },
    { name: "block table", start: tableOffset, end: wholeSectors(tableOffset + maxTableEntries * 4) },
  ];
  for (const { code, at: start, bytes, spaceBytes } of locators) {
    structures.push({
      name: `parent locator ${code}`,
      start,
      end: wholeSectors(start + Math.max(bytes, spaceBytes)),
    });
  }
  return structures.sort((a, b) => a.start - b.start);
}

const wholeSectors = (bytes: number): number => Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES;

/** Blocks begin behind the structures that precede all of them; the others lie among them. */
function divide(
  structures: readonly Structure[],
  table: BlockTable,
): Pick<BlockLayout, "blocksStartBytes" | "fixed"> {
  let lowest = Infinity;
  table.eachMapped(0, table.blocks, (_, slot) => (lowest = Math.min(lowest, slot * SECTOR_BYTES)));
  const fixed = new ExtentBuilder();
  let blocksStartBytes = 0;
  for (const { start, end } of structures) {
    if (start <= lowest || start <= blocksStartBytes) blocksStartBytes = Math.max(blocksStartBytes, end);
    else fixed.add(start, end);
  }
  return { blocksStartBytes, fixed: fixed.build() };
}

function footerAt({ file, tailBytes }: VhdLayout<ReadableFile>, at: number): string | undefined {
  return at >= file.bytes - tailBytes && at < file.bytes ? "footer" : undefined;
}

/** The part of a block that its bitmap claims. Reads come block by block: the last answer is kept. */
function heldIn(layoutOf: () => VhdLayout<ReadableFile>): NonNullable<BlockLayout["held"]> {
  let last: { readonly block: number; readonly held: ExtentSet } | undefined;
  return async (block) => {
    const layout = layoutOf();
    if (layout.complete.has(block)) return undefined;
    if (last?.block !== block) last = { block, held: await readBitmap(layout, block) };
    return last.held;
  };
}

async function readBitmap(layout: VhdLayout<ReadableFile>, block: number): Promise<ExtentSet> {
  const sectors = layout.blockBytes / SECTOR_BYTES;
  const at = slotAt(layout, layout.table.get(block));
  const bitmap = await readBytes(layout.file, at, Math.ceil(sectors / 8));
  const held = new ExtentBuilder();
  for (let sector = 0; sector < sectors; sector++) {
    if (bitmap[sector >>> 3] === 0) sector |= 7;
    else if (isSet(bitmap, sector)) held.add(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
  }
  return held.build();
}

const isSet = (bitmap: Uint8Array, bit: number): boolean => ((bitmap[bit >>> 3]! << (bit & 7)) & 0x80) !== 0;
