/**
 * Generations that somebody may go back to (H4): what the other copies of the superblock and the backups in each of
 * them still reach.
 *
 *   now       root → a → b      d → e          e and c were written in its place, or not at all
 *   backup    root'→ a'→ b      d → c          root', a' and c are kept; b and d are known already
 *
 * A node that the current trees use is not looked into: what it reaches is in use as well. A node that cannot be read,
 * or is no longer the one that was meant, was overwritten since; what is reached without it is kept all the same.
 * Each set has its own map of chunks, for a chunk may have been removed meanwhile.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import { Refused, unlessDamaged } from "../refused.ts";
import { eachPlace, placeOf, type ChunkMap } from "./chunks.ts";
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
  /** Whether the current trees use what lies at `at` of a member. */
  isUsed(member: number, at: number): boolean;
  /** Whether what the older extent trees list counts as reached. */
  readonly believesMaps: boolean;
}

/** A set of roots, and how each tree of it begins. */
interface Generation extends Roots {
  readonly starts: readonly Start[];
}

/** Calls `keep` for everything that older roots reach. */
export async function reachOlder(volume: Volume, known: Known, keep: Keep): Promise<void> {
  const read = volume.members.map(() => new SparseBitmap());
  for (const generation of await olderGenerations(volume)) {
    const map = await mapOf(volume, generation);
    await new OlderReach(volume, known, keep, map, read).run(generation.starts);
  }
}

async function olderGenerations({ members }: Volume): Promise<Generation[]> {
  const found = new Map<string, Generation>();
  const add = (roots: Roots, others: readonly Start[]) => {
    const { root, generation, rootLevel, chunkRoot, chunkRootGeneration, chunkRootLevel } = roots;
    const starts: Start[] = [
      { tree: TREE.root, at: root, generation, level: rootLevel },
      { tree: TREE.chunk, at: chunkRoot, generation: chunkRootGeneration, level: chunkRootLevel },
      ...others,
    ];
    // Most devices and copies tell the same.
    found.set(starts.map(({ at, generation }) => `${at} ${generation}`).join(), { ...roots, starts });
  };
  for (const { device, sb } of members) {
    for (const backup of backupRoots(sb)) add(backup, backup.others);
    for (const copy of await readCopies(device, sb)) {
      add(copy, copy.logRoot === 0 ? [] : [startOfLog(copy)]);
      for (const backup of backupRoots(copy)) add(backup, backup.others);
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

async function mapOf({ sb, members, nodes }: Volume, roots: Roots): Promise<ChunkMap> {
  if (roots.chunkRoot === sb.chunkRoot && roots.chunkRootGeneration === sb.chunkRootGeneration)
    return nodes.map;
  const map = await unlessDamaged(readChunks(members, roots, "pass by"));
  return map === undefined || map.chunks.length === 0 ? nodes.map : map;
}

class OlderReach implements Visitor {
  readonly #sb: Superblock;
  readonly #known: Known;
  readonly #keep: Keep;
  readonly #source: NodeSource;
  /** Sectors of each member that begin a node which was read for one of the generations. */
  readonly #read: readonly SparseBitmap[];
  /** Logical sectors at which one of the trees has looked for a node. */
  #tried = new SparseBitmap();

  constructor(volume: Volume, known: Known, keep: Keep, map: ChunkMap, read: readonly SparseBitmap[]) {
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
    const { at } = node;
    const { sectorBytes, nodeBytes } = this.#sb;
    const chunk = this.#source.chunkOf(node);
    const place = chunk && placeOf(chunk, at, nodeBytes, 0);
    const sector = at / sectorBytes;
    if (place === undefined || this.#tried.has(sector)) return false;
    this.#tried.setRange(sector, sector + 1);
    if (this.#read[place.member]!.has(place.at / sectorBytes)) return false;
    return !this.#known.isUsed(place.member, place.at);
  }

  node({ at }: Node): void {
    const { sectorBytes, nodeBytes } = this.#sb;
    const place = placeOf(this.#source.map.chunkOf(at, nodeBytes)!, at, nodeBytes, 0)!;
    this.#read[place.member]!.setRange(place.at / sectorBytes, place.at / sectorBytes + 1);
    this.#reach(at, nodeBytes);
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
