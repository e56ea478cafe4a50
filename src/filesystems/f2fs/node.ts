/**
 * A node: a block with a footer that says whose it is, and which one of its inode's.
 *
 *   inode           | fields | (extra fields) addresses, or content inline | (attributes) | 5 node ids | footer |
 *   direct node     | 1018 addresses                                                                   | footer |
 *   indirect node   | 1018 node ids                                                                    | footer |
 *   attributes      | extended attributes                                                              | footer |
 *
 * The place of a node in its inode: 0 the inode, 1 and 2 direct, 3 the first indirect, then its direct ones, and so on.
 * include/linux/f2fs_fs.h of Linux.
 */
import { viewOf } from "../../bytes/struct.ts";
import { badChecksum, damaged } from "./refused.ts";
import { BLOCK_BYTES, checksumOf, hasFeature, type Superblock } from "./superblock.ts";

export const ADDRESSES = 1018;
const ADDRESSES_AT = 360;
const INODE_ADDRESSES = 923;
const INODE_NODES_AT = 4052;
const INODE_NODES = 5;
const FOOTER_AT = 4072;
const INLINE = { attributes: 0x1, data: 0x2, entries: 0x4, extra: 0x20 };
const INLINE_ATTRIBUTES = 50;
const ATTRIBUTES_PLACE = 0x1fffffff;
const CHECKSUM_AT = 368;
const FLAG_COMPRESSED = 0x4;
const FLAG_VERITY = 0x100000;
const ADVICE_ENCRYPTED = 0x4;

const NO_BLOCK = 0;
/** Marks a compressed cluster; above it is what was given out and not written yet. */
const COMPRESSED_BLOCK = 0xfffffffe;

export const MODE = { mask: 0o170000, directory: 0o040000, file: 0o100000, symlink: 0o120000 };

export interface Node {
  readonly view: DataView;
  readonly id: number;
  readonly inode: number;
  readonly place: number;
}

/** @throws Refused for a node that is another one's */
export function readNode(bytes: Uint8Array, block: number, id: number, inode: number): Node {
  const view = viewOf(bytes);
  const [foundId, foundInode] = [view.getUint32(FOOTER_AT, true), view.getUint32(FOOTER_AT + 4, true)];
  if (foundId !== id || foundInode !== inode) {
    throw damaged(
      `node in block ${block}: node ${foundId} of inode ${foundInode} found, ${id} of ${inode} expected`,
    );
  }
  const place = view.getUint32(FOOTER_AT + 8, true) >>> 3;
  if ((place === 0) !== (id === inode)) throw damaged(`node ${id} of inode ${inode}: place ${place} found`);
  return { view, id, inode, place };
}

/** The version of the checkpoint after which a node was written: its low half. */
export const versionOf = (bytes: Uint8Array): number => viewOf(bytes).getUint32(FOOTER_AT + 12, true);

export interface Inode {
  readonly id: number;
  readonly mode: number;
  readonly bytes: number;
  readonly blocks: number;
  readonly parent: number;
  readonly name: Uint8Array;
  readonly attributes: number;
  readonly isInline: boolean;
  readonly isEncrypted: boolean;
  readonly isCompressed: boolean;
  readonly isVerity: boolean;
  /** Where the addresses, or what is inline, begin, and how many words there are. */
  readonly at: number;
  readonly words: number;
}

