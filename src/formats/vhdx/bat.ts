/**
 * The block allocation table: for each payload block its state and its place in the file in MiB; after the entries of
 * each chunk stands one for the sector bitmap that tells, in a differencing disk, which sectors are the child's.
 *
 *   | block 0 | block 1 | … | block r - 1 | bitmap 0 | block r | …      r: chunk ratio, 2^23 sectors / block size
 *
 *   entry   63 … 20: FileOffsetMB      19 … 3: 0      2 … 0: state
 *
 * Specification: [MS-VHDX] 2.4, 2.5.
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import { cache } from "../../device/cache.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { readPadded } from "../../device/padded.ts";
import { DiskError } from "../../error.ts";
import type { PatchStep } from "../../reclaim/differences.ts";
import { ABSENT, BlockTable, SLOTS_MAX, ZERO } from "../blocks/table.ts";
import { BlockSet } from "./block-set.ts";
import type { Metadata } from "./metadata.ts";
import { corrupt, MIB } from "./structures.ts";

export const PayloadState = {
  notPresent: 0,
  undefined: 1,
  zero: 2,
  unmapped: 3,
  fullyPresent: 6,
  partiallyPresent: 7,
} as const;
const BITMAP_PRESENT = 6;

export const BAT_ENTRY_BYTES = 8;
/** A sector bitmap block has 1 MiB, a bit a sector. */
export const BITMAP_BYTES = MIB;
const SECTORS_PER_CHUNK = BITMAP_BYTES * 8;
const CHUNK_BYTES = 1024 * 1024;

/** Which entry is whose. */
export interface BatShape {
  readonly blocks: number;
  /** Payload blocks in a chunk. */
  readonly chunkRatio: number;
  /** Entries in use. */
  readonly entries: number;
}

/** What of the metadata decides where entries lie. */
export interface Geometry {
  readonly virtualBytes: number;
  readonly blockBytes: number;
  readonly logicalSectorBytes: number;
  readonly hasParent: boolean;
}

export function shapeOf({ virtualBytes, blockBytes, logicalSectorBytes, hasParent }: Geometry): BatShape {
  const chunkRatio = (SECTORS_PER_CHUNK * logicalSectorBytes) / blockBytes;
  const blocks = Math.ceil(virtualBytes / blockBytes);
  const bitmaps = Math.floor(Math.max(0, blocks - 1) / chunkRatio);
  const entries = hasParent ? Math.ceil(blocks / chunkRatio) * (chunkRatio + 1) : blocks + bitmaps;
  return { blocks, chunkRatio, entries };
}

/** Index in the BAT of a payload block's entry. */
export function entryOf({ chunkRatio }: BatShape, block: number): number {
  return block + Math.floor(block / chunkRatio);
}

/** The table, and which blocks the file holds in part. A block that gets a new place is whole. */
export class PayloadTable extends BlockTable {
  readonly #partial = new BlockSet();

  get partial(): Pick<BlockSet, "has" | "size"> & Iterable<number> {
    return this.#partial;
  }

  override set(block: number, slot: number): void {
    this.#partial.delete(block);
    super.set(block, slot);
  }

  /** Of this block the parent has some sectors. */
  setPartial(block: number, slot: number): void {
    super.set(block, slot);
    this.#partial.add(block);
  }

  complete(block: number): void {
    this.#partial.delete(block);
  }

  /** What the entry of `block` says when it leads to `slot`. */
  stateOf(block: number, slot: number): number {
    if (slot === ABSENT) return PayloadState.notPresent;
    if (slot === ZERO) return PayloadState.zero;
    return this.#partial.has(block) ? PayloadState.partiallyPresent : PayloadState.fullyPresent;
  }
}

export interface Bat {
  readonly shape: BatShape;
  readonly table: PayloadTable;
  /** File offsets of the sector bitmap blocks, by chunk. */
  readonly bitmaps: ReadonlyMap<number, number>;
  /** Blocks that are not in the file, and whose entries still name a place. */
  readonly stale: Iterable<number>;
}

/** @throws DiskError `corrupt` for an entry that says nothing that the specification knows */
export async function readBat(file: BlockDevice, region: Extent, metadata: Metadata): Promise<Bat> {
  const hasParent = metadata.parent !== undefined;
  const shape = shapeOf({ ...metadata, hasParent });
  if (shape.entries * BAT_ENTRY_BYTES > region.end - region.start) {
    throw corrupt(
      "BAT",
      region.start,
      `${region.end - region.start} bytes`,
      `${shape.entries} entries of 8 bytes`,
    );
  }
  const reader = new BatReader(shape, hasParent, region.start);
  const end = region.start + shape.entries * BAT_ENTRY_BYTES;
  const buffer = new Uint8Array(CHUNK_BYTES);
  for (let at = region.start; at < end; at += CHUNK_BYTES) {
    const part = buffer.subarray(0, Math.min(CHUNK_BYTES, end - at));
    await file.read(at, part);
    const view = viewOf(part);
    for (let i = 0; i < part.length; i += BAT_ENTRY_BYTES) {
      const [low, high] = [view.getUint32(i, true), view.getUint32(i + 4, true)];
      if (low !== 0 || high !== 0) reader.add((at + i - region.start) / BAT_ENTRY_BYTES, low, high);
    }
  }
  for (const block of reader.table.partial) {
    const chunk = Math.floor(block / shape.chunkRatio);
    if (reader.bitmaps.has(chunk)) continue;
    throw corrupt(
      "BAT",
      region.start,
      `block ${block} in part, no sector bitmap ${chunk}`,
      "a sector bitmap",
    );
  }
  return reader;
}

