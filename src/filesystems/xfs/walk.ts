/**
 * The walk: everything that is reachable, from the headers of each AG and from every inode that is in use.
 *
 *   AG:  headers, free list, blocks of the trees
 *        tree of inodes → chunks, read in the order of the disk
 *                           inode in use → its extents, its attributes
 *                                            └ nodes of their trees, gathered and read in the order of the disk
 *        tree of owners (rmapbt): what it calls used is reached, too: a third witness
 *
 * Of the trees of free space only the nodes are read, to learn where their blocks lie: their records are the map's
 * word. Names are read to see that each leads to an inode in use: else xfs_repair looks for it in what is free.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import type { ExtentSet } from "../../bytes/extents.ts";
import { bytesOf, viewOf } from "../../bytes/struct.ts";
import type { Visit } from "../filesystem.ts";
import { pipelined, readScattered } from "../reading.ts";
import { CHUNK_INODES, readChunks, type Chunks } from "./chunks.ts";
import { readDirectory } from "./directory.ts";
import { readForkNode, readForks, type ForkNode, type ForkSink } from "./fork.ts";
import type { Volume } from "./headers.ts";
import { decodeInode, INODE_AT, TYPE, type Inode } from "./inode.ts";
import { logExtent } from "./log.ts";
import { readOwners } from "./reverse-map.ts";
import { contradiction, damaged } from "./refused.ts";
import { readShared } from "./shared.ts";
import { describeStructure, structureOwner, type Structure } from "./structures.ts";
import { inodeAt } from "./superblock.ts";
import { readTree } from "./trees.ts";

/** Blocks of inodes that are looked at before the nodes which they lead to are read. */
const BATCH_BLOCKS = 1024;
/** Nodes read together; those that list further nodes are taken in smaller numbers. */
const BATCH_NODES = 1024;
const BATCH_INNER_NODES = 32;

/** @throws Refused for every damage and contradiction on the way */
export async function walk(volume: Volume, visit: Visit): Promise<void> {
  const walker = new Walker(volume, visit);
  await walker.visitStructures();
  for (let ag = 0; ag < volume.sb.agCount; ag++) await walker.visitInodes(ag);
}

class Walker implements ForkSink {
  readonly #volume: Volume;
  readonly #visit: Visit;
  /** Blocks that have an owner: a second one is damage, but for shared blocks. */
  readonly #claimed = new SparseBitmap();
  #shared: ExtentSet | undefined;
  readonly #waiting: ForkNode[] = [];
  /** By AG. */
  readonly #chunks: Chunks[] = [];
  /** Inodes in use. */
  readonly #used = new SparseBitmap();
  /** Directories whose names are still to be read. */
  readonly #directories: Inode[] = [];

  constructor(volume: Volume, visit: Visit) {
    this.#volume = volume;
    this.#visit = visit;
  }

  async visitStructures(): Promise<void> {
    const { sb, ags } = this.#volume;
    for (const [ag, header] of ags.entries()) {
      const chunks = await readChunks(this.#volume, ag, (tree, block) => this.#own(tree, ag, block));
      this.#chunks.push(chunks);
      this.#use(ag, chunks);
      this.#own("headers", ag, 0, sb.headerBlocks);
      for (const block of header.list) this.#own("list", ag, block);
      for (const tree of ["byBlock", "bySize"] as const) {
        await readTree(this.#volume, ag, tree, header[tree], {
          block: (block) => this.#own(tree, ag, block),
        });
      }
      await this.#visitOwners(ag);
    }
    if (!this.#used.has(sb.rootInode)) throw contradiction(`inode ${sb.rootInode}, the root, is free`);
    const log = logExtent(sb);
    const logAg = Math.floor(log.start / sb.agBlocks);
    this.#own("log", logAg, log.start - logAg * sb.agBlocks, log.end - log.start);
    const { shared, kept } = await readShared(this.#volume, (ag, block) => this.#own("refcount", ag, block));
    this.#shared = shared;
    for (const { start, end } of shared) this.#claim(undefined, start, end);
    for (const { start, end } of kept) {
      const ag = Math.floor(start / sb.agBlocks);
      this.#own("staging", ag, start - ag * sb.agBlocks, end - start);
    }
  }

  /** What the tree of owners calls used is reached, whether or not anything else leads to it. */
  async #visitOwners(ag: number): Promise<void> {
    const { blockBytes } = this.#volume.sb;
    await readOwners(this.#volume, ag, {
      block: (block) => this.#own("rmap", ag, block),
      visit: (owner, start, end) => this.#visit(0, start * blockBytes, end * blockBytes, owner),
    });
  }

