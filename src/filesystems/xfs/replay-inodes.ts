/**
 * Items of the log that change an inode.
 *
 *   | type u16 | regions u16 | fields u32 | u16 u16 | 0 u32 | inode u64 | device, 16 | first sector u64 | sectors u32 | offset u32 |
 *   | the inode as on disk, but in the order of the machine: 96 or 176 bytes |
 *   | its data fork: content, extents, or the root of a tree | its attribute fork, the same |
 *
 * 32-bit machines leave the 0 out. The root of a tree is in the log as a node, and on disk with a shorter header.
 * fs/xfs/xfs_inode_item_recover.c of Linux.
 */
import { viewOf } from "../../bytes/struct.ts";
import { readBytes } from "../../device/device.ts";
import type { Overlay } from "../../device/overlay.ts";
import { HEADER_BYTES as NODE_BYTES } from "./fork.ts";
import { FLAG2, INODE_AT, INODE_MAGIC, NEW_BYTES, OLD_BYTES } from "./inode.ts";
import { corrupt, unknown } from "./log-records.ts";
import { SECTOR_BYTES } from "./log-ring.ts";
import { stampInode } from "./replay-buffers.ts";
import type { Superblock } from "./superblock.ts";
import type { Item } from "./transactions.ts";

const FORMAT_BYTES = 56;
const PACKED_FORMAT_BYTES = 52;
const FIELD = {
  core: 1,
  data: { plain: 2 | 4, root: 8 },
  device: 0x10,
  attributes: { plain: 0x40 | 0x80, root: 0x100 },
  owners: 0x600,
  known: 0x1ff,
} as const;
const CLUSTER_BYTES_MAX = 65536;
const FLAG2_BIGTIME = 8;
const FLUSHES_MAX = 0xffff;
const NEVER = 2n ** 64n - 1n;

/** Fields of the same width in both orders: where they are, and how long. */
const SWAPPED = [
  ...[0, 2, 20, 22, 80, 88, 90].map((at) => [at, 2] as const),
  ...[4, 5, 82, 83].map((at) => [at, 1] as const),
  ...[8, 12, 16, 72, 76, 84, 92].map((at) => [at, 4] as const),
  ...[56, 64].map((at) => [at, 8] as const),
];
const SWAPPED_NEW = [
  [104, 8],
  [120, 8],
  [128, 4],
  [152, 8],
] as const;
const TIMES = [32, 40, 48];
const TIME_NEW = 144;
const COUNTS_AT = 24;
const FLUSHES_AT = 30;

/** An inode that an item describes: the buffer in which it lies, and where in there, in bytes. */
export interface LoggedInode {
  readonly buffer: number;
  readonly bufferBytes: number;
  readonly at: number;
  readonly fields: number;
  readonly device: number;
}

/** @throws Refused when it does not fit together, or into `volumeBytes` */
export function decodeLoggedInode(sb: Superblock, { regions }: Item, volumeBytes: number): LoggedInode {
  const format = regions[0]!;
  const view = viewOf(format);
  const packed = format.length === PACKED_FORMAT_BYTES ? 4 : 0;
  if (format.length + packed !== FORMAT_BYTES)
    throw corrupt(`an inode described in ${format.length} bytes found`);
  const fields = view.getUint32(4, true);
  if ((fields & FIELD.owners) !== 0) throw unknown("an inode whose trees change their owner found");
  const buffer = Number(view.getBigUint64(40 - packed, true)) * SECTOR_BYTES;
  const bufferBytes = view.getUint32(48 - packed, true) * SECTOR_BYTES;
  const at = buffer + view.getUint32(52 - packed, true);
  const isInside = bufferBytes <= CLUSTER_BYTES_MAX && at + sb.inodeBytes <= buffer + bufferBytes;
  const isPlaced = isInside && at % sb.inodeBytes === 0 && buffer + bufferBytes <= volumeBytes;
  if (!isPlaced || (fields & FIELD.core) === 0 || fields > FIELD.known) {
    throw corrupt(`an inode at ${at} in ${bufferBytes} bytes, with fields 0x${fields.toString(16)} found`);
  }
  return { buffer, bufferBytes, at, fields, device: view.getUint32(24 - packed, true) };
}

