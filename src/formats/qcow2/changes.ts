/**
 * Changes of the mapping that exist in memory alone, and the commit that makes them durable.
 *
 *   commit:  refcounts → flush → L2 entries, L1 entries → flush → punch what nobody refers to → flush → release
 *
 * The first flush covers the data and the refcounts of new clusters, so that no durable mapping refers to anything
 * that is not; the second sees to it that nothing durable refers to a dropped cluster when it is punched, and the
 * third that it was punched when it can be claimed (H12).
 */
import { ExtentBuilder } from "../../bytes/extents.ts";
import { bytesOf, viewOf } from "../../bytes/struct.ts";
import type { HostFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { SECTOR_BYTES } from "../../reclaim/differences.ts";
import type { Allocator } from "./allocate.ts";
import type { CachedTable } from "./cache.ts";
import type { Qcow2Context } from "./context.ts";
import { ChangedTables, writeSectors } from "./sectors.ts";
import { COPIED_HIGH, l1Copied, l2TableAt } from "./tables.ts";

export class Changes {
  readonly #context: Qcow2Context<HostFile>;
  readonly #allocator: Allocator;
  readonly #tables: ChangedTables;
  readonly #l1Sectors = new Set<number>();
  /** References that go with the next commit, by cluster. */
  readonly #dropped = new Map<number, number>();
  #canPunch = true;

  constructor(context: Qcow2Context<HostFile>, allocator: Allocator) {
    this.#context = context;
    this.#allocator = allocator;
    this.#tables = new ChangedTables(context.file, context.l2);
  }

  /** Bytes of memory that the next commit sets free. */
  get bytes(): number {
    return this.#tables.count * this.#context.header.clusterBytes + this.#dropped.size * 64;
  }

  /** The L2 table under an L1 entry, to be changed: a new one where there is none, a copy where others use it. */
  async ownTable(index: number): Promise<CachedTable> {
    const { file, header, l1, l2 } = this.#context;
    const old = l2TableAt(this.#context, l1, index);
    if (old !== 0 && l1Copied(l1, index)) return l2.get(old);
    const bytes = old === 0 ? new Uint8Array(header.clusterBytes) : bytesOf((await l2.get(old)).view).slice();
    const at = await this.#allocator.claim();
    await file.write(at, bytes);
    const table = { at, view: viewOf(bytes) };
    l2.keep(table);
    this.#tables.keep(table);
    l1.view.setBigUint64(index * 8, BigInt(at));
    l1.view.setUint32(index * 8, l1.view.getUint32(index * 8) | COPIED_HIGH);
    this.#l1Sectors.add(Math.floor((index * 8) / SECTOR_BYTES) * SECTOR_BYTES);
    this.#allocator.keep();
    if (old !== 0) this.drop(old, old + header.clusterBytes);
    return table;
  }

  /** Entry number `index` of a table that is owned was changed. */
  touch(table: CachedTable, index: number): void {
    const { l2EntryBytes } = this.#context.header;
    this.#tables.touch(table, index * l2EntryBytes, (index + 1) * l2EntryBytes);
  }

  /** Entries `[first, end)` of a table that is owned become those of `after`. */
  replace(table: CachedTable, after: Uint8Array, first: number, end: number): void {
    const { l2EntryBytes } = this.#context.header;
    const before = bytesOf(table.view);
    const start = first * l2EntryBytes - ((first * l2EntryBytes) % SECTOR_BYTES);
    for (let at = start; at < end * l2EntryBytes; at += SECTOR_BYTES) {
      const stop = Math.min(at + SECTOR_BYTES, after.length);
      const sector = after.subarray(at, stop);
      if (Buffer.compare(before.subarray(at, stop), sector) === 0) continue;
      this.#tables.touch(table, at, stop);
      before.set(sector, at);
    }
  }

  /** Every host cluster that `[start, end)` touches loses one reference. */
  drop(start: number, end: number): void {
    const { clusterBytes } = this.#context.header;
    const last = Math.floor((end - 1) / clusterBytes);
    for (let cluster = Math.floor(start / clusterBytes); cluster <= last; cluster++) {
      this.#dropped.set(cluster, (this.#dropped.get(cluster) ?? 0) + 1);
    }
  }

  /**
   * Makes everything durable.
   * @param drained resolves when nobody reads any more from clusters that the mapping no longer names
   */
  async commit(drained: () => Promise<void>): Promise<void> {
    const { data, file, header } = this.#context;
    if (header.externalData) await data.flush();
    await this.#allocator.write();
    await file.flush();
    if (this.#tables.count + this.#l1Sectors.size === 0) return;
    await this.#writeTables();
    await file.flush();
    await drained();
    await this.#punch();
    for (const [cluster, times] of this.#dropped) await this.#allocator.drop(cluster, times);
    this.#dropped.clear();
    await this.#allocator.write();
  }

  async #writeTables(): Promise<void> {
    const { file, l1 } = this.#context;
    await this.#tables.write();
    await writeSectors(file, l1, this.#l1Sectors);
    this.#l1Sectors.clear();
  }

  async #punch(): Promise<void> {
    const { file, header, l2, refcounts } = this.#context;
    const { clusterBytes } = header;
    const free = new ExtentBuilder();
    for (const [cluster, times] of this.#dropped) {
      l2.forget(cluster * clusterBytes);
      if ((await refcounts.get(cluster)) > times) continue;
      free.add(
        Math.min(cluster * clusterBytes, file.bytes),
        Math.min((cluster + 1) * clusterBytes, file.bytes),
      );
    }
    const ranges = free.build();
    if (ranges.count === 0 || !this.#canPunch) return;
    try {
      for (const range of ranges) await file.punch(range);
    } catch (error) {
      if (!(error instanceof DiskError) || error.kind !== "unsupported") throw error;
      this.#canPunch = false;
    }
    await file.flush();
  }
}
