/**
 * Items that say where a piece of a file lies.
 *
 *   | generation | length @8 | compression @16 | encryption @17 | encoding @18 | kind @20 | inline content, or
 *     address @21 | bytes on disk @29 | first byte of them that counts @37 | bytes of the file @45 |
 *
 * An address of 0 is a hole. What is written, preallocated or compressed occupies all bytes on disk, however few of
 * them the file still shows.
 */
import { KEY } from "./keys.ts";
import { u64At, type Node } from "./node.ts";
import { damaged, unsupported } from "./refused.ts";

const COMPRESSION_AT = 16;
const ENCRYPTION_AT = 17;
const ENCODING_AT = 18;
const KIND_AT = 20;
const INLINE_AT = 21;
const ADDRESS_AT = 21;
const DISK_BYTES_AT = 29;
const SKIPPED_AT = 37;
const FILE_BYTES_AT = 45;
const BYTES = 53;

const INLINE = 0;
const PREALLOCATED = 2;
/** zlib, lzo, zstd */
const COMPRESSION_MAX = 3;

/** Calls `found` for each stretch of the disk that a leaf's file extents occupy. @throws Refused */
export function eachExtent(node: Node, found: (at: number, bytes: number, inode: number) => void): void {
  const { view } = node;
  for (let index = 0; index < node.count; index++) {
    if (node.type(index) !== KEY.fileExtent) continue;
    const item = checkedItem(node, index);
    if (view.getUint8(item + KIND_AT) === INLINE) continue;
    const at = u64At(view, item + ADDRESS_AT);
    if (at !== 0) found(at, u64At(view, item + DISK_BYTES_AT), node.id(index));
  }
}

export interface FilePiece {
  readonly fileOffset: number;
  readonly bytes: number;
  /** Of the content in the node, for inline files; 0 for a hole. */
  readonly at: number;
  /** The whole extent, of which a part is shown. */
  readonly extentAt: number;
  readonly extentBytes: number;
  readonly isInline: boolean;
  readonly isCompressed: boolean;
  readonly isUnwritten: boolean;
}

/** @throws Refused */
export function pieceAt(node: Node, index: number): FilePiece {
  const { view } = node;
  const item = checkedItem(node, index);
  const kind = view.getUint8(item + KIND_AT);
  const isInline = kind === INLINE;
  const extentAt = isInline ? 0 : u64At(view, item + ADDRESS_AT);
  return {
    fileOffset: node.offset(index),
    bytes: isInline ? node.itemBytes(index) - INLINE_AT : u64At(view, item + FILE_BYTES_AT),
    at: isInline
      ? node.at + item + INLINE_AT
      : extentAt === 0
        ? 0
        : extentAt + u64At(view, item + SKIPPED_AT),
    extentAt,
    extentBytes: isInline ? 0 : u64At(view, item + DISK_BYTES_AT),
    isInline,
    isCompressed: view.getUint8(item + COMPRESSION_AT) !== 0,
    isUnwritten: kind === PREALLOCATED,
  };
}

function checkedItem(node: Node, index: number): number {
  const { view } = node;
  const item = node.itemPlace(index);
  const bytes = node.itemBytes(index);
  const where = () => `file extent of inode ${node.id(index)} at ${node.offset(index)}`;
  if (bytes < INLINE_AT) throw damaged(`${where()}: ${bytes} bytes`);
  const kind = view.getUint8(item + KIND_AT);
  if (kind > PREALLOCATED || (kind !== INLINE && bytes !== BYTES)) {
    throw damaged(`${where()}: kind ${kind} with ${bytes} bytes`);
  }
  if (
    view.getUint8(item + COMPRESSION_AT) > COMPRESSION_MAX ||
    view.getUint8(item + ENCRYPTION_AT) !== 0 ||
    view.getUint16(item + ENCODING_AT, true) !== 0
  ) {
    throw unsupported(`${where()}: its compression or encryption is not known`);
  }
  return item;
}
