/**
 * The allocation map: what of each member the current trees call free.
 *
 *   device   | 1 MiB | superblock | stripe of a chunk | no stripe | …
 *                                   |                    free: in no device extent
 *                                   used: extent items; free: what lies between them
 *
 * The extent tree has an item for every extent of data and, by its address alone, every node. Each block group counts
 * its used bytes, and the superblock all of them; the free space tree, where it is valid, is the complement. Nothing
 * else is looked at here.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import { ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import { eachPlace, placeInStripe, type Chunk } from "./chunks.ts";
import { unallocated } from "./devices.ts";
import { hasBlockGroupTree, hasFreeSpaceTree, hasSkinnyMetadata } from "./features.ts";
import { checkFreeSpaceTree } from "./free-space-tree.ts";
import { KEY, TREE } from "./keys.ts";
import { u64At, type Node } from "./node.ts";
import type { Volume } from "./opening.ts";
import { contradiction, damaged } from "./refused.ts";
import { reserved } from "./reserved.ts";
import type { Superblock } from "./superblock.ts";
import { traverse, type Root } from "./trees.ts";

const EXTENT_BYTES = 24;
const FLAGS_AT = 16;
const FLAG_DATA = 1;
const FLAG_NODE = 2;
const GROUP_BYTES = 24;

interface MapClaim {
  /** Per member: what the current trees call free. */
  readonly free: readonly ExtentSet[];
  /** Per member: sectors that begin a copy of a node. */
  readonly nodes: readonly SparseBitmap[];
}

/** @throws Refused */
export async function readMap(volume: Volume): Promise<MapClaim> {
  const { sb, members, nodes } = volume;
  // First of all: chunks that lie apart on their devices bound what a single extent can claim.
  const outside = await unallocated(volume);
  const nodesOf = members.map(() => new SparseBitmap());
  const used = await readUsed(volume, nodesOf);
  const freeOf = (chunk: Chunk) => freeIn(used, chunk, sb.sectorBytes);
  if (hasFreeSpaceTree(sb)) await checkFreeSpaceTree(volume, freeOf);
  const builders = members.map(() => new ExtentBuilder());
  const add = (member: number, start: number, end: number) => builders[member]!.add(start, end);
  // In the order of the disk, so that nothing need be sorted afterwards.
  const stripes = nodes.map.chunks
    .flatMap((chunk) => chunk.stripes.map(({ at }, index) => ({ chunk, index, at })))
    .sort((a, b) => a.at - b.at);
  for (const { chunk, index } of stripes) {
    for (const { start, end } of freeOf(chunk)) placeInStripe(chunk, index, start, end, add);
  }
  const free = builders.map((builder, index) =>
    builder.build().union(outside[index]!).subtract(reserved(members[index]!.sb)),
  );
  return { free, nodes: nodesOf };
}

/** The logical ranges of a chunk that are in no extent. */
function freeIn(used: SparseBitmap, chunk: Chunk, sectorBytes: number): ExtentSet {
  const free = new ExtentBuilder();
  const end = chunk.end / sectorBytes;
  for (let from = used.nextClear(chunk.start / sectorBytes, end); from < end;) {
    const to = used.nextSet(from, end);
    free.add(from * sectorBytes, to * sectorBytes);
    from = used.nextClear(to, end);
  }
  return free.build();
}

/**
 * @param nodesOf takes the places of nodes, per member
 * @throws Refused when the map of chunks, the block groups and the extents do not agree
 */
