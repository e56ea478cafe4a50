/**
 * Generations that somebody may go back to (H4): what the other copies of the superblock and the backups in each of
 * them still reach.
 *
 *   now       root → a → b      d → e          e and c were written in its place, or not at all
 *   backup    root'→ a'→ b      d → c          root', a' and c are kept; b and d are known already
 *
 * A node that the current trees have is not looked into: what it reaches is in use as well. Only bytes tell whether it
 * is still there: what was allocated anew need not be written yet. A node that cannot be read, or is no longer the one
 * that was meant, was overwritten since; what is reached without it is kept all the same.
 *
 * Each set has its own map of chunks, for a chunk may have been removed meanwhile, even with the device of its other copy.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import { Refused, unlessDamaged } from "../refused.ts";
import { eachPlace, placeOf, type Chunk, type ChunkMap } from "./chunks.ts";
import { eachExtent } from "./file-extents.ts";
import { hasSkinnyMetadata } from "./features.ts";
import { KEY, TREE } from "./keys.ts";
import type { Node } from "./node.ts";
import { readChunks, type Volume } from "./opening.ts";
import { rootsIn } from "./root-items.ts";
import { backupRoots, LEVELS, readCopies, type Roots, type Superblock } from "./superblock.ts";
import { rootAt, traverse, type Root, type Start, type Visitor } from "./trees.ts";
import { NodeSource, type Tree } from "./volume.ts";

type Keep = (member: number, start: number, end: number) => void;

export interface Known {
  /** Whether a node of the current trees begins at `at` of a member, and all that it leads to is in use. */
  isFollowed(member: number, at: number): boolean;
  /** Whether what the older extent trees list counts as reached. */
  readonly believesMaps: boolean;
}

/** A set of roots, and how each tree of it begins. */
interface Generation extends Roots {
  /** The superblock in which it stands. */
  readonly holder: Superblock;
  readonly starts: readonly Start[];
}

/** Calls `keep` for everything that older roots reach. */
export async function reachOlder(volume: Volume, known: Known, keep: Keep): Promise<void> {
  const read = new Map<number, number>();
  for (const generation of await olderGenerations(volume)) {
    const map = await mapOf(volume, generation);
    await new OlderReach(volume, known, keep, map, read).run(generation.starts);
  }
}

async function olderGenerations({ members }: Volume): Promise<Generation[]> {
  const found = new Map<string, Generation>();
  const add = (holder: Superblock, roots: Roots, others: readonly Start[]) => {
    const { root, generation, rootLevel, chunkRoot, chunkRootGeneration, chunkRootLevel } = roots;
    const starts: Start[] = [
      { tree: TREE.root, at: root, generation, level: rootLevel },
      { tree: TREE.chunk, at: chunkRoot, generation: chunkRootGeneration, level: chunkRootLevel },
      ...others,
    ];
    // Most devices and copies tell the same.
    found.set(starts.map(({ at, generation }) => `${at} ${generation}`).join(), { ...roots, holder, starts });
  };
  for (const { device, sb } of members) {
    for (const backup of backupRoots(sb)) add(sb, backup, backup.others);
    for (const copy of await readCopies(device, sb)) {
      add(copy, copy, copy.logRoot === 0 ? [] : [startOfLog(copy)]);
      for (const backup of backupRoots(copy)) add(copy, backup, backup.others);
    }
  }
  return [...found.values()];
}

/** A log belongs to the transaction that had not come to its end. */
const startOfLog = (sb: Superblock): Start => ({
  tree: TREE.log,
  at: sb.logRoot,
  generation: sb.generation + 1,
  level: sb.logRootLevel,
});

export const logTree = (sb: Superblock): Root => rootAt(startOfLog(sb));

/** What a generation does not tell of, as far as it can be read, lies where it lies now. */
async function mapOf({ sb, members, nodes }: Volume, generation: Generation): Promise<ChunkMap> {
  const { chunkRoot, chunkRootGeneration, holder } = generation;
  if (chunkRoot === sb.chunkRoot && chunkRootGeneration === sb.chunkRootGeneration) return nodes.map;
  const map = await unlessDamaged(readChunks(members, holder, generation, "pass by"));
  return map?.completedBy(nodes.map) ?? nodes.map;
}

class OlderReach implements Visitor {
  readonly #sb: Superblock;
  readonly #known: Known;
  readonly #keep: Keep;
  readonly #source: NodeSource;
  /** By its address: of which generation the node was that was read there last, for any of the sets. */
  readonly #read: Map<number, number>;
  /** Logical sectors at which one of the trees has looked for a node. */
  #tried = new SparseBitmap();

  constructor(volume: Volume, known: Known, keep: Keep, map: ChunkMap, read: Map<number, number>) {
    this.#sb = volume.sb;
    this.#known = known;
    this.#keep = keep;
    this.#source = new NodeSource(volume.members, map, "pass by");
    this.#read = read;
  }

  async run(starts: readonly Start[]): Promise<void> {
    for (const start of starts.filter(({ level }) => level < LEVELS)) {
      // Two trees of one set may be of two generations, and mean different nodes at one place.
      this.#tried = new SparseBitmap();
      await traverse(this.#source, [rootAt(start)], this);
    }
  }

  enters(node: Root): boolean {
    const { at, generation } = node;
    const chunk = this.#source.chunkOf(node);
    const sector = at / this.#sb.sectorBytes;
    if (chunk === undefined || this.#tried.has(sector)) return false;
    this.#tried.setRange(sector, sector + 1);
    return this.#read.get(at) !== generation && !this.#isFollowed(chunk, at);
  }

  /** Whether it is a node of the current trees, or overwritten by such in all its copies. */
  #isFollowed(chunk: Chunk, at: number): boolean {
    for (let copy = 0; copy < chunk.mirrors; copy++) {
      const place = placeOf(chunk, at, this.#sb.nodeBytes, copy);
      if (place !== undefined && !this.#known.isFollowed(place.member, place.at)) return false;
    }
    return true;
  }

  node({ at, generation }: Node): void {
    this.#read.set(at, generation);
    this.#reach(at, this.#sb.nodeBytes);
  }

  *leaf(node: Node, tree: Tree): Generator<Root> {
    try {
      if (tree.id === TREE.extent && this.#known.believesMaps) this.#reachListed(node);
      eachExtent(node, (at, bytes) => this.#reach(at, bytes));
      yield* rootsIn(node, tree);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
    }
  }

  #reachListed(node: Node): void {
    const nodeBytes = hasSkinnyMetadata(this.#sb) ? this.#sb.nodeBytes : 0;
    for (let index = 0; index < node.count; index++) {
      const type = node.type(index);
      if (type === KEY.extent) this.#reach(node.id(index), node.offset(index));
      else if (type === KEY.metadata) this.#reach(node.id(index), nodeBytes);
    }
  }

  #reach(at: number, bytes: number): void {
    const chunk = this.#source.map.chunkOf(at, bytes);
    if (chunk !== undefined) eachPlace(chunk, at, at + bytes, this.#keep);
  }
}
