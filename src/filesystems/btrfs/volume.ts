/**
 * The devices, the map of chunks, and how nodes are read through it.
 *
 *   wanted: addresses → chunk → member and place → sorted → few large reads → each node checked → handed over
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import type { BlockDevice } from "../../device/device.ts";
import { readScattered } from "../reading.ts";
import { Refused } from "../refused.ts";
import { placeOf, type Chunk, type ChunkMap } from "./chunks.ts";
import { checkItems, identifiedNode, type Node, type NodeReference } from "./node.ts";
import { damaged, type Unreadable } from "./refused.ts";
import type { Superblock } from "./superblock.ts";

export interface Member {
  readonly device: BlockDevice;
  readonly sb: Superblock;
}

/** A tree, as far as its nodes are read. */
export interface Tree {
  readonly id: bigint;
  /** Which tree its nodes say that they belong to; undefined where shared nodes may name another. */
  readonly nodesSay: bigint | undefined;
}

export interface Wanted extends NodeReference {
  readonly tree: Tree;
}

export class NodeSource {
  readonly members: readonly Member[];
  readonly map: ChunkMap;
  readonly #sb: Superblock;
  readonly #unreadable: Unreadable;

  constructor(members: readonly Member[], map: ChunkMap, unreadable: Unreadable) {
    this.members = members;
    this.map = map;
    this.#sb = members[0]!.sb;
    this.#unreadable = unreadable;
  }

  /** Hands over the nodes in the order of the disk. @throws Refused, unless what is unreadable is passed by */
  async read<W extends Wanted>(wanted: readonly W[], use: (node: Node, wanted: W) => void): Promise<void> {
    let rest = wanted;
    for (let copy = 0; rest.length > 0; copy++) rest = await this.#readCopies(rest, copy, use);
  }

  /** @returns what could not be read, and is to be tried in the next copy */
  async #readCopies<W extends Wanted>(
    wanted: readonly W[],
    copy: number,
    use: (node: Node, wanted: W) => void,
  ): Promise<W[]> {
    const { nodeBytes } = this.#sb;
    const placed: { readonly member: number; readonly position: number; readonly wanted: W }[] = [];
    const failed: W[] = [];
    for (const one of wanted) {
      const chunk = this.chunkOf(one);
      const place = chunk && placeOf(chunk, one.at, nodeBytes, copy);
      if (place === undefined && this.#unreadable === "refuse") {
        throw damaged(`node at ${one.at}: it does not lie in one piece of a chunk`);
      }
      if (place === undefined && chunk !== undefined && copy < chunk.mirrors) failed.push(one);
      // A position is in nodes, which need not lie at whole ones; as fractions of powers of two they are exact.
      if (place !== undefined) placed.push({ ...place, position: place.at / nodeBytes, wanted: one });
    }
    placed.sort((a, b) => a.member - b.member || a.position - b.position);
    for (let from = 0; from < placed.length;) {
      const { member } = placed[from]!;
      let to = from + 1;
      while (placed[to]?.member === member) to++;
      const run = placed.slice(from, to);
      const positions = run.map(({ position }) => position);
      await readScattered(this.members[member]!.device, nodeBytes, positions, (index, bytes) => {
        const one = run[index]!.wanted;
        const node = this.#check(one, bytes);
        if (node === undefined) failed.push(one);
        else use(node, one);
      });
      from = to;
    }
    return failed;
  }

  /** The chunk that a node lies in, if it can lie there at all. */
  chunkOf({ at }: NodeReference): Chunk | undefined {
    const { nodeBytes, sectorBytes } = this.#sb;
    return at % sectorBytes === 0 ? this.map.chunkOf(at, nodeBytes) : undefined;
  }

  /** For trees that are read alone: whether a node comes for the first time. What lies nowhere is for `read` to judge. */
  onceEach(): (node: NodeReference) => boolean {
    const seen = new SparseBitmap();
    return (node) => {
      if (this.chunkOf(node) === undefined) return this.#unreadable === "refuse";
      const sector = node.at / this.#sb.sectorBytes;
      if (seen.has(sector)) return false;
      seen.setRange(sector, sector + 1);
      return true;
    };
  }

  #check({ tree, ...reference }: Wanted, bytes: Uint8Array): Node | undefined {
    let node: Node | undefined;
    try {
      node = identifiedNode(this.#sb, reference, bytes, tree.nodesSay);
      checkItems(node);
    } catch (error) {
      if (this.#unreadable === "refuse" || !(error instanceof Refused)) throw error;
      if (node !== undefined) node.count = 0; // It is the one that was meant, and leads nowhere.
    }
    return node;
  }
}