/** @param place that of the transaction. @throws Refused */
export async function replayInode(
  device: Overlay,
  sb: Superblock,
  item: Item,
  logged: LoggedInode,
  place: bigint,
): Promise<void> {
  const bytes = await readBytes(device, logged.at, sb.inodeBytes);
  const view = viewOf(bytes);
  const core = item.regions[1];
  const coreBytes = sb.version === 5 ? NEW_BYTES : OLD_BYTES;
  const loggedBytes = sb.version === 5 ? NEW_BYTES : INODE_AT.nextUnlinked;
  if (core?.length !== loggedBytes || viewOf(core).getUint16(0, true) !== INODE_MAGIC) {
    throw corrupt(`the inode at ${logged.at} logged in ${core?.length ?? 0} bytes, ${loggedBytes} expected`);
  }
  if (view.getUint16(0) !== INODE_MAGIC) throw corrupt(`no inode at ${logged.at} found`);
  if (isNewer(sb, view, viewOf(core), place)) return;
  layCore(view, viewOf(core));
  if (sb.version === 5) {
    view.setBigUint64(INODE_AT.place, place);
    bytes.set(core.subarray(INODE_AT.uuid, INODE_AT.uuid + 16), INODE_AT.uuid);
  }
  const split = view.getUint8(INODE_AT.forkOffset) * 8;
  if (coreBytes + split > sb.inodeBytes)
    throw corrupt(`an attribute fork at ${split} of the inode at ${logged.at}`);
  if ((logged.fields & FIELD.device) !== 0) view.setUint32(coreBytes, logged.device);
  const end = split === 0 ? sb.inodeBytes : coreBytes + split;
  const forks = item.regions.slice(2);
  for (const [field, fork] of [
    [FIELD.data, bytes.subarray(coreBytes, end)],
    [FIELD.attributes, bytes.subarray(coreBytes + split)],
  ] as const) {
    if ((logged.fields & (field.plain | field.root)) === 0) continue;
    layFork(sb, logged, forks.shift(), fork, (logged.fields & field.root) !== 0);
  }
  if (forks.length > 0) throw corrupt(`${item.regions.length} regions of the inode at ${logged.at} found`);
  stampInode(bytes);
  await device.write(logged.at, bytes);
}

/** Whether the inode as it is was changed after the transaction. */
function isNewer(sb: Superblock, view: DataView, core: DataView, place: bigint): boolean {
  if (sb.version === 5) {
    const changed = view.getBigUint64(INODE_AT.place);
    return view.getUint8(INODE_AT.version) >= 3 && changed !== NEVER && changed > place;
  }
  const [found, logged] = [view.getUint16(FLUSHES_AT), core.getUint16(FLUSHES_AT, true)];
  const isWrapped = found === FLUSHES_MAX && logged < FLUSHES_MAX >>> 1;
  return logged < found && !isWrapped;
}

/** Turns the order of the bytes round, field by field. */
function layCore(view: DataView, core: DataView): void {
  const isNew = core.getUint8(INODE_AT.version) === 3 && core.byteLength === NEW_BYTES;
  const flags2 = isNew ? core.getUint32(INODE_AT.flags2, true) : 0;
  const swap = (at: number, bytes: number) => {
    for (let index = 0; index < bytes; index++)
      view.setUint8(at + index, core.getUint8(at + bytes - 1 - index));
  };
  for (const [at, bytes] of SWAPPED) swap(at, bytes);
  if (isNew) for (const [at, bytes] of SWAPPED_NEW) swap(at, bytes);
  for (const at of isNew ? [...TIMES, TIME_NEW] : TIMES) {
    if ((flags2 & FLAG2_BIGTIME) !== 0) {
      swap(at, 8);
    } else {
      swap(at, 4);
      swap(at + 4, 4);
    }
  }
  view.setUint16(INODE_AT.oldLinks, 0);
  view.setBigUint64(COUNTS_AT, 0n);
  if ((flags2 & FLAG2.largeCounts) !== 0) swap(COUNTS_AT, 8);
}

function layFork(
  sb: Superblock,
  { at }: LoggedInode,
  content: Uint8Array | undefined,
  fork: Uint8Array,
  isRoot: boolean,
): void {
  const laid = content === undefined || !isRoot ? content : rootOf(sb, content, fork.length);
  if (laid === undefined || laid.length > fork.length) {
    throw corrupt(`a fork of ${content?.length ?? 0} bytes for ${fork.length} of the inode at ${at} found`);
  }
  fork.set(laid);
}

/** The root of a tree as it lies in an inode; undefined when it does not fit there. */
function rootOf(sb: Superblock, node: Uint8Array, forkBytes: number): Uint8Array | undefined {
  const header = NODE_BYTES[sb.version];
  const room = Math.floor((node.length - header) / 16);
  const roomThere = Math.floor((forkBytes - 4) / 16);
  const entries = room < 0 ? -1 : viewOf(node).getUint16(6);
  if (entries < 0 || entries > Math.min(room, roomThere)) return undefined;
  const root = new Uint8Array(4 + roomThere * 16);
  root.set(node.subarray(4, 8));
  root.set(node.subarray(header, header + entries * 8), 4);
  root.set(node.subarray(header + room * 8, header + (room + entries) * 8), 4 + roomThere * 8);
  return root;
}
