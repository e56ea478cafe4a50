/**
 * A node of a B-tree: a descriptor, records, and their offsets from the end backwards.
 *
 *   | fLink bLink kind height records | record 0 | record 1 | free …   | free | offset 1 | offset 0 |
 *   0                                 14                                                       nodeBytes
 *
 * A record is a key (its length in two bytes first) and, at the next even offset, data; in an index node the data is the
 * number of the child. Technical Note TN1150, "B-Trees".
 */
import { viewOf } from "../../bytes/struct.ts";
import { damaged } from "./refused.ts";

export const NODE_KIND = { leaf: -1, index: 0, header: 1, map: 2 } as const;
export const DESCRIPTOR_BYTES = 14;

export interface NodeShape {
  readonly name: string;
  readonly nodeBytes: number;
  readonly maxKeyBytes: number;
  /** Keys of index nodes are as long as they say, not as the longest may be. */
  readonly variableKeys: boolean;
}

export interface TreeNode {
  readonly number: number;
  readonly view: DataView;
  readonly next: number;
  readonly previous: number;
  readonly kind: number;
  readonly height: number;
  readonly records: number;
}

/** @throws Refused when the records do not lie in the node, in order */
export function decodeNode(shape: NodeShape, number: number, bytes: Uint8Array): TreeNode {
  const view = viewOf(bytes);
  const records = view.getUint16(10);
  const end = shape.nodeBytes - 2 * (records + 1);
  let last = DESCRIPTOR_BYTES;
  for (let i = 0; i <= records; i++) {
    const offset = shape.nodeBytes - 2 * (i + 1) < DESCRIPTOR_BYTES ? -1 : recordAt(shape, view, i);
    if (i === 0 ? offset !== last : offset <= last) {
      throw damaged(`${shape.name}, node ${number}: record ${i} of ${records} at ${offset} found`);
    }
    last = offset;
  }
  if (last > end)
    throw damaged(`${shape.name}, node ${number}: records to ${last} found, to ${end} expected`);
  return {
    number,
    view,
    next: view.getUint32(0),
    previous: view.getUint32(4),
    kind: view.getInt8(8),
    height: view.getUint8(9),
    records,
  };
}

/** Where record `index` begins; that of the last but one ends there as well. */
export function recordAt(
  { nodeBytes }: { readonly nodeBytes: number },
  view: DataView,
  index: number,
): number {
  return view.getUint16(nodeBytes - 2 * (index + 1));
}

/** Where the data of the record at `at` begins. @throws Refused when its key does not lie in it */
export function dataAt(shape: NodeShape, node: TreeNode, at: number, end: number): number {
  const keyBytes = at + 2 <= end ? node.view.getUint16(at) : -1;
  const isFixed = node.kind === NODE_KIND.index && !shape.variableKeys;
  const data = (at + 2 + (isFixed ? shape.maxKeyBytes : keyBytes) + 1) & ~1;
  if (keyBytes < KEY_BYTES_MIN || keyBytes > shape.maxKeyBytes || data + 2 > end) {
    throw damaged(`${shape.name}, node ${node.number}: a key of ${keyBytes} bytes at ${at} found`);
  }
  return data;
}

/** What the shortest key has, of the catalog: its parent and the length of an empty name. */
const KEY_BYTES_MIN = 6;

/** The child that record `index` of an index node leads to. */
export function childAt(shape: NodeShape, node: TreeNode, index: number): number {
  const at = recordAt(shape, node.view, index);
  const end = recordAt(shape, node.view, index + 1);
  const data = dataAt(shape, node, at, end);
  if (data + 4 > end) throw damaged(`${shape.name}, node ${node.number}: index record ${index} is cut short`);
  return node.view.getUint32(data);
}
