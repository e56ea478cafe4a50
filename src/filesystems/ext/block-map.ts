/**
 * How an inode finds its blocks.
 *
 *   extents:   inode root | header | entry × 4 |                header: magic 0xf30a, entries, max, depth
 *                 └ depth > 0: index → node | header | entries … | checksum |
 *                 └ depth 0:   logical, length (above 32768: unwritten), start
 *
 *   blocks:    inode | 12 direct | indirect | double | triple |     a pointer of 0 is a hole
 *
 * A parser sees one node at a time and hands what it finds to a sink; who reads the nodes, and in which order, is the
 * caller's business. Depth is bounded by the format; that no node is read twice is for the caller to enforce (H24).
 * Documentation/filesystems/ext4/{ifork,blockmap}.rst of Linux.
 */
import { crc32c } from "../../bytes/checksum.ts";
import { viewOf } from "../../bytes/struct.ts";
import { readBytes } from "../../device/device.ts";
import type { Volume } from "./groups.ts";
import { mapKind, type Inode } from "./inode.ts";
import { badChecksum, damaged } from "./refused.ts";
import type { Superblock } from "./superblock.ts";

/** Blocks of a file that lie in order. */
export interface BlockRun {
  readonly logical: number;
  readonly start: number;
  readonly blocks: number;
  readonly unwritten: boolean;
}

/** A block of the map itself. */
export interface MapNode {
  readonly inode: Inode;
  readonly kind: "extents" | "blocks";
  readonly block: number;
  /** Levels below this node: at 0 it lists runs, above it lists nodes. */
  readonly depth: number;
  /** The blocks of the file that the node may speak about. */
  readonly logical: number;
  readonly logicalEnd: number;
}

export interface MapSink {
  run(inode: Inode, logical: number, start: number, blocks: number, unwritten: boolean): void;
  node(node: MapNode): void;
}

const EXTENT_MAGIC = 0xf30a;
const ENTRY_BYTES = 12;
const DEPTH_MAX = 5;
const UNWRITTEN = 32768;
const DIRECT = 12;
const LOGICAL_MAX = 2 ** 32;

/** Reads the part of the map that lies in the inode. @throws Refused */
export function readRoot(sb: Superblock, inode: Inode, sink: MapSink): void {
  const kind = mapKind(sb, inode);
  if (kind === "extents") {
    const depth = viewOf(inode.map).getUint16(6, true);
    if (depth > DEPTH_MAX)
      throw damaged(`inode ${inode.number}: extent tree of depth ${depth} found, at most 5 expected`);
    const root = { inode, kind, block: 0, depth, logical: 0, logicalEnd: LOGICAL_MAX };
    readExtents(sb, root, inode.map, sink);
  } else if (kind === "blocks") {
    readDirect(sb, inode, sink);
  }
}

/** Reads a node of the map from its block. @throws Refused */
export function readNode(sb: Superblock, node: MapNode, bytes: Uint8Array, sink: MapSink): void {
  if (node.kind === "extents") readExtents(sb, node, bytes, sink);
  else readPointers(sb, node, bytes, sink);
}

function where(node: MapNode): string {
  return node.block === 0
    ? `inode ${node.inode.number}`
    : `inode ${node.inode.number}, block ${node.block} of its map`;
}

function readExtents(sb: Superblock, node: MapNode, bytes: Uint8Array, sink: MapSink): void {
  const view = viewOf(bytes);
  const magic = view.getUint16(0, true);
  const entries = view.getUint16(2, true);
  const max = view.getUint16(4, true);
  const depth = view.getUint16(6, true);
  const room = Math.floor(bytes.length / ENTRY_BYTES) - 1;
  const isRoot = node.block === 0;
  if (magic !== EXTENT_MAGIC) {
    throw damaged(`${where(node)}: extent magic 0x${magic.toString(16)} found, 0xf30a expected`);
  }
  if (depth !== node.depth) throw damaged(`${where(node)}: depth ${depth} found, ${node.depth} expected`);
  if (max === 0 || max > room || entries > max || (entries === 0 && !(isRoot && depth === 0))) {
    throw damaged(`${where(node)}: ${entries} of ${max} extents found, 1 to ${room} expected`);
  }
  if (!isRoot && sb.checksums) verifyTail(node, bytes, (max + 1) * ENTRY_BYTES);

  let next = node.logical;
  for (let at = ENTRY_BYTES; at < (entries + 1) * ENTRY_BYTES; at += ENTRY_BYTES) {
    const logical = view.getUint32(at, true);
    if (logical < next || (at === ENTRY_BYTES && !isRoot && logical !== next)) {
      throw damaged(`${where(node)}: an extent at file block ${logical} found, ${next} expected`);
    }
    next = depth > 0 ? readIndex(sb, node, view, at, sink) : readExtent(sb, node, view, at, sink);
    if (next > node.logicalEnd) {
      throw damaged(`${where(node)}: an extent ends at file block ${next}, past ${node.logicalEnd}`);
    }
  }
}

