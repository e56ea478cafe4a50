/**
 * Reference counts: a two-level table, indexed by the number of the host cluster.
 *
 *   refcount table: | block offset | block offset | 0: all counts are 0 | …       64 bits each
 *   refcount block: | count | count | …       one cluster; 2^refcount_order bits each, 1 to 64
 *
 * Counts narrower than a byte fill it from the least significant bit. Specification: qcow2.txt, "Host cluster
 * management".
 */
import { viewOf } from "../../bytes/struct.ts";
import { readBytes, type ReadableFile } from "../../device/device.ts";
import { TableCache, type CachedTable } from "./cache.ts";
import { corrupt, hex, tableAt } from "./corrupt.ts";
import type { Header } from "./header.ts";
import { readPadded } from "../../device/padded.ts";

const CACHE_BYTES = 8 * 2 ** 20;
/** Of an entry of the refcount table. */
const RESERVED_LOW = 0x1ff;

/** Count number `index` of a block. A 64-bit count past 2^53 is rounded: it stays far above 1. */
export function readRefcount(view: DataView, order: number, index: number): number {
  switch (order) {
    case 3:
      return view.getUint8(index);
    case 4:
      return view.getUint16(index * 2);
    case 5:
      return view.getUint32(index * 4);
    case 6:
      return view.getUint32(index * 8) * 2 ** 32 + view.getUint32(index * 8 + 4);
    default: {
      const bit = index << order;
      return (view.getUint8(bit >>> 3) >>> (bit & 7)) & ((1 << (1 << order)) - 1);
    }
  }
}

/** Sets count number `index` of a block; `value` must fit. */
export function writeRefcount(view: DataView, order: number, index: number, value: number): void {
  switch (order) {
    case 3:
      return view.setUint8(index, value);
    case 4:
      return view.setUint16(index * 2, value);
    case 5:
      return view.setUint32(index * 4, value);
    case 6:
      return view.setBigUint64(index * 8, BigInt(value));
    default: {
      const bit = index << order;
      const mask = ((1 << (1 << order)) - 1) << (bit & 7);
      const others = view.getUint8(bit >>> 3) & ~mask;
      return view.setUint8(bit >>> 3, others | (value << (bit & 7)));
    }
  }
}

/** The largest count of a width; a number even for 64 bits. */
export function refcountMax(order: number): number {
  return order === 6 ? Number.MAX_SAFE_INTEGER : 2 ** (2 ** order) - 1;
}

/** The counts as the image states them. Nothing is read before the first question. */
export class Refcounts {
  readonly order: number;
  /** Counts in one block, which is one cluster. */
  readonly blockEntries: number;
  /** Length of a block: a cluster. */
  readonly blockBytes: number;
  readonly #file: ReadableFile;
  #tableAt: number;
  #tableBytes: number;
  readonly #blocks: TableCache;
  #table: Promise<DataView> | undefined;

  constructor(file: ReadableFile, header: Header) {
    this.#file = file;
    this.order = header.refcountOrder;
    this.blockBytes = header.clusterBytes;
    this.blockEntries = (header.clusterBytes * 8) / 2 ** header.refcountOrder;
    this.#tableAt = header.refcountTableAt;
    this.#tableBytes = header.refcountTableClusters * header.clusterBytes;
    this.#blocks = new TableCache(file, header.clusterBytes, CACHE_BYTES);
  }

  /** File offset of the refcount table. */
  get tableAt(): number {
    return this.#tableAt;
  }

  /** Entries of the refcount table. */
  get tableEntries(): number {
    return this.#tableBytes / 8;
  }

  /** The refcount table, at most 8 MiB. */
  table(): Promise<DataView> {
    this.#table ??= readBytes(this.#file, this.#tableAt, this.#tableBytes).then(viewOf);
    return this.#table;
  }

  /** The table lies somewhere else now, where there is more room. */
  moveTable(at: number, table: DataView): void {
    this.#tableAt = at;
    this.#tableBytes = table.byteLength;
    this.#table = Promise.resolve(table);
  }

