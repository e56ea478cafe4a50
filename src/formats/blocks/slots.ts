/**
 * Which slots of the file a writer may take: those that nothing names, and those behind the last block.
 *
 *   drop ─→ dropped: entries on disk may still name it ─ release: readers drained, punched ─→ spare ─→ take
 */
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import type { HostFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { type BlockLayout, type BlocksEnd, payloadAt, slotAt, strideOf } from "./layout.ts";
import { SLOTS_MAX } from "./table.ts";

export class Slots {
  readonly #layout: BlockLayout<HostFile>;
  #dropped: number[] = [];
  readonly #spare: number[] = [];
  readonly #readers = new Set<Promise<void>>();
  /** One more than the highest slot that was ever in use. */
  #count = 0;
  /** Where the next new block goes, once there was one. */
  #nextBytes: number | undefined;

  constructor(layout: BlockLayout<HostFile>) {
    this.#layout = layout;
    layout.table.eachMapped(0, layout.table.blocks, (_, slot) => {
      this.#count = Math.max(this.#count, slot + 1);
    });
  }

  /** A read of the disk, which a freed slot waits for. */
  async reading(read: Promise<void>): Promise<void> {
    this.#readers.add(read);
    try {
      await read;
    } finally {
      this.#readers.delete(read);
    }
  }

  /** Whether the next slot was used before. */
  get hasSpare(): boolean {
    return this.#spare.length > 0;
  }

  /** Slots that nothing names. */
  offer(slots: Iterable<number>): void {
    for (const slot of slots) this.#spare.push(slot);
  }

  drop(slot: number): void {
    this.#dropped.push(slot);
  }

  /** A slot for a new block. */
  take(): number {
    const { file, tailBytes, baseBytes, unitBytes, blocksStartBytes } = this.#layout;
    const spare = this.#spare.pop();
    if (spare !== undefined) return spare;
    const { bytes } = this.end();
    // The tail of the file as it was opened lies where the next block goes: it is written anew by `settle`.
    const end = Math.max(bytes, this.#nextBytes ?? file.bytes - tailBytes, blocksStartBytes);
    const slot = Math.ceil((end - baseBytes) / unitBytes);
    if (slot >= SLOTS_MAX) {
      throw new DiskError("unsupported", `the file cannot take more blocks than those up to ${end}`);
    }
    this.#nextBytes = slotAt(this.#layout, slot) + strideOf(this.#layout);
    this.#count = Math.max(this.#count, slot + 1);
    return slot;
  }

  /** Where the blocks end. */
  end(): BlocksEnd {
    const { blocksStartBytes } = this.#layout;
    const behind = this.#count === 0 ? 0 : slotAt(this.#layout, this.#count - 1) + strideOf(this.#layout);
    return { bytes: Math.max(behind, blocksStartBytes), slots: this.#count };
  }

  /** Makes what is not going to be written of a slot read as zeros. @param written bytes that will be, from its start on */
  async makeRoom(slot: number, isReused: boolean, written: number): Promise<void> {
    const { file, blockBytes } = this.#layout;
    const at = payloadAt(this.#layout, slot);
    if (written < blockBytes && isReused) await file.zero({ start: at + written, end: at + blockBytes });
    if (written < blockBytes && file.bytes < at + blockBytes) await file.truncate(at + blockBytes);
  }

  /** When the entries are durably gone (2): readers drained (H14), places punched, and free from then on. */
  async release(): Promise<void> {
    const dropped = this.#dropped;
    this.#dropped = [];
    if (dropped.length === 0) return;
    await Promise.allSettled(this.#readers);
    this.offer(dropped);
    // Freed places that touch each other are punched as one: one alone may be smaller than a host block.
    const freed = this.#places(dropped);
    for (const extent of this.#places(this.#spare)) {
      if (freed.touches(extent)) await this.#layout.file.discard(extent);
    }
  }

  #places(slots: readonly number[]): ExtentSet {
    const places = new ExtentBuilder(slots.length);
    const stride = strideOf(this.#layout);
    for (const slot of slots) {
      const at = slotAt(this.#layout, slot);
      places.add(at, Math.min(at + stride, Math.max(at, this.#layout.file.bytes)));
    }
    return places.build();
  }
}