function verifyTail(node: MapNode, bytes: Uint8Array, at: number): void {
  if (at + 4 > bytes.length) throw damaged(`${where(node)}: no room for the checksum`);
  const found = viewOf(bytes).getUint32(at, true);
  const expected = crc32c(node.inode.seed, bytes, 0, at);
  if (found !== expected) throw badChecksum(where(node), found, expected);
}

/** @returns the first file block behind the extent */
function readExtent(sb: Superblock, node: MapNode, view: DataView, at: number, sink: MapSink): number {
  const logical = view.getUint32(at, true);
  const length = view.getUint16(at + 4, true);
  const unwritten = length > UNWRITTEN;
  const blocks = unwritten ? length - UNWRITTEN : length;
  const start = view.getUint32(at + 8, true) + view.getUint16(at + 6, true) * 2 ** 32;
  checkBlocks(sb, node, start, blocks);
  sink.run(node.inode, logical, start, blocks, unwritten);
  return logical + blocks;
}

/** @returns the first file block that the next entry may speak about */
function readIndex(sb: Superblock, node: MapNode, view: DataView, at: number, sink: MapSink): number {
  const logical = view.getUint32(at, true);
  const block = view.getUint32(at + 4, true) + view.getUint16(at + 8, true) * 2 ** 32;
  const entries = view.getUint16(2, true);
  const isLast = at === entries * ENTRY_BYTES;
  const logicalEnd = isLast ? node.logicalEnd : view.getUint32(at + ENTRY_BYTES, true);
  checkBlocks(sb, node, block, 1);
  sink.node({ inode: node.inode, kind: "extents", block, depth: node.depth - 1, logical, logicalEnd });
  return logical + 1;
}

function checkBlocks(sb: Superblock, node: MapNode, start: number, blocks: number): void {
  if (blocks > 0 && start > sb.firstBlock && start + blocks <= sb.blocks) return;
  throw damaged(
    `${where(node)}: blocks ${start} to ${start + blocks} found, inside ${sb.firstBlock + 1} to ${sb.blocks} expected`,
  );
}

function readDirect(sb: Superblock, inode: Inode, sink: MapSink): void {
  const root = { inode, kind: "blocks", block: 0, depth: 0, logical: 0, logicalEnd: DIRECT } as const;
  readPointers(sb, root, inode.map.subarray(0, DIRECT * 4), sink);
  const perBlock = sb.blockBytes / 4;
  let logical = DIRECT;
  for (let depth = 0; depth < 3; depth++) {
    const block = viewOf(inode.map).getUint32((DIRECT + depth) * 4, true);
    const logicalEnd = logical + perBlock ** (depth + 1);
    if (block !== 0) {
      const node = { inode, kind: "blocks", block, depth, logical, logicalEnd } as const;
      checkBlocks(sb, { ...root, depth }, block, 1);
      sink.node(node);
    }
    logical = logicalEnd;
  }
}

/** Reads a list of pointers: to blocks of the file, which are gathered into runs, or to further lists. */
function readPointers(sb: Superblock, node: MapNode, bytes: Uint8Array, sink: MapSink): void {
  const pointers = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const span = (sb.blockBytes / 4) ** node.depth;
  for (let index = 0; index < pointers.length;) {
    const start = pointers[index]!;
    if (start === 0) {
      index++;
      continue;
    }
    const logical = node.logical + index * span;
    if (node.depth > 0) {
      checkBlocks(sb, node, start, 1);
      sink.node({ ...node, block: start, depth: node.depth - 1, logical, logicalEnd: logical + span });
      index++;
      continue;
    }
    let blocks = 1;
    while (index + blocks < pointers.length && pointers[index + blocks] === start + blocks) blocks++;
    checkBlocks(sb, node, start, blocks);
    sink.run(node.inode, logical, start, blocks, false);
    index += blocks;
  }
}

/** All runs of a file, ascending. @throws Refused */
export async function blockRuns(volume: Volume, inode: Inode): Promise<BlockRun[]> {
  const { device, sb } = volume;
  const runs: BlockRun[] = [];
  const nodes: MapNode[] = [];
  const seen = new Set<number>();
  const sink: MapSink = {
    run: (_, logical, start, blocks, unwritten) => runs.push({ logical, start, blocks, unwritten }),
    node: (node) => nodes.push(node),
  };
  readRoot(sb, inode, sink);
  for (let node = nodes.pop(); node !== undefined; node = nodes.pop()) {
    if (seen.has(node.block)) throw damaged(`${where(node)}: the map comes back to it`);
    seen.add(node.block);
    readNode(sb, node, await readBytes(device, node.block * sb.blockBytes, sb.blockBytes), sink);
  }
  return runs.sort((a, b) => a.logical - b.logical);
}
