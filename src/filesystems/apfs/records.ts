/**
 * Records of a volume: those of the file-system tree, of the extent records, of the snapshots.
 *
 *   key    | object id, 60 bits, and kind, 4 bits | more, by kind |
 *
 *   file extent       key: offset in the file           value: length and flags, first block, key id
 *   physical extent   its object id is its first block  value: blocks and kind, owner, references
 *   snapshot          its object id is its transaction  value: extent tree, superblock, …
 *
 * "File-System Objects" and "Data Streams" of the Apple File System Reference.
 */
import { looseU64 } from "./objects.ts";
import { damaged, unknown } from "./refused.ts";

export const KIND = {
  snapshot: 1,
  extent: 2,
  inode: 3,
  attribute: 4,
  stream: 6,
  fileExtent: 8,
  entry: 9,
  snapshotName: 11,
} as const;

export const kindOf = (view: DataView, key: number): number => view.getUint32(key + 4, true) >>> 28;

/** Past 2^53 not exact: only ids of the system volume's own space are, which `ownerOf` tells apart. */
export function idOf(view: DataView, key: number): number {
  return view.getUint32(key, true) + (view.getUint32(key + 4, true) & 0x0fffffff) * 2 ** 32;
}

const NEW = 1;
const UPDATE = 2;

/** @throws Refused */
export function readExtent(
  view: DataView,
  key: number,
  keyBytes: number,
  value: number,
  valueBytes: number,
  use: (start: number, blocks: number, owner: number) => void,
): void {
  if (keyBytes !== 8 || valueBytes !== 20 || kindOf(view, key) !== KIND.extent) {
    throw damaged(`extent records: record of ${keyBytes} and ${valueBytes} bytes found, 8 and 20 expected`);
  }
  const kind = view.getUint32(value + 4, true) >>> 28;
  const start = idOf(view, key);
  if (kind !== NEW && kind !== UPDATE) throw unknown(`extent record of block ${start}: kind ${kind} found`);
  use(start, idOf(view, value), ownerOf(view, value + 8));
}

/** The runs of a file's data stream. A run at block 0 is a hole. @throws Refused */
export function readFileExtent(
  view: DataView,
  key: number,
  keyBytes: number,
  value: number,
  valueBytes: number,
  blockBytes: number,
  use: (start: number, blocks: number, offset: number) => void,
): void {
  if (keyBytes !== 16 || valueBytes < 16) {
    throw damaged(`file extent: record of ${keyBytes} and ${valueBytes} bytes found, 16 and 24 expected`);
  }
  const length = view.getUint32(value, true) + (view.getUint32(value + 4, true) & 0xffffff) * 2 ** 32;
  if (length % blockBytes !== 0) throw damaged(`file extent: ${length} bytes found, whole blocks expected`);
  const start = looseU64(view, value + 8);
  if (start !== 0) use(start, length / blockBytes, looseU64(view, key + 8));
}

/** Object ids of one volume fit into 45 bits here: 44, and whether they are in the id space of the system volume. */
const ID_LIMIT = 2 ** 44;
const SYSTEM_MARK = 0x08000000;
export const NO_OWNER = 0;

/** As `ownerOf`, of an id in full. */
export function localOf(id: bigint): number {
  const low = id & ~(BigInt(SYSTEM_MARK) << 32n);
  if (low >= BigInt(ID_LIMIT)) return NO_OWNER;
  return Number(low) + (low === id ? 0 : ID_LIMIT);
}

/** A number for an object id that fits beside the volume's; `NO_OWNER` where it does not. */
export function ownerOf(view: DataView, at: number): number {
  const high = view.getUint32(at + 4, true) & 0x0fffffff;
  const low = view.getUint32(at, true) + (high & ~SYSTEM_MARK) * 2 ** 32;
  if (low >= ID_LIMIT) return NO_OWNER;
  return (high & SYSTEM_MARK) === 0 ? low : low + ID_LIMIT;
}

/** The object id of an owner. */
export function objectOf(owner: number): bigint {
  const local = owner % (2 * ID_LIMIT);
  return local < ID_LIMIT ? BigInt(local) : BigInt(local - ID_LIMIT) | (BigInt(SYSTEM_MARK) << 32n);
}

export const ownerIn = (volume: number, local: number): number => volume * 2 * ID_LIMIT + local;
export const volumeOf = (owner: number): number => Math.floor(owner / (2 * ID_LIMIT));
