/**
 * Writing to a table of blocks.
 *
 *   write   a mapped block in place; else a new one: a freed place, or the end of the file
 *   discard a whole block loses its entry; of a part the host's blocks are punched at once, and where the host then holds
 *           nothing of the block, and it is found to be zeros, its entry goes as well
 *   flush   data durable → counts, tail, entries → durable → readers of freed blocks drained (H14), places punched
 *
 *   (1) An entry never becomes durable before what it refers to.
 *   (2) A place is used again only after its last entry is durably gone and its punch returned (H12).
 *   (3) Beside the changes, which come one after the other, goes whoever asks for a place and writes there at once
 *       (`locate`), but not in blocks that a change is about.
 */
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import { bytesOf, viewOf } from "../../bytes/struct.ts";
import { type HostFile, type Place, readBytes, type Zeroing } from "../../device/device.ts";
import { readBeyond } from "../../device/padded.ts";
import { readsZeros } from "../../device/zeros.ts";
import { DiskError } from "../../error.ts";
import type { ClaimedPlace } from "../format.ts";
import { garbageOf, requireWhole, roomsIn } from "./check.ts";
import { placeOf } from "./disk.ts";
import { type Change, runsOf } from "./entries.ts";
import { type BlockLayout, type BlocksEnd, payloadAt, slotAt } from "./layout.ts";
import { discardPiece } from "./piece.ts";
import { Slots } from "./slots.ts";
import { ABSENT, ZERO } from "./table.ts";

