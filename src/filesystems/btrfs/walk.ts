/**
 * The walk: every tree that the superblock and the root tree know, node by node, and the extents of every file.
 *
 *   superblock → chunk tree
 *              → root tree → extent tree, file trees of subvolumes and snapshots, relocation trees, …
 *              → log tree, when that is allowed
 *
 * Snapshots share nodes, which are read once. A node or an extent is visited in all its copies. Then come the older
 * generations (older.ts). The extent tree is walked as a tree, but what it says is not looked at.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import type { Visit } from "../filesystem.ts";
import { eachPlace, type Chunk } from "./chunks.ts";
import { eachExtent } from "./file-extents.ts";
import type { Node } from "./node.ts";
import { logTree, reachOlder } from "./older.ts";
import { chunkTree, rootTree, type Volume } from "./opening.ts";
import { OLDER, RESERVED, type Owners } from "./owners.ts";
import { contradiction, damaged } from "./refused.ts";
import { reserved } from "./reserved.ts";
import { rootsIn } from "./root-items.ts";
import { traverse, type Root, type Visitor } from "./trees.ts";
import type { Tree } from "./volume.ts";

/** @throws Refused for every damage and contradiction on the way */
export async function walk(volume: Volume, owners: Owners, visit: Visit): Promise<void> {
  const { sb, members, nodes } = volume;
  members.forEach((member, index) => {
    for (const { start, end } of reserved(member.sb)) visit(index, start, end, RESERVED);
  });
  const walker = new Walker(volume, owners, visit);
  await traverse(nodes, currentRoots(volume), walker);
  await reachOlder(
    volume,
    {
      isFollowed: (member, at) => walker.nodes[member]!.has(at / sb.sectorBytes),
      believesMaps: false,
    },
    (member, start, end) => visit(member, start, end, OLDER),
  );
}

const currentRoots = ({ sb }: Volume): Root[] => [
  rootTree(sb),
  chunkTree(sb),
  ...(sb.logRoot === 0 ? [] : [logTree(sb)]),
];

/** What a log that is not replayed yet refers to: no map knows of it. @throws Refused */
export async function reachLog(volume: Volume, owners: Owners, visit: Visit): Promise<void> {
  const { sb, nodes } = volume;
  if (sb.logRoot !== 0) await traverse(nodes, [logTree(sb)], new Walker(volume, owners, visit));
}

class Walker implements Visitor {
  /** Sectors of each member that begin a copy of a node, all of whose children are there. */
  readonly nodes: readonly SparseBitmap[];
  readonly #volume: Volume;
  readonly #owners: Owners;
  readonly #visit: Visit;
  /** Logical sectors of nodes, and of data. */
  readonly #metadata = new SparseBitmap();
  readonly #data = new SparseBitmap();

  constructor(volume: Volume, owners: Owners, visit: Visit) {
    this.#volume = volume;
    this.#owners = owners;
    this.#visit = visit;
    this.nodes = volume.members.map(() => new SparseBitmap());
  }

  enters({ at, tree, dropped }: Root): boolean {
    const { sectorBytes, nodeBytes } = this.#volume.sb;
    const first = at / sectorBytes;
    if (this.#metadata.has(first)) return false;
    const chunk = this.#chunkOf(at, nodeBytes);
    const end = first + nodeBytes / sectorBytes;
    if (this.#metadata.nextSet(first, end) < end || this.#data.nextSet(first, end) < end) {
      throw contradiction(`node at ${at} of tree ${tree.id}: its bytes belong to another owner, too`);
    }
    this.#metadata.setRange(first, end);
    const owner = this.#owners.ofNodes(tree.id);
    eachPlace(chunk, at, at + nodeBytes, (member, start, stop) => {
      if (dropped === undefined) this.nodes[member]!.setRange(start / sectorBytes, start / sectorBytes + 1);
      this.#visit(member, start, stop, owner);
    });
    return true;
  }

  leaf(node: Node, tree: Tree): Iterable<Root> {
    eachExtent(node, (at, bytes, inode) => this.#reach(tree, at, bytes, inode));
    return rootsIn(node, tree);
  }

  #reach(tree: Tree, at: number, bytes: number, inode: number): void {
    const { sectorBytes } = this.#volume.sb;
    const chunk = this.#chunkOf(at, bytes);
    const [first, end] = [at / sectorBytes, (at + bytes) / sectorBytes];
    if (this.#data.nextClear(first, end) === end) return; // shared, and visited already
    if (this.#metadata.nextSet(first, end) < end) {
      throw contradiction(`data at ${at} of inode ${inode} in tree ${tree.id}: a node lies there, too`);
    }
    this.#data.setRange(first, end);
    const owner = this.#owners.ofFile(tree.id, inode);
    eachPlace(chunk, at, at + bytes, (member, start, stop) => this.#visit(member, start, stop, owner));
  }

  #chunkOf(at: number, bytes: number): Chunk {
    const { sb, nodes } = this.#volume;
    const isAligned = at % sb.sectorBytes === 0 && bytes % sb.sectorBytes === 0 && bytes > 0;
    const chunk = isAligned ? nodes.map.chunkOf(at, bytes) : undefined;
    if (chunk === undefined) throw damaged(`${bytes} bytes at ${at} do not lie in one chunk`);
    return chunk;
  }
}
