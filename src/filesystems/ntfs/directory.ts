/**
 * Directories: an index of `$FILE_NAME`s, whose root lies in the record and whose blocks lie in clusters.
 *
 *   $INDEX_ROOT "$I30"         | indexed type, block length | header | entry | entry | last |
 *   $INDEX_ALLOCATION "$I30"   | INDX | VCN | header | entry | … | last |  | INDX | …
 *   $BITMAP "$I30"             which of the blocks are in use
 *   entry                      | reference | length | key length | flags | $FILE_NAME | VCN of the block below |
 *
 * The tree is not descended: all blocks in use are read in the order of the disk, which a name that is shown escaped
 * needs anyway. Names are compared by `$UpCase`, as Windows does.
 *
 * libyal/libfsntfs documentation, "Index"; ntfs-3g layout.h.
 */
import { viewOf } from "../../bytes/struct.ts";
import { type Attribute, textAt, TYPE } from "./attributes.ts";
import { referenceAt, type Reference, restoreSectors } from "./record.ts";
import { type Fold, shownText } from "./names.ts";
import { damaged } from "./refused.ts";
import type { Stream } from "./stream.ts";
import type { File, FileTable } from "./table.ts";

export const INDEX_NAME = "$I30";
const MAGIC_INDEX = 0x58444e49;
const ROOT_HEADER_AT = 16;
const BLOCK_HEADER_AT = 24;
const HEADER_BYTES = 16;
const ENTRY_BYTES = 16;
const ENTRY_LAST = 2;
const BLOCK_BYTES_MIN = 512;
const BLOCK_BYTES_MAX = 65_536;
const READ_BYTES = 1 << 18;
/** What is read at a time of the map of a directory's blocks. */
const MAP_BYTES = 4096;

const NAMESPACE_DOS = 2;
const NAME_BYTES = 66;
const FILE_DIRECTORY = 0x10000000;
const FILE_REPARSE = 0x400;

/** What a `$FILE_NAME` says. */
export interface NameRecord {
  readonly parent: Reference;
  readonly name: string;
  /** A short name beside a long one. */
  readonly isShort: boolean;
  readonly isDirectory: boolean;
  /** 0: none. */
  readonly reparseTag: number;
}

export interface Entry extends NameRecord {
  readonly reference: Reference;
}

/** Decodes a `$FILE_NAME` of `bytes` bytes. @throws Refused when it is cut short */
export function decodeName(view: DataView, at: number, bytes: number): NameRecord {
  const units = bytes >= NAME_BYTES ? view.getUint8(at + 64) : 0;
  if (units === 0 || NAME_BYTES + units * 2 > bytes) {
    throw damaged(`$FILE_NAME of ${bytes} bytes with ${units} characters found`);
  }
  const flags = view.getUint32(at + 56, true);
  return {
    parent: referenceAt(view, at),
    name: textAt(view, at + NAME_BYTES, units),
    isShort: view.getUint8(at + 65) === NAMESPACE_DOS,
    isDirectory: (flags & FILE_DIRECTORY) !== 0,
    reparseTag: (flags & FILE_REPARSE) === 0 ? 0 : view.getUint32(at + 60, true),
  };
}

export type VisitEntry = (entry: Entry) => boolean | void;

/** Calls `visit` for each entry until it returns true. @throws Refused when the directory is damaged */
export async function eachEntry(table: FileTable, file: File, visit: VisitEntry): Promise<void> {
  const root = table.stream(file, TYPE.indexRoot, INDEX_NAME);
  if (root === undefined) throw damaged(`directory ${file.record.number}: has no index`);
  if (visitRoot(root.attribute, visit)) return;
  const blocks = blocksOf(table, file);
  if (blocks !== undefined) await visitBlocks(table, blocks, visit);
}

/** The blocks of a directory. */
export interface IndexBlocks {
  readonly directory: number;
  readonly stream: Stream;
  /** Which of them are in use. */
  readonly map: Stream;
  readonly blockBytes: number;
  readonly count: number;
}

/** The blocks of a directory, if it has any. @throws Refused when it is damaged */
export function blocksOf(table: FileTable, file: File): IndexBlocks | undefined {
  const directory = file.record.number;
  const stream = table.stream(file, TYPE.indexAllocation, INDEX_NAME);
  if (stream === undefined) return undefined;
  const root = table.stream(file, TYPE.indexRoot, INDEX_NAME);
  if (root === undefined) throw damaged(`directory ${directory}: has no index`);
  const { blockBytes } = decodeRoot(root.attribute);
  const map = table.stream(file, TYPE.bitmap, INDEX_NAME);
  const count = Math.floor(stream.initialised / blockBytes);
  if (map === undefined || map.bytes * 8 < count || stream.runs?.hasHole()) {
    throw damaged(`directory ${directory}: no map of its ${count} blocks, or a hole among them`);
  }
  return { directory, stream, map, blockBytes, count };
}

