/**
 * Inodes and directory entries of a volume.
 *
 *   inode   | parent | stream id | times … | flags | … | mode | … | extended fields: name, stream (length), … |
 *   entry   key: directory, kind 9, length (and hash), name       value: | inode | time | kind |
 *
 * The extended fields are a table of kinds and lengths, then the values, each padded to 8 bytes. "File-System Objects"
 * and "Extended Fields" of the Apple File System Reference.
 */
import { bytesOf } from "../../bytes/struct.ts";
import type { FileRecord } from "./file-tree.ts";
import { looseU64 } from "./objects.ts";
import { damaged } from "./refused.ts";

const INODE_BYTES = 92;
const FIELD = { name: 4, stream: 8 };
const INTERNAL_CLONED = 0x10 | 0x400;
const BSD_COMPRESSED = 0x20;
const ENTRY_KIND_MASK = 0xf;

export const MODE = { mask: 0o170000, directory: 0o040000, file: 0o100000, symlink: 0o120000 };
export const ENTRY = { directory: 4, file: 8 };

export interface Inode {
  readonly id: bigint;
  readonly parent: bigint;
  /** Whose extents are its content; not its own id where it is a clone. */
  readonly stream: bigint;
  readonly mode: number;
  readonly isCloned: boolean;
  readonly isCompressed: boolean;
  readonly name: Uint8Array;
  readonly bytes: number;
  readonly allocatedBytes: number;
}

/** @throws Refused */
export function readInode(id: bigint, { value }: FileRecord): Inode {
  if (value.byteLength < INODE_BYTES) throw damaged(`inode ${id}: ${value.byteLength} bytes found`);
  let name: Uint8Array = new Uint8Array(0);
  let [bytes, allocatedBytes] = [0, 0];
  visitFields(id, value, (kind, at, length) => {
    if (kind === FIELD.name) name = untilZero(value, at, length);
    if (kind === FIELD.stream && length >= 16) {
      bytes = looseU64(value, at);
      allocatedBytes = looseU64(value, at + 8);
    }
  });
  return {
    id,
    parent: value.getBigUint64(0, true),
    stream: value.getBigUint64(8, true),
    isCloned: (value.getUint32(48, true) & INTERNAL_CLONED) !== 0,
    isCompressed: (value.getUint32(68, true) & BSD_COMPRESSED) !== 0,
    mode: value.getUint16(80, true),
    name,
    bytes,
    allocatedBytes,
  };
}

function visitFields(
  id: bigint,
  value: DataView,
  visit: (kind: number, at: number, bytes: number) => void,
): void {
  if (value.byteLength < INODE_BYTES + 4) return;
  const count = value.getUint16(INODE_BYTES, true);
  const table = INODE_BYTES + 4;
  let at = table + count * 4;
  for (let index = 0; index < count && at <= value.byteLength; index++) {
    const length = value.getUint16(table + index * 4 + 2, true);
    if (at + length > value.byteLength) break;
    visit(value.getUint8(table + index * 4), at, length);
    at += Math.ceil(length / 8) * 8;
  }
  if (at > value.byteLength + 8) throw damaged(`inode ${id}: extended fields of ${at} bytes found`);
}

export interface Entry {
  readonly name: Uint8Array;
  readonly inode: bigint;
  readonly kind: number;
}

/** @param isHashed names are compared without regard to case or form, and have a hash before them */
export function readEntry({ key, value }: FileRecord, isHashed: boolean): Entry {
  const start = isHashed ? 12 : 10;
  if (key.byteLength < start || value.byteLength < 18) {
    throw damaged(`directory entry: ${key.byteLength} and ${value.byteLength} bytes found`);
  }
  return {
    name: untilZero(key, start, key.byteLength - start),
    inode: value.getBigUint64(0, true),
    kind: value.getUint16(16, true) & ENTRY_KIND_MASK,
  };
}

function untilZero(view: DataView, at: number, length: number): Uint8Array {
  const bytes = bytesOf(view).subarray(at, at + length);
  const end = bytes.indexOf(0);
  return end < 0 ? bytes : bytes.subarray(0, end);
}
