/**
 * A B-tree of HFS+: the extents overflow file, the catalog and the attributes file.
 *
 *   node 0: header → root → index nodes → leaves, chained from left to right
 *                 '→ map nodes: which nodes are in use
 *
 * Whoever reads all leaves comes down from the root level by level; there the chain of each level, the depth, the map
 * and the count of records must agree. Whoever looks for one key comes down to one leaf.
 *
 * Technical Note TN1150, "B-Trees".
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import { skip, struct, u16be, u32be, u8 } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { readScattered } from "../reading.ts";
import { contradiction, damaged } from "./refused.ts";
import {
  childAt,
  dataAt,
  decodeNode,
  DESCRIPTOR_BYTES,
  NODE_KIND,
  recordAt,
  type NodeShape,
  type TreeNode,
} from "./tree-node.ts";

export const TreeHeader = struct({
  descriptor: skip(DESCRIPTOR_BYTES),
  depth: u16be,
  root: u32be,
  leafRecords: u32be,
  firstLeaf: u32be,
  lastLeaf: u32be,
  nodeBytes: u16be,
  maxKeyBytes: u16be,
  nodes: u32be,
  freeNodes: u32be,
  reserved: skip(2),
  clumpBytes: skip(4),
  type: u8,
  keyCompare: u8,
  attributes: u32be,
});

const ATTRIBUTE = { badClose: 1, bigKeys: 2, variableKeys: 4 };
const MAP_RECORD = 2;
/** More levels than any tree of 2^32 nodes has. */
const DEPTH_MAX = 16;
/** 256 GiB of the usual nodes. */
const NODES_MAX = 2 ** 25;

export interface Tree extends NodeShape {
  readonly device: BlockDevice;
  readonly depth: number;
  readonly root: number;
  readonly leafRecords: number;
  readonly firstLeaf: number;
  readonly lastLeaf: number;
  readonly nodes: number;
  readonly freeNodes: number;
  readonly keyCompare: number;
}

/** A record: its key from `key`, its data from `data` to `end`. */
export type VisitRecord = (view: DataView, key: number, data: number, end: number) => void;

/** @param device the fork of the tree @throws Refused for what cannot be */
export async function openTree(name: string, device: BlockDevice): Promise<Tree> {
  if (device.bytes < 512) throw damaged(`${name}: ${device.bytes} bytes found, a B-tree expected`);
  const { attributes, ...fields } = TreeHeader.decode(await readBytes(device, 0, TreeHeader.bytes));
  const { nodeBytes, nodes, depth, root } = fields;
  const isPower = nodeBytes >= 512 && Number.isInteger(Math.log2(nodeBytes));
  if (!isPower || nodes === 0 || nodes > NODES_MAX || nodes * nodeBytes > device.bytes) {
    throw damaged(`${name}: ${nodes} nodes of ${nodeBytes} bytes found in ${device.bytes} bytes`);
  }
  if (depth > DEPTH_MAX || root >= nodes || (root === 0) !== (depth === 0)) {
    throw damaged(`${name}: a root at node ${root} of ${nodes}, ${depth} levels high, found`);
  }
  const unknown = attributes & ~(ATTRIBUTE.badClose | ATTRIBUTE.bigKeys | ATTRIBUTE.variableKeys);
  if ((attributes & ATTRIBUTE.badClose) !== 0 || (attributes & ATTRIBUTE.bigKeys) === 0 || unknown !== 0) {
    throw damaged(`${name}: attributes 0x${attributes.toString(16)} found`);
  }
  return { name, device, ...fields, variableKeys: (attributes & ATTRIBUTE.variableKeys) !== 0 };
}

/** One node. @throws Refused */
async function readNode(tree: Tree, number: number): Promise<TreeNode> {
  if (number >= tree.nodes) throw damaged(`${tree.name}: node ${number} of ${tree.nodes} is looked for`);
  return decodeNode(tree, number, await readBytes(tree.device, number * tree.nodeBytes, tree.nodeBytes));
}

/** The nodes that the tree's own map says are in use. */
async function readMap(tree: Tree): Promise<SparseBitmap> {
  const used = new SparseBitmap();
  const seen = new Set<number>();
  let bits = 0;
  let number = 0;
  do {
    const node = await readNode(tree, number);
    const isHeader = number === 0;
    const record = isHeader ? MAP_RECORD : 0;
    const kind = isHeader ? NODE_KIND.header : NODE_KIND.map;
    if (node.kind !== kind || node.records !== record + 1 || seen.has(number)) {
      throw damaged(`${tree.name}: node ${number} of kind ${node.kind} found, a map expected`);
    }
    seen.add(number);
    const end = recordAt(tree, node.view, record + 1);
    for (let at = recordAt(tree, node.view, record); at < end && bits < tree.nodes; at++, bits += 8) {
      const byte = node.view.getUint8(at);
      if (byte === 0xff) used.setRange(bits, bits + 8);
      for (let bit = 0; byte !== 0 && byte !== 0xff && bit < 8; bit++) {
        if ((byte & (0x80 >> bit)) !== 0) used.setRange(bits + bit, bits + bit + 1);
      }
    }
    number = node.next;
  } while (number !== 0 && bits < tree.nodes);
  return used;
}

/**
 * Visits the records of all leaves: those of one leaf in their order, the leaves in the order of their keys, or in that
 * of the disk. @throws Refused where the tree does not hold together
 */
