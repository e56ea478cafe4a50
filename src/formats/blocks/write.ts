/**
 * Writing to a table of blocks.
 *
 *   write   a mapped block in place; else a new one: a freed place, or the end of the file
 *   flush   data durable → counts, tail, entries → durable → readers of freed blocks drained (H14), places punched
 *
 *   (1) An entry never becomes durable before what it refers to.
 *   (2) A place is used again only after its last entry is durably gone and its punch returned (H12).
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import { bytesOf, viewOf } from "../../bytes/struct.ts";
import { type HostFile, readBytes } from "../../device/device.ts";
import { readBeyond } from "../../device/padded.ts";
import { DiskError } from "../../error.ts";
import type { ClaimedPlace } from "../format.ts";
import { garbageOf, requireWhole, roomsIn } from "./check.ts";
import { type Change, runsOf } from "./entries.ts";
import { type BlockLayout, type BlocksEnd, payloadAt, slotAt, strideOf } from "./layout.ts";
import { ABSENT, SLOTS_MAX, ZERO } from "./table.ts";

/** What a format adds to writing. */
export interface WriterHooks {
  /** Before the first change of a sitting: identifiers, an in-use mark. Makes it durable itself. */
  begin?(): Promise<void>;
  /** What the head of a new block holds; `headBytes` long. */
  readonly newHead?: Uint8Array;
  /** A block that was held in part is held entirely from now on; what says so on disk is written by `settle`. */
  complete?(block: number): void;
  /** With the entries, when the data are durable: counts, the tail, bitmaps. */
  settle?(end: BlocksEnd): Promise<void>;
  /** When the image is closed and everything is durable. */
  finish?(): Promise<void>;
}

export class BlockWriter {
  readonly #layout: BlockLayout<HostFile>;
  readonly #hooks: WriterHooks;
  /** Blocks whose entries on disk are old. */
  readonly #changed = new Set<number>();
  /** Places that entries on disk may still name. */
  #dropped: number[] = [];
  /** Places that nothing names (2). */
  readonly #spare: number[] = [];
  readonly #readers = new Set<Promise<void>>();
  #turn: Promise<unknown> = Promise.resolve();
  #begun = false;
  /** Something was written since the last flush. */
  #dirty = false;
  /** One more than the highest slot that was ever in use. */
  #slots = 0;
  /** Where the next new block goes, once there was one. */
  #nextBytes: number | undefined;

  constructor(layout: BlockLayout<HostFile>, hooks: WriterHooks) {
    this.#layout = layout;
    this.#hooks = hooks;
    layout.table.eachMapped(0, layout.table.blocks, (_, slot) => {
      this.#slots = Math.max(this.#slots, slot + 1);
    });
  }

