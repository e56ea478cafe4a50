/**
 * The mapping: a two-level table from guest offsets to host offsets.
 *
 *   guest offset = | L1 index | L2 index | offset in the cluster |
 *
 *   L1 entry     63 copied | 62-56 reserved | 55-9 offset of an L2 table, 0: none | 8-0 reserved
 *   L2 entry     63 copied | 62 = 0 | 61-56 reserved | 55-9 host offset, 0: none | 8-1 reserved | 0 reads as zeros (v3)
 *   compressed   63 = 0    | 62 = 1 | 61-x sectors after the first | x-1 - 0 host offset in bytes;  x = 70 - cluster_bits
 *   extended     an L2 entry without bit 0, then | 63-32 subcluster reads as zeros | 31-0 subcluster is allocated |
 *
 * "copied" says that the refcount is exactly 1. Specification: qcow2.txt, "Cluster mapping" and "Extended L2 Entries".
 *
 *   const l1 = context.l1;                                   // or a snapshot's
 *   for await (const batch of segments(context, l1, range))  // ascending, gapless, merged inside one L2 table
 *   const at = l2TableAt(context, l1, l1Index);              // 0: none
 *   const table = await context.l2.get(at);
 *   const entry = decodeEntry(context, table, l2Index);      // the entry itself lies at entryAt(context, table, l2Index)
 */
import type { Extent } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import { readBytes } from "../../device/device.ts";
import type { CachedTable } from "./cache.ts";
import type { Qcow2Context } from "./context.ts";
import { corrupt, hex, tableAt } from "./corrupt.ts";
import { SUBCLUSTERS, type Header } from "./header.ts";

/** Bit 63 in the high word: the refcount is exactly 1. */
export const COPIED_HIGH = 0x80000000;
/** Bit 62 in the high word of an L2 entry. */
export const COMPRESSED_HIGH = 0x40000000;
/** Bits 55-32 of an offset, in the high word. */
export const OFFSET_HIGH = 0x00ffffff;
/** Bits 31-9 of an offset, in the low word. */
export const OFFSET_LOW = 0xfffffe00;
/** Bit 0 of an L2 entry. */
export const ZERO_LOW = 1;

const L1_RESERVED_HIGH = 0x7f000000;
const L2_RESERVED_HIGH = 0x3f000000;
const RESERVED_LOW = 0x1ff;
const ALL = 0xffffffff;
/** Segments in one batch: bounds the memory of a badly fragmented table. */
const BATCH_MAX = 16384;

/** An L1 table, whole in memory (at most 32 MiB). A writer that patches the file patches `view` as well. */
export interface L1Table {
  readonly at: number;
  readonly entries: number;
  readonly view: DataView;
}

export interface Entry {
  /** What `alloc` and `zero` say where all subclusters agree; `mixed` where they do not. */
  readonly kind: "unallocated" | "zero" | "data" | "compressed" | "mixed";
  /** Offset in the data file, of a compressed cluster in the image file; -1: none. A zero cluster may have one. */
  readonly host: number;
  /** Length at the host: a cluster, or the most that the compressed bytes may take. */
  readonly hostBytes: number;
  readonly copied: boolean;
  /** One bit a subcluster, the first in bit 0; without extended L2 entries all alike. Unsigned. */
  readonly alloc: number;
  readonly zero: number;
}

/** What there is where there is no table. */
export const NO_ENTRY: Entry = {
  kind: "unallocated",
  host: -1,
  hostBytes: 0,
  copied: false,
  alloc: 0,
  zero: 0,
};

/** A stretch of guest bytes that the table treats alike. */
export interface Segment extends Extent {
  readonly kind: "unallocated" | "zero" | "data" | "compressed";
  /**
   * As `Entry.host`, of the first byte; a compressed segment is one cluster, or the part of it in range. Unallocated
   * subclusters have one too where their cluster is allocated.
   */
  readonly host: number;
  readonly hostBytes: number;
  readonly copied: boolean;
}

