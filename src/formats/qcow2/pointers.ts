/**
 * Clusters that exactly one pointer in the file refers to: they can be moved by changing eight bytes.
 *
 *   level 3   header ──────→ snapshot table
 *   level 2   header ──────→ L1 table    header ─────────→ refcount table    header ────→ bitmap directory
 *   level 1   L1 table ────→ L2 table    refcount table ─→ refcount block    directory ─→ bitmap table
 *   level 0   L2 table ────→ cluster                                         table ─────→ cluster of bits
 *
 * A pointer may itself lie in a cluster that moves, which is always one of a higher level. What is shared, compressed
 * or longer than a cluster has more than one reference, or none that could be changed at once: it stays.
 */
import { viewOf } from "../../bytes/struct.ts";
import { bitmapStretches } from "./bitmaps.ts";
import type { CachedTable } from "./cache.ts";
import type { Qcow2Context } from "./context.ts";
import { HeaderV2 } from "./header.ts";
import { checkedSnapshot, readSnapshots, type SnapshotEntry } from "./snapshots.ts";
import {
  COMPRESSED_HIGH,
  COPIED_HIGH,
  entryAt,
  type L1Table,
  l2TableAt,
  OFFSET_HIGH,
  OFFSET_LOW,
  readL1,
  ZERO_LOW,
} from "./tables.ts";

export const LEVELS = 4;

/** The bits of a pointer that are no offset. */
const PointerFlag = { copied: 1, zero: 2 } as const;

/**
 * Told of a cluster and its only pointer.
 * @param cluster number of the cluster
 * @param pointerAt file offset of the eight bytes
 * @param flags the bits of the pointer that are no offset
 */
export type Visit = (cluster: number, pointerAt: number, flags: number, level: number) => void;

export interface Mapping {
  /** How many references to a cluster there are. */
  count(cluster: number): number;
  /** The L2 table at `at`, under entry `index` of the active L1 table. */
  activeTable(index: number, at: number): Promise<CachedTable>;
}

/** Visits every cluster that one pointer refers to. */
export async function visitPointers(context: Qcow2Context, mapping: Mapping, visit: Visit): Promise<void> {
  const { file, header, l1, l2, refcounts } = context;
  const { clusterBytes } = header;
  const visitOne = (at: number, bytes: number, pointerAt: number, level: number) => {
    const isOne = bytes <= clusterBytes && mapping.count(at / clusterBytes) === 1;
    if (bytes > 0 && isOne) visit(at / clusterBytes, pointerAt, 0, level);
  };
  const { l1At, refcountTableAt, snapshotsAt } = HeaderV2.at;
  visitOne(header.l1At, header.l1Entries * 8, l1At, 2);
  visitOne(refcounts.tableAt, refcounts.tableEntries * 8, refcountTableAt, 2);
  await visitTables(context, l1, mapping, (index, at) => mapping.activeTable(index, at), visit);
  const snapshots = await readSnapshots(file, header);
  visitOne(header.snapshotsAt, snapshots.bytes, snapshotsAt, 3);
  for (const snapshot of snapshots.entries) {
    visitOne(snapshot.l1At, snapshot.l1Entries * 8, snapshot.entryAt, 2);
    await visitTables(context, await l1Of(context, snapshot), mapping, (_, at) => l2.get(at), visit);
  }
  await visitRefcountBlocks(context, visit);
  for await (const { kind, at, bytes, pointerAt } of bitmapStretches(file, header)) {
    visitOne(at, bytes, pointerAt, { bits: 0, table: 1, directory: 2 }[kind]);
  }
}

function l1Of(context: Qcow2Context, snapshot: SnapshotEntry): Promise<L1Table> {
  checkedSnapshot(context.file, context.header, snapshot);
  return readL1(context, `L1 table of snapshot ${snapshot.id}`, snapshot.l1At, snapshot.l1Entries);
}

async function visitTables(
  context: Qcow2Context,
  l1: L1Table,
  mapping: Mapping,
  table: (index: number, at: number) => Promise<CachedTable>,
  visit: Visit,
): Promise<void> {
  const { clusterBytes, externalData } = context.header;
  for (let index = 0; index < l1.entries; index++) {
    const at = l2TableAt(context, l1, index);
    // Under a table that is shared everything is.
    if (at === 0 || mapping.count(at / clusterBytes) !== 1) continue;
    visit(at / clusterBytes, l1.at + index * 8, flagsAt(l1.view, index * 8), 1);
    if (!externalData) visitEntries(context, await table(index, at), mapping, visit);
  }
}

/** Of a table that a check has found to be sound. */
function visitEntries(context: Qcow2Context, table: CachedTable, mapping: Mapping, visit: Visit): void {
  const { header } = context;
  for (let index = 0; index < header.l2Entries; index++) {
    const offset = index * header.l2EntryBytes;
    const high = table.view.getUint32(offset);
    const host = (high & OFFSET_HIGH) * 2 ** 32 + ((table.view.getUint32(offset + 4) & OFFSET_LOW) >>> 0);
    if (host === 0 || (high & COMPRESSED_HIGH) !== 0) continue;
    if (mapping.count(host / header.clusterBytes) !== 1) continue;
    visit(host / header.clusterBytes, entryAt(header, table, index), flagsAt(table.view, offset), 0);
  }
}

async function visitRefcountBlocks({ header, refcounts }: Qcow2Context, visit: Visit): Promise<void> {
  for (const block of await refcounts.existing()) {
    const at = await refcounts.blockAt(block);
    visit(at / header.clusterBytes, refcounts.tableAt + block * 8, 0, 1);
  }
}

function flagsAt(view: DataView, at: number): number {
  const copied = (view.getUint32(at) & COPIED_HIGH) !== 0 ? PointerFlag.copied : 0;
  const zero = (view.getUint32(at + 4) & ZERO_LOW) !== 0 ? PointerFlag.zero : 0;
  return copied | zero;
}

/** The eight bytes of a pointer. */
export function pointerBytes(offset: number, flags: number): Uint8Array {
  const bytes = new Uint8Array(8);
  const high = Math.floor(offset / 2 ** 32) | (flags & PointerFlag.copied ? COPIED_HIGH : 0);
  const view = viewOf(bytes);
  view.setUint32(0, high);
  view.setUint32(4, (offset % 2 ** 32) | (flags & PointerFlag.zero ? ZERO_LOW : 0));
  return bytes;
}
