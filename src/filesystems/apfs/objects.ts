/**
 * Objects: how nearly every block of metadata begins.
 *
 *   | checksum u64 | object id u64 | transaction id u64 | type u32 | subtype u32 | …
 *
 * The checksum is Fletcher-64 of everything behind it. The low half of the type says what it is, the high bits how it
 * is found: virtual (by an object map), ephemeral (by the checkpoint's mappings), physical (its id is its block).
 * "Objects" of the Apple File System Reference.
 */
import { viewOf } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { badChecksum, damaged, unknown } from "./refused.ts";

export const OBJECT_BYTES = 32;

export const TYPE = {
  containerSuperblock: 0x01,
  treeRoot: 0x02,
  treeNode: 0x03,
  spaceManager: 0x05,
  chunkInfoAddresses: 0x06,
  chunkInfo: 0x07,
  freeQueue: 0x09,
  objectMap: 0x0b,
  checkpointMap: 0x0c,
  volumeSuperblock: 0x0d,
  fileTree: 0x0e,
  extentTree: 0x0f,
  snapshotTree: 0x10,
  reaper: 0x11,
  reapList: 0x12,
  objectMapSnapshots: 0x13,
  jumpstart: 0x14,
  snapshotExtra: 0x1d,
  integrity: 0x1e,
  fileExtentTree: 0x1f,
} as const;

export const STORAGE = { virtual: 0, physical: 0x40000000, ephemeral: 0x80000000 } as const;
const STORAGE_MASK = 0xc0000000;
const NO_HEADER = 0x20000000;
const ENCRYPTED = 0x10000000;
const NOT_PERSISTENT = 0x08000000;
const FLAGS_KNOWN = STORAGE_MASK | NO_HEADER | ENCRYPTED | NOT_PERSISTENT | 0xffff;

/** Where the container lies, and how far it goes. */
export interface Area {
  readonly device: BlockDevice;
  readonly blockBytes: number;
  /** Of the whole container; it fits onto the device. */
  readonly blocks: number;
}

/** The type without its flags. */
export const typeOf = (view: DataView): number => view.getUint32(24, true) & 0xffff;
const storageOf = (view: DataView): number => (view.getUint32(24, true) & STORAGE_MASK) >>> 0;
export const subtypeOf = (view: DataView): number => view.getUint32(28, true);

const WORDS_BEFORE_OVERFLOW = 1024;
const MODULUS = 2 ** 32 - 1;

/** Fletcher-64 of an object, as its two halves. Sums of 1024 words are exact in a double. */
export function fletcher64(bytes: Uint8Array): readonly [low: number, high: number] {
  const isAligned = bytes.byteOffset % 4 === 0;
  const whole = isAligned ? bytes : bytes.slice();
  const words = new Uint32Array(whole.buffer, whole.byteOffset + 8, (whole.length - 8) >>> 2);
  let first = 0;
  let second = 0;
  for (let from = 0; from < words.length; from += WORDS_BEFORE_OVERFLOW) {
    const to = Math.min(words.length, from + WORDS_BEFORE_OVERFLOW);
    for (let i = from; i < to; i++) {
      first += words[i]!;
      second += first;
    }
    first %= MODULUS;
    second %= MODULUS;
  }
  const low = MODULUS - ((first + second) % MODULUS);
  const high = MODULUS - ((first + low) % MODULUS);
  return [low, high];
}

export function hasValidChecksum(bytes: Uint8Array): boolean {
  const view = viewOf(bytes);
  const [low, high] = fletcher64(bytes);
  return view.getUint32(0, true) === low && view.getUint32(4, true) === high;
}

const hex = (low: number, high: number): string =>
  `0x${high.toString(16).padStart(8, "0")}${low.toString(16).padStart(8, "0")}`;

/** @throws Refused for a wrong checksum, or a flag of the type that is not known */
export function verifyChecksum(bytes: Uint8Array, block: number): void {
  const view = viewOf(bytes);
  const [low, high] = fletcher64(bytes);
  const [foundLow, foundHigh] = [view.getUint32(0, true), view.getUint32(4, true)];
  if (foundLow !== low || foundHigh !== high) {
    throw badChecksum(`object in block ${block}`, hex(foundLow, foundHigh), hex(low, high));
  }
  const flags = view.getUint32(24, true) & ~FLAGS_KNOWN;
  if (flags !== 0) throw unknown(`object in block ${block}: flags 0x${(flags >>> 0).toString(16)} found`);
}

/** A 64-bit number that may be anything; past 2^53 it is not exact, and larger than all that are. */
export function looseU64(view: DataView, at: number): number {
  return view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
}

export interface Expected {
  readonly type: number;
  readonly subtype?: number;
  /** The object's id; for a physical object its block. */
  readonly id: number;
  readonly storage: number;
  /** The transaction in which it was written, or the last one that may have. */
  readonly transaction: number;
}

/** @throws Refused for an object that is not the one that is expected here */
export function verifyObject(bytes: Uint8Array, block: number, expected: Expected): void {
  verifyChecksum(bytes, block);
  const view = viewOf(bytes);
  const complain = (what: string, found: number, wanted: number) => {
    throw damaged(`object in block ${block}: ${what} ${found} found, ${wanted} expected`);
  };
  if (typeOf(view) !== expected.type) complain("type", typeOf(view), expected.type);
  if (storageOf(view) !== expected.storage) complain("storage", storageOf(view), expected.storage);
  if (subtypeOf(view) !== (expected.subtype ?? 0))
    complain("subtype", subtypeOf(view), expected.subtype ?? 0);
  const id = looseU64(view, 8);
  if (id !== expected.id) complain("id", id, expected.id);
  const transaction = looseU64(view, 16);
  if (transaction === 0 || transaction > expected.transaction) {
    complain("transaction", transaction, expected.transaction);
  }
}

/** @throws Refused for blocks that do not lie in the container */
export function checkRange(area: Area, what: string, block: number, count: number): void {
  if (block + count > area.blocks) {
    throw damaged(`${what}: blocks ${block} to ${block + count} found, at most ${area.blocks} expected`);
  }
}

export async function readBlocks(
  area: Area,
  what: string,
  block: number,
  count: number,
): Promise<Uint8Array> {
  checkRange(area, what, block, count);
  return readBytes(area.device, block * area.blockBytes, count * area.blockBytes);
}

/** Reads and verifies a physical object of one block. */
export async function readPhysical(
  area: Area,
  what: string,
  block: number,
  expected: Pick<Expected, "type" | "subtype" | "transaction">,
): Promise<Uint8Array> {
  const bytes = await readBlocks(area, what, block, 1);
  verifyObject(bytes, block, { ...expected, id: block, storage: STORAGE.physical });
  return bytes;
}