export async function readL1(
  context: Pick<Qcow2Context, "file" | "header">,
  structure: string,
  at: number,
  entries: number,
): Promise<L1Table> {
  tableAt(context.file, context.header.clusterBytes, structure, at, entries * 8);
  return { at, entries, view: viewOf(await readBytes(context.file, at, entries * 8)) };
}

/** File offset of the L2 table under an L1 entry; 0 where there is none. @throws DiskError `corrupt` */
export function l2TableAt(context: Qcow2Context, l1: L1Table, index: number): number {
  if (index >= l1.entries) return 0;
  const high = l1.view.getUint32(index * 8);
  const low = l1.view.getUint32(index * 8 + 4);
  if ((high | low) === 0) return 0;
  const at = (high & OFFSET_HIGH) * 2 ** 32 + ((low & OFFSET_LOW) >>> 0);
  if ((high & L1_RESERVED_HIGH) !== 0 || (low & RESERVED_LOW) !== 0) {
    throw corrupt(`L1 entry ${index}`, l1.at + index * 8, words(high, low), "0 in its reserved bits");
  }
  const { clusterBytes } = context.header;
  if (at !== 0) {
    tableAt(context.file, clusterBytes, `L2 table ${index}`, at, clusterBytes);
    refuseOverlap(context, `L2 table ${index}`, at, at + clusterBytes);
  }
  return at;
}

/** Whether the L1 entry claims to be the only one that refers to its L2 table. */
export function l1Copied(l1: L1Table, index: number): boolean {
  return (l1.view.getUint32(index * 8) & COPIED_HIGH) !== 0;
}

/** File offset of entry number `index` of an L2 table. */
export function entryAt(header: Header, table: CachedTable, index: number): number {
  return table.at + index * header.l2EntryBytes;
}

/** Entry number `index` of an L2 table. @throws DiskError `corrupt` when it cannot be true */
export function decodeEntry(context: Qcow2Context, table: CachedTable, index: number): Entry {
  const { header } = context;
  const offset = index * header.l2EntryBytes;
  const high = table.view.getUint32(offset);
  const low = table.view.getUint32(offset + 4);
  if ((high & COMPRESSED_HIGH) !== 0) return decodeCompressed(context, table, index, high, low);
  const bad = (expected: string) =>
    corrupt(`L2 entry ${index}`, entryAt(header, table, index), words(high, low), expected);
  const zeroFlag = (low & ZERO_LOW) !== 0;
  if ((high & L2_RESERVED_HIGH) !== 0 || (low & RESERVED_LOW & ~ZERO_LOW) !== 0) {
    throw bad("0 in its reserved bits");
  }
  if (zeroFlag && (header.version === 2 || header.extendedL2))
    throw bad("no zero flag in this kind of entry");
  if ((low & (header.clusterBytes - 1) & OFFSET_LOW) !== 0) throw bad(`a multiple of ${header.clusterBytes}`);
  const copied = (high & COPIED_HIGH) !== 0;
  const offset0 = (high & OFFSET_HIGH) * 2 ** 32 + ((low & OFFSET_LOW) >>> 0);
  // In an external file, offset 0 is a cluster like any other, and "copied" tells it from none.
  const host = offset0 !== 0 || (copied && header.externalData) ? offset0 : -1;
  const hostBytes = host < 0 ? 0 : header.clusterBytes;
  if (!header.extendedL2) {
    const kind = zeroFlag ? "zero" : host < 0 ? "unallocated" : "data";
    return { kind, host, hostBytes, copied, alloc: kind === "data" ? ALL : 0, zero: zeroFlag ? ALL : 0 };
  }
  const zero = table.view.getUint32(offset + 8);
  const alloc = table.view.getUint32(offset + 12);
  if ((zero & alloc) !== 0 || (host < 0 && alloc !== 0)) {
    const at = entryAt(header, table, index) + 8;
    throw corrupt(
      `subcluster bitmap ${index}`,
      at,
      words(zero, alloc),
      "no subcluster both zero and allocated",
    );
  }
  const kind =
    alloc === ALL ? "data" : zero === ALL ? "zero" : (alloc | zero) === 0 ? "unallocated" : "mixed";
  return { kind, host, hostBytes, copied, alloc, zero };
}