  /** A read of the disk, which a freed place waits for. */
  async reading(read: Promise<void>): Promise<void> {
    this.#readers.add(read);
    try {
      await read;
    } finally {
      this.#readers.delete(read);
    }
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.#inTurn(async () => {
      for (const part of this.#parts({ start: at, end: at + from.length })) {
        await this.#writePart(part, from.subarray(part.start - at, part.end - at));
      }
    });
  }

  zero(range: Extent): Promise<void> {
    return this.#inTurn(async () => {
      for (const part of this.#parts(range)) await this.#zeroPart(part);
    });
  }

  discard(range: Extent): Promise<void> {
    return this.#inTurn(async () => {
      const { file, table } = this.#layout;
      for (const part of this.#parts(range)) {
        if (!table.isMapped(part.block)) continue;
        await this.#begin();
        if (part.isWhole && this.#canDrop(part.block)) this.#drop(part.block);
        else await file.discard(this.#placeOf(part));
      }
    });
  }

  /**
   * A place for what of `range` lies in its first block, for the caller to write; until then it reads as before, or zeros.
   * Undefined where it would have to be completed from elsewhere.
   */
  claim(range: Extent): Promise<ClaimedPlace | undefined> {
    return this.#inTurn(async () => {
      const { file, table, held, parent } = this.#layout;
      const [part] = this.#parts(range);
      if (part === undefined || held !== undefined) return undefined;
      const isMapped = table.isMapped(part.block);
      if (!isMapped && (!part.isWhole || parent !== undefined)) return undefined;
      await this.#begin();
      if (!isMapped) {
        const isReused = this.#spare.length > 0;
        const slot = this.#newSlot();
        await this.#makeRoom(slot, isReused, 0);
        await this.#writeHead(slot);
        this.#map(part.block, slot);
      }
      const { start, end } = this.#placeOf(part);
      return { file, at: start, bytes: end - start };
    });
  }

  flush(): Promise<void> {
    return this.#inTurn(() => this.#flush());
  }

  /** Everything durable, and the format's last word. */
  close(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#flush();
      if (this.#begun) await this.#hooks.finish?.();
    });
  }

  /** One change after the other. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(work);
    this.#turn = done.catch(() => {});
    return done;
  }

  *#parts({ start, end }: Extent): Generator<Part> {
    const { blockBytes, bytes } = this.#layout;
    for (let at = start; at < end;) {
      const block = Math.floor(at / blockBytes);
      const stop = Math.min(end, (block + 1) * blockBytes);
      const isWhole = at === block * blockBytes && stop === Math.min(bytes, (block + 1) * blockBytes);
      yield { block, start: at, end: stop, isWhole };
      at = stop;
    }
  }

  async #writePart(part: Part, from: Uint8Array): Promise<void> {
    await this.#begin();
    const { file, table } = this.#layout;
    if (!table.isMapped(part.block)) return this.#allocate(part, from);
    if (!part.isWhole) await this.#complete(part.block);
    await file.write(this.#placeOf(part).start, from);
    if (part.isWhole) this.#markComplete(part.block);
  }

  async #zeroPart(part: Part): Promise<void> {
    const { file, table, parent, freed } = this.#layout;
    const slot = table.get(part.block);
    if (slot === ZERO || (slot === ABSENT && parent === undefined)) return;
    await this.#begin();
    if (slot === ABSENT) {
      if (part.isWhole && freed === ZERO) return this.#map(part.block, ZERO);
      return this.#allocate(part, undefined);
    }
    if (part.isWhole && this.#canDrop(part.block)) return this.#drop(part.block);
    if (!part.isWhole) await this.#complete(part.block);
    await file.zero(this.#placeOf(part));
    if (part.isWhole) this.#markComplete(part.block);
  }

  /** Called before every change. @throws DiskError `corrupt`: an entry may lead out of the file, or to another's block */
  async #begin(): Promise<void> {
    if (!this.#begun) requireWhole(this.#layout);
    this.#dirty = true;
    if (this.#begun) return;
    await this.#hooks.begin?.();
    // Behind the last block of an image on a block device lies whatever was there before.
    const isFile = (await this.#layout.file.stat()).hostBytes !== null;
    if (isFile) this.#spare.push(...roomsIn(this.#layout, garbageOf(this.#layout)));
    this.#begun = true;
  }

  /** A new block with `from` (or zeros) in its part, and the rest as the guest reads it now. */
  async #allocate(part: Part, from: Uint8Array | undefined): Promise<void> {
    const { file, table, parent, blockBytes, bytes } = this.#layout;
    const isReused = this.#spare.length > 0;
    const slot = this.#newSlot();
    const at = payloadAt(this.#layout, slot);
    const base = part.block * blockBytes;
    if (parent !== undefined && table.get(part.block) === ABSENT && !part.isWhole) {
      const content = new Uint8Array(Math.min(blockBytes, bytes - base));
      await readBeyond(parent, base, content);
      if (from) content.set(from, part.start - base);
      else content.fill(0, part.start - base, part.end - base);
      await this.#makeRoom(slot, isReused, content.length);
      await file.write(at, content);
    } else {
      await this.#makeRoom(slot, isReused, part.isWhole && from ? from.length : 0);
      if (from) await file.write(at + part.start - base, from);
    }
    await this.#writeHead(slot);
    this.#map(part.block, slot);
  }

  /** Makes what is not going to be written of a slot read as zeros. @param written bytes that will be, from its start on */
  async #makeRoom(slot: number, isReused: boolean, written: number): Promise<void> {
    const { file, blockBytes } = this.#layout;
    const at = payloadAt(this.#layout, slot);
    if (written < blockBytes && isReused) await file.zero({ start: at + written, end: at + blockBytes });
    if (written < blockBytes && file.bytes < at + blockBytes) await file.truncate(at + blockBytes);
  }

  async #writeHead(slot: number): Promise<void> {
    const { newHead } = this.#hooks;
    if (newHead) await this.#layout.file.write(slotAt(this.#layout, slot), newHead);
  }

  #newSlot(): number {
    const { file, tailBytes, baseBytes, unitBytes, blocksStartBytes } = this.#layout;
    const spare = this.#spare.pop();
    if (spare !== undefined) return spare;
    const { bytes } = this.#end();
    // The tail of the file as it was opened lies where the next block goes: it is written anew by `settle`.
    const end = Math.max(bytes, this.#nextBytes ?? file.bytes - tailBytes, blocksStartBytes);
    const slot = Math.ceil((end - baseBytes) / unitBytes);
    if (slot >= SLOTS_MAX) {
      throw new DiskError("unsupported", `the file cannot take more blocks than those up to ${end}`);
    }
    this.#nextBytes = slotAt(this.#layout, slot) + strideOf(this.#layout);
    this.#slots = Math.max(this.#slots, slot + 1);
    return slot;
  }

  #end(): BlocksEnd {
    const { blocksStartBytes } = this.#layout;
    const behind = this.#slots === 0 ? 0 : slotAt(this.#layout, this.#slots - 1) + strideOf(this.#layout);
    return { bytes: Math.max(behind, blocksStartBytes), slots: this.#slots };
  }

  #map(block: number, slot: number): void {
    this.#layout.table.set(block, slot);
    this.#changed.add(block);
  }

  #canDrop(block: number): boolean {
    return this.#layout.freed !== undefined && !this.#layout.keeps?.(block);
  }

  #drop(block: number): void {
    this.#dropped.push(this.#layout.table.get(block));
    this.#map(block, this.#layout.freed!);
  }

  #placeOf({ block, start, end }: Part): Extent {
    const { table, blockBytes } = this.#layout;
    const at = payloadAt(this.#layout, table.get(block)) + start - block * blockBytes;
    return { start: at, end: at + end - start };
  }

  /** Fetches what a block does not hold from the parent. */
  async #complete(block: number): Promise<void> {
    const { held, blockBytes, bytes, table, file, parent } = this.#layout;
    const here = await held?.(block);
    if (here === undefined) return;
    const base = block * blockBytes;
    const missing = ExtentSet.of({
      start: 0,
      end: Math.min(blockBytes, bytes - base),
    }).subtract(here);
    for (const { start, end } of missing) {
      const content = new Uint8Array(end - start);
      await readBeyond(parent, base + start, content);
      await file.write(payloadAt(this.#layout, table.get(block)) + start, content);
    }
    this.#markComplete(block);
  }

  #markComplete(block: number): void {
    if (this.#layout.held === undefined) return;
    this.#hooks.complete?.(block);
    this.#changed.add(block);
  }

  async #flush(): Promise<void> {
    const { file, table } = this.#layout;
    if (!this.#dirty) return;
    await file.flush();
    this.#dirty = this.#changed.size > 0;
    if (!this.#dirty) return;
    await this.#hooks.settle?.(this.#end());
    const changes = [...this.#changed]
      .sort((a, b) => a - b)
      .map((block) => ({ block, slot: table.get(block) }));
    await this.#writeEntries(changes);
    await file.flush();
    this.#changed.clear();
    this.#dirty = false;
    await this.#release();
  }

  async #writeEntries(changes: readonly Change[]): Promise<void> {
    const { entries, file } = this.#layout;
    for (let copy = 0; copy < entries.copies; copy++) {
      for (const run of runsOf(this.#layout, copy, changes)) {
        const at = entries.at(run[0]!.block, copy);
        const view = viewOf(await readBytes(file, at, run.length * entries.bytes));
        for (const [i, { block, slot }] of run.entries()) entries.write(view, i * entries.bytes, block, slot);
        await file.write(at, bytesOf(view));
      }
    }
  }

  async #release(): Promise<void> {
    const dropped = this.#dropped;
    this.#dropped = [];
    if (dropped.length === 0) return;
    await Promise.allSettled(this.#readers);
    this.#spare.push(...dropped);
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

/** The part of a range that lies in one block. */
interface Part extends Extent {
  readonly block: number;
  /** All of the block that lies on the disk. */
  readonly isWhole: boolean;
}
