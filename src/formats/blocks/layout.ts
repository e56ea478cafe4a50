/**
 * What a format says of itself, so that everything else about an image of mapped blocks is the same code: VHDX, VHD,
 * VDI, sparse VMDK extents, Parallels and Apple's sparse images.
 *
 *   | structures, table | head | block 5 | head | block 0 | nobody's | head | block 9 | tail |
 *                       ^ blocksStart                                                 ^ the file's end - tailBytes
 *
 * `disk` reads, `plan` and `pack` give back, `check` checks, `write` writes, `image` is the whole for a format of one
 * file. A format fills in this structure and adds what is its own.
 */
import type { ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice, ReadableFile } from "../../device/device.ts";
import type { Step, Wish } from "../../reclaim/plan.ts";
import type { BlockTable } from "./table.ts";

/** How the mapping table lies in the file. */
export interface Entries {
  /** How many copies of the table there are; all are kept equal. */
  readonly copies: number;
  /** Length of an entry in bytes. An entry lies in one 512-byte sector. */
  readonly bytes: number;
  /** File offset of the entry of `block` in copy number `copy`; -1: that copy has none, and takes none. */
  at(block: number, copy: number): number;
  /** Writes the entry that says `slot` (or `ABSENT`, `ZERO`) into `view` at `at`; all else of it is kept. */
  write(view: DataView, at: number, block: number, slot: number): void;
}

/** Where the blocks of a file end. */
export interface BlocksEnd {
  /** File offset behind the last block or structure, without the tail. */
  readonly bytes: number;
  /** One more than the highest slot in use; 0: none is. */
  readonly slots: number;
}

export interface BlockLayout<F extends ReadableFile = ReadableFile> {
  /** The name of the file in the steps of a plan: "" for the image itself. */
  readonly fileName: string;
  readonly file: F;
  /** Length of the guest's disk in bytes; the last block may reach beyond. */
  readonly bytes: number;
  /** What absent blocks are read from; zeros where it ends, or where there is none. */
  readonly parent: BlockDevice | undefined;
  /** Guest bytes in a block. */
  readonly blockBytes: number;
  /** Bytes that lie before each block and belong to it: VHD's sector bitmap. */
  readonly headBytes: number;
  /** Slot `s` begins, with its head, at `baseBytes + s * unitBytes` of the file. */
  readonly baseBytes: number;
  readonly unitBytes: number;
  readonly table: BlockTable;
  readonly entries: Entries;
  /**
   * What the entry becomes of a block whose content nobody wants: `ABSENT` where that reads as zeros for ever, `ZERO`
   * where the format has such a state; undefined: blocks stay mapped, and are punched (H9).
   */
  readonly freed: number | undefined;
  /** The same where the run packs, for a format that allows no gaps between its blocks: VDI. Default: `freed`. */
  readonly freedByPacking?: number;
  /** Blocks that stay mapped all the same, unless the run packs. */
  readonly keeps?: (block: number) => boolean;
  /** File offset from which on there is nothing but blocks, and what `fixed` names. */
  readonly blocksStartBytes: number;
  /** Structures behind `blocksStartBytes`, without the tail; nothing moves them. */
  readonly fixed: ExtentSet;
  /** Length of the structure at the very end of the file, which moves with it: VHD's footer. */
  readonly tailBytes: number;
  /** The file, without the tail, ends at a multiple of this. 1: anywhere. */
  readonly endAlignBytes: number;
  /** The part of a mapped block, in bytes from its start, that is held here; the rest is the parent's. Undefined: all of it. */
  readonly held?: (block: number) => Promise<ExtentSet | undefined>;
  /** Batches that come before anything is changed, where anything is: identifiers that must become new. */
  prepare?(wish: Wish): AsyncIterable<readonly Step[]> | Iterable<readonly Step[]>;
  /**
   * Steps that come before the file is cut at `end`: counts that the header keeps.
   * @param before where the blocks ended at the cut before this one; undefined at the first
   */
  ending?(end: BlocksEnd, before: BlocksEnd | undefined): readonly Step[];
  /** What a byte outside of all blocks belongs to: `BAT`; undefined: nothing that is known. */
  structureAt(fileOffset: number): string | undefined;
}

/** Length in the file of a block with its head. */
export function strideOf({ headBytes, blockBytes }: BlockLayout): number {
  return headBytes + blockBytes;
}

/** File offset of a slot's head. */
export function slotAt({ baseBytes, unitBytes }: BlockLayout, slot: number): number {
  return baseBytes + slot * unitBytes;
}

/** File offset of a slot's first guest byte. */
export function payloadAt(layout: BlockLayout, slot: number): number {
  return slotAt(layout, slot) + layout.headBytes;
}