function decodeCompressed(
  context: Qcow2Context,
  table: CachedTable,
  index: number,
  high: number,
  low: number,
): Entry {
  const { header, file } = context;
  const bad = (expected: string) =>
    corrupt(`L2 entry ${index}`, entryAt(header, table, index), words(high, low), expected);
  if ((high & COPIED_HIGH) !== 0) throw bad("a compressed cluster without the copied flag");
  if (header.externalData) throw bad("no compressed cluster beside an external data file");
  const { host, hostBytes } = compressedStretch(header, high, low);
  if (host >= file.bytes) throw bad(`an offset inside the file of ${file.bytes} bytes`);
  return { kind: "compressed", host, hostBytes, copied: false, alloc: 0, zero: 0 };
}

/** Where a compressed cluster lies: from a byte to the end of a 512-byte sector. The file may end before. */
export function compressedStretch(
  header: Header,
  high: number,
  low: number,
): { readonly host: number; readonly hostBytes: number } {
  const offsetBits = 70 - header.clusterBits - 32;
  const host = (high & (2 ** offsetBits - 1)) * 2 ** 32 + low;
  const sectors = ((high & 0x3fffffff) >>> offsetBits) + 1;
  return { host, hostBytes: sectors * 512 - (host % 512) };
}

/**
 * What the mapping under `l1` says about `range`: ascending and gapless, in bounded batches.
 * @throws DiskError `corrupt`
 */
export async function* segments(
  context: Qcow2Context,
  l1: L1Table,
  range: Extent,
): AsyncGenerator<readonly Segment[]> {
  const { l2SpanBytes } = context.header;
  for (let start = range.start; start < range.end;) {
    const index = Math.floor(start / l2SpanBytes);
    const at = l2TableAt(context, l1, index);
    if (at === 0) {
      const end = Math.min(range.end, nextTable(l1, index + 1) * l2SpanBytes);
      yield [{ start, end, kind: "unallocated", host: -1, hostBytes: 0, copied: false }];
      start = end;
      continue;
    }
    const table = context.l2.peek(at) ?? (await context.l2.get(at));
    const end = Math.min(range.end, (index + 1) * l2SpanBytes);
    while (start < end) {
      const found = segmentsInTable(context, table, l1Copied(l1, index), index, { start, end });
      start = found[found.length - 1]!.end;
      yield found;
    }
  }
}

/** The segments of a part of one L2 table: the first of them where there are very many. */
export function segmentsInTable(
  context: Qcow2Context,
  table: CachedTable,
  copied: boolean,
  l1Index: number,
  range: Extent,
): readonly Segment[] {
  const scan = new Scan(context, copied, range);
  scan.run(table, l1Index * context.header.l2SpanBytes);
  return scan.found;
}

/** Number of the first L1 entry from `index` on that is not 0; infinite when there is none. */
function nextTable(l1: L1Table, index: number): number {
  for (let i = index; i < l1.entries; i++) {
    if ((l1.view.getUint32(i * 8) | l1.view.getUint32(i * 8 + 4)) !== 0) return i;
  }
  return Infinity;
}

type Draft = { -readonly [K in keyof Segment]: Segment[K] };

/** One pass over a part of one L2 table. */
class Scan {
  readonly found: Draft[] = [];
  readonly #context: Qcow2Context;
  readonly #l1Copied: boolean;
  readonly #start: number;
  readonly #end: number;

  constructor(context: Qcow2Context, copied: boolean, range: Extent) {
    this.#context = context;
    this.#l1Copied = copied;
    this.#start = range.start;
    this.#end = range.end;
  }

