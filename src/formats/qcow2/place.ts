/**
 * Where the guest's bytes lie at the host, from tables that are in memory: for one small read or write after the other,
 * so without a promise, a closure or an object that is not needed.
 *
 *   L1 entry → L2 table in the cache → entries of plain clusters that follow each other      all else: undefined
 *
 * What looks odd is not judged here: whoever gets no place takes the long way, which says what is wrong.
 */
import type { Place } from "../../device/device.ts";
import type { CachedTable } from "./cache.ts";
import type { Qcow2Context } from "./context.ts";
import { SUBCLUSTERS } from "./header.ts";
import {
  COPIED_HIGH,
  decodeEntry,
  type Entry,
  l1Copied,
  l2TableAt,
  type L1Table,
  NO_ENTRY,
  OFFSET_HIGH,
} from "./tables.ts";

/** Bits of a high word that neither an L1 entry with a table nor that of a plain cluster has. */
const ODD_HIGH = 0x7f000000;
const RESERVED_LOW = 0x1ff;
const ALL = 0xffffffff;

/** The place of the first part of `bytes` guest bytes at `at`; to write, where no other mapping refers to it. */
export function placeOf(
  context: Qcow2Context,
  l1: L1Table,
  at: number,
  bytes: number,
  access: "read" | "write",
): Place | undefined {
  const { data, header } = context;
  const { clusterBytes, extendedL2, l2EntryBytes, l2Entries, subclusterBytes } = header;
  const isWritten = access === "write";
  const cluster = Math.floor(at / clusterBytes);
  const index = Math.floor(cluster / l2Entries);
  const table = tableInMemory(context, l1, index, isWritten);
  if (table === undefined) return undefined;
  let entry = cluster - index * l2Entries;
  const host = hostOf(context, table, entry, isWritten);
  if (host < 0) return undefined;
  const offset = at - cluster * clusterBytes;
  let reach = clusterBytes;
  if (extendedL2) {
    const alloc = table.view.getUint32(entry * l2EntryBytes + 12);
    reach = allocatedEnd(alloc, Math.floor(offset / subclusterBytes)) * subclusterBytes;
  }
  if (reach <= offset) return undefined;
  // Whole clusters may follow.
  while (reach < offset + bytes && reach % clusterBytes === 0 && ++entry < l2Entries) {
    if (hostOf(context, table, entry, isWritten) !== host + reach) break;
    if (extendedL2 && table.view.getUint32(entry * l2EntryBytes + 12) !== ALL) break;
    reach += clusterBytes;
  }
  const found = Math.min(bytes, reach - offset, data.bytes - host - offset);
  if (found <= 0 || (!header.externalData && isOnTop(context, host, host + reach))) return undefined;
  return { file: data, at: host + offset, bytes: found };
}

function tableInMemory(
  { l2 }: Qcow2Context,
  l1: L1Table,
  index: number,
  isWritten: boolean,
): CachedTable | undefined {
  if (index >= l1.entries) return undefined;
  const high = l1.view.getUint32(index * 8);
  const low = l1.view.getUint32(index * 8 + 4);
  if ((high & ODD_HIGH) !== 0 || (low & RESERVED_LOW) !== 0) return undefined;
  if (isWritten && (high & COPIED_HIGH) === 0) return undefined;
  return l2.peek((high & OFFSET_HIGH) * 2 ** 32 + low);
}

/** File offset of the plain cluster under an entry; -1: there is none, or somebody else refers to it, too. */
function hostOf({ header }: Qcow2Context, { view }: CachedTable, entry: number, isWritten: boolean): number {
  const high = view.getUint32(entry * header.l2EntryBytes);
  const low = view.getUint32(entry * header.l2EntryBytes + 4);
  if ((high & ODD_HIGH) !== 0 || (low & (header.clusterBytes - 1)) !== 0) return -1;
  const isCopied = (high & COPIED_HIGH) !== 0;
  if (isWritten && !isCopied) return -1;
  const host = (high & OFFSET_HIGH) * 2 ** 32 + low;
  return host !== 0 || (isCopied && header.externalData) ? host : -1;
}

/** File offset of the cluster under an entry, where it is plain and nobody else's; else -1. */
export function ownHostOf(context: Qcow2Context, table: CachedTable, entry: number): number {
  const host = hostOf(context, table, entry, true);
  return host >= 0 && isOnTop(context, host, host + context.header.clusterBytes) ? -1 : host;
}

/** Number of the first subcluster from `first` on that has no place. */
function allocatedEnd(alloc: number, first: number): number {
  let end = first;
  while (end < SUBCLUSTERS && ((alloc >>> end) & 1) === 1) end++;
  return end;
}

function isOnTop({ tops }: Qcow2Context, start: number, end: number): boolean {
  for (let i = 0; i < tops.length; i++) {
    const top = tops[i]!;
    if (start < top.at + top.bytes && end > top.at) return true;
  }
  return false;
}

/** The entry of a guest cluster, and whether nobody else refers to its host cluster. */
export async function entryOf(
  context: Qcow2Context,
  cluster: number,
): Promise<{ readonly entry: Entry; readonly isOwned: boolean }> {
  const { header, l1, l2 } = context;
  const index = Math.floor(cluster / header.l2Entries);
  const at = l2TableAt(context, l1, index);
  if (at === 0) return { entry: NO_ENTRY, isOwned: false };
  const table = l2.peek(at) ?? (await l2.get(at));
  const entry = decodeEntry(context, table, cluster % header.l2Entries);
  const isAlone = l1Copied(l1, index) && entry.copied && entry.kind !== "compressed";
  return { entry, isOwned: isAlone && entry.host >= 0 };
}
