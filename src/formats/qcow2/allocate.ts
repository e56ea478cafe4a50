/**
 * Claiming and dropping host clusters of an open image.
 *
 *   claim   first cluster that is stated free; its refcount is changed in memory, and written and durable before anything
 *           on disk refers to it: `write` and a flush come before every commit
 *   drop    done when the reference is durably gone; the cluster can be claimed again from then on (H14)
 *
 * Where no refcount block covers a cluster, the cluster becomes that block, and counts itself. Where the refcount
 * table is full, a larger one is made behind everything it covered, with the blocks that count it:
 *
 *   | all that the old table covers | blocks | new table |
 */
import type { Extent } from "../../bytes/extents.ts";
import { bytesOf, viewOf } from "../../bytes/struct.ts";
import type { HostFile } from "../../device/device.ts";
import { assert, DiskError } from "../../error.ts";
import type { CachedTable } from "./cache.ts";
import type { Qcow2Context } from "./context.ts";
import { HeaderV2 } from "./header.ts";
import { readRefcount, writeRefcount } from "./refcounts.ts";
import { ChangedTables } from "./sectors.ts";

const TABLE_BYTES_MAX = 8 * 2 ** 20;

export class Allocator {
  readonly #context: Qcow2Context<HostFile>;
  readonly #changed: ChangedTables;
  /** No cluster before it is free. */
  #hint = 0;
  /** Claimed, and nothing leads there yet. */
  #fresh: { readonly at: number; readonly clusters: number }[] = [];

  constructor(context: Qcow2Context<HostFile>) {
    this.#context = context;
    this.#changed = new ChangedTables(context.file, context.refcounts);
  }

  /** Writes the counts that were changed. */
  write(): Promise<void> {
    return this.#changed.write();
  }

  /** Claims a free cluster; returns its file offset. What it holds is undefined. */
  async claim(): Promise<number> {
    return (await this.claimRun(1)).at;
  }

