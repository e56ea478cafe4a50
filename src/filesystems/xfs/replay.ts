/**
 * Virtual replay of a log that is not empty (H2): what the filesystem will look like once a guest has mounted it,
 * without writing a byte.
 *
 *   log-ring.ts → log-records.ts → transactions.ts → first pass: buffers whose blocks were freed, how often each
 *                                                    second pass: replay-buffers.ts, replay-inodes.ts, intents.ts
 *
 * A freed buffer is left alone until the last item that frees it. In a transaction buffers come first, then all else,
 * then the lists of deleted inodes, as for the kernel. Where a block or an inode is newer than the transaction it is
 * left alone as well. fs/xfs/xfs_log_recover.c of Linux.
 */
import { type Extent, ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import type { BlockDevice } from "../../device/device.ts";
import { overlay, type Overlay } from "../../device/overlay.ts";
import { Intents, isIntent } from "./intents.ts";
import { logRing } from "./log.ts";
import { LogRecords, corrupt, unknown } from "./log-records.ts";
import { SECTOR_BYTES } from "./log-ring.ts";
import { BufferReplay, decodeBuffer, type LoggedBuffer } from "./replay-buffers.ts";
import { decodeLoggedInode, replayInode } from "./replay-inodes.ts";
import type { Superblock } from "./superblock.ts";
import { committed, type Item } from "./transactions.ts";

const TYPE = { inode: 0x123b, buffer: 0x123c, dquot: 0x123d, quotasOff: 0x123e, creation: 0x123f } as const;
/** Bounds the memory. */
const CANCELLED_MAX = 2 ** 20;
const DQUOT_FORMAT_BYTES = 24;

export interface Replay {
  /** The device as it reads after the replay. */
  readonly device: Overlay;
  /** All that the log names: what a replay may write, and what intents will. Bytes, not in whole blocks. */
  readonly touched: ExtentSet;
  readonly transactions: number;
  readonly intents: number;
}

/** @throws Refused where the log is not understood to the last item */
export async function replayLog(device: BlockDevice, sb: Superblock): Promise<Replay> {
  const records = new LogRecords(logRing(device, sb), sb);
  await records.open();
  const replayer = new Replayer(device, sb);
  for await (const { items } of committed(records)) for (const item of items) replayer.look(item);
  let transactions = 0;
  let place: bigint | undefined;
  for await (const transaction of committed(records)) {
    if (transaction.place !== place) await replayer.stamp();
    place = transaction.place;
    await replayer.replay(transaction.items, place);
    transactions++;
  }
  await replayer.stamp();
  return { ...replayer.result(), transactions };
}

class Replayer {
  readonly #sb: Superblock;
  readonly #bytes: number;
  readonly #device: Overlay;
  readonly #buffers: BufferReplay;
  readonly #intents: Intents;
  readonly #touched = new ExtentBuilder();
  readonly #cancelled = new Cancelled();

  constructor(device: BlockDevice, sb: Superblock) {
    this.#sb = sb;
    this.#bytes = device.bytes;
    this.#device = overlay(device);
    this.#buffers = new BufferReplay(this.#device, sb);
    this.#intents = new Intents(sb);
  }

  /** The first pass. @throws Refused for an item that is not known */
  look(item: Item): void {
    if (item.type === TYPE.buffer) {
      const { at, bytes, isCancelled } = decodeBuffer(item, this.#bytes);
      this.#touched.add(at, at + bytes);
      if (isCancelled) this.#cancelled.add(at, bytes);
    } else if (item.type === TYPE.inode) {
      const { buffer, bufferBytes } = decodeLoggedInode(this.#sb, item, this.#bytes);
      this.#touched.add(buffer, buffer + bufferBytes);
    } else if (item.type === TYPE.creation) {
      const { start, end } = this.#buffers.creation(item);
      this.#touched.add(start, end);
    } else if (item.type === TYPE.dquot) {
      this.#touchDquot(item.regions[0]!);
    } else if (item.type !== TYPE.quotasOff && !isIntent(item.type)) {
      throw unknown(`an item of type 0x${item.type.toString(16)} found`);
    }
  }

  /** The second pass, one transaction. @throws Refused */
  async replay(items: readonly Item[], place: bigint): Promise<void> {
    const buffers = items.filter(({ type }) => type === TYPE.buffer);
    const decoded = new Map(buffers.map((item) => [item, decodeBuffer(item, this.#bytes)]));
    const isOfInodes = (item: Item) => decoded.get(item)?.isInodes === true;
    for (const item of items) {
      const buffer = decoded.get(item);
      if (item.type === TYPE.creation) await this.#create(item);
      else if (buffer !== undefined && !buffer.isInodes && !buffer.isCancelled)
        await this.#apply(buffer, place);
    }
    for (const item of items) {
      if (item.type === TYPE.inode) await this.#replayInode(item, place);
      else if (isIntent(item.type)) this.#intents.add(item);
    }
    for (const item of items.filter(isOfInodes).toReversed()) await this.#apply(decoded.get(item)!, place);
    for (const { at, bytes, isCancelled } of decoded.values())
      if (isCancelled) this.#cancelled.remove(at, bytes);
  }

  /** What a user may have decides nothing about space: such a block is never replayed here. */
  #touchDquot(format: Uint8Array): void {
    const view = viewOf(format);
    const at = format.length < DQUOT_FORMAT_BYTES ? -1 : Number(view.getBigUint64(8, true)) * SECTOR_BYTES;
    const end = at < 0 ? -1 : at + view.getUint32(16, true) * SECTOR_BYTES;
    if (end < 0 || end > this.#bytes) throw corrupt(`a dquot up to ${end} found`);
    this.#touched.add(at, end);
  }

  async stamp(): Promise<void> {
    await this.#buffers.stamp();
  }

  result(): Omit<Replay, "transactions"> {
    const touched = this.#touched.build().union(this.#intents.extents()).union(this.#device.written());
    return { device: this.#device, touched, intents: this.#intents.count };
  }

  async #apply(buffer: LoggedBuffer, place: bigint): Promise<void> {
    if (buffer.isCancelled || buffer.isDquots || this.#cancelled.has(buffer.at, buffer.bytes)) return;
    await this.#buffers.apply(buffer, place);
  }

  async #create(item: Item): Promise<void> {
    if (!this.#cancelled.touches(this.#buffers.creation(item), this.#sb.blockBytes))
      await this.#buffers.create(item);
  }

  async #replayInode(item: Item, place: bigint): Promise<void> {
    const logged = decodeLoggedInode(this.#sb, item, this.#bytes);
    if (this.#cancelled.has(logged.buffer, logged.bufferBytes)) return;
    await replayInode(this.#device, this.#sb, item, logged, place);
  }
}

/** Buffers that are freed later in the log. */
class Cancelled {
  /** How often each is freed still, by where it begins, and by how long it is. */
  readonly #left = new Map<number, Map<number, number>>();
  #size = 0;

  add(at: number, bytes: number): void {
    let lengths = this.#left.get(at);
    if (lengths === undefined) this.#left.set(at, (lengths = new Map<number, number>()));
    lengths.set(bytes, (lengths.get(bytes) ?? 0) + 1);
    if (++this.#size > CANCELLED_MAX) throw unknown(`more than ${CANCELLED_MAX} freed buffers found`);
  }

  remove(at: number, bytes: number): void {
    const lengths = this.#left.get(at);
    const left = (lengths?.get(bytes) ?? 0) - 1;
    if (left > 0) lengths!.set(bytes, left);
    else lengths?.delete(bytes);
  }

  has(at: number, bytes: number): boolean {
    return this.#left.get(at)?.has(bytes) === true;
  }

  /** Whether a block of `[start, end)` begins one. */
  touches({ start, end }: Extent, blockBytes: number): boolean {
    for (let at = start; at < end; at += blockBytes) if ((this.#left.get(at)?.size ?? 0) > 0) return true;
    return false;
  }
}
