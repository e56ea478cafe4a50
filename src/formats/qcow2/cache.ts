/**
 * Tables of one size, read whole and kept by file offset until a budget in bytes is spent: memory stays bounded
 * whatever the disk's length (H24). The least recently used table goes first.
 */
import { readBytes, type ReadableFile } from "../../device/device.ts";
import { viewOf } from "../../bytes/struct.ts";

/** A table as it lies on disk, big-endian. A writer that patches the file patches `view` as well. */
export interface CachedTable {
  readonly at: number;
  readonly view: DataView;
}

export class TableCache {
  readonly #file: ReadableFile;
  readonly #tableBytes: number;
  readonly #countMax: number;
  readonly #tables = new Map<number, CachedTable>();
  readonly #pinned = new Set<number>();
  /** What `peek` answered last: it is asked for the same table again and again. */
  #latest: CachedTable | undefined;
  readonly #loading = new Map<number, Promise<CachedTable>>();

  constructor(file: ReadableFile, tableBytes: number, budgetBytes: number) {
    this.#file = file;
    this.#tableBytes = tableBytes;
    this.#countMax = Math.max(4, Math.floor(budgetBytes / tableBytes));
  }

  /** The table at `at`, where it is in memory already. */
  peek(at: number): CachedTable | undefined {
    if (this.#latest?.at === at) return this.#latest;
    const table = this.#tables.get(at);
    if (table !== undefined) {
      this.#tables.delete(at);
      this.#tables.set(at, table);
      this.#latest = table;
    }
    return table;
  }

  /** The table at `at`, which the caller has checked to lie inside the file. Two loads of one table share it. */
  get(at: number): Promise<CachedTable> {
    const ready = this.peek(at);
    if (ready !== undefined) return Promise.resolve(ready);
    let loading = this.#loading.get(at);
    if (loading === undefined) {
      loading = this.#load(at).finally(() => this.#loading.delete(at));
      this.#loading.set(at, loading);
    }
    return loading;
  }

  async #load(at: number): Promise<CachedTable> {
    const bytes = await readBytes(this.#file, at, this.#tableBytes);
    const table: CachedTable = { at, view: viewOf(bytes) };
    this.keep(table);
    return table;
  }

  /** Takes a table that the caller has just made. */
  keep(table: CachedTable): void {
    this.#latest = undefined;
    this.#tables.set(table.at, table);
    if (this.#tables.size <= this.#countMax) return;
    for (const at of this.#tables.keys()) {
      if (this.#pinned.has(at)) continue;
      this.#tables.delete(at);
      return;
    }
  }

  /** Keeps the table at `at` in memory, for it is newer than the file; pinned tables are the caller's to bound. */
  pin(at: number): void {
    this.#pinned.add(at);
  }

  unpin(at: number): void {
    this.#pinned.delete(at);
  }

  /** Drops the table at `at`: its cluster now holds something else. */
  forget(at: number): void {
    this.#latest = undefined;
    this.#tables.delete(at);
  }
}
