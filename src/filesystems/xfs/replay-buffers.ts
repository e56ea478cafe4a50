/**
 * Items of the log that change blocks of metadata.
 *
 *   buffer:  | type u16 | regions u16 | flags u16 | sectors u16 | first sector u64 | words u32 | bits u32 … |
 *            each run of bits is a region, or several: 128 bytes for each bit
 *   flags:   inode buffer 1, cancelled 2, dquots 4 8 16; the kind of block from bit 11 on
 *   inode creation:  | type u16 | 1 u16 | AG | block | inodes | bytes of each | blocks | generation |   big-endian
 *
 * A block of version 5 says when it was changed last, and is left alone where that is not before the transaction. It
 * gets its stamp and checksum when no transaction of the same place follows. fs/xfs/xfs_buf_item_recover.c and
 * xfs_icreate_item.c of Linux.
 */
import { viewOf } from "../../bytes/struct.ts";
import { readBytes } from "../../device/device.ts";
import type { Overlay } from "../../device/overlay.ts";
import { hasIncompat } from "./features.ts";
import { AgfLayout, AgflLayout, AgiLayout } from "./headers.ts";
import { INODE_AT, INODE_MAGIC } from "./inode.ts";
import { corrupt } from "./log-records.ts";
import { SECTOR_BYTES } from "./log-ring.ts";
import { checksumOf } from "./refused.ts";
import { agLength, inodeAt, MAGIC, SuperblockLayout, type Superblock } from "./superblock.ts";
import type { Item } from "./transactions.ts";

const CHUNK_BYTES = 128;
const BUFFER_BYTES_MAX = 65536;
const BUFFER_FORMAT_BYTES = 24;
const WORDS_AT = 20;
const WORDS_MAX = 17;
const CREATION_BYTES = 28;
const INODES_MAX = 1024;
const FLAG = { inodes: 1, cancelled: 2, dquots: 0x1c } as const;
const KIND_SHIFT = 11;

/** Where blocks of a kind keep the place of their last change, the UUID and the checksum. */
interface Stamp {
  readonly place: number;
  readonly uuid: number;
  readonly checksum: number;
}

const SHORT_TREE: Stamp = { place: 24, uuid: 32, checksum: 52 };
const LONG_TREE: Stamp = { place: 32, uuid: 40, checksum: 64 };
const DIRECTORY: Stamp = { place: 16, uuid: 24, checksum: 4 };
const DIRECTORY_NODE: Stamp = { place: 24, uuid: 32, checksum: 12 };
const BY_MAGIC: ReadonlyMap<string, Stamp> = new Map([
  ...["ABTB", "ABTC", "IABT", "FIBT", "AB3B", "AB3C", "IAB3", "FIB3", "RMB3", "R3FC"].map(
    (magic) => [magic, SHORT_TREE] as const,
  ),
  ...["BMAP", "BMA3"].map((magic) => [magic, LONG_TREE] as const),
  ...["XDB3", "XDD3", "XDF3"].map((magic) => [magic, DIRECTORY] as const),
  ["XAGF", { place: AgfLayout.at.lsn, uuid: AgfLayout.at.uuid, checksum: AgfLayout.at.checksum }],
  ["XAGI", { place: AgiLayout.at.lsn, uuid: AgiLayout.at.uuid, checksum: AgiLayout.at.checksum }],
  ["XAFL", { place: AgflLayout.at.lsn, uuid: AgflLayout.at.uuid, checksum: AgflLayout.at.checksum }],
  ["XSLM", { place: 48, uuid: 16, checksum: 12 }],
]);
const NODE_MAGIC_AT = 8;
const NODE_MAGICS = [0x3df1, 0x3dff, 0x3bee, 0x3ebe];
const NEVER = 2n ** 64n - 1n;

/** A buffer that an item describes, in bytes of the volume. */
export interface LoggedBuffer {
  readonly at: number;
  readonly bytes: number;
  readonly isCancelled: boolean;
  readonly isInodes: boolean;
  readonly isDquots: boolean;
  /** The log says that it bears a checksum. */
  readonly isKnown: boolean;
  /** Where the regions belong, from the start of the buffer. */
  readonly pieces: readonly { readonly offset: number; readonly content: Uint8Array }[];
}

