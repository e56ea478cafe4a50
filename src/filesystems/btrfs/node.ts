/**
 * A node of a tree.
 *
 *   | checksum, UUID, own address, generation, tree, count, level |       101 bytes
 *   level 0   | key, offset, length | … |  →        ←  | … | item | item |      offsets count from behind the header
 *   others    | key, address, generation | key, address, generation | …
 *
 * Keys are (object id, type, offset), ascending. Nodes are read by the million: their fields are taken from a view,
 * without an object an item.
 */
import { IS_KNOWN } from "./keys.ts";
import { badChecksum, damaged } from "./refused.ts";
import { LEVELS, type Superblock } from "./superblock.ts";

const HEADER_BYTES = 101;
const FSID_AT = 32;
const SELF_AT = 48;
const GENERATION_AT = 80;
const OWNER_AT = 88;
const COUNT_AT = 96;
const LEVEL_AT = 100;
const ITEM_BYTES = 25;
const POINTER_BYTES = 33;
const KEY_BYTES = 17;

/** What leads to a node, and what it must therefore be. */
export interface NodeReference {
  /** Logical address. */
  readonly at: number;
  readonly generation: number;
  readonly level: number;
}

/** 64 bits as a number. Past 2^53 it is not exact, and no address that could be anywhere. */
export function u64At(view: DataView, at: number): number {
  return view.getUint32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
}

export interface Key {
  readonly id: bigint;
  readonly type: number;
  readonly offset: bigint;
}

export function keyAt(view: DataView, at: number): Key {
  return {
    id: view.getBigUint64(at, true),
    type: view.getUint8(at + 8),
    offset: view.getBigUint64(at + 9, true),
  };
}

export function compareKeys(a: Key, b: Key): number {
  if (a.id !== b.id) return a.id < b.id ? -1 : 1;
  if (a.type !== b.type) return a.type - b.type;
  return a.offset === b.offset ? 0 : a.offset < b.offset ? -1 : 1;
}

/** A node that was checked. Its bytes may belong to somebody else after the next await. */
export class Node {
  readonly at: number;
  readonly level: number;
  /** How many keys. */
  count: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;

  constructor(at: number, bytes: Uint8Array) {
    this.at = at;
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.level = this.view.getUint8(LEVEL_AT);
    this.count = this.view.getUint32(COUNT_AT, true);
  }

  get generation(): number {
    return u64At(this.view, GENERATION_AT);
  }

  /** Where key number `index` lies in the node. */
  keyPlace(index: number): number {
    return HEADER_BYTES + index * (this.level === 0 ? ITEM_BYTES : POINTER_BYTES);
  }

  key(index: number): Key {
    return keyAt(this.view, this.keyPlace(index));
  }

  type(index: number): number {
    return this.view.getUint8(this.keyPlace(index) + 8);
  }

  /** The first part of a key as a number; see `u64At`. */
  id(index: number): number {
    return u64At(this.view, this.keyPlace(index));
  }

  /** The last part of a key as a number; see `u64At`. */
  offset(index: number): number {
    return u64At(this.view, this.keyPlace(index) + 9);
  }

  /** Of a node above the leaves. */
  child(index: number): NodeReference {
    const at = this.keyPlace(index) + KEY_BYTES;
    return {
      at: u64At(this.view, at),
      generation: u64At(this.view, at + 8),
      level: this.level - 1,
    };
  }

  /** Where item number `index` of a leaf lies in it. */
  itemPlace(index: number): number {
    return HEADER_BYTES + this.view.getUint32(HEADER_BYTES + index * ITEM_BYTES + KEY_BYTES, true);
  }

  itemBytes(index: number): number {
    return this.view.getUint32(HEADER_BYTES + index * ITEM_BYTES + KEY_BYTES + 4, true);
  }

  item(index: number): Uint8Array {
    const at = this.itemPlace(index);
    return this.bytes.subarray(at, at + this.itemBytes(index));
  }
}

/**
 * The node in `bytes`, when it is the one that `reference` means.
 * @param tree the tree it must belong to, where that can be told
 * @throws Refused
 */
export function identifiedNode(
  sb: Superblock,
  reference: NodeReference,
  bytes: Uint8Array,
  tree: bigint | undefined,
): Node {
  const where = `node at ${reference.at}`;
  if (!sb.checksumKind.matches(bytes)) throw badChecksum(where);
  const node = new Node(reference.at, bytes);
  const { view } = node;
  const found = { at: u64At(view, SELF_AT), generation: node.generation, level: node.level };
  for (const field of ["at", "generation", "level"] as const) {
    if (found[field] === reference[field]) continue;
    throw damaged(`${where}: ${field} ${found[field]} found, ${reference[field]} expected`);
  }
  for (let i = 0; i < 16; i++) {
    if (bytes[FSID_AT + i] !== sb.nodeFsid[i]) throw damaged(`${where}: it belongs to another filesystem`);
  }
  if (tree !== undefined && view.getBigUint64(OWNER_AT, true) !== tree) {
    throw damaged(`${where}: tree ${view.getBigUint64(OWNER_AT, true)} found, ${tree} expected`);
  }
  if (node.level >= LEVELS) throw damaged(`${where}: level ${node.level}`);
  return node;
}

/** @throws Refused when the keys or items of a node cannot be as they are */
export function checkItems(node: Node): void {
  const { count, level, bytes } = node;
  const where = `node at ${node.at}`;
  const room = bytes.length - HEADER_BYTES;
  if (count * (level === 0 ? ITEM_BYTES : POINTER_BYTES) > room) throw damaged(`${where}: ${count} keys`);
  if (level > 0 && count === 0) throw damaged(`${where}: no keys`);
  for (let index = 0; index < count; index++) {
    if (index > 0 && !isAscending(node.view, node.keyPlace(index - 1), node.keyPlace(index))) {
      throw damaged(`${where}: key ${index} does not follow the one before`);
    }
    if (level > 0) continue;
    const at = node.itemPlace(index);
    if (at < HEADER_BYTES + count * ITEM_BYTES || at + node.itemBytes(index) > bytes.length) {
      throw damaged(`${where}: item ${index} lies at ${at}, ${node.itemBytes(index)} bytes long`);
    }
    if (IS_KNOWN[node.type(index)] === 0) throw damaged(`${where}: item of unknown type ${node.type(index)}`);
  }
}

/** Whether the key at `at` is larger than the one at `before`. */
function isAscending(view: DataView, before: number, at: number): boolean {
  let difference =
    view.getUint32(at + 4, true) - view.getUint32(before + 4, true) ||
    view.getUint32(at, true) - view.getUint32(before, true);
  difference ||= view.getUint8(at + 8) - view.getUint8(before + 8);
  difference ||= view.getUint32(at + 13, true) - view.getUint32(before + 13, true);
  return (difference || view.getUint32(at + 9, true) - view.getUint32(before + 9, true)) > 0;
}