  /** @param base the guest offset of the table's first entry */
  run(table: CachedTable, base: number): void {
    const { header } = this.#context;
    const { clusterBytes, l2EntryBytes } = header;
    const { view } = table;
    let index = Math.floor((this.#start - base) / clusterBytes);
    // The words of an entry that would continue the last segment; -1: none would.
    let nextHigh = -1;
    let nextLow = 0;
    let step = 0;
    for (let at = base + index * clusterBytes; at < this.#end; at += clusterBytes, index++) {
      const offset = index * l2EntryBytes;
      const high = view.getUint32(offset);
      const low = view.getUint32(offset + 4);
      if (high === nextHigh && low === nextLow && !header.extendedL2) {
        nextLow += step;
        this.#extend(at + clusterBytes);
        continue;
      }
      if (this.found.length > BATCH_MAX) break;
      const entry = decodeEntry(this.#context, table, index);
      this.#add(entry, at);
      nextHigh = entry.kind === "compressed" ? -1 : high;
      step = entry.host < 0 ? 0 : clusterBytes;
      nextLow = low + step;
    }
    for (const segment of this.found) this.#check(segment);
  }

  #extend(end: number): void {
    const last = this.found[this.found.length - 1]!;
    last.end = Math.min(end, this.#end);
    last.hostBytes = last.host < 0 ? 0 : last.end - last.start;
  }

  #add(entry: Entry, at: number): void {
    const { clusterBytes, subclusterBytes } = this.#context.header;
    if (entry.kind !== "mixed") {
      this.#append(entry.kind, entry, at, at, at + clusterBytes);
      return;
    }
    for (let i = 0; i < SUBCLUSTERS; i++) {
      const kind = (entry.alloc >>> i) & 1 ? "data" : (entry.zero >>> i) & 1 ? "zero" : "unallocated";
      this.#append(kind, entry, at, at + i * subclusterBytes, at + (i + 1) * subclusterBytes);
    }
  }

  /** Adds guest bytes `[from, to)` of the cluster at `at`, as far as they are in range. */
  #append(kind: Segment["kind"], entry: Entry, at: number, from: number, to: number): void {
    const start = Math.max(from, this.#start);
    const end = Math.min(to, this.#end);
    if (start >= end) return;
    const copied = entry.copied && this.#l1Copied;
    const whole = kind === "compressed";
    const host = entry.host < 0 || whole ? entry.host : entry.host + start - at;
    const last = this.found[this.found.length - 1];
    const follows = host < 0 ? -1 : host - (start - (last?.start ?? 0));
    if (
      last !== undefined &&
      last.kind === kind &&
      !whole &&
      last.host === follows &&
      last.copied === copied
    ) {
      this.#extend(end);
      return;
    }
    const hostBytes = whole ? entry.hostBytes : host < 0 ? 0 : end - start;
    this.found.push({ start, end, kind, host, hostBytes, copied });
  }

  /** Guest clusters lie inside the file and not on its tables. */
  #check(segment: Segment): void {
    const { header, data } = this.#context;
    if (segment.host < 0 || header.externalData) return;
    const { clusterBytes } = header;
    const first = Math.floor(segment.host / clusterBytes) * clusterBytes;
    const structure = `clusters from guest offset ${hex(segment.start)}`;
    const lastCluster = Math.floor((segment.host + segment.hostBytes - 1) / clusterBytes) * clusterBytes;
    if (segment.kind !== "compressed" && lastCluster >= data.bytes) {
      throw corrupt(
        structure,
        lastCluster,
        "an offset past the end",
        `the file to end behind it, not at ${hex(data.bytes)}`,
      );
    }
    refuseOverlap(this.#context, structure, first, segment.host + segment.hostBytes);
  }
}

/** Nothing may lie on the header or on a top table. Whatever else overlaps, `check` finds. */
function refuseOverlap(context: Qcow2Context, structure: string, start: number, end: number): void {
  for (const top of context.tops) {
    if (start < top.at + top.bytes && end > top.at) {
      throw corrupt(
        structure,
        start,
        `an overlap with the ${top.name} at ${hex(top.at)}`,
        "a cluster of its own",
      );
    }
  }
}

function words(high: number, low: number): string {
  return `0x${(high >>> 0).toString(16).padStart(8, "0")}${(low >>> 0).toString(16).padStart(8, "0")}`;
}