/** @throws Refused when it does not fit together, or into `volumeBytes` */
export function decodeBuffer({ regions }: Item, volumeBytes: number): LoggedBuffer {
  const format = regions[0]!;
  const view = viewOf(format);
  const words = format.length < BUFFER_FORMAT_BYTES ? -1 : view.getUint32(16, true);
  const at = words < 0 ? -1 : Number(view.getBigUint64(8, true)) * SECTOR_BYTES;
  const bytes = words < 0 ? 0 : view.getUint16(6, true) * SECTOR_BYTES;
  const room = Math.min(WORDS_MAX, Math.floor((format.length - WORDS_AT) / 4));
  if (words < 0 || words > room || bytes === 0 || bytes > BUFFER_BYTES_MAX || at + bytes > volumeBytes) {
    throw corrupt(`a buffer of ${bytes} bytes at ${at} found`);
  }
  const flags = view.getUint16(4, true);
  const isCancelled = (flags & FLAG.cancelled) !== 0;
  const logged: number[] = [];
  for (let bit = 0; bit < words * 32; bit++) {
    if ((view.getUint32(WORDS_AT + (bit >>> 5) * 4, true) >>> (bit & 31)) & 1) logged.push(bit);
  }
  return {
    at,
    bytes,
    isCancelled,
    pieces: isCancelled ? [] : piecesOf(at, bytes, logged, regions),
    isInodes: (flags & FLAG.inodes) !== 0,
    isDquots: (flags & FLAG.dquots) !== 0,
    isKnown: flags >>> KIND_SHIFT !== 0,
  };
}

/** Where each region belongs. @param logged the 128-byte chunks of the buffer that the regions hold */
function piecesOf(
  at: number,
  bytes: number,
  logged: readonly number[],
  regions: readonly Uint8Array[],
): { offset: number; content: Uint8Array }[] {
  let next = 0;
  const pieces = regions.slice(1).map((content) => {
    const [first, count] = [logged[next] ?? -1, content.length / CHUNK_BYTES];
    const last = logged[next + count - 1];
    next += count;
    const offset = first * CHUNK_BYTES;
    if (count < 1 || last !== first + count - 1 || offset < 0 || offset + content.length > bytes) {
      throw corrupt(`a region of ${content.length} bytes for ${offset} of the buffer at ${at} found`);
    }
    return { offset, content };
  });
  if (next !== logged.length) throw corrupt(`regions of the buffer at ${at} are missing`);
  return pieces;
}

/** Where the block keeps what; undefined for one that bears no stamp. */
function stampOf(sb: Superblock, view: DataView): Stamp | undefined {
  const magic = Buffer.from(view.buffer, view.byteOffset, 4).toString("latin1");
  if (magic === MAGIC) {
    const { lsn, uuid, metaUuid, checksum } = SuperblockLayout.at;
    return { place: lsn, uuid: hasIncompat(sb, "meta-uuid") ? metaUuid : uuid, checksum };
  }
  const found = BY_MAGIC.get(magic);
  if (found !== undefined) return found;
  return NODE_MAGICS.includes(view.getUint16(NODE_MAGIC_AT)) ? DIRECTORY_NODE : undefined;
}

/** Replays buffers and inode creations into a device of which all is in memory that it writes. */
export class BufferReplay {
  readonly #device: Overlay;
  readonly #sb: Superblock;
  /** Buffers without their stamp, by where they begin: how long, and the place of their transaction. */
  readonly #unstamped = new Map<number, { readonly bytes: number; readonly place: bigint }>();

  constructor(device: Overlay, sb: Superblock) {
    this.#device = device;
    this.#sb = sb;
  }