/** @throws Refused */
export function readInode(sb: Superblock, { view, id }: Node): Inode {
  const inline = view.getUint8(3);
  const flags = view.getUint32(80, true);
  const hasExtra = (inline & INLINE.extra) !== 0;
  const extraBytes = hasExtra ? view.getUint16(ADDRESSES_AT, true) : 0;
  let attributeWords = (inline & (INLINE.attributes | INLINE.entries)) !== 0 ? INLINE_ATTRIBUTES : 0;
  if (hasExtra && hasFeature(sb, "flexibleInlineAttributes")) {
    attributeWords = view.getUint16(ADDRESSES_AT + 2, true);
  }
  const words = INODE_ADDRESSES - extraBytes / 4 - attributeWords;
  if (extraBytes % 4 !== 0 || words < 1 || view.getUint32(88, true) > 255) {
    throw damaged(
      `inode ${id}: ${extraBytes} bytes of extra fields, ${attributeWords} words of attributes found`,
    );
  }
  if (hasFeature(sb, "inodeChecksum") && ADDRESSES_AT + extraBytes >= CHECKSUM_AT + 4)
    verifyChecksum(sb, view, id);
  return {
    id,
    mode: view.getUint16(0, true),
    bytes: view.getUint32(16, true) + view.getUint32(20, true) * 2 ** 32,
    blocks: view.getUint32(24, true),
    parent: view.getUint32(84, true),
    name: new Uint8Array(view.buffer, view.byteOffset + 92, view.getUint32(88, true)).slice(),
    attributes: view.getUint32(76, true),
    isInline: (inline & (INLINE.data | INLINE.entries)) !== 0,
    isEncrypted: (view.getUint8(2) & ADVICE_ENCRYPTED) !== 0,
    isCompressed: (flags & FLAG_COMPRESSED) !== 0,
    isVerity: (flags & FLAG_VERITY) !== 0,
    at: ADDRESSES_AT + extraBytes,
    words,
  };
}

function verifyChecksum(sb: Superblock, view: DataView, id: number): void {
  const bytes = new Uint8Array(view.buffer, view.byteOffset, BLOCK_BYTES);
  let expected = checksumOf(sb.uuid, 0xffffffff);
  expected = checksumOf(bytes.subarray(FOOTER_AT + 4, FOOTER_AT + 8), expected);
  expected = checksumOf(bytes.subarray(68, 72), expected);
  expected = checksumOf(bytes.subarray(0, CHECKSUM_AT), expected);
  expected = checksumOf(new Uint8Array(4), expected);
  expected = checksumOf(bytes.subarray(CHECKSUM_AT + 4), expected);
  const found = view.getUint32(CHECKSUM_AT, true);
  if (found !== expected) throw badChecksum(`inode ${id}`, found, expected);
}

/** Whether the words of an inode are addresses: not where the content is inline, nor for devices, which keep their number there. */
export function hasAddresses({ mode, isInline }: Inode): boolean {
  const kind = mode & MODE.mask;
  return !isInline && (kind === MODE.file || kind === MODE.directory || kind === MODE.symlink);
}

/** What the words of a node are, by its place in the inode. */
export function contentOf(place: number): "addresses" | "nodes" | "attributes" {
  if (place === ATTRIBUTES_PLACE) return "attributes";
  if (place === 3 || place === 4 + ADDRESSES || place === 5 + 2 * ADDRESSES) return "nodes";
  const deep = place - (6 + 2 * ADDRESSES);
  return deep >= 0 && deep % (ADDRESSES + 1) === 0 ? "nodes" : "addresses";
}

/** Calls `visit` for every run of blocks that words of a node name, with the number of the first word. */
export function visitRuns(
  view: DataView,
  at: number,
  words: number,
  visit: (start: number, blocks: number, index: number) => void,
): void {
  const addresses = new Uint32Array(view.buffer, view.byteOffset + at, words);
  for (let index = 0; index < words;) {
    const start = addresses[index]!;
    const first = index++;
    if (start === NO_BLOCK || start >= COMPRESSED_BLOCK) continue;
    while (index < words && addresses[index] === start + index - first) index++;
    visit(start, index - first, first);
  }
}

/** Ids of the nodes that continue an inode; 0 is none. */
export const childrenOf = (view: DataView): number[] =>
  Array.from({ length: INODE_NODES }, (_, index) => view.getUint32(INODE_NODES_AT + index * 4, true));
