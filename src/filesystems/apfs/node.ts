/**
 * A node of a B-tree: its records, whatever they mean.
 *
 *   | object | flags, level, records | table of contents | keys →  …  ← values | info (root only) |
 *   0        32                      56
 *
 * Keys are counted from the end of the table of contents, values backwards from the end of the node or of what lies
 * before the info. With fixed lengths an entry of the table is two offsets, else two offsets with lengths. "B-Trees" of
 * the Apple File System Reference.
 */
import { struct, u32le, u64le, viewOf } from "../../bytes/struct.ts";
import { damaged, unknown } from "./refused.ts";

export const FLAG = { root: 0x1, leaf: 0x2, fixed: 0x4, hashed: 0x8, noHeader: 0x10 } as const;
const FLAGS_KNOWN = 0x1f;
/** Set in memory, sometimes left on disk. */
const FLAG_CHECKED = 0x8000;
const DATA_AT = 56;
/** In place of an offset: the record has no value. */
const GHOST = 0xffff;
const CHILD_BYTES = 8;

export const InfoLayout = struct({
  flags: u32le,
  nodeBytes: u32le,
  keyBytes: u32le,
  valueBytes: u32le,
  longestKey: u32le,
  longestValue: u32le,
  records: u64le,
  nodes: u64le,
});

export type TreeInfo = ReturnType<typeof InfoLayout.decode>;

/** A record, as offsets into the node. */
export type VisitRecord = (
  view: DataView,
  key: number,
  keyBytes: number,
  value: number,
  valueBytes: number,
) => void;

export interface Node {
  readonly view: DataView;
  readonly block: number;
  readonly flags: number;
  readonly level: number;
  readonly records: number;
}

/** The head of a node. @throws Refused */
export function readNode(bytes: Uint8Array, block: number): Node {
  const view = viewOf(bytes);
  const flags = view.getUint16(32, true) & ~FLAG_CHECKED;
  if ((flags & ~FLAGS_KNOWN) !== 0)
    throw unknown(`node in block ${block}: flags 0x${flags.toString(16)} found`);
  const level = view.getUint16(34, true);
  if ((level === 0) !== ((flags & FLAG.leaf) !== 0)) {
    throw damaged(`node in block ${block}: flags 0x${flags.toString(16)} found at level ${level}`);
  }
  return { view, block, flags, level, records: view.getUint32(36, true) };
}

/** What a root says about its tree. @throws Refused */
export function readInfo(root: Node): TreeInfo {
  const { view, block } = root;
  if ((root.flags & FLAG.root) === 0) throw damaged(`node in block ${block}: no root found`);
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  const info = InfoLayout.decode(bytes, bytes.length - InfoLayout.bytes);
  if (info.nodeBytes !== bytes.length) {
    throw unknown(`tree in block ${block}: nodes of ${info.nodeBytes} bytes found, ${bytes.length} expected`);
  }
  return info;
}

/**
 * Hands over every record of a node.
 * @param info of the tree; needed where records have fixed lengths
 * @throws Refused for a record that does not lie in the node
 */
export function visitRecords(node: Node, info: TreeInfo | undefined, visit: VisitRecord): void {
  const { view, block, flags, records } = node;
  const isFixed = (flags & FLAG.fixed) !== 0;
  const entryBytes = isFixed ? 4 : 8;
  const valuesEnd = view.byteLength - ((flags & FLAG.root) !== 0 ? InfoLayout.bytes : 0);
  const table = DATA_AT + view.getUint16(40, true);
  const keys = table + view.getUint16(42, true);
  if (keys > valuesEnd || records * entryBytes > keys - table) {
    throw damaged(`node in block ${block}: ${records} records found in a table of ${keys - table} bytes`);
  }
  if (isFixed && info === undefined) throw damaged(`node in block ${block}: records of fixed length found`);
  const fixedValue = node.level > 0 ? CHILD_BYTES : (info?.valueBytes ?? 0);
  for (let index = 0; index < records; index++) {
    const entry = table + index * entryBytes;
    const key = keys + view.getUint16(entry, true);
    const keyBytes = isFixed ? info!.keyBytes : view.getUint16(entry + 2, true);
    const back = view.getUint16(entry + (isFixed ? 2 : 4), true);
    const isGhost = back === GHOST;
    const valueBytes = isGhost ? 0 : isFixed ? fixedValue : view.getUint16(entry + 6, true);
    const value = isGhost ? valuesEnd : valuesEnd - back;
    if (key + keyBytes > valuesEnd || value < keys || value + valueBytes > valuesEnd) {
      throw damaged(`node in block ${block}: record ${index} does not lie in the node`);
    }
    visit(view, key, keyBytes, value, valueBytes);
  }
}

/** Hands over the ids of the children of an inner node. @throws Refused */
export function visitChildren(
  node: Node,
  info: TreeInfo | undefined,
  visit: (child: bigint, key: number, keyBytes: number) => void,
): void {
  visitRecords(node, info, (view, key, keyBytes, value, valueBytes) => {
    if (valueBytes < CHILD_BYTES)
      throw damaged(`node in block ${node.block}: child of ${valueBytes} bytes found`);
    visit(view.getBigUint64(value, true), key, keyBytes);
  });
}