/** So many entries wait for a flush, even where nobody asks for one: memory stays bounded (H24). */
const CHANGED_MAX = 65_536;

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
  readonly #slots: Slots;
  #turn: Promise<unknown> = Promise.resolve();
  #begun = false;
  /** Something was written since the last flush. */
  #dirty = false;
  #closed = false;
  /** The blocks that the change under way is about (3). */
  #busyStart = 0;
  #busyEnd = 0;
  /** Less than that the host cannot punch. */
  #hostBlockBytes = 0;

  constructor(layout: BlockLayout<HostFile>, hooks: WriterHooks) {
    this.#layout = layout;
    this.#hooks = hooks;
    this.#slots = new Slots(layout);
  }

  /** A read of the disk, which a freed place waits for. */
  reading(read: Promise<void>): Promise<void> {
    return this.#slots.reading(read);
  }

  /** A place to be written at once, for what of the range is mapped and held entirely. */
  locate(at: number, bytes: number): Place | undefined {
    if (!this.#begun || this.#closed) return undefined;
    if (at < this.#busyEnd && at + bytes > this.#busyStart) return undefined;
    const place = placeOf(this.#layout, at, bytes);
    if (place !== undefined) this.#dirty = true;
    return place;
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.#change({ start: at, end: at + from.length }, async () => {
      for (const part of this.#parts({ start: at, end: at + from.length })) {
        await this.#writePart(part, from.subarray(part.start - at, part.end - at));
      }
    });
  }

  zero(range: Extent, how: Zeroing = {}): Promise<void> {
    return this.#change(range, async () => {
      if (how.fast) await this.#zeroFast(this.#parts(range), how);
      for (const part of this.#parts(range)) {
        await this.#zeroPart(part, how);
        if (how.keep === false && !part.isWhole) await this.#dropIfEmpty(part);
      }
    });
  }

  discard(range: Extent): Promise<void> {
    return this.#change(range, async () => {
      const { table } = this.#layout;
      for (const part of this.#parts(range)) {
        if (!table.isMapped(part.block)) continue;
        await this.#begin();
        if (part.isWhole && this.#canDrop(part.block)) this.#drop(part.block);
        else await this.#discardPart(part);
      }
    });
  }

  /**
   * A place for what of `range` lies in its first block, for the caller to write; until then it reads as before, or zeros.
   * Undefined where it would have to be completed from elsewhere.
   */
  claim(range: Extent): Promise<ClaimedPlace | undefined> {
    return this.#change(range, async () => {
      const { file, table, held, parent } = this.#layout;
      const [part] = this.#parts(range);
      if (part === undefined || held !== undefined) return undefined;
      const isMapped = table.isMapped(part.block);
      if (!isMapped && (!part.isWhole || parent !== undefined)) return undefined;
      await this.#begin();
      if (!isMapped) {
        const isReused = this.#slots.hasSpare;
        const slot = this.#slots.take();
        await this.#slots.makeRoom(slot, isReused, 0);
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
      this.#closed = true;
      await this.#flush();
      if (this.#begun) await this.#hooks.finish?.();
    });
  }

  #change<T>({ start, end }: Extent, work: () => Promise<T>): Promise<T> {
    const { blockBytes } = this.#layout;
    return this.#inTurn(async () => {
      if (this.#changed.size >= CHANGED_MAX) await this.#flush();
      this.#busyStart = start - (start % blockBytes);
      this.#busyEnd = Math.ceil(end / blockBytes) * blockBytes;
      try {
        return await work();
      } finally {
        this.#busyEnd = 0;
      }
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

  async #zeroPart(part: Part, how: Zeroing): Promise<void> {
    const { file } = this.#layout;
    const means = this.#meansOf(part, how);
    if (means === "nothing") return;
    await this.#begin();
    if (means === "entry") {
      if (this.#layout.table.isMapped(part.block)) this.#drop(part.block);
      else this.#map(part.block, ZERO);
      return;
    }
    if (means === "allocate") return this.#allocate(part, undefined);
    if (!part.isWhole) await this.#complete(part.block);
    if (!how.fast) await file.zero(this.#placeOf(part), how);
    if (part.isWhole) this.#markComplete(part.block);
  }

  /** How a part comes to read as zeros. */
  #meansOf({ block, isWhole }: Part, { keep }: Zeroing): "nothing" | "entry" | "in place" | "allocate" {
    const { table, parent, freed } = this.#layout;
    const slot = table.get(block);
    if (slot === ZERO || (slot === ABSENT && parent === undefined)) return "nothing";
    if (slot === ABSENT) return isWhole && freed === ZERO ? "entry" : "allocate";
    return isWhole && !keep && this.#canDrop(block) ? "entry" : "in place";
  }

  /**
   * What has to be zeroed in place, once it is known that entries do the rest.
   * @throws DiskError `unsupported`, with nothing altered
   */
  async #zeroFast(parts: Iterable<Part>, how: Zeroing): Promise<void> {
    const { file, held } = this.#layout;
    const inPlace: Part[] = [];
    let slowBytes = 0;
    for (const part of parts) {
      const means = this.#meansOf(part, how);
      const isCompleted = means === "in place" && !part.isWhole && (await held?.(part.block)) !== undefined;
      if (isCompleted || means === "allocate") slowBytes += part.end - part.start;
      else if (means === "in place") inPlace.push(part);
    }
    if (slowBytes > 0)
      throw new DiskError("unsupported", `${slowBytes} bytes would have to be written as zeros`);
    if (inPlace.length > 0) await this.#begin();
    for (const part of inPlace) await file.zero(this.#placeOf(part), how);
  }

  /** Gives back what the host can of a mapped block, and the block where nothing is left of it. */
  async #discardPart(part: Part): Promise<void> {
    const { file, blockBytes, bytes, table } = this.#layout;
    const start = payloadAt(this.#layout, table.get(part.block));
    const block = { start, end: Math.min(start + blockBytes, file.bytes) };
    // What of the block lies behind the disk's end is nobody's.
    const piece = {
      start: this.#placeOf(part).start,
      end: part.end === bytes ? block.end : this.#placeOf(part).end,
    };
    if (piece.end - piece.start < this.#hostBlockBytes) return;
    await discardPiece(file, piece, block, this.#hostBlockBytes);
    if (!part.isWhole) await this.#dropIfEmpty(part);
  }

  /** A block that the host holds nothing of, and that is found to be zeros, loses its entry. */
  async #dropIfEmpty({ block }: Part): Promise<void> {
    const { file, table, held, blockBytes } = this.#layout;
    if (!table.isMapped(block) || !this.#canDrop(block) || (await held?.(block)) !== undefined) return;
    const start = payloadAt(this.#layout, table.get(block));
    const place = { start, end: Math.min(start + blockBytes, file.bytes) };
    const unit = this.#hostBlockBytes;
    const inner = {
      start: Math.ceil(start / unit) * unit,
      end: place.end === file.bytes ? place.end : Math.floor(place.end / unit) * unit,
    };
    if (inner.start >= inner.end || file.isHole?.(inner) !== true) return;
    if (await readsZeros(file, place)) this.#drop(block);
  }

  /** Called before every change. @throws DiskError `corrupt`: an entry may lead out of the file, or to another's block */
  async #begin(): Promise<void> {
    if (!this.#begun) requireWhole(this.#layout);
    this.#dirty = true;
    if (this.#begun) return;
    await this.#hooks.begin?.();
    // Behind the last block of an image on a block device lies whatever was there before.
    const { hostBytes, blockBytes } = await this.#layout.file.stat();
    this.#hostBlockBytes = blockBytes;
    const isFile = hostBytes !== null;
    if (isFile) this.#slots.offer(roomsIn(this.#layout, garbageOf(this.#layout)));
    this.#begun = true;
  }

  /** A new block with `from` (or zeros) in its part, and the rest as the guest reads it now. */
  async #allocate(part: Part, from: Uint8Array | undefined): Promise<void> {
    const { file, table, parent, blockBytes, bytes } = this.#layout;
    const isReused = this.#slots.hasSpare;
    const slot = this.#slots.take();
    const at = payloadAt(this.#layout, slot);
    const base = part.block * blockBytes;
    if (parent !== undefined && table.get(part.block) === ABSENT && !part.isWhole) {
      const content = new Uint8Array(Math.min(blockBytes, bytes - base));
      await readBeyond(parent, base, content);
      if (from) content.set(from, part.start - base);
      else content.fill(0, part.start - base, part.end - base);
      await this.#slots.makeRoom(slot, isReused, content.length);
      await file.write(at, content);
    } else {
      await this.#slots.makeRoom(slot, isReused, part.isWhole && from ? from.length : 0);
      if (from) await file.write(at + part.start - base, from);
    }
    await this.#writeHead(slot);
    this.#map(part.block, slot);
  }

  async #writeHead(slot: number): Promise<void> {
    const { newHead } = this.#hooks;
    if (newHead) await this.#layout.file.write(slotAt(this.#layout, slot), newHead);
  }

  #map(block: number, slot: number): void {
    this.#layout.table.set(block, slot);
    this.#changed.add(block);
  }

  #canDrop(block: number): boolean {
    return this.#layout.freed !== undefined && !this.#layout.keeps?.(block);
  }

  #drop(block: number): void {
    this.#slots.drop(this.#layout.table.get(block));
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
    if (!this.#dirty) return;
    // Before the first await: what is written meanwhile is the next flush's.
    this.#dirty = false;
    try {
      await this.#commit();
    } catch (error) {
      this.#dirty = true;
      throw error;
    }
  }

  async #commit(): Promise<void> {
    const { file, table } = this.#layout;
    await file.flush();
    if (this.#changed.size === 0) return;
    await this.#hooks.settle?.(this.#slots.end());
    const changes = [...this.#changed]
      .sort((a, b) => a - b)
      .map((block) => ({ block, slot: table.get(block) }));
    await this.#writeEntries(changes);
    await file.flush();
    this.#changed.clear();
    await this.#slots.release();
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
}

/** The part of a range that lies in one block. */
interface Part extends Extent {
  readonly block: number;
  /** All of the block that lies on the disk. */
  readonly isWhole: boolean;
}
