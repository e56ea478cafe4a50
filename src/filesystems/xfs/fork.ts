/**
 * Forks: where the data or the attributes of an inode lie.
 *
 *   extent:  16 bytes: | unwritten 1 bit | file block 54 | address 52 | blocks 21 |
 *   in the inode:  extents one behind another; or the root of a tree: | level u16 | entries u16 | keys … | addresses … |
 *   node, leaf:    | "BMAP" or "BMA3" | level u16 | entries u16 | left u64 | right u64 |
 *                  version 5 adds: | own place in sectors u64 | lsn u64 | UUID | inode u64 | checksum u32 | 0 u32 |
 *                  | keys u64 … addresses u64 …, or extents |
 *
 * Data extents, "XFS Algorithms & Data Structures".
 */
import { viewOf } from "../../bytes/struct.ts";
import { readBytes } from "../../device/device.ts";
import type { Volume } from "./headers.ts";
import { FORMAT, TYPE, type Fork, type Inode } from "./inode.ts";
import { contradiction, damaged, verifyChecksum } from "./refused.ts";
import { blockAt, type Superblock } from "./superblock.ts";

const EXTENT_BYTES = 16;
const ENTRY_BYTES = 16;
export const HEADER_BYTES = { 4: 24, 5: 72 } as const;
const MAGIC = { 4: 0x424d4150, 5: 0x424d4133 } as const;
const CHECKSUM_AT = 64;
const LEVELS_MAX = 12;

/** An inode while its forks are read: what was counted, and what it says itself. */
export interface Tally {
  readonly inode: number;
  readonly isShareable: boolean;
  readonly blocks: number;
  readonly extents: Readonly<Record<ForkName, number>>;
  foundBlocks: number;
  readonly foundExtents: Record<ForkName, number>;
  /** Nodes of its trees that are still to be read. */
  waiting: number;
}

export type ForkName = "data" | "attributes";

/** A block of a tree of extents that is still to be read. */
export interface ForkNode {
  readonly tally: Tally;
  readonly fork: ForkName;
  readonly block: number;
  readonly level: number;
}

export interface ForkSink {
  /** `count` blocks from `start`, counted through all AGs. */
  run(node: ForkNode, logical: number, start: number, count: number, unwritten: boolean): void;
  node(node: ForkNode): void;
}

/** Reads what lies in the inode itself. @throws Refused */
export function readForks(sb: Superblock, inode: Inode, sink: ForkSink): void {
  const tally: Tally = {
    inode: inode.number,
    isShareable: inode.isShareable,
    blocks: inode.blocks,
    extents: { data: inode.data.extents, attributes: inode.attributes?.extents ?? 0 },
    foundBlocks: 0,
    foundExtents: { data: 0, attributes: 0 },
    waiting: 0,
  };
  checkType(inode);
  readFork(sb, tally, "data", inode.data, inode.bytes, sink);
  if (inode.attributes !== undefined) {
    if (inode.attributes.format === FORMAT.device)
      throw damaged(`inode ${inode.number}: attributes in the format of a device found`);
    readFork(sb, tally, "attributes", inode.attributes, inode.bytes, sink);
  }
  checkTally(tally);
}

function checkType({ number, type, data }: Inode): void {
  const hasContent = type === TYPE.file || type === TYPE.directory || type === TYPE.symlink;
  const isFit = hasContent
    ? data.format !== FORMAT.device && (type !== TYPE.file || data.format !== FORMAT.local)
    : data.format === FORMAT.device;
  if (isFit && data.format <= FORMAT.tree) return;
  throw damaged(`inode ${number}: format ${data.format} of file type 0x${type.toString(16)} found`);
}

function readFork(
  sb: Superblock,
  tally: Tally,
  fork: ForkName,
  { format, extents, start, end }: Fork,
  view: DataView,
  sink: ForkSink,
): void {
  const root: ForkNode = { tally, fork, block: -1, level: 0 };
  if (format === FORMAT.extents) {
    if (extents > Math.floor((end - start) / EXTENT_BYTES)) {
      throw damaged(`${where(root)}: ${extents} extents found, more than there is room for`);
    }
    readExtents(sb, root, view, start, extents, sink);
  } else if (format === FORMAT.tree) {
    const [level, entries] = [view.getUint16(start), view.getUint16(start + 2)];
    const room = Math.floor((end - start - 4) / ENTRY_BYTES);
    if (level < 1 || level > LEVELS_MAX || entries < 1 || entries > room) {
      throw damaged(`${where(root)}: ${entries} entries in level ${level} found, at most ${room} expected`);
    }
    readEntries(sb, { ...root, level }, view, start + 4 + room * 8, entries, sink);
  } else if (format > FORMAT.tree || extents > 0) {
    throw damaged(`${where(root)}: format ${format} with ${extents} extents found`);
  }
}

