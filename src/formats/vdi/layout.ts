/**
 * The blocks of a VDI.
 *
 *   | header | map: 2, free, 0, zero, 1 | extra, block 0 | extra, block 1 | extra, block 2 |
 *                                                                           blocks allocated: 3 ↑
 *
 *   0xffffffff   free: the parent's bytes; without a parent anything, which everybody reads as zeros
 *   0xfffffffe   zeros, whatever a parent holds
 *
 * VirtualBox and QEMU put the next block behind as many as are allocated, and `qemu-img check` wants as many entries
 * as that: no gaps. So a block that nobody wants stays mapped and is punched, and packing takes it out of the map,
 * fills its place and lowers the count.
 * Specification: VirtualBox, src/VBox/Storage/VDICore.h.
 */
import { randomBytes } from "node:crypto";
import { ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import { type ReadableFile, readBytes } from "../../device/device.ts";
import type { Step } from "../../reclaim/plan.ts";
import type { BlockLayout } from "../blocks/layout.ts";
import { BlockTable, ZERO } from "../blocks/table.ts";
import type { Image } from "../format.ts";
import { Header, type VdiHeader } from "./header.ts";

export interface VdiLayout<F extends ReadableFile> extends BlockLayout<F> {
  /** The count in the header: a new block gets this slot. */
  allocated: number;
  /** One more than the highest slot in the map. */
  readonly slots: number;
  /** The UUID of this sitting's modification, which parts children from a parent that changed. */
  readonly modification: Uint8Array;
}

export async function layOut<F extends ReadableFile>(
  file: F,
  { kind, diskBytes, fields }: VdiHeader,
  parent: Image | undefined,
): Promise<VdiLayout<F>> {
  const { blocksOffset, dataOffset, blockBytes, blockExtraBytes, blocks, blocksAllocated } = fields;
  const table = await readTable(file, blocksOffset, blocks);
  let slots = 0;
  table.eachMapped(0, blocks, (_, slot) => (slots = Math.max(slots, slot + 1)));
  const modification = new Uint8Array(randomBytes(16));
  const layout: VdiLayout<F> = {
    fileName: "",
    file,
    bytes: diskBytes,
    parent,
    blockBytes,
    headBytes: blockExtraBytes,
    baseBytes: dataOffset,
    unitBytes: blockBytes + blockExtraBytes,
    table,
    entries: {
      copies: 1,
      bytes: 4,
      at: (block) => blocksOffset + block * 4,
      write: (view, at, _block, slot) => view.setUint32(at, slot, true),
    },
    freed: undefined,
    // A fixed image has a place for every block.
    ...(kind !== "fixed" && { freedByPacking: ZERO }),
    blocksStartBytes: dataOffset,
    fixed: ExtentSet.EMPTY,
    tailBytes: 0,
    endAlignBytes: 1,
    allocated: blocksAllocated,
    slots,
    modification,
    async *prepare({ keepIdentity }) {
      if (keepIdentity) return;
      const at = Header.at.uuidModify;
      const before = await readBytes(file, at, modification.length);
      yield [{ file: "", op: "patch", at, before, after: modification }];
    },
    ending(end, before) {
      return countPatch(before?.slots ?? layout.allocated, end.slots);
    },
    structureAt: (at) => {
      if (at < Header.bytes) return "header";
      if (at >= blocksOffset && at < blocksOffset + blocks * 4) return "block map";
      return at < dataOffset ? "padding before the blocks" : undefined;
    },
  };
  return layout;
}

function countPatch(before: number, after: number): readonly Step[] {
  if (before === after) return [];
  return [
    {
      file: "",
      op: "patch",
      at: Header.at.blocksAllocated,
      before: countBytes(before),
      after: countBytes(after),
    },
  ];
}

export function countBytes(count: number): Uint8Array {
  const bytes = new Uint8Array(4);
  viewOf(bytes).setUint32(0, count, true);
  return bytes;
}

const CHUNK_ENTRIES = 64 * 1024;

async function readTable(file: ReadableFile, at: number, blocks: number): Promise<BlockTable> {
  const table = new BlockTable(blocks);
  for (let first = 0; first < blocks; first += CHUNK_ENTRIES) {
    const count = Math.min(CHUNK_ENTRIES, blocks - first);
    const view = viewOf(await readBytes(file, at + first * 4, count * 4));
    for (let i = 0; i < count; i++) table.set(first + i, view.getUint32(i * 4, true));
  }
  return table;
}