  async visitInodes(ag: number): Promise<void> {
    const { device, sb } = this.#volume;
    const chunks = this.#chunks[ag]!;
    const { blocks, chunkOf } = this.#blocksOf(ag, chunks);
    for (let from = 0; from < blocks.length; from += BATCH_BLOCKS) {
      const batch = blocks.subarray(from, from + BATCH_BLOCKS);
      await readScattered(device, sb.blockBytes, batch, (index, bytes) =>
        this.#scan(ag, chunks, chunkOf[from + index]!, batch[index]!, viewOf(bytes)),
      );
      await this.#readWaiting();
      await pipelined(this.#readDirectories(), () => {});
    }
  }

  /** Remembers which inodes of the chunks are in use. */
  #use(ag: number, { count, first, free, holes }: Chunks): void {
    for (let word = 0; word < count * 2; word++) {
      const unused = free[word]! | holes[word]!;
      const base = inodeAt(this.#volume.sb, ag, first[word >>> 1]! + (word & 1) * 32);
      for (let bit = 0; bit < 32;) {
        const isUsed = ((unused >>> bit) & 1) === 0;
        const start = bit;
        while (bit < 32 && (((unused >>> bit) & 1) === 0) === isUsed) bit++;
        if (isUsed) this.#used.setRange(base + start, base + bit);
      }
    }
  }

  *#readDirectories(): Generator<Promise<void>> {
    for (let next = this.#directories.pop(); next !== undefined; next = this.#directories.pop()) {
      const directory = next;
      yield readDirectory(this.#volume, directory, (inode) => this.#checkName(directory, inode));
    }
  }

  #checkName(directory: Inode, inode: number): void {
    if (this.#used.has(inode)) return;
    throw contradiction(`inode ${inode} is free, but directory inode ${directory.number} names it`);
  }

  /** The blocks that hold inodes, and the chunk of each; a block of several chunks is there several times. */
  #blocksOf(ag: number, chunks: Chunks): { blocks: Float64Array; chunkOf: Uint32Array } {
    const { sb } = this.#volume;
    const perBlock = Math.min(CHUNK_INODES, sb.inodesPerBlock);
    const all = (CHUNK_INODES / perBlock) * chunks.count;
    const blocks = new Float64Array(all);
    const chunkOf = new Uint32Array(all);
    const mask = perBlock >= 32 ? 0xffffffff : 2 ** perBlock - 1;
    let found = 0;
    let owned = -1;
    for (let chunk = 0; chunk < chunks.count; chunk++) {
      const first = chunks.first[chunk]!;
      for (let index = 0; index < CHUNK_INODES; index += perBlock) {
        const holes = ((chunks.holes[chunk * 2 + (index >>> 5)]! >>> (index & 31)) & mask) >>> 0;
        if (holes === mask && perBlock < CHUNK_INODES) continue;
        if (holes !== 0) throw damaged(`inode chunk ${first} of AG ${ag}: a hole of half a block found`);
        const block = Math.floor((first + index) / sb.inodesPerBlock);
        if (block !== owned) this.#own("chunks", ag, block);
        owned = block;
        blocks[found] = ag * sb.agBlocks + block;
        chunkOf[found++] = chunk;
      }
    }
    return { blocks: blocks.subarray(0, found), chunkOf };
  }

