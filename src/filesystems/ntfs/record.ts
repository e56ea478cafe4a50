/**
 * Records that a sector each was written of: file records and index blocks carry an update sequence.
 *
 *   | FILE | at 4 | count 6 | … | USN, word 1, word 2 | … USN | … USN |       512 bytes a sector, whatever the disk has
 *                                       '---------'------- stood here, and here
 *
 * A sector whose last word is not the update sequence number was not written with the others: the record is torn.
 * A file record then holds attributes; a file with many spreads over extension records, which name their base.
 *
 * libyal/libfsntfs documentation, "MFT entry"; ntfs-3g layout.h, MFT_RECORD.
 */
import { damaged } from "./refused.ts";

const STRIDE = 512;
/** `FILE`, as a little-endian word. */
const MAGIC_FILE = 0x454c4946;
const HEADER_BYTES = 0x2a;
const BASE_AT = 0x20;
/** Records of NTFS 3.1 also hold their own number. */
const NUMBER_AT = 0x2c;
const HEADER_BYTES_31 = 0x30;

const FLAG_USED = 1;
const FLAG_DIRECTORY = 2;
/** Used, directory, in `$Extend`, has a view index. */
const FLAGS_KNOWN = 0xf;
const FLAGS_AT = 0x16;

/** The low 48 bits of a reference are a record number, the rest is its sequence number. */
export interface Reference {
  readonly number: number;
  readonly sequence: number;
}

export interface FileRecord {
  readonly number: number;
  readonly sequence: number;
  readonly isDirectory: boolean;
  /** Set in an extension record: to whom it belongs. */
  readonly base: Reference | undefined;
  readonly view: DataView;
  /** Where in the view it begins, and its attributes lie. */
  readonly start: number;
  readonly attributesAt: number;
  readonly attributesEnd: number;
}

export function referenceAt(view: DataView, at: number): Reference {
  const number = view.getUint32(at, true) + view.getUint16(at + 4, true) * 2 ** 32;
  return { number, sequence: view.getUint16(at + 6, true) };
}

/** Whether a file record says that it is in use; for records that nobody has checked. */
export function looksUsed(view: DataView, at: number): boolean {
  return view.getUint32(at, true) === MAGIC_FILE && (view.getUint16(at + FLAGS_AT, true) & FLAG_USED) !== 0;
}

/** Puts the words back whose places the update sequence took. @throws Refused when the record is torn */
export function restoreSectors(view: DataView, at: number, bytes: number, name: string): void {
  const sequenceAt = view.getUint16(at + 4, true);
  const count = view.getUint16(at + 6, true);
  const isPlaced = sequenceAt % 2 === 0 && sequenceAt >= 8 && sequenceAt + count * 2 <= STRIDE - 2;
  if (count !== bytes / STRIDE + 1 || !isPlaced) {
    throw damaged(
      `${name}: update sequence of ${count} words at ${sequenceAt} found, ${bytes / STRIDE + 1} expected`,
    );
  }
  const expected = view.getUint16(at + sequenceAt, true);
  for (let sector = 1; sector < count; sector++) {
    const lastWord = at + sector * STRIDE - 2;
    const found = view.getUint16(lastWord, true);
    if (found !== expected) {
      throw damaged(
        `${name}: torn: sector ${sector - 1} ends with ${found}, update sequence number ${expected} expected`,
      );
    }
    view.setUint16(lastWord, view.getUint16(at + sequenceAt + sector * 2, true), true);
  }
}

/**
 * The record at `at`, whose sectors are restored in place; undefined when it is not in use.
 * @throws Refused when it is no file record, or torn
 */
export function decodeRecord(
  view: DataView,
  at: number,
  recordBytes: number,
  number: number,
): FileRecord | undefined {
  const name = `file record ${number}`;
  const magic = view.getUint32(at, true);
  if (magic !== MAGIC_FILE) throw damaged(`${name}: magic 0x${magic.toString(16)} found, "FILE" expected`);
  restoreSectors(view, at, recordBytes, name);
  const flags = view.getUint16(at + FLAGS_AT, true);
  if ((flags & FLAG_USED) === 0) return undefined;
  if ((flags & ~FLAGS_KNOWN) !== 0) throw damaged(`${name}: flags 0x${flags.toString(16)} found`);
  const sequenceEnd = view.getUint16(at + 4, true) + view.getUint16(at + 6, true) * 2;
  const attributes = view.getUint16(at + 0x14, true);
  const used = view.getUint32(at + 0x18, true);
  const allocated = view.getUint32(at + 0x1c, true);
  const fits =
    attributes >= Math.max(HEADER_BYTES, sequenceEnd) && attributes % 8 === 0 && attributes + 8 <= used;
  if (!fits || used > recordBytes || allocated !== recordBytes) {
    throw damaged(
      `${name}: attributes at ${attributes} to ${used} of ${allocated} found, inside ${recordBytes} expected`,
    );
  }
  if (view.getUint16(at + 4, true) >= HEADER_BYTES_31 && view.getUint32(at + NUMBER_AT, true) !== number) {
    throw damaged(`${name}: says that it is number ${view.getUint32(at + NUMBER_AT, true)}`);
  }
  const base = referenceAt(view, at + BASE_AT);
  const isBase = base.number === 0 && base.sequence === 0;
  return {
    number,
    sequence: view.getUint16(at + 0x10, true),
    isDirectory: (flags & FLAG_DIRECTORY) !== 0,
    base: isBase ? undefined : base,
    view,
    start: at,
    attributesAt: at + attributes,
    attributesEnd: at + used,
  };
}
