/**
 * B-trees and their records as HFS+ has them, for volumes that tests make: sorted records packed into leaves, and index
 * nodes above them.
 *
 *   node 0: header and map | leaves | index nodes, level by level, the root last
 */
import { viewOf } from "../bytes/struct.ts";
import { TreeHeader } from "../filesystems/hfsplus/tree.ts";

export interface TreeRecord {
  /** With its length before it. */
  readonly key: Uint8Array;
  readonly data: Uint8Array;
}

export interface TreeKind {
  readonly nodeBytes: number;
  /** How many nodes there are room for. */
  readonly nodes: number;
  readonly maxKeyBytes: number;
  readonly variableKeys: boolean;
  readonly keyCompare: number;
}

const DESCRIPTOR_BYTES = 14;
const KIND = { leaf: 0xff, index: 0, header: 1 };

/** The used nodes of a tree that holds `records`, which are sorted. */
export function makeTree(kind: TreeKind, records: readonly TreeRecord[]): Uint8Array {
  const { nodeBytes, nodes } = kind;
  const made: Uint8Array[] = [new Uint8Array(nodeBytes)];
  let level = [...records];
  let depth = 0;
  let lastLeaf = 0;
  while (level.length > 0 && (depth === 0 || level.length > 1)) {
    const first = made.length;
    made.push(...packLevel(kind, level, first, depth));
    if (depth === 0) lastLeaf = made.length - 1;
    level = made.slice(first).map((node, i) => ({ key: firstKey(kind, node), data: word(first + i) }));
    depth++;
  }
  const header = made[0]!;
  const map = nodeBytes - 256;
  setDescriptor(header, KIND.header, 0, [DESCRIPTOR_BYTES, 120, 248, map + 248]);
  const root = depth === 0 ? 0 : made.length - 1;
  TreeHeader.encode(
    {
      depth,
      root,
      firstLeaf: depth === 0 ? 0 : 1,
      lastLeaf,
      nodeBytes,
      nodes,
      leafRecords: records.length,
      maxKeyBytes: kind.maxKeyBytes,
      freeNodes: nodes - made.length,
      keyCompare: kind.keyCompare,
      attributes: kind.variableKeys ? 6 : 2,
    },
    header,
  );
  for (let node = 0; node < made.length; node++) header[248 + (node >> 3)]! |= 0x80 >> (node & 7);
  return Buffer.concat(made);
}

function packLevel(
  kind: TreeKind,
  records: readonly TreeRecord[],
  first: number,
  depth: number,
): Uint8Array[] {
  const groups: TreeRecord[][] = [];
  let room = 0;
  for (const record of records) {
    const bytes = record.key.length + record.data.length + 2;
    if (bytes > room) {
      groups.push([]);
      room = kind.nodeBytes - DESCRIPTOR_BYTES - 2;
    }
    groups.at(-1)!.push(record);
    room -= bytes;
  }
  return groups.map((group, i) => {
    const node = new Uint8Array(kind.nodeBytes);
    const offsets = [DESCRIPTOR_BYTES];
    for (const { key, data } of group) {
      node.set(key, offsets.at(-1)!);
      node.set(data, offsets.at(-1)! + key.length);
      offsets.push(offsets.at(-1)! + key.length + data.length);
    }
    setDescriptor(node, depth === 0 ? KIND.leaf : KIND.index, depth + 1, offsets);
    viewOf(node).setUint32(0, i + 1 < groups.length ? first + i + 1 : 0);
    viewOf(node).setUint32(4, i > 0 ? first + i - 1 : 0);
    return node;
  });
}

function setDescriptor(node: Uint8Array, kind: number, height: number, offsets: readonly number[]): void {
  const view = viewOf(node);
  view.setUint8(8, kind);
  view.setUint8(9, height);
  view.setUint16(10, offsets.length - 1);
  offsets.forEach((offset, i) => view.setUint16(node.length - 2 * (i + 1), offset));
}

function firstKey({ variableKeys, maxKeyBytes }: TreeKind, node: Uint8Array): Uint8Array {
  const bytes = variableKeys ? viewOf(node).getUint16(DESCRIPTOR_BYTES) : maxKeyBytes;
  return node.slice(DESCRIPTOR_BYTES, DESCRIPTOR_BYTES + 2 + bytes);
}

function word(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  viewOf(bytes).setUint32(0, value);
  return bytes;
}

/** The key of a record in the catalog. */
export function catalogKey(parent: number, name: string): Uint8Array {
  const key = new Uint8Array(8 + 2 * name.length);
  const view = viewOf(key);
  view.setUint16(0, 6 + 2 * name.length);
  view.setUint32(2, parent);
  setName(view, 6, name);
  return key;
}

export function threadRecord(type: number, parent: number, name: string): Uint8Array {
  const thread = new Uint8Array(10 + 2 * name.length);
  const view = viewOf(thread);
  view.setUint16(0, type);
  view.setUint32(4, parent);
  setName(view, 8, name);
  return thread;
}

/** The root folder. */
export function folderRecord(valence: number, date: number): Uint8Array {
  const folder = new Uint8Array(88);
  const view = viewOf(folder);
  view.setUint16(0, 1);
  view.setUint32(4, valence);
  view.setUint32(8, 2);
  for (let at = 12; at < 28; at += 4) view.setUint32(at, date);
  view.setUint16(42, 0o40755);
  return folder;
}

export function fileRecord(
  id: number,
  data: Uint8Array,
  resource: Uint8Array,
  isCompressed: boolean,
): Uint8Array {
  const file = new Uint8Array(248);
  const view = viewOf(file);
  view.setUint16(0, 2);
  view.setUint16(2, 2);
  view.setUint32(8, id);
  view.setUint8(41, isCompressed ? 0x20 : 0);
  view.setUint16(42, 0o100600);
  file.set(data, 88);
  file.set(resource, 168);
  return file;
}

export function overflowKey(forkType: number, file: number, firstBlock: number): Uint8Array {
  const key = new Uint8Array(12);
  const view = viewOf(key);
  view.setUint16(0, 10);
  view.setUint8(2, forkType);
  view.setUint32(4, file);
  view.setUint32(8, firstBlock);
  return key;
}

export function attributeKey(file: number, firstBlock: number, name: string): Uint8Array {
  const key = new Uint8Array(14 + 2 * name.length);
  const view = viewOf(key);
  view.setUint16(0, 12 + 2 * name.length);
  view.setUint32(4, file);
  view.setUint32(8, firstBlock);
  setName(view, 12, name);
  return key;
}

/** An attribute: a value in place (0x10), a fork (0x20), or eight extents more (0x30). */
export function attributeRecord(type: number, content: Uint8Array): Uint8Array {
  const inline = type === 0x10 ? 8 : 0;
  const record = new Uint8Array((8 + inline + content.length + 1) & ~1);
  const view = viewOf(record);
  view.setUint32(0, type);
  if (type === 0x10) view.setUint32(12, content.length);
  record.set(content, 8 + inline);
  return record;
}

function setName(view: DataView, at: number, name: string): void {
  view.setUint16(at, name.length);
  for (let i = 0; i < name.length; i++) view.setUint16(at + 2 + 2 * i, name.charCodeAt(i));
}