  /** Looks at the inodes of a chunk that lie in a block. */
  #scan(ag: number, { first, free }: Chunks, chunk: number, block: number, view: DataView): void {
    const { sb } = this.#volume;
    const blockFirst = (block - ag * sb.agBlocks) * sb.inodesPerBlock;
    const start = Math.max(first[chunk]!, blockFirst);
    const end = Math.min(first[chunk]! + CHUNK_INODES, blockFirst + sb.inodesPerBlock);
    for (let index = start; index < end; index++) {
      const bit = index - first[chunk]!;
      const at = (index - blockFirst) * sb.inodeBytes;
      const isFree = ((free[chunk * 2 + (bit >>> 5)]! >>> (bit & 31)) & 1) === 1;
      if (!isFree) {
        this.#visitInode(decodeInode(sb, inodeAt(sb, ag, index), view, at));
      } else if (view.getUint16(at + INODE_AT.mode) !== 0) {
        throw contradiction(`inode ${inodeAt(sb, ag, index)}: it has a mode, but its chunk calls it free`);
      }
    }
  }

  #visitInode(inode: Inode): void {
    const { sb } = this.#volume;
    readForks(sb, inode, this);
    if (inode.number === sb.rootInode && inode.type !== TYPE.directory) {
      throw damaged(`inode ${inode.number}: file type 0x${inode.type.toString(16)} found, the root expected`);
    }
    // A directory that was deleted while open still says where it was.
    if (inode.type !== TYPE.directory || inode.links === 0) return;
    this.#directories.push({ ...inode, bytes: viewOf(bytesOf(inode.bytes).slice()) });
  }

  run({ tally, fork }: ForkNode, _logical: number, start: number, blocks: number): void {
    const { blockBytes } = this.#volume.sb;
    const end = start + blocks;
    this.#visit(0, start * blockBytes, end * blockBytes, tally.inode);
    const shared = this.#shared!;
    if (!tally.isShareable || fork !== "data" || !shared.touches({ start, end })) {
      return this.#claim(tally.inode, start, end);
    }
    let from = start;
    for (const piece of shared.within({ start, end })) {
      this.#claim(tally.inode, from, piece.start);
      from = piece.end;
    }
    this.#claim(tally.inode, from, end);
  }

  node(node: ForkNode): void {
    const { blockBytes } = this.#volume.sb;
    this.#claim(node.tally.inode, node.block, node.block + 1);
    this.#visit(0, node.block * blockBytes, (node.block + 1) * blockBytes, node.tally.inode);
    this.#waiting.push(node);
  }

  async #readWaiting(): Promise<void> {
    const { device, sb } = this.#volume;
    while (this.#waiting.length > 0) {
      const batch: ForkNode[] = [];
      let inner = 0;
      while (this.#waiting.length > 0 && batch.length < BATCH_NODES && inner < BATCH_INNER_NODES) {
        const next = this.#waiting.pop()!;
        if (next.level > 0) inner++;
        batch.push(next);
      }
      batch.sort((a, b) => a.block - b.block);
      const positions = batch.map(({ block }) => block);
      await readScattered(device, sb.blockBytes, positions, (index, bytes) =>
        readForkNode(sb, batch[index]!, bytes, this),
      );
    }
  }

  /** A structure of the filesystem's own; `block` is a block of the AG. */
  #own(structure: Structure, ag: number, block: number, count = 1): void {
    const { agBlocks, blockBytes } = this.#volume.sb;
    const start = ag * agBlocks + block;
    const owner = structureOwner(structure, ag);
    this.#claim(owner, start, start + count);
    this.#visit(0, start * blockBytes, (start + count) * blockBytes, owner);
  }

  /** @param owner undefined: several files */
  #claim(owner: number | undefined, start: number, end: number): void {
    const taken = this.#claimed.nextSet(start, end);
    if (taken === end) return this.#claimed.setRange(start, end);
    const name =
      owner === undefined ? "several files" : owner < 0 ? describeStructure(owner).name : `inode ${owner}`;
    throw contradiction(`block ${taken} of ${name} belongs to another owner too`);
  }
}