export async function visitLeaves(
  tree: Tree,
  order: "of keys" | "of the disk",
  visit: VisitRecord,
): Promise<void> {
  const map = await readMap(tree);
  const used = map.count;
  if (used !== tree.nodes - tree.freeNodes) {
    throw contradiction(
      `${tree.name}: ${tree.freeNodes} of ${tree.nodes} nodes are free, but ${used} are in use in its map`,
    );
  }
  if (tree.root === 0) {
    if (tree.leafRecords !== 0) throw damaged(`${tree.name}: ${tree.leafRecords} records without a root`);
    return;
  }
  const leaves = await collectLeaves(tree, map);
  if (leaves[0] !== tree.firstLeaf || leaves.at(-1) !== tree.lastLeaf) {
    throw contradiction(
      `${tree.name}: leaves from ${tree.firstLeaf} to ${tree.lastLeaf} expected, ${leaves[0]} to ${leaves.at(-1)} found`,
    );
  }
  let records = 0;
  await readLevel(tree, leaves, 1, order, (node) => {
    records += node.records;
    visitNode(tree, node, visit);
  });
  if (records !== tree.leafRecords) {
    throw contradiction(`${tree.name}: ${records} records found, ${tree.leafRecords} expected`);
  }
}

function visitNode(tree: Tree, node: TreeNode, visit: VisitRecord): void {
  let at = recordAt(tree, node.view, 0);
  for (let index = 0; index < node.records; index++) {
    const end = recordAt(tree, node.view, index + 1);
    visit(node.view, at, dataAt(tree, node, at, end), end);
    at = end;
  }
}

/** The numbers of all leaves, in the order of their keys. */
async function collectLeaves(tree: Tree, map: SparseBitmap): Promise<number[]> {
  const seen = new SparseBitmap();
  const take = (number: number): number => {
    if (number === 0 || number >= tree.nodes || !map.has(number) || seen.has(number)) {
      throw damaged(`${tree.name}: node ${number} is free, met twice, or outside of ${tree.nodes} nodes`);
    }
    seen.setRange(number, number + 1);
    return number;
  };
  let level = [take(tree.root)];
  for (let height = tree.depth; height > 1; height--) {
    const below: number[] = [];
    await readLevel(tree, level, height, "of keys", (node) => {
      for (let index = 0; index < node.records; index++) below.push(take(childAt(tree, node, index)));
    });
    level = below;
  }
  return level;
}

/** Reads the nodes of one level, which must be chained as they are given. */
async function readLevel(
  tree: Tree,
  level: readonly number[],
  height: number,
  order: "of keys" | "of the disk",
  use: (node: TreeNode) => void,
): Promise<void> {
  const places = Uint32Array.from(level.keys());
  if (order === "of the disk") places.sort((a, b) => level[a]! - level[b]!);
  const kind = height === 1 ? NODE_KIND.leaf : NODE_KIND.index;
  const positions = Uint32Array.from(places, (place) => level[place]!);
  await readScattered(tree.device, tree.nodeBytes, positions, (index, bytes) => {
    const node = decodeNode(tree, positions[index]!, bytes);
    if (node.kind !== kind || node.height !== height || node.records === 0) {
      throw damaged(
        `${tree.name}, node ${node.number}: kind ${node.kind} of height ${node.height} with ${node.records} records found`,
      );
    }
    const place = places[index]!;
    if (node.next !== (level[place + 1] ?? 0) || node.previous !== (level[place - 1] ?? 0)) {
      throw contradiction(
        `${tree.name}, node ${node.number}: its neighbours ${node.previous} and ${node.next} are not those of its level`,
      );
    }
    use(node);
  });
}

/** Below, at or above zero: how the key at `at`, which lies in its record, compares with the one that is looked for. */
export type CompareKey = (view: DataView, at: number) => number;

function compareRecord(tree: Tree, node: TreeNode, index: number, compare: CompareKey): number {
  const at = recordAt(tree, node.view, index);
  dataAt(tree, node, at, recordAt(tree, node.view, index + 1));
  return compare(node.view, at);
}

/**
 * Visits the records from the first one that is not below what is looked for, until `visit` returns false.
 * @throws Refused
 */
export async function visitFrom(
  tree: Tree,
  compare: CompareKey,
  visit: (view: DataView, key: number, data: number, end: number) => boolean,
): Promise<void> {
  if (tree.root === 0) return;
  let node = await readNode(tree, tree.root);
  for (let height = tree.depth; height > 1; height--) {
    if (node.kind !== NODE_KIND.index || node.records === 0) {
      throw damaged(`${tree.name}, node ${node.number}: an index node expected`);
    }
    let child = 0;
    while (child + 1 < node.records && compareRecord(tree, node, child + 1, compare) < 0) child++;
    node = await readNode(tree, childAt(tree, node, child));
  }
  const seen = new SparseBitmap();
  for (;;) {
    if (node.kind !== NODE_KIND.leaf || seen.has(node.number)) {
      throw damaged(`${tree.name}, node ${node.number}: not a leaf, or met twice`);
    }
    seen.setRange(node.number, node.number + 1);
    let goesOn = true;
    visitNode(tree, node, (view, key, data, end) => {
      if (goesOn && compare(view, key) >= 0) goesOn = visit(view, key, data, end);
    });
    if (!goesOn || node.next === 0) return;
    node = await readNode(tree, node.next);
  }
}
