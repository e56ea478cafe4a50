/**
 * Inodes, the names in directories, and the names that inodes know themselves by.
 *
 *   inode           | … | length @16 | … | links @40 | … | mode @52 | … | flags @64 | … |
 *   directory       | key of what is named | … | data bytes @25 | name bytes @27 | kind @29 | name | data |    maybe several
 *   reference       | place | name bytes @8 | name |          several
 *   references      | directory | place | name bytes @16 | name |
 */
import { crc32c } from "../../bytes/checksum.ts";
import { damaged } from "./refused.ts";
import { keyAt, u64At, type Key } from "./node.ts";
import type { Item } from "./lookup.ts";

const INODE_BYTES = 160;
const SIZE_AT = 16;
const MODE_AT = 52;
const FLAGS_AT = 64;
const FLAG_UNCHECKED = 1;

export interface Inode {
  readonly bytes: number;
  readonly kind: "file" | "directory" | "symlink" | "special";
  /** Its data have no checksums. */
  readonly isUnchecked: boolean;
}

const KINDS: ReadonlyMap<number, Inode["kind"]> = new Map([
  [0o10, "file"],
  [0o04, "directory"],
  [0o12, "symlink"],
]);

export function inodeOf({ key, node, index }: Item): Inode {
  if (node.itemBytes(index) < INODE_BYTES) throw damaged(`inode ${key.id}: ${node.itemBytes(index)} bytes`);
  const at = node.itemPlace(index);
  return {
    bytes: u64At(node.view, at + SIZE_AT),
    kind: KINDS.get(node.view.getUint32(at + MODE_AT, true) >>> 12) ?? "special",
    isUnchecked: (node.view.getUint32(at + FLAGS_AT, true) & FLAG_UNCHECKED) !== 0,
  };
}

export interface Entry {
  /** Of an inode, or of a subvolume. */
  readonly target: Key;
  readonly name: Uint8Array;
}

const ENTRY_BYTES = 30;
const DATA_BYTES_AT = 25;
const NAME_BYTES_AT = 27;

/** The entries of a directory's item, of either type. */
export function* entriesOf({ key, node, index }: Item): Generator<Entry> {
  const { view } = node;
  const end = node.itemPlace(index) + node.itemBytes(index);
  for (let at = node.itemPlace(index); at + ENTRY_BYTES <= end;) {
    const name = at + ENTRY_BYTES;
    const nameEnd = name + view.getUint16(at + NAME_BYTES_AT, true);
    if (nameEnd > end) throw damaged(`directory ${key.id}: a name is cut off`);
    yield { target: keyAt(view, at), name: node.bytes.subarray(name, nameEnd) };
    at = nameEnd + view.getUint16(at + DATA_BYTES_AT, true);
  }
}

/** The place in a directory's items under which a name is found. */
export const nameHash = (name: Uint8Array): bigint => BigInt(crc32c(0xfffffffe, name));

export interface Reference {
  readonly directory: bigint;
  readonly name: Uint8Array;
}

/** Where the first name lies, in an item that refers to the directory of an inode or subvolume. */
interface ReferenceLayout {
  /** Undefined: it is the offset of the key. */
  readonly directoryAt?: number;
  readonly nameBytesAt: number;
}

export const REFERENCE: ReferenceLayout = { nameBytesAt: 8 };
/** Of an inode with many names, and of a subvolume, where the offset of the key is the tree of the directory. */
export const REFERENCES: ReferenceLayout = { directoryAt: 0, nameBytesAt: 16 };

export function referenceOf(
  { key, node, index }: Item,
  { directoryAt, nameBytesAt }: ReferenceLayout,
): Reference {
  const item = node.item(index);
  const name = nameBytesAt + 2;
  const end = item.length < name ? Infinity : name + item[nameBytesAt]! + item[nameBytesAt + 1]! * 256;
  if (end > item.length) throw damaged(`inode ${key.id}: its name is cut off`);
  const directory =
    directoryAt === undefined
      ? key.offset
      : node.view.getBigUint64(node.itemPlace(index) + directoryAt, true);
  return { directory, name: item.subarray(name, end) };
}