  /** @param place that of the transaction */
  async apply(buffer: LoggedBuffer, place: bigint): Promise<void> {
    const content = await readBytes(this.#device, buffer.at, buffer.bytes);
    if (this.#isNewer(viewOf(content), place)) return;
    if (buffer.isInodes) this.#applyUnlinked(buffer, content);
    else for (const piece of buffer.pieces) content.set(piece.content, piece.offset);
    await this.#device.write(buffer.at, content);
    if (buffer.isKnown && !buffer.isInodes) this.#unstamped.set(buffer.at, { bytes: buffer.bytes, place });
  }

  /** Gives the buffers their stamps, as when the kernel writes them. */
  async stamp(): Promise<void> {
    for (const [at, { bytes, place }] of this.#unstamped) {
      if (this.#sb.version < 5) break;
      const content = await readBytes(this.#device, at, bytes);
      const view = viewOf(content);
      const stamp = stampOf(this.#sb, view);
      if (stamp === undefined) continue;
      view.setBigUint64(stamp.place, place);
      view.setUint32(stamp.checksum, checksumOf(content, stamp.checksum), true);
      await this.#device.write(at, content);
    }
    this.#unstamped.clear();
  }

  #isNewer(view: DataView, place: bigint): boolean {
    if (this.#sb.version < 5) return false;
    const stamp = stampOf(this.#sb, view);
    if (stamp === undefined) return false;
    const uuid = new Uint8Array(view.buffer, view.byteOffset + stamp.uuid, 16);
    const changed = view.getBigUint64(stamp.place);
    return Buffer.compare(uuid, this.#sb.metaUuid) === 0 && changed !== NEVER && changed >= place;
  }

  /** Of a buffer of inodes only the lists of deleted ones count: all else has items of its own. */
  #applyUnlinked({ at, pieces }: LoggedBuffer, content: Uint8Array): void {
    const { inodeBytes } = this.#sb;
    for (let inode = 0; inode + inodeBytes <= content.length; inode += inodeBytes) {
      const field = inode + INODE_AT.nextUnlinked;
      const piece = pieces.find(
        ({ offset, content: { length } }) => offset <= field && field + 4 <= offset + length,
      );
      if (piece === undefined) continue;
      const next = piece.content.subarray(field - piece.offset, field - piece.offset + 4);
      if (next.every((byte) => byte === 0))
        throw corrupt(`a list of deleted inodes at ${at + field} ends with 0`);
      content.set(next, field);
      stampInode(content.subarray(inode, inode + inodeBytes));
    }
  }

  /** Where new inodes are made, in bytes of the volume. @throws Refused */
  creation({ regions }: Item): { readonly start: number; readonly end: number } {
    const [sb, view] = [this.#sb, viewOf(regions[0]!)];
    if (view.byteLength < CREATION_BYTES)
      throw corrupt(`a creation of inodes in ${view.byteLength} bytes found`);
    const [ag, block, inodes] = [view.getUint32(4), view.getUint32(8), view.getUint32(12)];
    const [bytes, blocks] = [view.getUint32(16), view.getUint32(20)];
    const isFit = bytes === sb.inodeBytes && inodes === blocks * sb.inodesPerBlock && inodes <= INODES_MAX;
    const isInside = ag < sb.agCount && block >= sb.headerBlocks && block + blocks <= agLength(sb, ag);
    if (!isFit || !isInside || blocks === 0) {
      throw corrupt(
        `a creation of ${inodes} inodes of ${bytes} bytes in ${blocks} blocks at ${block} of AG ${ag} found`,
      );
    }
    const start = (ag * sb.agBlocks + block) * sb.blockBytes;
    return { start, end: start + blocks * sb.blockBytes };
  }

  /** Fresh inodes, none in use. */
  async create(item: Item): Promise<void> {
    const sb = this.#sb;
    const { start, end } = this.creation(item);
    const view = viewOf(item.regions[0]!);
    const [ag, first] = [view.getUint32(4), view.getUint32(8) * sb.inodesPerBlock];
    const fresh = new Uint8Array(end - start);
    for (let at = 0; at < fresh.length; at += sb.inodeBytes) {
      const inode = viewOf(fresh.subarray(at, at + sb.inodeBytes));
      inode.setUint16(0, INODE_MAGIC);
      inode.setUint8(INODE_AT.version, sb.version === 5 ? 3 : 2);
      inode.setUint32(INODE_AT.generation, view.getUint32(24));
      inode.setUint32(INODE_AT.nextUnlinked, 0xffffffff);
      if (sb.version < 5) continue;
      inode.setBigUint64(INODE_AT.number, BigInt(inodeAt(sb, ag, first + at / sb.inodeBytes)));
      fresh.set(sb.metaUuid, at + INODE_AT.uuid);
      stampInode(fresh.subarray(at, at + sb.inodeBytes));
    }
    await this.#device.write(start, fresh);
  }
}

/** Sets the checksum of an inode that has one. */
export function stampInode(inode: Uint8Array): void {
  const view = viewOf(inode);
  if (view.getUint8(INODE_AT.version) < 3) return;
  view.setUint32(INODE_AT.checksum, checksumOf(inode, INODE_AT.checksum), true);
}
