/**
 * The walk: everything that is reachable, from the fixed structures and from every inode that is in use.
 *
 *   window of groups:  inode bitmaps → the used part of their inode tables, slice by slice
 *                         inode in use → its attribute block and the root of its block map
 *                                           └ nodes of the map, gathered and read in the order of the disk
 *
 * An inode is in use when its bitmap says so *or* something links to it; when only a link says so, the bitmap is
 * wrong and the filesystem is refused. Tables hold millions of inodes: unused ones are skipped without an object, and
 * memory is bounded by the window and by the nodes waiting.
 */
import type { Visit } from "../filesystem.ts";
import { SparseBitmap } from "../../bytes/bitmap.ts";
import { viewOf } from "../../bytes/struct.ts";
import { checkAttributeBlock } from "./attributes.ts";
import { readNode, readRoot, type MapNode, type MapSink } from "./block-map.ts";
import { Claims } from "./claims.ts";
import { visitDirectoryBlock, visitInlineDirectory } from "./directory.ts";
import { bitmapDamage, DAMAGED, INODE_UNINIT, type Volume } from "./groups.ts";
import { decodeInode, FLAG, INODE, LINKS_AT, TYPE, type Inode } from "./inode.ts";
import { visitStructures } from "./layout.ts";
import { structureOwner } from "./owners.ts";
import { IN_FLIGHT, pipelined, readScattered } from "../reading.ts";
import { contradiction, damaged } from "./refused.ts";

/** Groups whose inode bitmaps are in memory at a time. */
const WINDOW_GROUPS = 64;
const SLICE_BYTES = 1 << 20;
/** Nodes that may wait before they are read. */
const WAITING_MAX = 4096;
/** Nodes read together; those that list further nodes are taken in smaller numbers. */
const BATCH_NODES = 1024;
const BATCH_INNER_NODES = 32;

/** @throws Refused for every damage and contradiction on the way */
export async function walk(volume: Volume, visit: Visit): Promise<void> {
  const walker = new Walker(volume, visit);
  walker.visitFixed();
  for (let first = 0; first < volume.sb.groups; first += WINDOW_GROUPS) {
    await walker.visitWindow(first, Math.min(volume.sb.groups, first + WINDOW_GROUPS));
  }
  walker.checkNames();
}

/** A block that is still to be read; of a directory all blocks of a run, since a hostile one has millions (H24). */
type Waiting = { readonly block: number } & (
  | { readonly node: MapNode }
  | { readonly attributesOf: Inode }
  | { readonly entriesOf: Inode; readonly end: number }
);

class Walker implements MapSink {
  readonly #volume: Volume;
  readonly #visit: Visit;
  readonly #claims: Claims;
  readonly #attributeBlocks = new Set<number>();
  /** Nodes of the maps of inodes that describe the filesystem's own blocks; they are claimed already. */
  readonly #fixedNodes = new Set<number>();
  readonly #waiting: Waiting[] = [];
  /** Slices of inode tables, in turn. */
  readonly #buffers: (Uint8Array | undefined)[] = Array.from({ length: IN_FLIGHT });
  #turn = 0;
  /** Inodes in use, and inodes that directories name. */
  readonly #used = new SparseBitmap();
  readonly #named = new SparseBitmap();
  readonly #name = (inode: number) => this.#named.setRange(inode, inode + 1);

  constructor(volume: Volume, visit: Visit) {
    this.#volume = volume;
    this.#visit = visit;
    this.#claims = new Claims(volume.sb);
  }