/** Reads a block of a tree. @throws Refused */
export function readForkNode(sb: Superblock, node: ForkNode, bytes: Uint8Array, sink: ForkSink): void {
  const view = viewOf(bytes);
  const header = HEADER_BYTES[sb.version];
  if (view.getUint32(0) !== MAGIC[sb.version]) {
    throw damaged(`${where(node)}: magic 0x${view.getUint32(0).toString(16)} found`);
  }
  if (sb.version === 5) checkStamp(sb, node, bytes, view);
  const [level, entries] = [view.getUint16(4), view.getUint16(6)];
  const room = Math.floor((bytes.length - header) / ENTRY_BYTES);
  if (level !== node.level || entries < 1 || entries > room) {
    throw damaged(
      `${where(node)}: ${entries} entries in level ${level} found, at most ${room} in level ${node.level} expected`,
    );
  }
  node.tally.waiting--;
  if (level === 0) readExtents(sb, node, view, header, entries, sink);
  else readEntries(sb, node, view, header + room * 8, entries, sink);
  checkTally(node.tally);
}

function checkStamp(sb: Superblock, node: ForkNode, bytes: Uint8Array, view: DataView): void {
  verifyChecksum(() => where(node), bytes, CHECKSUM_AT);
  const place = view.getUint32(24) * 2 ** 32 + view.getUint32(28);
  const owner = view.getUint32(56) * 2 ** 32 + view.getUint32(60);
  const isPlace = place === (node.block * sb.blockBytes) / 512;
  if (!isPlace || owner !== node.tally.inode || Buffer.compare(bytes.subarray(40, 56), sb.metaUuid) !== 0) {
    throw damaged(
      `${where(node)}: it says it lies at sector ${place} and belongs to inode ${owner}, or to another filesystem`,
    );
  }
}

function readExtents(
  sb: Superblock,
  node: ForkNode,
  view: DataView,
  from: number,
  count: number,
  sink: ForkSink,
): void {
  let next = 0;
  for (let at = from; at < from + count * EXTENT_BYTES; at += EXTENT_BYTES) {
    const [a, b, c, d] = [
      view.getUint32(at),
      view.getUint32(at + 4),
      view.getUint32(at + 8),
      view.getUint32(at + 12),
    ];
    const logical = (a & 0x7fffffff) * 2 ** 23 + (b >>> 9);
    const address = (b & 0x1ff) * 2 ** 43 + c * 2 ** 11 + (d >>> 21);
    const blocks = d & 0x1fffff;
    const start = blockAt(sb, address, blocks);
    if (start < 0 || blocks === 0 || logical < next) {
      throw damaged(`${where(node)}: ${blocks} blocks at address ${address} for file block ${logical} found`);
    }
    next = logical + blocks;
    node.tally.foundBlocks += blocks;
    node.tally.foundExtents[node.fork]++;
    sink.run(node, logical, start, blocks, a >>> 31 === 1);
  }
}

function readEntries(
  sb: Superblock,
  node: ForkNode,
  view: DataView,
  from: number,
  entries: number,
  sink: ForkSink,
): void {
  for (let at = from; at < from + entries * 8; at += 8) {
    const address = view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
    const block = blockAt(sb, address, 1);
    if (block < 0) throw damaged(`${where(node)}: a pointer to address ${address} found`);
    node.tally.foundBlocks++;
    node.tally.waiting++;
    sink.node({ ...node, block, level: node.level - 1 });
  }
}

/** When all was read the inode must have counted the same. */
function checkTally({ inode, waiting, blocks, extents, foundBlocks, foundExtents }: Tally): void {
  if (waiting > 0) return;
  for (const fork of ["data", "attributes"] as const) {
    if (foundExtents[fork] === extents[fork]) continue;
    throw contradiction(
      `inode ${inode}: ${foundExtents[fork]} extents of its ${fork} found, ${extents[fork]} expected`,
    );
  }
  if (foundBlocks === blocks) return;
  throw contradiction(`inode ${inode}: ${foundBlocks} blocks found, ${blocks} expected`);
}

const where = ({ tally, fork, block, level }: ForkNode) =>
  `inode ${tally.inode}, ${fork}${block < 0 ? "" : `, block ${block} of level ${level}`}`;

export interface Run {
  readonly logical: number;
  readonly start: number;
  readonly blocks: number;
  readonly unwritten: boolean;
}

/** All runs of the data of an inode, ascending. @throws Refused */
export async function dataRuns({ device, sb }: Volume, inode: Inode): Promise<Run[]> {
  const runs: Run[] = [];
  const nodes: ForkNode[] = [];
  const seen = new Set<number>();
  const sink: ForkSink = {
    run({ fork }, logical, start, blocks, unwritten) {
      if (fork === "data") runs.push({ logical, start, blocks, unwritten });
    },
    node: (node) => nodes.push(node),
  };
  readForks(sb, inode, sink);
  for (let node = nodes.pop(); node !== undefined; node = nodes.pop()) {
    if (seen.has(node.block)) throw damaged(`${where(node)}: the tree comes back to it`);
    seen.add(node.block);
    readForkNode(sb, node, await readBytes(device, node.block * sb.blockBytes, sb.blockBytes), sink);
  }
  return runs.sort((a, b) => a.logical - b.logical);
}