/** Visits the entries of the root alone. @returns whether a visit returned true */
export function visitRoot(attribute: Attribute, visit: VisitEntry): boolean {
  const { name, at, end } = decodeRoot(attribute);
  return visitNode(attribute.record.view, at + ROOT_HEADER_AT, end, name, visit);
}

/** Where the value of an index root lies, and how long the blocks below it are. */
function decodeRoot({ record, content }: Attribute) {
  const name = `directory ${record.base?.number ?? record.number}`;
  if (content.kind !== "resident" || content.bytes < ROOT_HEADER_AT + HEADER_BYTES) {
    throw damaged(`${name}: its index root is cut short`);
  }
  const { at, bytes } = content;
  const indexed = record.view.getUint32(at, true);
  const blockBytes = record.view.getUint32(at + 8, true);
  const isPower = Number.isInteger(Math.log2(blockBytes));
  const isPossible = isPower && blockBytes >= BLOCK_BYTES_MIN && blockBytes <= BLOCK_BYTES_MAX;
  if (indexed !== TYPE.fileName || !isPossible) {
    throw damaged(`${name}: index of 0x${indexed.toString(16)} in blocks of ${blockBytes} bytes found`);
  }
  return { name, at, end: at + bytes, blockBytes };
}

async function visitBlocks(table: FileTable, blocks: IndexBlocks, visit: VisitEntry): Promise<void> {
  const { directory, stream, map, blockBytes, count } = blocks;
  const perRead = Math.max(8, Math.floor(READ_BYTES / blockBytes / 8) * 8);
  const window = new Uint8Array(MAP_BYTES);
  for (let first = 0; first < count; first += perRead) {
    const mapped = (first / 8) % MAP_BYTES;
    if (mapped === 0) await table.read(map, first / 8, window);
    const used = window.subarray(mapped, mapped + perRead / 8);
    if (used.every((byte) => byte === 0)) continue;
    const bytes = new Uint8Array(Math.min(perRead, count - first) * blockBytes);
    await table.read(stream, first * blockBytes, bytes);
    for (let index = 0; index * blockBytes < bytes.length; index++) {
      if (((used[index >> 3]! >> (index & 7)) & 1) === 0) continue;
      const block = bytes.subarray(index * blockBytes, (index + 1) * blockBytes);
      if (visitBlock(table, directory, first + index, block, visit)) return;
    }
  }
}

/** Visits block `index` of a directory, whose sectors are restored in place. @returns whether a visit returned true */
export function visitBlock(
  table: FileTable,
  directory: number,
  index: number,
  bytes: Uint8Array,
  visit: VisitEntry,
): boolean {
  const view = viewOf(bytes);
  const name = `directory ${directory}, index block ${index}`;
  if (view.getUint32(0, true) !== MAGIC_INDEX) throw damaged(`${name}: "INDX" expected`);
  restoreSectors(view, 0, bytes.length, name);
  const { clusterBytes } = table.geometry;
  const vcnBytes = bytes.length >= clusterBytes ? clusterBytes : 512;
  const vcn = view.getUint32(16, true) + view.getUint32(20, true) * 2 ** 32;
  const expected = (index * bytes.length) / vcnBytes;
  if (vcn !== expected) throw damaged(`${name}: VCN ${vcn} found, ${expected} expected`);
  return visitNode(view, BLOCK_HEADER_AT, bytes.length, name, visit);
}

/** Visits the entries of a node whose header lies at `at`. @returns whether a visit returned true */
function visitNode(view: DataView, at: number, end: number, name: string, visit: VisitEntry): boolean {
  const first = at + view.getUint32(at, true);
  const last = at + view.getUint32(at + 4, true);
  if (first < at + HEADER_BYTES || first > last || last > end) {
    throw damaged(`${name}: entries at ${first - at} to ${last - at} found, inside ${end - at} expected`);
  }
  for (let entry = first; ;) {
    const length = entry + ENTRY_BYTES <= last ? view.getUint16(entry + 8, true) : 0;
    const keyBytes = length === 0 ? 0 : view.getUint16(entry + 10, true);
    if (
      length < ENTRY_BYTES ||
      length % 8 !== 0 ||
      entry + length > last ||
      ENTRY_BYTES + keyBytes > length
    ) {
      throw damaged(`${name}: entry of ${length} bytes at ${entry - at} found`);
    }
    if ((view.getUint16(entry + 12, true) & ENTRY_LAST) !== 0) return false;
    const found = decodeName(view, entry + ENTRY_BYTES, keyBytes);
    if (visit({ ...found, reference: referenceAt(view, entry) }) === true) return true;
    entry += length;
  }
}

/** The entry of that name, however its letters are written. @throws Refused when the directory is damaged */
export async function findEntry(
  table: FileTable,
  directory: File,
  name: string,
  fold: Fold,
): Promise<Entry | undefined> {
  const wanted = fold(name);
  let found: Entry | undefined;
  await eachEntry(table, directory, (entry) => {
    if (fold(entry.name) !== wanted && shownText(entry.name) !== name) return false;
    found = entry;
    return true;
  });
  return found;
}
