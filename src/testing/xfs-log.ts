/**
 * Logs of an XFS that were written by hand, record by record, behind that of mkfs.xfs.
 *
 *   | record of mkfs.xfs: 2 sectors | record | record | … | zeros |      all of cycle 1
 */
import { viewOf } from "../bytes/struct.ts";
import { HEADER_BYTES, recordChecksum, SECTOR_BYTES } from "../filesystems/xfs/log-ring.ts";
import { SuperblockLayout } from "../filesystems/xfs/superblock.ts";

const FIRST = 2;
const CLIENT = 0x69;
const BUFFER_MAP_BYTES = 20 + 17 * 4;
export const OPERATION = { start: 1, commit: 2, continue: 4, wasContinued: 8 } as const;

export interface Operation {
  readonly id: number;
  readonly flags: number;
  readonly bytes?: Uint8Array;
}

/** Writes the records, each of some operations, into an image. @returns where each begins, and the end */
export function writeLog(image: Uint8Array, records: readonly (readonly Operation[])[]): number[] {
  const { logStart, blockBytes, uuid } = SuperblockLayout.decode(image);
  const places: number[] = [];
  let sector = FIRST;
  for (const operations of records) {
    const data = dataOf(operations);
    const at = logStart * blockBytes + sector * SECTOR_BYTES;
    places.push(at);
    const record = new Uint8Array(SECTOR_BYTES + data.length);
    const view = viewOf(record);
    for (const [offset, word] of [0xfeedbabe, 1, 2, data.length, 1, sector, 1, FIRST].entries()) {
      view.setUint32(offset * 4, word);
    }
    view.setUint32(40, operations.length);
    view.setUint32(300, 1);
    record.set(uuid, 304);
    view.setUint32(320, 32768);
    record.set(data, SECTOR_BYTES);
    for (let part = 0; part < data.length / SECTOR_BYTES; part++) {
      view.setUint32(44 + part * 4, view.getUint32(SECTOR_BYTES * (1 + part)));
      view.setUint32(SECTOR_BYTES * (1 + part), 1);
    }
    image.set(record, at);
    seal(image, at);
    sector += record.length / SECTOR_BYTES;
  }
  return [...places, logStart * blockBytes + sector * SECTOR_BYTES];
}

/** Sets the checksum of the record at `at` right. */
export function seal(image: Uint8Array, at: number): void {
  const bytes = viewOf(image).getUint32(at + 12);
  const record = image.subarray(at, at + SECTOR_BYTES + bytes);
  viewOf(record).setUint32(32, recordChecksum(record, 1, bytes, HEADER_BYTES[0]!), true);
}

/** Whole sectors; what follows the operations is not counted by the record. */
function dataOf(operations: readonly Operation[]): Uint8Array {
  const parts = operations.map(({ id, flags, bytes = new Uint8Array() }) => {
    const part = new Uint8Array(12 + bytes.length);
    const view = viewOf(part);
    view.setUint32(0, id);
    view.setUint32(4, bytes.length);
    view.setUint8(8, CLIENT);
    view.setUint8(9, flags);
    part.set(bytes, 12);
    return part;
  });
  const all = Buffer.concat(parts);
  const whole = new Uint8Array(Math.ceil(all.length / SECTOR_BYTES) * SECTOR_BYTES);
  whole.set(all);
  return whole;
}

/** A transaction with such items, each of some regions; `commit` ends it. */
export function transaction(id: number, items: readonly (readonly Uint8Array[])[]): Operation[] {
  const regions = items.flat().map((bytes) => ({ id, flags: 0, bytes }));
  const header = words(0x5452414e, 40, 0, items.length);
  return [{ id, flags: OPERATION.start }, { id, flags: 0, bytes: header }, ...regions];
}

export const commit = (id: number): Operation => ({ id, flags: OPERATION.commit });

/** Words as the machine has them. */
export function words(...values: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(values.length * 4);
  for (const [index, value] of values.entries()) viewOf(bytes).setUint32(index * 4, value, true);
  return bytes;
}

/** An item that sets the first 128 bytes of a buffer, or frees it where there are none. */
export function bufferItem(at: number, bytes: number, content?: Uint8Array, kind = 0): Uint8Array[] {
  const format = new Uint8Array(BUFFER_MAP_BYTES);
  const view = viewOf(format);
  view.setUint16(0, 0x123c, true);
  view.setUint16(2, content === undefined ? 1 : 2, true);
  view.setUint16(4, content === undefined ? 2 : kind << 11, true);
  view.setUint16(6, bytes / SECTOR_BYTES, true);
  view.setBigUint64(8, BigInt(at / SECTOR_BYTES), true);
  view.setUint32(16, 17, true);
  view.setUint32(20, content === undefined ? 0 : 1, true);
  return content === undefined ? [format] : [format, content];
}

/** An intent to free blocks, or that it is done. */
export function freeIntent(isDone: boolean, id: number, block: number, blocks: number): Uint8Array[] {
  return [words((1 << 16) + (isDone ? 0x1237 : 0x1236), 1, id, 0, block, 0, blocks, 0)];
}