async function readUsed(volume: Volume, nodesOf: readonly SparseBitmap[]): Promise<SparseBitmap> {
  const { sb, nodes } = volume;
  const used = new SparseBitmap();
  /** By the start of its chunk: bytes in extents, and what the block group says. */
  const usedIn = new Map<number, number>();
  const groups = new Map<number, number>();
  const add = (at: number, bytes: number): Chunk => {
    const chunk =
      at % sb.sectorBytes === 0 && bytes % sb.sectorBytes === 0 ? nodes.map.chunkOf(at, bytes) : undefined;
    if (chunk === undefined || bytes === 0)
      throw damaged(`extent at ${at}: ${bytes} bytes are not in one chunk`);
    const [first, end] = [at / sb.sectorBytes, (at + bytes) / sb.sectorBytes];
    const taken = used.nextSet(first, end);
    if (taken < end)
      throw contradiction(`extent at ${at}: ${taken * sb.sectorBytes} is in another extent, too`);
    used.setRange(first, end);
    usedIn.set(chunk.start, (usedIn.get(chunk.start) ?? 0) + bytes);
    return chunk;
  };
  const leaf = (node: Node) => {
    for (let index = 0; index < node.count; index++) {
      const type = node.type(index);
      if (type === KEY.blockGroup) groups.set(node.id(index), groupUsed(volume, node, index));
      else if (type === KEY.extent || type === KEY.metadata) {
        const at = node.id(index);
        const chunk = add(at, extentBytes(volume, node, index));
        if (isOfNode(node, index)) markNode(sb, chunk, at, nodesOf);
      }
    }
  };
  const trees = [treeRoot(volume, TREE.extent)];
  if (hasBlockGroupTree(sb)) trees.push(treeRoot(volume, TREE.blockGroup));
  await traverse(nodes, trees, { enters: nodes.onceEach(), leaf });
  checkSums(volume, usedIn, groups);
  return used;
}

/** @throws Refused when there is no such tree */
export function treeRoot(volume: Volume, tree: bigint): Root {
  const root = volume.roots.get(tree);
  if (root === undefined) throw damaged(`root tree: no item for tree ${tree}`);
  return root;
}

function extentBytes({ sb }: Volume, node: Node, index: number): number {
  const at = node.id(index);
  const item = node.itemPlace(index);
  if (node.itemBytes(index) < EXTENT_BYTES)
    throw damaged(`extent item at ${at}: ${node.itemBytes(index)} bytes`);
  if (u64At(node.view, item) === 0) throw damaged(`extent item at ${at}: no references`);
  const isNode = node.type(index) === KEY.metadata;
  const flags = node.view.getUint32(item + FLAGS_AT, true) & (FLAG_DATA | FLAG_NODE);
  const bytes = isNode ? sb.nodeBytes : node.offset(index);
  const isSound = flags === FLAG_NODE ? bytes === sb.nodeBytes : flags === FLAG_DATA && !isNode;
  if (!isSound || (isNode && !hasSkinnyMetadata(sb))) {
    throw damaged(`extent item at ${at}: ${bytes} bytes with flags ${flags} and type ${node.type(index)}`);
  }
  return bytes;
}

/** Notes where the copies of a node begin. */
function markNode(
  { sectorBytes, nodeBytes }: Superblock,
  chunk: Chunk,
  at: number,
  of: readonly SparseBitmap[],
) {
  eachPlace(chunk, at, at + nodeBytes, (member, start) =>
    of[member]!.setRange(start / sectorBytes, start / sectorBytes + 1),
  );
}

/** Whether an extent item that was checked is that of a node. */
const isOfNode = (node: Node, index: number): boolean =>
  (node.view.getUint32(node.itemPlace(index) + FLAGS_AT, true) & FLAG_NODE) !== 0;

/** The used bytes that a block group item tells. */
function groupUsed({ nodes }: Volume, node: Node, index: number): number {
  const start = node.id(index);
  const bytes = node.offset(index);
  const item = node.itemPlace(index);
  const chunk = nodes.map.chunkOf(start, bytes);
  if (chunk?.start !== start || chunk.end !== start + bytes) {
    throw damaged(`block group at ${start}: there is no chunk of ${bytes} bytes`);
  }
  if (node.itemBytes(index) !== GROUP_BYTES || node.view.getBigUint64(item + FLAGS_AT, true) !== chunk.type) {
    throw damaged(`block group at ${start}: type ${chunk.type} expected`);
  }
  return u64At(node.view, item);
}

function checkSums(
  { sb, nodes }: Volume,
  usedIn: ReadonlyMap<number, number>,
  groups: ReadonlyMap<number, number>,
): void {
  let sum = 0;
  for (const { start } of nodes.map.chunks) {
    const found = usedIn.get(start) ?? 0;
    const expected = groups.get(start);
    if (expected === undefined) throw damaged(`chunk at ${start}: it has no block group`);
    if (found !== expected) {
      throw contradiction(`block group at ${start}: ${found} used bytes found, ${expected} expected`);
    }
    sum += found;
  }
  if (sum !== sb.usedBytes) {
    throw contradiction(`superblock: ${sb.usedBytes} used bytes expected, ${sum} found`);
  }
}
