/**
 * Extended attributes: in a block that inodes may share, and behind the fields of a large inode.
 *
 *   block:  | magic 0xea020000 | references | blocks | hash | checksum | … | entries → …   ← values |
 *   inode:  | magic 0xea020000 | entries → …   ← values |
 *   entry:  name length u8 | name space u8 | value offset u16 | value inode u32 | value length u32 | hash u32 | name
 *
 * Value inodes (ea_inode) are inodes like others, so the walk meets them in the inode tables.
 * Documentation/filesystems/ext4/attributes.rst of Linux.
 */
import { crc32c } from "../../bytes/checksum.ts";
import { viewOf } from "../../bytes/struct.ts";
import type { Inode } from "./inode.ts";
import { badChecksum, damaged } from "./refused.ts";
import type { Superblock } from "./superblock.ts";

const MAGIC = 0xea020000;
const CHECKSUM_AT = 16;
const ENTRY_BYTES = 16;
const GOOD_OLD_BYTES = 128;
const SPACE_SYSTEM = 7;

/** @throws Refused when the attribute block of `inode` is damaged */
export function checkAttributeBlock(sb: Superblock, inode: Inode, bytes: Uint8Array): void {
  const view = viewOf(bytes);
  const name = `attribute block ${inode.xattrBlock} of inode ${inode.number}`;
  const magic = view.getUint32(0, true);
  if (magic !== MAGIC) throw damaged(`${name}: magic 0x${magic.toString(16)} found, 0xea020000 expected`);
  if (!sb.checksums) return;
  const place = new Uint8Array(8);
  viewOf(place).setBigUint64(0, BigInt(inode.xattrBlock), true);
  let expected = crc32c(crc32c(sb.seed, place), bytes, 0, CHECKSUM_AT);
  expected = crc32c(expected, new Uint8Array(4));
  expected = crc32c(expected, bytes, CHECKSUM_AT + 4);
  const found = view.getUint32(CHECKSUM_AT, true);
  if (found !== expected) throw badChecksum(name, found, expected);
}

/** The part of inline data that found no room in the block map: the attribute `system.data` of the inode. */
export function inlineRest(inode: Inode): Uint8Array {
  const bytes = inode.whole;
  const none = new Uint8Array(0);
  if (bytes.length <= GOOD_OLD_BYTES) return none;
  const view = viewOf(bytes);
  const start = GOOD_OLD_BYTES + view.getUint16(GOOD_OLD_BYTES, true);
  if (start + 4 > bytes.length || view.getUint32(start, true) !== MAGIC) return none;
  const base = start + 4;
  for (let at = base; at + ENTRY_BYTES <= bytes.length && view.getUint32(at, true) !== 0;) {
    const nameBytes = view.getUint8(at);
    const name = Buffer.from(bytes.subarray(at + ENTRY_BYTES, at + ENTRY_BYTES + nameBytes)).toString(
      "latin1",
    );
    if (view.getUint8(at + 1) === SPACE_SYSTEM && name === "data") {
      const valueAt = base + view.getUint16(at + 2, true);
      const valueBytes = view.getUint32(at + 8, true);
      if (valueAt + valueBytes > bytes.length)
        throw damaged(`inode ${inode.number}: its inline data ends outside of it`);
      return bytes.subarray(valueAt, valueAt + valueBytes);
    }
    at += ENTRY_BYTES + Math.ceil(nameBytes / 4) * 4;
  }
  return none;
}
