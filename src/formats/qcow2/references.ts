/**
 * Counts, for every host cluster, how many references there really are to it, whatever the refcounts state (H11).
 *
 *   header, L1 tables of the disk and of every snapshot, L2 tables, clusters, compressed sectors,
 *   snapshot table, refcount table and blocks, LUKS header, bitmaps
 *
 * Nothing here trusts an entry: what is wrong is reported, as `qemu-img check` counts it, and the walk goes on. An L2
 * table that is reached from many places is read once and counted for all of them, so that the work is bounded by
 * the file and not by what its tables pretend (H24).
 */
import { viewOf } from "../../bytes/struct.ts";
import { DiskError } from "../../error.ts";
import { bitmapStretches } from "./bitmaps.ts";
import type { Qcow2Context } from "./context.ts";
import { ClusterCounts } from "./counts.ts";
import { hex, quoted } from "./corrupt.ts";
import { readPadded } from "../../device/padded.ts";
import { refcountMax, type StatedRefcounts } from "./refcounts.ts";
import { distinctL1s, L1_ENTRIES_MAX, readSnapshots, type SnapshotEntry } from "./snapshots.ts";
import {
  COMPRESSED_HIGH,
  compressedStretch,
  COPIED_HIGH,
  OFFSET_HIGH,
  OFFSET_LOW,
  ZERO_LOW,
} from "./tables.ts";

/** How many L2 tables at odd offsets are looked into: each reads across the others, so that many could cost any time. */
const ODD_TABLES_MAX = 64;

/** Bits 62 to 56 in the high word: not set in an entry of a plain cluster. */
const ODD_HIGH = 0x7f000000;

/** An entry as it lies on disk: two words, and two more with subclusters. */
interface RawEntry {
  readonly at: number;
  readonly index: number;
  readonly high: number;
  readonly low: number;
  readonly zero: number;
  readonly alloc: number;
}

/** Receives what is wrong: one call for `count` errors of one kind. */
export type Report = (message: string, count: number, mendable?: "mendable") => void;

/** A walk over one image. */
export class ReferenceWalk {
  readonly counts = new ClusterCounts();
  /** How many clusters the file has, and one more where something lies in its last, cut one. */
  clusterCount: number;
  readonly #context: Qcow2Context;
  readonly #stated: StatedRefcounts;
  readonly #report: Report;
  readonly #countMax: number;
  /** How many L1 entries name the L2 table in a cluster: of all L1 tables, and of the active one. */
  readonly #tables = new ClusterCounts();
  readonly #activeTables = new ClusterCounts();
  /** L2 tables off cluster borders: [all, active]. */
  readonly #oddTables = new Map<number, [number, number]>();

  constructor(context: Qcow2Context, stated: StatedRefcounts, report: Report) {
    this.#context = context;
    this.#stated = stated;
    this.#report = report;
    this.#countMax = refcountMax(context.header.refcountOrder);
    this.clusterCount = Math.ceil(context.file.bytes / context.header.clusterBytes);
  }

  async run(): Promise<void> {
    const { header, l1, refcounts } = this.#context;
    this.#mark(0, header.clusterBytes, 1);
    this.#mark(l1.at, l1.entries * 8, 1);
    await this.#walkL1(l1.view, l1.at, 1, true);
    await this.#walkSnapshots();
    await this.#walkTables();
    this.#mark(refcounts.tableAt, refcounts.tableEntries * 8, 1);
    if (header.cryptoHeader) this.#mark(header.cryptoHeader.at, header.cryptoHeader.bytes, 1);
    await this.#orReport(async () => {
      for await (const { at, bytes } of bitmapStretches(this.#context.file, header)) this.#mark(at, bytes, 1);
    });
    await this.#walkRefcountBlocks();
  }

