/**
 * The walk: every node that the node address table names, and every block that a node names.
 *
 *   NAT → nodes, in the order of the disk → blocks of files        a node id that a node names must be in the NAT
 *
 * F2FS shares nothing: a block that two owners claim is damage. What lies before the main area and behind it is the
 * filesystem's own.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import type { BlockDevice } from "../../device/device.ts";
import type { Visit } from "../filesystem.ts";
import { readScattered } from "../reading.ts";
import {
  ADDRESSES,
  childrenOf,
  contentOf,
  hasAddresses,
  readInode,
  readNode,
  visitRuns,
  type Node,
} from "./node.ts";
import type { NodeTable } from "./nodes.ts";
import { contradiction, damaged } from "./refused.ts";
import { BLOCK_BYTES, SEGMENT_BLOCKS, type Superblock } from "./superblock.ts";

export const AREAS = ["superblocks", "checkpoints", "SIT", "NAT", "SSA", "behind the main area"] as const;

export interface Volume {
  readonly device: BlockDevice;
  readonly sb: Superblock;
  readonly table: NodeTable;
}

/** @throws Refused for every damage and contradiction on the way */
export async function walk(volume: Volume, visit: Visit): Promise<void> {
  const { device, sb, table } = volume;
  const walker = new Walker(volume, visit);
  walker.fixed();
  const nodes = Uint32Array.from(table.blocks.keys()).filter((node) => table.blocks[node] !== 0);
  nodes.sort((a, b) => table.blocks[a]! - table.blocks[b]!);
  const positions = Uint32Array.from(nodes, (node) => table.blocks[node]!);
  for (const block of positions) walker.mustLieInMain(block);
  await readScattered(device, BLOCK_BYTES, positions, (index, bytes) => {
    const id = nodes[index]!;
    walker.node(readNode(bytes, positions[index]!, id, table.inodes[id]!), positions[index]!);
  });
  if (table.blocks[sb.root] === 0) throw damaged(`NAT: no root inode ${sb.root} found`);
}

class Walker {
  readonly #volume: Volume;
  readonly #visit: Visit;
  readonly #claimed = new SparseBitmap();
  readonly #end: number;

  constructor(volume: Volume, visit: Visit) {
    this.#volume = volume;
    this.#visit = visit;
    this.#end = volume.sb.main + volume.sb.mainSegments * SEGMENT_BLOCKS;
  }

  fixed(): void {
    const { sb } = this.#volume;
    const starts = [0, sb.cp, sb.sit, sb.nat, sb.ssa, this.#end];
    const ends = [sb.cp, sb.sit, sb.nat, sb.ssa, sb.main, sb.blocks];
    AREAS.forEach((_, area) => {
      const [start, end] = [starts[area]!, ends[area]!];
      if (start < end) this.#visit(0, start * BLOCK_BYTES, end * BLOCK_BYTES, -1 - area);
    });
  }

  mustLieInMain(block: number): void {
    if (block >= this.#volume.sb.main && block < this.#end) return;
    throw damaged(`node in block ${block} found, in the main area up to ${this.#end} expected`);
  }

  node(node: Node, block: number): void {
    this.#claim(node.inode, block, 1);
    const claim = (start: number, blocks: number) => this.#claim(node.inode, start, blocks);
    if (node.place !== 0) {
      const content = contentOf(node.place);
      if (content === "addresses") visitRuns(node.view, 0, ADDRESSES, claim);
      if (content !== "nodes") return;
      for (let index = 0; index < ADDRESSES; index++) {
        this.#mustBeKnown(node.inode, node.view.getUint32(index * 4, true));
      }
      return;
    }
    const inode = readInode(this.#volume.sb, node);
    this.#mustBeKnown(inode.id, inode.attributes);
    for (const child of childrenOf(node.view)) this.#mustBeKnown(inode.id, child);
    if (hasAddresses(inode)) visitRuns(node.view, inode.at, inode.words, claim);
  }

  #mustBeKnown(inode: number, node: number): void {
    const { table } = this.#volume;
    if (node === 0) return;
    if (node >= table.blocks.length || table.blocks[node] === 0 || table.inodes[node] !== inode) {
      throw damaged(`NAT: no node ${node} of inode ${inode} found`);
    }
  }

  #claim(inode: number, start: number, blocks: number): void {
    const end = start + blocks;
    if (start < this.#volume.sb.main || end > this.#end) {
      throw damaged(
        `data of inode ${inode} in block ${start} found, in the main area up to ${this.#end} expected`,
      );
    }
    const taken = this.#claimed.nextSet(start, end);
    if (taken < end) throw contradiction(`block ${taken} of inode ${inode} belongs to another owner too`);
    this.#claimed.setRange(start, end);
    this.#visit(0, start * BLOCK_BYTES, end * BLOCK_BYTES, inode);
  }
}