  visitFixed(): void {
    visitStructures(this.#volume.sb, this.#volume.groups, (structure, group, start, end) => {
      this.#claims.addFixed(start, end);
      this.#reach(structureOwner(structure, group), start, end - start);
    });
  }

  async visitWindow(first: number, end: number): Promise<void> {
    const { device, sb, groups } = this.#volume;
    const written: number[] = [];
    for (let group = first; group < end; group++) {
      if ((groups.flags[group]! & (INODE_UNINIT | DAMAGED)) === 0) written.push(group);
    }
    const bitmaps = new Map<number, Uint8Array>();
    const positions = written.map((group) => groups.inodeBitmap[group]!);
    await readScattered(device, sb.blockBytes, positions, (index, bitmap) => {
      const group = written[index]!;
      const damage = bitmapDamage(this.#volume, group, "inode", bitmap);
      if (damage !== undefined) throw damage;
      bitmaps.set(group, bitmap.slice(0, sb.inodesPerGroup / 8));
    });
    await pipelined(this.#slices(written), async ({ group, index, bytes }) => {
      this.#scan(group, index, bytes, bitmaps.get(group)!);
      if (this.#waiting.length >= WAITING_MAX) await this.#readWaiting();
    });
    for (const [group, bitmap] of bitmaps) this.#checkUnused(group, bitmap);
    await this.#readWaiting();
  }

  /** The used parts of the inode tables, in slices. */
  *#slices(
    written: readonly number[],
  ): Generator<Promise<{ group: number; index: number; bytes: Uint8Array }>> {
    const { device, sb, groups } = this.#volume;
    const perSlice = SLICE_BYTES / sb.inodeBytes;
    const readSlice = async (group: number, index: number, count: number) => {
      const buffer = (this.#buffers[this.#turn++ % IN_FLIGHT] ??= new Uint8Array(SLICE_BYTES));
      const bytes = buffer.subarray(0, count * sb.inodeBytes);
      await device.read(groups.inodeTable[group]! * sb.blockBytes + index * sb.inodeBytes, bytes);
      return { group, index, bytes };
    };
    for (const group of written) {
      const used = sb.inodesPerGroup - groups.unusedInodes[group]!;
      for (let index = 0; index < used; index += perSlice) {
        yield readSlice(group, index, Math.min(perSlice, used - index));
      }
    }
  }

  /** Looks at the inodes of a slice that starts with inode `index` of the group. */
  #scan(group: number, index: number, bytes: Uint8Array, bitmap: Uint8Array): void {
    const { sb } = this.#volume;
    const links = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
    const table = viewOf(bytes);
    const step = sb.inodeBytes / 2;
    let at = LINKS_AT / 2;
    for (let bit = index; at < links.length; at += step, bit++) {
      const isUsed = ((bitmap[bit >> 3]! >> (bit & 7)) & 1) === 1;
      if (!isUsed && links[at] === 0) continue;
      const number = group * sb.inodesPerGroup + bit + 1;
      if (!isUsed) {
        throw contradiction(
          `inode ${number}: ${links[at]} links found, but the inode bitmap of group ${group} calls it free`,
        );
      }
      this.#visitInode(decodeInode(sb, number, table, (bit - index) * sb.inodeBytes));
    }
  }

  /** No inode is in use behind the part of the table that was ever used. */
  #checkUnused(group: number, bitmap: Uint8Array): void {
    const { sb, groups } = this.#volume;
    const used = sb.inodesPerGroup - groups.unusedInodes[group]!;
    for (let bit = used; bit < sb.inodesPerGroup; bit++) {
      if (((bitmap[bit >> 3]! >> (bit & 7)) & 1) === 0) continue;
      const number = group * sb.inodesPerGroup + bit + 1;
      throw contradiction(
        `inode ${number} is in use, but group ${group} has used only ${used} of its inodes`,
      );
    }
  }

  #visitInode(inode: Inode): void {
    const { sb } = this.#volume;
    this.#used.setRange(inode.number, inode.number + 1);
    if (inode.number === INODE.root && inode.type !== TYPE.directory) {
      throw damaged(`inode 2: file type 0x${inode.type.toString(16)} found, a directory expected`);
    }
    if (inode.xattrBlock !== 0) this.#visitAttributes(inode);
    readRoot(sb, inode, this);
    if (listsNames(inode) && (inode.flags & FLAG.inlineData) !== 0)
      visitInlineDirectory(sb, inode, this.#name);
  }

  /** A name of an inode that nobody thinks in use: e2fsck may bring that inode and its blocks back. */
  checkNames(): void {
    const { sb } = this.#volume;
    const end = sb.inodes + 1;
    for (let from = this.#named.nextSet(1, end); from < end;) {
      const to = this.#named.nextClear(from, end);
      const free = this.#used.nextClear(from, to);
      if (free < to) throw contradiction(`inode ${free} is free, but a directory names it`);
      from = this.#named.nextSet(to, end);
    }
  }

  #visitAttributes(inode: Inode): void {
    const { sb } = this.#volume;
    const block = inode.xattrBlock;
    if (this.#attributeBlocks.has(block)) return;
    if (block <= sb.firstBlock || block >= sb.blocks) {
      throw damaged(
        `inode ${inode.number}: attribute block ${block} found, inside ${sb.blocks} blocks expected`,
      );
    }
    this.#attributeBlocks.add(block);
    this.#claims.addBlock(inode.number, block);
    this.#reach(inode.number, block, 1);
    this.#waiting.push({ block, attributesOf: inode });
  }

  run(inode: Inode, logical: number, start: number, blocks: number, unwritten: boolean): void {
    // The resize inode lists the reserved descriptors, which have an owner already.
    const isFixed = inode.number === INODE.resize;
    if (isFixed && this.#claims.covers(start, blocks)) return;
    if (!isFixed) this.#claims.addRun(inode.number, logical, start, blocks);
    this.#reach(inode.number, start, blocks);
    if (!listsNames(inode)) return;
    if (unwritten) throw damaged(`directory inode ${inode.number}: file block ${logical} was never written`);
    this.#waiting.push({ block: start, entriesOf: inode, end: start + blocks });
  }

  node(node: MapNode): void {
    const { inode, block } = node;
    if (inode.number === INODE.resize && this.#claims.covers(block, 1)) {
      if (this.#fixedNodes.has(block))
        throw damaged(`inode ${inode.number}: its map comes back to block ${block}`);
      this.#fixedNodes.add(block);
    } else {
      this.#claims.addBlock(inode.number, block);
      this.#reach(inode.number, block, 1);
    }
    this.#waiting.push({ block, node });
  }

  async #readWaiting(): Promise<void> {
    const { device, sb } = this.#volume;
    while (this.#waiting.length > 0) {
      const batch = this.#takeBatch().sort((a, b) => a.block - b.block);
      const positions = batch.map(({ block }) => block);
      await readScattered(device, sb.blockBytes, positions, (index, bytes) => {
        const waiting = batch[index]!;
        if ("node" in waiting) readNode(sb, waiting.node, bytes, this);
        else if ("attributesOf" in waiting) checkAttributeBlock(sb, waiting.attributesOf, bytes);
        else visitDirectoryBlock(sb, waiting.entriesOf, waiting.block, bytes, this.#name);
      });
    }
  }

  #takeBatch(): Waiting[] {
    const batch: Waiting[] = [];
    let inner = 0;
    while (this.#waiting.length > 0 && batch.length < BATCH_NODES && inner < BATCH_INNER_NODES) {
      const next = this.#waiting.pop()!;
      if ("node" in next && next.node.depth > 0) inner++;
      batch.push(next);
      if ("entriesOf" in next && next.block + 1 < next.end) {
        this.#waiting.push({ ...next, block: next.block + 1 });
      }
    }
    return batch;
  }

  /** Visits blocks, rounded outward to clusters. */
  #reach(owner: number, start: number, blocks: number): void {
    const { blockBytes, clusterBytes } = this.#volume.sb;
    const from = Math.floor((start * blockBytes) / clusterBytes) * clusterBytes;
    const to = Math.ceil(((start + blocks) * blockBytes) / clusterBytes) * clusterBytes;
    this.#visit(0, from, to, owner);
  }
}

/** A deleted directory that is still open keeps its last entry, `..`, even when its parent is gone. */
function listsNames(inode: Inode): boolean {
  return inode.type === TYPE.directory && inode.links > 0;
}