class BatReader implements Bat {
  readonly shape: BatShape;
  readonly table: PayloadTable;
  readonly bitmaps = new Map<number, number>();
  readonly stale = new BlockSet();
  readonly #hasParent: boolean;
  readonly #regionAt: number;

  constructor(shape: BatShape, hasParent: boolean, regionAt: number) {
    this.shape = shape;
    this.table = new PayloadTable(shape.blocks);
    this.#hasParent = hasParent;
    this.#regionAt = regionAt;
  }

  add(index: number, low: number, high: number): void {
    const { chunkRatio, blocks } = this.shape;
    const chunk = Math.floor(index / (chunkRatio + 1));
    const inChunk = index % (chunkRatio + 1);
    const state = low & 7;
    const offsetMb = high * 4096 + (low >>> 20);
    // Without a parent nobody reads sector bitmaps; QEMU up to 7.2 leaves rubbish in their entries.
    if (inChunk === chunkRatio) {
      if (this.#hasParent) this.#addBitmap(index, chunk, state, offsetMb);
      return;
    }
    const block = chunk * chunkRatio + inChunk;
    if (block >= blocks) return;
    if (((low >>> 3) & 0x1ffff) !== 0) throw this.#corrupt(index, `reserved bits in ${low}`, "zeros");
    this.#addPayload(index, block, state, offsetMb);
  }

  #addPayload(index: number, block: number, state: number, offsetMb: number): void {
    switch (state) {
      case PayloadState.notPresent:
        break;
      case PayloadState.undefined:
      case PayloadState.zero:
      case PayloadState.unmapped:
        // Not to be read from a parent in any of these states; QEMU reads zeros, too.
        this.table.set(block, ZERO);
        break;
      case PayloadState.partiallyPresent:
        if (!this.#hasParent)
          throw this.#corrupt(index, "a block in part", "whole blocks: there is no parent");
        this.table.setPartial(block, this.#slotOf(index, offsetMb));
        return;
      case PayloadState.fullyPresent:
        this.table.set(block, this.#slotOf(index, offsetMb));
        return;
      default:
        throw this.#corrupt(index, `state ${state}`, "0, 1, 2, 3, 6 or 7");
    }
    if (offsetMb !== 0) this.stale.add(block);
  }

  #addBitmap(index: number, chunk: number, state: number, offsetMb: number): void {
    if (state === BITMAP_PRESENT) this.bitmaps.set(chunk, this.#slotOf(index, offsetMb) * MIB);
    else if (state !== 0) throw this.#corrupt(index, `state ${state} of a sector bitmap`, "0 or 6");
  }

  #slotOf(index: number, offsetMb: number): number {
    if (offsetMb === 0) throw this.#corrupt(index, "FileOffsetMB 0", "a place behind the header section");
    if (offsetMb < SLOTS_MAX) return offsetMb;
    throw new DiskError("unsupported", `BAT entry ${index}: FileOffsetMB ${offsetMb} is past 4 PiB`);
  }

  #corrupt(index: number, found: string, expected: string): DiskError {
    return corrupt(`BAT entry ${index}`, this.#regionAt + index * BAT_ENTRY_BYTES, found, expected);
  }
}

/** The part of a block that is the child's, in bytes from the block's start. */
export async function sectorsHeld(
  file: BlockDevice,
  { shape, bitmaps }: Bat,
  { blockBytes, logicalSectorBytes }: Metadata,
  block: number,
): Promise<ExtentSet> {
  const bitmapAt = bitmaps.get(Math.floor(block / shape.chunkRatio))!;
  const bytes = blockBytes / logicalSectorBytes / 8;
  const bits = new Uint8Array(bytes);
  await readPadded(file, bitmapAt + (block % shape.chunkRatio) * bytes, bits);
  const held = new ExtentBuilder();
  for (let i = 0; i < bytes; i++) {
    const byte = bits[i]!;
    for (let bit = 0; byte >>> bit !== 0; bit++) {
      if (((byte >>> bit) & 1) === 0) continue;
      const at = (i * 8 + bit) * logicalSectorBytes;
      held.add(at, at + logicalSectorBytes);
    }
  }
  return held.build();
}

/** Writes an entry; 0 MiB where the state needs no place. */
export function writeEntry(view: DataView, at: number, state: number, offsetMb: number): void {
  view.setBigUint64(at, (BigInt(offsetMb) << 20n) | BigInt(state), true);
}

/** Patches that take the places out of entries that need none: another block may get them (2.5.1: unique). */
export async function* forgottenPlaces(
  file: BlockDevice,
  region: Extent,
  { shape, stale }: Bat,
): AsyncGenerator<PatchStep> {
  const entries = cache(file);
  for (const block of stale) {
    const at = region.start + entryOf(shape, block) * BAT_ENTRY_BYTES;
    const before = await readBytes(entries, at, BAT_ENTRY_BYTES);
    const after = before.slice();
    writeEntry(viewOf(after), 0, before[0]! & 7, 0);
    yield { file: "", op: "patch", at, before, after };
  }
}
