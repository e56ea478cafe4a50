/**
 * The file-system tree of the live volume, for looking things up: records in the order of their object ids.
 *
 *   inner node   | key → child | key → child | …      a child holds the keys from its own up to the next one's
 *   leaf         | inode 18 | attribute of 18 | extent of 18 | entry in 18 | inode 19 | …
 */
import { viewOf } from "../../bytes/struct.ts";
import { readNode, visitChildren, visitRecords, type Node } from "./node.ts";
import { looseU64, readBlocks, subtypeOf, TYPE, typeOf, verifyChecksum, type Area } from "./objects.ts";
import type { ObjectMap } from "./omap.ts";
import { kindOf } from "./records.ts";
import { damaged, unknown } from "./refused.ts";

const ID_MASK = (1n << 60n) - 1n;

/** A record; key and value lie in the buffer of its node. */
export interface FileRecord {
  readonly kind: number;
  readonly key: DataView;
  readonly value: DataView;
}

export class FileTree {
  readonly #area: Area;
  readonly #map: ObjectMap;
  readonly #root: number;

  /** @param root object id of the root */
  constructor(area: Area, map: ObjectMap, root: number) {
    this.#area = area;
    this.#map = map;
    this.#root = root;
  }

  /** Hands over all records of an object, ascending. @throws Refused */
  async recordsOf(id: bigint, visit: (record: FileRecord) => void): Promise<void> {
    const seen = new Set<number>();
    const waiting = [this.#root];
    for (let object = waiting.pop(); object !== undefined; object = waiting.pop()) {
      if (seen.has(object)) throw damaged(`file-system tree: object ${object} found twice`);
      seen.add(object);
      const node = await this.#read(object);
      if (node.level > 0) waiting.push(...childrenFor(node, id).reverse());
      else visitRecordsOf(node, id, visit);
    }
  }

  async #read(object: number): Promise<Node> {
    const index = this.#map.find(object, Infinity);
    if (index < 0) throw damaged(`object map: no object ${object} found`);
    if (this.#map.isEncrypted(index)) throw unknown("the file-system tree is encrypted");
    const block = this.#map.blocks[index]!;
    const bytes = await readBlocks(this.#area, "file-system tree", block, 1);
    if (!isOfTree(bytes, this.#map, index)) throw damaged(`object ${object}: no node of the tree found`);
    return readNode(bytes, block);
  }
}

/** The children that may hold records of `id`. */
function childrenFor(node: Node, id: bigint): number[] {
  const children: number[] = [];
  const firsts: bigint[] = [];
  visitChildren(node, undefined, (child, key, keyBytes) => {
    if (keyBytes < 8) throw damaged(`node in block ${node.block}: key of ${keyBytes} bytes found`);
    children.push(Number(child));
    firsts.push(node.view.getBigUint64(key, true) & ID_MASK);
  });
  return children.filter(
    (_, index) => firsts[index]! <= id && (index + 1 === firsts.length || firsts[index + 1]! >= id),
  );
}

function visitRecordsOf(node: Node, id: bigint, visit: (record: FileRecord) => void): void {
  visitRecords(node, undefined, (view, key, keyBytes, value, valueBytes) => {
    if (keyBytes < 8) throw damaged(`node in block ${node.block}: key of ${keyBytes} bytes found`);
    if ((view.getBigUint64(key, true) & ID_MASK) !== id) return;
    const part = (at: number, bytes: number) => new DataView(view.buffer, view.byteOffset + at, bytes);
    visit({ kind: kindOf(view, key), key: part(key, keyBytes), value: part(value, valueBytes) });
  });
}

/** Whether an object of a volume is a node of its tree. @throws Refused for what is damaged or not known */
export function isOfTree(bytes: Uint8Array, map: ObjectMap, index: number): boolean {
  if (!map.hasHeader(index)) return true;
  const block = map.blocks[index]!;
  verifyChecksum(bytes, block);
  const view = viewOf(bytes);
  if (looseU64(view, 8) !== map.ids[index] || looseU64(view, 16) !== map.transactions[index]) {
    throw damaged(
      `object in block ${block}: id ${looseU64(view, 8)} of transaction ${looseU64(view, 16)} found, ` +
        `${map.ids[index]} of ${map.transactions[index]} expected`,
    );
  }
  const type = typeOf(view);
  if (type === TYPE.snapshotExtra || type === TYPE.integrity) return false;
  const isTree = type === TYPE.treeRoot || type === TYPE.treeNode;
  if (!isTree || subtypeOf(view) !== TYPE.fileTree) {
    throw unknown(`object in block ${block}: type ${type} of subtype ${subtypeOf(view)} found in a volume`);
  }
  return true;
}
