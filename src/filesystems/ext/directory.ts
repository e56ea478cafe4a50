/**
 * Directory blocks: entries one behind another, filling the block.
 *
 *   | inode u32 | length u16 | name length u8 | type u8 | name … | next entry … | tail: 0, 12, 0, 0xde, checksum |
 *
 * An entry of inode 0 is empty. The nodes of a hash tree hide their index in such empty entries, so that a reader
 * who knows nothing of hashes still finds every name in the leaves. A small directory lies in its inode instead.
 * Documentation/filesystems/ext4/directory.rst of Linux.
 */
import { crc32c } from "../../bytes/checksum.ts";
import { viewOf } from "../../bytes/struct.ts";
import { readBytes } from "../../device/device.ts";
import { ENTRY_TYPE, type Directories, type VisitEntry } from "../paths.ts";
import { inlineRest } from "./attributes.ts";
import { blockRuns } from "./block-map.ts";
import type { Volume } from "./groups.ts";
import { FLAG, INODE, readInode, TYPE, type Inode } from "./inode.ts";
import { badChecksum, damaged } from "./refused.ts";
import { hasIncompat, type Superblock } from "./superblock.ts";

const HEADER_BYTES = 8;
const TAIL_BYTES = 12;
const TAIL_TYPE = 0xde;
const INDEX_ENTRY_BYTES = 8;
/** Where the count of index entries lies in the root and in the other nodes of a hash tree. */
const ROOT_COUNT_AT = 32;
const NODE_COUNT_AT = 8;

const READ_BLOCKS = 64;

export function directoriesOf(volume: Volume): Directories<Inode> {
  return {
    root: INODE.root,
    inode: (number) => readInode(volume, number),
    isDirectory: ({ type }) => type === TYPE.directory,
    visit: (directory, visit) => visitDirectory(volume, directory, visit),
  };
}

async function visitDirectory(volume: Volume, directory: Inode, visit: VisitEntry): Promise<void> {
  const { device, sb } = volume;
  if ((directory.flags & FLAG.inlineData) !== 0) return visitInlineDirectory(sb, directory, visit);
  for (const { start, blocks } of await blockRuns(volume, directory)) {
    for (let at = start; at < start + blocks; at += READ_BLOCKS) {
      const count = Math.min(READ_BLOCKS, start + blocks - at);
      const bytes = await readBytes(device, at * sb.blockBytes, count * sb.blockBytes);
      for (let index = 0; index < count; index++) {
        const block = bytes.subarray(index * sb.blockBytes, (index + 1) * sb.blockBytes);
        visitDirectoryBlock(sb, directory, at + index, block, visit);
      }
    }
  }
}

/** Visits the entries of one block. @throws Refused when it is damaged */
export function visitDirectoryBlock(
  sb: Superblock,
  directory: Inode,
  block: number,
  bytes: Uint8Array,
  visit: VisitEntry,
): void {
  const name = `block ${block} of directory inode ${directory.number}`;
  if (sb.checksums) verify(directory, name, bytes);
  visitEntries(sb, name, bytes, visit);
}

/** Visits the entries of a directory that lies in its inode; `..` has no entry there. @throws Refused */
export function visitInlineDirectory(sb: Superblock, directory: Inode, visit: VisitEntry): void {
  const name = `inline directory inode ${directory.number}`;
  visit(viewOf(directory.map).getUint32(0, true), PARENT, ENTRY_TYPE.directory);
  visitEntries(sb, name, directory.map.subarray(4), visit);
  visitEntries(sb, name, inlineRest(directory), visit);
}

const PARENT = Buffer.from("..");

function visitEntries(sb: Superblock, directory: string, bytes: Uint8Array, visit: VisitEntry): void {
  const view = viewOf(bytes);
  const isTyped = hasIncompat(sb, "filetype");
  for (let at = 0; at < bytes.length;) {
    if (at + HEADER_BYTES > bytes.length) throw damaged(`${directory}: an entry at ${at} is cut short`);
    const inode = view.getUint32(at, true);
    const length = entryBytes(view.getUint16(at + 4, true), bytes.length);
    const nameBytes = isTyped ? view.getUint8(at + 6) : view.getUint16(at + 6, true);
    if (length < HEADER_BYTES || length % 4 !== 0 || at + length > bytes.length) {
      throw damaged(`${directory}: an entry at ${at} of ${length} bytes found`);
    }
    if (inode !== 0) {
      if (nameBytes === 0 || HEADER_BYTES + nameBytes > length) {
        throw damaged(`${directory}: a name of ${nameBytes} bytes at ${at} found`);
      }
      if (inode > sb.inodes)
        throw damaged(`${directory}: inode ${inode} found, at most ${sb.inodes} expected`);
      const name = bytes.subarray(at + HEADER_BYTES, at + HEADER_BYTES + nameBytes);
      visit(inode, name, isTyped ? view.getUint8(at + 7) : ENTRY_TYPE.unknown);
    }
    at += length;
  }
}

/** 16 bits cannot say 64 KiB, so the two lowest bits, which would be 0, are the highest. */
function entryBytes(stored: number, blockBytes: number): number {
  if (blockBytes < 65536) return stored;
  if (stored === 0xffff || stored === 0) return blockBytes;
  return (stored & 0xfffc) | ((stored & 3) << 16);
}

function verify(directory: Inode, name: string, bytes: Uint8Array): void {
  const view = viewOf(bytes);
  const countAt = indexCountAt(view, bytes.length);
  // The root of a hash tree may keep the tail of the leaf that it once was, so entries decide, not the tail.
  if (countAt === undefined) {
    const tail = bytes.length - TAIL_BYTES;
    const isTail =
      view.getUint32(tail, true) === 0 &&
      view.getUint16(tail + 4, true) === TAIL_BYTES &&
      bytes[tail + 7] === TAIL_TYPE;
    if (!isTail) throw damaged(`${name}: no checksum found`);
    return compare(name, view.getUint32(tail + 8, true), crc32c(directory.seed, bytes, 0, tail));
  }
  const limit = view.getUint16(countAt, true);
  const count = view.getUint16(countAt + 2, true);
  const tailAt = countAt + limit * INDEX_ENTRY_BYTES;
  if (count > limit || tailAt + 8 > bytes.length) {
    throw damaged(`${name}: ${count} of ${limit} index entries found, more than there is room for`);
  }
  let expected = crc32c(directory.seed, bytes, 0, countAt + count * INDEX_ENTRY_BYTES);
  expected = crc32c(expected, bytes, tailAt, tailAt + 4);
  expected = crc32c(expected, new Uint8Array(4));
  compare(name, view.getUint32(tailAt + 4, true), expected);
}

function compare(name: string, found: number, expected: number): void {
  if (found !== expected) throw badChecksum(name, found, expected);
}

/** Where a node of a hash tree keeps its counts; undefined when the block is no such node. */
function indexCountAt(view: DataView, blockBytes: number): number | undefined {
  const first = entryBytes(view.getUint16(4, true), blockBytes);
  if (first === blockBytes) return NODE_COUNT_AT;
  if (first === 12 && entryBytes(view.getUint16(16, true), blockBytes) === blockBytes - 12)
    return ROOT_COUNT_AT;
  return undefined;
}
