/**
 * Transactions: what was changed together, gathered from the operations of the records.
 *
 *   record's data:  | operation: id u32 | length u32 | client u8 | flags u8 | 0 u16 | … bytes … | operation | …
 *   transaction:    start, "TRAN" header, item, item, …, commit      several may be under way, told apart by their id
 *   item:           region: | type u16 | regions u16 | … |, further regions
 *
 * A region that does not fit into a record goes on in the next. Operations are big-endian, what they carry is as the
 * machine had it. Only what was committed counts. fs/xfs/xfs_log_recover.c of Linux.
 */
import { viewOf } from "../../bytes/struct.ts";
import { corrupt, unknown, type LogRecord } from "./log-records.ts";

const OPERATION_BYTES = 12;
const CLIENTS = [0x69, 0xaa];
const FLAG = { start: 1, commit: 2, continue: 4, wasContinued: 8, end: 0x10, unmount: 0x20 } as const;
const HEADER_BYTES = 16;
const HEADER_MAGIC = 0x5452414e;
const REGIONS_MAX = 16384;
/** What transactions under way may hold; a log can be larger than the memory. */
const HELD_BYTES_MAX = 256 * 1024 * 1024;
const PIECE_BYTES = 128;

export interface Item {
  readonly type: number;
  /** The first one describes the others. */
  readonly regions: readonly Uint8Array[];
}

export interface Transaction {
  /** Where its first record lies. */
  readonly place: bigint;
  readonly items: readonly Item[];
}

/** A transaction under way. Regions are in pieces. */
interface Open {
  readonly place: bigint;
  header: Uint8Array;
  readonly items: { readonly expected: number; readonly regions: Uint8Array[][] }[];
  /** The last record with a part of it, and what it holds of all of them. */
  record: bigint;
  held: number;
}

/** The committed transactions, in the order of their commits. @throws Refused */
export async function* committed(records: AsyncIterable<LogRecord>): AsyncGenerator<Transaction> {
  const open = new Map<number, Open>();
  let held = 0;
  for await (const { place, operations, data } of records) {
    const view = viewOf(data);
    for (let at = 0, left = operations; at < data.length && left > 0; left--) {
      if (at + OPERATION_BYTES > data.length) throw corrupt(`an operation cut short at ${at} found`);
      const [id, length] = [view.getUint32(at), view.getUint32(at + 4)];
      const [client, flags] = [view.getUint8(at + 8), view.getUint8(at + 9)];
      at += OPERATION_BYTES;
      if (!CLIENTS.includes(client) || at + length > data.length) {
        throw corrupt(`an operation of ${length} bytes of client ${client} found`);
      }
      const bytes = data.subarray(at, at + length);
      at += length;
      const transaction = open.get(id);
      if (transaction === undefined) {
        if ((flags & FLAG.start) !== 0) open.set(id, opened(place));
        continue;
      }
      const kind = flags & ~FLAG.end;
      if (kind === FLAG.commit || kind === FLAG.unmount) {
        held -= transaction.held;
        open.delete(id);
        if (kind === FLAG.commit) yield { place: transaction.place, items: finished(transaction) };
        continue;
      }
      const before = transaction.held;
      if (transaction.record !== place) transaction.held += data.length;
      transaction.record = place;
      if ((kind & ~FLAG.continue) === FLAG.wasContinued) goOn(transaction, bytes);
      else if ((kind & ~FLAG.continue) === 0) add(transaction, bytes);
      else throw corrupt(`an operation with the flags ${flags} found`);
      held += transaction.held - before;
      if (held + open.size * PIECE_BYTES > HELD_BYTES_MAX)
        throw unknown("transactions too large to be held found");
    }
  }
}

const opened = (place: bigint): Open => ({
  place,
  header: new Uint8Array(),
  items: [],
  record: -1n,
  held: 0,
});

/** Begins a region, or the header. */
function add(transaction: Open, bytes: Uint8Array): void {
  if (bytes.length === 0) return;
  if (transaction.header.length < HEADER_BYTES) return addHeader(transaction, bytes);
  transaction.held += PIECE_BYTES;
  const last = transaction.items.at(-1);
  if (last !== undefined && last.regions.length < last.expected) {
    last.regions.push([bytes]);
    return;
  }
  const expected = bytes.length < 4 ? 0 : viewOf(bytes).getUint16(2, true);
  if (expected === 0 || expected > REGIONS_MAX) throw corrupt(`an item of ${expected} regions found`);
  transaction.items.push({ expected, regions: [[bytes]] });
}

/** Goes on with the last region, or the header. */
function goOn(transaction: Open, bytes: Uint8Array): void {
  if (transaction.header.length < HEADER_BYTES) return addHeader(transaction, bytes);
  const region = transaction.items.at(-1)?.regions.at(-1);
  if (region === undefined) throw corrupt("the continuation of nothing found");
  if (bytes.length === 0) return;
  transaction.held += PIECE_BYTES;
  region.push(bytes);
}

function addHeader(transaction: Open, bytes: Uint8Array): void {
  transaction.header = Buffer.concat([transaction.header, bytes]);
  const { header } = transaction;
  const isWrong = header.length >= 4 && viewOf(header).getUint32(0, true) !== HEADER_MAGIC;
  if (header.length > HEADER_BYTES || isWrong) throw corrupt("a transaction without its header found");
}

function finished({ items }: Open): Item[] {
  return items.map(({ expected, regions }) => {
    if (regions.length !== expected)
      throw corrupt(`${regions.length} regions of an item found, ${expected} expected`);
    const joined = regions.map((pieces) => (pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces)));
    return { type: viewOf(joined[0]!).getUint16(0, true), regions: joined };
  });
}