  /**
   * File offset of block number `block`; 0 where there is none, so that all of its counts are 0.
   * @throws DiskError `corrupt` when the entry cannot be true
   */
  async blockAt(block: number): Promise<number> {
    if (block >= this.tableEntries) return 0;
    const table = await this.table();
    const high = table.getUint32(block * 8);
    const low = table.getUint32(block * 8 + 4);
    if ((low & RESERVED_LOW) !== 0) {
      const at = this.#tableAt + block * 8;
      throw corrupt(`refcount table entry ${block}`, at, hex(low & RESERVED_LOW), "0 in its reserved bits");
    }
    const at = high * 2 ** 32 + low;
    const { blockBytes } = this;
    return at === 0 ? 0 : tableAt(this.#file, blockBytes, `refcount block ${block}`, at, blockBytes);
  }

  /** Numbers of the blocks that exist, ascending: a table has room for many more. */
  async existing(): Promise<number[]> {
    const table = await this.table();
    const blocks: number[] = [];
    for (let block = 0; block < this.tableEntries; block++) {
      if ((table.getUint32(block * 8) | table.getUint32(block * 8 + 4)) !== 0) blocks.push(block);
    }
    return blocks;
  }

  /** Block number `block` as it lies on disk; undefined where all of its counts are 0. */
  async block(block: number): Promise<CachedTable | undefined> {
    const at = await this.blockAt(block);
    return at === 0 ? undefined : this.#blocks.get(at);
  }

  /** Keeps the block at `at` in memory, for it is newer than the file. */
  pin(at: number): void {
    this.#blocks.pin(at);
  }

  unpin(at: number): void {
    this.#blocks.unpin(at);
  }

  /** The count of host cluster number `cluster`. */
  async get(cluster: number): Promise<number> {
    const block = await this.block(Math.floor(cluster / this.blockEntries));
    return block === undefined ? 0 : readRefcount(block.view, this.order, cluster % this.blockEntries);
  }
}

/**
 * The counts as `check` reads them: an entry of the table that cannot be true makes its counts unknown and nothing
 * else, and a block past the end of the file reads as zeros.
 */
export class StatedRefcounts {
  readonly #refcounts: Refcounts;
  readonly #file: ReadableFile;
  readonly #blocks = new Map<number, DataView | "none" | "unknown">();
  readonly #countMax: number;
  #last = -1;
  #lastBlock: DataView | "none" | "unknown" = "none";

  constructor(refcounts: Refcounts, file: ReadableFile) {
    this.#refcounts = refcounts;
    this.#file = file;
    this.#countMax = Math.max(4, CACHE_BYTES / refcounts.blockBytes);
  }

  /** Whether `peek` answers for `cluster` as far as can be. */
  isLoaded(cluster: number): boolean {
    return Math.floor(cluster / this.#refcounts.blockEntries) === this.#last;
  }

  /** The count of `cluster`; undefined where its block is not the one loaded last, or unknown. */
  peek(cluster: number): number | undefined {
    const { blockEntries, order } = this.#refcounts;
    const block = Math.floor(cluster / blockEntries);
    if (block !== this.#last || this.#lastBlock === "unknown") return undefined;
    return this.#lastBlock === "none" ? 0 : readRefcount(this.#lastBlock, order, cluster % blockEntries);
  }

  async loadFor(cluster: number): Promise<void> {
    await this.load(Math.floor(cluster / this.#refcounts.blockEntries));
  }

  /** Makes `peek` answer for the clusters of block number `block`. Returns whether it exists. */
  async load(block: number): Promise<boolean> {
    const known = this.#blocks.get(block);
    const loaded = known ?? (await this.#read(block));
    if (known === undefined) {
      this.#blocks.set(block, loaded);
      if (this.#blocks.size > this.#countMax) this.#blocks.delete(this.#blocks.keys().next().value!);
    }
    this.#last = block;
    this.#lastBlock = loaded;
    return loaded !== "none";
  }

  async #read(block: number): Promise<DataView | "none" | "unknown"> {
    const { tableEntries, blockBytes } = this.#refcounts;
    if (block >= tableEntries) return "none";
    const table = await this.#refcounts.table();
    const high = table.getUint32(block * 8);
    const low = table.getUint32(block * 8 + 4);
    const at = high * 2 ** 32 + ((low & ~RESERVED_LOW) >>> 0);
    if (at === 0) return "none";
    if (at % blockBytes !== 0 || at >= 2 ** 63) return "unknown";
    const bytes = new Uint8Array(blockBytes);
    await readPadded(this.#file, at, bytes);
    return viewOf(bytes);
  }
}