  /** Claims the first free cluster and those that follow it, while they are free and one refcount block counts them. */
  async claimRun(clustersMax: number): Promise<{ readonly at: number; readonly clusters: number }> {
    const { header, refcounts } = this.#context;
    const { blockEntries, order } = refcounts;
    for (;;) {
      const number = Math.floor(this.#hint / blockEntries);
      if (number >= refcounts.tableEntries) await this.#growTable();
      const block = (await refcounts.block(number)) ?? (await this.#addBlock(number));
      const isFree = (i: number) => i < blockEntries && readRefcount(block.view, order, i) === 0;
      for (let first = this.#hint % blockEntries; first < blockEntries; first++) {
        if (!isFree(first)) continue;
        let end = first + 1;
        while (end - first < clustersMax && isFree(end)) end++;
        this.#state(block, { start: first, end }, 1);
        this.#hint = number * blockEntries + end;
        const run = { at: (number * blockEntries + first) * header.clusterBytes, clusters: end - first };
        this.#fresh.push(run);
        return run;
      }
      this.#hint = (number + 1) * blockEntries;
    }
  }

  /** What was claimed has found its owner. */
  keep(): void {
    this.#fresh = [];
  }

  /** What was claimed since and found no owner is free again. */
  async giveBack(): Promise<void> {
    const { file, header } = this.#context;
    const fresh = this.#fresh;
    this.#fresh = [];
    for (const { at, clusters } of fresh) {
      const end = Math.min(at + clusters * header.clusterBytes, file.bytes);
      if (at < end) await file.discard({ start: at, end });
      for (let i = 0; i < clusters; i++) await this.drop(at / header.clusterBytes + i, 1);
    }
  }

  /** Takes `times` references from the count of a cluster; returns what remains. */
  async drop(cluster: number, times: number): Promise<number> {
    const { refcounts } = this.#context;
    const block = await refcounts.block(Math.floor(cluster / refcounts.blockEntries));
    const index = cluster % refcounts.blockEntries;
    assert(block !== undefined, `cluster ${cluster} is counted`);
    const count = readRefcount(block.view, refcounts.order, index) - times;
    assert(count >= 0, `cluster ${cluster} had ${times} references`);
    this.#state(block, { start: index, end: index + 1 }, count);
    if (count === 0) this.#hint = Math.min(this.#hint, cluster);
    return count;
  }

  /** States the same count for the entries of a block from `start` to `end`. */
  #state(block: CachedTable, { start, end }: Extent, count: number): void {
    const { order } = this.#context.refcounts;
    for (let i = start; i < end; i++) writeRefcount(block.view, order, i, count);
    const byteOf = (index: number) => Math.floor((index * 2 ** order) / 8);
    this.#changed.touch(block, byteOf(start), byteOf(end - 1) + 1);
  }

  /** The cluster at the hint becomes refcount block `number`. */
  async #addBlock(number: number): Promise<CachedTable> {
    const { file, header, refcounts } = this.#context;
    const at = this.#hint * header.clusterBytes;
    const block = viewOf(new Uint8Array(header.clusterBytes));
    writeRefcount(block, refcounts.order, this.#hint % refcounts.blockEntries, 1);
    await file.write(at, bytesOf(block));
    await file.flush();
    const entry = viewOf(new Uint8Array(8));
    entry.setBigUint64(0, BigInt(at));
    await file.write(refcounts.tableAt + number * 8, bytesOf(entry));
    (await refcounts.table()).setBigUint64(number * 8, BigInt(at));
    return (await refcounts.block(number))!;
  }

  /** @throws DiskError `unsupported` where the file would pass what a table may count */
  async #growTable(): Promise<void> {
    const { file, header, refcounts } = this.#context;
    const { clusterBytes } = header;
    const { blockEntries, order, tableEntries } = refcounts;
    const oldClusters = (tableEntries * 8) / clusterBytes;
    const clusters = oldClusters + Math.max(1, oldClusters >>> 1);
    if (clusters * clusterBytes > TABLE_BYTES_MAX) {
      throw new DiskError("unsupported", `the refcount table would be longer than ${TABLE_BYTES_MAX} bytes`);
    }
    const blocks = Math.ceil(clusters / (blockEntries - 1));
    const first = tableEntries * blockEntries;
    const table = viewOf(new Uint8Array(clusters * clusterBytes));
    bytesOf(table).set(bytesOf(await refcounts.table()));
    for (let i = 0; i < blocks; i++) {
      const block = viewOf(new Uint8Array(clusterBytes));
      const counted = Math.min(blockEntries, blocks + clusters - i * blockEntries);
      for (let j = 0; j < counted; j++) writeRefcount(block, order, j, 1);
      await file.write((first + i) * clusterBytes, bytesOf(block));
      table.setBigUint64((tableEntries + i) * 8, BigInt((first + i) * clusterBytes));
    }
    const at = (first + blocks) * clusterBytes;
    await file.write(at, bytesOf(table));
    await file.flush();
    const oldFirst = refcounts.tableAt / clusterBytes;
    await this.#adoptTable(at, table);
    for (let i = 0; i < oldClusters; i++) await this.drop(oldFirst + i, 1);
  }

  /** The header names another refcount table: offset and length lie in one sector. */
  async #adoptTable(at: number, table: DataView): Promise<void> {
    const { file, header, refcounts, tops } = this.#context;
    const words = viewOf(new Uint8Array(12));
    words.setBigUint64(0, BigInt(at));
    words.setUint32(8, table.byteLength / header.clusterBytes);
    await file.write(HeaderV2.at.refcountTableAt, bytesOf(words));
    await file.flush();
    refcounts.moveTable(at, table);
    const old = tops.findIndex(({ name }) => name === "refcount table");
    tops[old] = { name: "refcount table", at, bytes: table.byteLength };
  }
}