  /** Counts `times` references to every cluster that the stretch touches. */
  #mark(at: number, bytes: number, times: number): void {
    if (bytes <= 0) return;
    const { header, file } = this.#context;
    const { clusterBytes } = header;
    if (at + bytes - file.bytes >= clusterBytes) {
      this.#report(
        `reference to ${bytes} bytes at ${hex(at)}, past the file's end at ${hex(file.bytes)}`,
        times,
      );
      return;
    }
    const last = Math.floor((at + bytes - 1) / clusterBytes);
    for (let cluster = Math.floor(at / clusterBytes); cluster <= last; cluster++) {
      const over = this.counts.add(cluster, times, this.#countMax);
      if (over > 0) {
        this.#report(
          `cluster at ${hex(cluster * clusterBytes)} has more references than ${this.#countMax}`,
          over,
        );
      }
    }
    this.clusterCount = Math.max(this.clusterCount, last + 1);
  }

  async #orReport(walk: () => Promise<void>): Promise<void> {
    try {
      await walk();
    } catch (error) {
      if (!(error instanceof DiskError) || error.kind !== "corrupt") throw error;
      this.#report(error.message, 1);
    }
  }

  /** Notes the L2 tables that `times` equal L1 tables refer to. */
  async #walkL1(view: DataView, at: number, times: number, isActive: boolean): Promise<void> {
    const { clusterBytes } = this.#context.header;
    for (let index = 0; index * 8 < view.byteLength; index++) {
      const high = view.getUint32(index * 8);
      const low = view.getUint32(index * 8 + 4);
      if ((high | low) === 0) continue;
      const entry = () => `L1 entry ${index} at ${hex(at + index * 8)}`;
      if ((high & 0x7f000000) !== 0 || (low & 0x1ff) !== 0)
        this.#report(`${entry()} has reserved bits set`, times);
      const tableAt = (high & OFFSET_HIGH) * 2 ** 32 + ((low & OFFSET_LOW) >>> 0);
      this.#mark(tableAt, clusterBytes, times);
      // Whether the copied flags in the table are looked at: not where its own refcount is unknown.
      let active = 0;
      if (isActive && tableAt !== 0) {
        const cluster = Math.floor(tableAt / clusterBytes);
        if (!this.#stated.isLoaded(cluster)) await this.#stated.loadFor(cluster);
        const stated = this.#stated.peek(cluster);
        this.#checkCopied(stated, high, 1, entry);
        active = stated === undefined ? 0 : 1;
      }
      if (tableAt % clusterBytes !== 0) {
        this.#report(
          `${entry()}: L2 table at ${hex(tableAt)}, expected a multiple of ${clusterBytes}`,
          times,
        );
        const [all, activeBefore] = this.#oddTables.get(tableAt) ?? [0, 0];
        if (all > 0 || this.#oddTables.size < ODD_TABLES_MAX) {
          this.#oddTables.set(tableAt, [all + times, activeBefore + active]);
        }
      } else if (tableAt < this.#context.file.bytes) {
        this.#tables.add(tableAt / clusterBytes, times);
        if (active > 0) this.#activeTables.add(tableAt / clusterBytes, 1);
      }
    }
  }

  async #walkSnapshots(): Promise<void> {
    const { file, header } = this.#context;
    await this.#orReport(async () => {
      const table = await readSnapshots(file, header);
      if (header.externalData && table.entries.length > 0) {
        this.#report(`${table.entries.length} snapshots beside an external data file, expected none`, 1);
      }
      this.#mark(header.snapshotsAt, table.bytes, 1);
      for (const [index, entry] of table.entries.entries()) {
        if (header.version === 3 && entry.extraBytes < 16) {
          this.#report(
            `snapshot table entry ${index} has ${entry.extraBytes} extra bytes, expected 16 or more`,
            1,
          );
        }
      }
      await this.#walkSnapshotL1s(table.entries.filter((entry) => this.#mayHaveL1(entry)));
    });
  }

  #mayHaveL1(entry: SnapshotEntry): boolean {
    const of = `L1 table of snapshot ${quoted(entry.name)}`;
    const { clusterBytes } = this.#context.header;
    if (entry.l1At % clusterBytes !== 0) {
      this.#report(`${of} at ${hex(entry.l1At)}, expected a multiple of ${clusterBytes}`, 1);
      return false;
    }
    if (entry.l1Entries > L1_ENTRIES_MAX) {
      this.#report(`${of} has ${entry.l1Entries} entries, expected at most ${L1_ENTRIES_MAX}`, 1);
      return false;
    }
    return true;
  }

  async #walkSnapshotL1s(entries: readonly SnapshotEntry[]): Promise<void> {
    const { file } = this.#context;
    for (const { entry, times, overlaps } of distinctL1s(entries)) {
      const { l1At, l1Entries, name } = entry;
      this.#mark(l1At, l1Entries * 8, times);
      if (overlaps)
        this.#report(`L1 table of snapshot ${quoted(name)} at ${hex(l1At)} overlaps another`, times);
      if (overlaps || l1At >= file.bytes) continue;
      const table = new Uint8Array(l1Entries * 8);
      await readPadded(file, l1At, table);
      await this.#walkL1(viewOf(table), l1At, times, false);
    }
  }

  async #walkTables(): Promise<void> {
    const { header } = this.#context;
    for (const cluster of this.#tables.clusters()) {
      const at = cluster * header.clusterBytes;
      await this.#walkL2(at, this.#tables.get(cluster), this.#activeTables.get(cluster));
    }
    for (const [at, [times, active]] of this.#oddTables) await this.#walkL2(at, times, active);
  }

  /** Counts what one L2 table refers to, `times` over; `active` of them are checked for the copied flag. */
  async #walkL2(at: number, times: number, active: number): Promise<void> {
    const { header, file, l2 } = this.#context;
    const { clusterBytes, l2Entries, l2EntryBytes } = header;
    let view = l2.peek(at)?.view;
    if (view === undefined) {
      const table = new Uint8Array(clusterBytes);
      await readPadded(file, at, table);
      view = viewOf(table);
    }
    const wholeClusters = Math.floor(file.bytes / clusterBytes);
    for (let index = 0; index < l2Entries; index++) {
      const offset = index * l2EntryBytes;
      const high = view.getUint32(offset);
      const low = view.getUint32(offset + 4);
      const zero = header.extendedL2 ? view.getUint32(offset + 8) : 0;
      const alloc = header.extendedL2 ? view.getUint32(offset + 12) : 0;
      if ((high | low | zero | alloc) === 0) continue;
      const cluster = (high & OFFSET_HIGH) * (2 ** 32 / clusterBytes) + Math.floor(low / clusterBytes);
      const isCompared = active > 0 && !header.externalData && (high & COMPRESSED_HIGH) === 0;
      if (isCompared && !this.#stated.isLoaded(cluster)) await this.#stated.loadFor(cluster);
      const isInFile = cluster > 0 && cluster < wholeClusters && !header.externalData;
      const isPlain = (high & ODD_HIGH) === 0 && low % clusterBytes === 0 && (zero & alloc) === 0;
      const isRight = active === 0 || (this.#stated.peek(cluster) === 1) === (high & COPIED_HIGH) < 0;
      // Nearly all entries are of this kind; they must cost next to nothing.
      if (isPlain && isInFile && isRight && this.counts.addNarrow(cluster, times, this.#countMax)) continue;
      this.#walkEntry({ at: at + offset, index, high, low, zero, alloc }, times, active);
    }
  }

  /** Counts what one entry refers to, and finds what is wrong with it. The stated refcount of its cluster is loaded. */
  #walkEntry({ at, index, high, low, zero, alloc }: RawEntry, times: number, active: number): void {
    const { header } = this.#context;
    const { clusterBytes, externalData } = header;
    const entry = `L2 entry ${index} at ${hex(at)}`;
    if ((high & COMPRESSED_HIGH) !== 0) {
      return this.#walkCompressed(entry, high, low, (zero | alloc) !== 0, times);
    }
    if ((high & 0x3f000000) !== 0 || (low & 0x1fe) !== 0)
      this.#report(`${entry} has reserved bits set`, times);
    const host = (high & OFFSET_HIGH) * 2 ** 32 + ((low & OFFSET_LOW) >>> 0);
    const isZero = (low & ZERO_LOW) !== 0 && !header.extendedL2;
    const isMapped = host !== 0 || (externalData && (high & COPIED_HIGH) !== 0 && !isZero);
    if (!isMapped) {
      if (alloc !== 0) this.#report(`${entry} has allocated subclusters and no cluster`, times);
      return;
    }
    if ((zero & alloc) !== 0) this.#report(`${entry} has subclusters both zero and allocated`, times);
    if (host % clusterBytes !== 0) {
      this.#report(`${entry}: cluster at ${hex(host)}, expected a multiple of ${clusterBytes}`, times);
    }
    if (!externalData) this.#mark(host, clusterBytes, times);
    const stated = externalData ? 1 : this.#stated.peek(Math.floor(host / clusterBytes));
    this.#checkCopied(stated, high, active, () => entry);
  }

  #walkCompressed(entry: string, high: number, low: number, hasBitmap: boolean, times: number): void {
    const { header } = this.#context;
    if ((high & COPIED_HIGH) !== 0) this.#report(`${entry} is compressed and has the copied flag`, times);
    if (header.externalData) this.#report(`${entry} is compressed beside an external data file`, times);
    else if (hasBitmap) this.#report(`${entry} is compressed and has a subcluster bitmap`, times);
    else {
      const { host, hostBytes } = compressedStretch(header, high, low);
      this.#mark(host, hostBytes, times);
    }
  }

  /** The copied flag of an entry that is active `times` over says whether the stated refcount is 1. */
  #checkCopied(stated: number | undefined, high: number, times: number, entry: () => string): void {
    const isCopied = (high & COPIED_HIGH) !== 0;
    if (times === 0 || stated === undefined || isCopied === (stated === 1)) return;
    const message = `${entry()}: copied flag is ${isCopied ? "set" : "clear"} at refcount ${stated}`;
    this.#report(message, times, isCopied ? undefined : "mendable");
  }

  async #walkRefcountBlocks(): Promise<void> {
    const { header, refcounts } = this.#context;
    const table = await refcounts.table();
    for (let block = 0; block < refcounts.tableEntries; block++) {
      const high = table.getUint32(block * 8);
      const low = table.getUint32(block * 8 + 4);
      if ((high | low) === 0) continue;
      const entry = `refcount table entry ${block} at ${hex(refcounts.tableAt + block * 8)}`;
      const at = high * 2 ** 32 + ((low & OFFSET_LOW) >>> 0);
      const cluster = Math.floor(at / header.clusterBytes);
      if ((low & 0x1ff) !== 0) this.#report(`${entry} has reserved bits set`, 1);
      else if (at % header.clusterBytes !== 0) {
        this.#report(`${entry}: block at ${hex(at)}, expected a multiple of ${header.clusterBytes}`, 1);
      } else if (cluster >= this.clusterCount) {
        this.#report(`${entry}: block at ${hex(at)}, past the file's end`, 1);
      } else {
        this.#mark(at, header.clusterBytes, 1);
        const references = this.counts.get(cluster);
        if (references !== 1) this.#report(`${entry}: block with ${references} references, expected 1`, 1);
      }
    }
  }
}
