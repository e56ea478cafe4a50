/**
 * The catalog: what every folder holds, and the thread of every file and folder, which leads back to its place.
 *
 *   key: | parent folder | name in UTF-16 |      data: folder | file with its two forks
 *        | own number    | empty |                     thread: | parent folder | name |
 *
 * Technical Note TN1150, "Catalog File".
 */
import { forkBlocks } from "./fork.ts";
import { damaged } from "./refused.ts";
import { visitFrom, type CompareKey, type Tree } from "./tree.ts";

export const RECORD = { folder: 1, file: 2, folderThread: 3, fileThread: 4 } as const;
/** How long a record of each type is at least. */
const RECORD_BYTES = [0, 88, 248, 10, 10];

const KEY = { parent: 2, nameLength: 6, name: 8 };
/** In a file's record. */
export const FILE = {
  id: 8,
  ownerFlags: 41,
  mode: 42,
  special: 44,
  type: 48,
  creator: 52,
  data: 88,
  resource: 168,
};
const THREAD = { parent: 4, nameLength: 8, name: 10 };

const COMPRESSED = 0x20;
const MODE = { type: 0xf000, link: 0xa000, file: 0x8000 };
const HARD_LINK = { type: 0x686c6e6b, creator: 0x6866732b }; // hlnk, hfs+

export const ROOT = 2;
const NAME_UNITS_MAX = 255;

/** The type of the record. @throws Refused when it cannot be */
export function recordType({ name }: Tree, view: DataView, key: number, data: number, end: number): number {
  const type = view.getUint16(data);
  const expected = RECORD_BYTES[type];
  const units = view.getUint16(key + KEY.nameLength);
  if (!expected || end - data < expected || view.getUint16(key) < 6 + 2 * units) {
    throw damaged(`${name}: a record of type ${type} and ${end - data} bytes found`);
  }
  return type;
}

export const parentOf = (view: DataView, key: number): number => view.getUint32(key + KEY.parent);

function readName(view: DataView, lengthAt: number, end: number): string {
  const units = Math.min(view.getUint16(lengthAt), NAME_UNITS_MAX, Math.floor((end - lengthAt - 2) / 2));
  let name = "";
  for (let i = 0; i < units; i++) name += String.fromCharCode(view.getUint16(lengthAt + 2 + i * 2));
  return name;
}

export interface Entry {
  readonly kind: "folder" | "file" | "symlink" | "special";
  readonly name: string;
  readonly id: number;
  readonly isCompressed: boolean;
  /** The number of the file that a hard link stands for. */
  readonly linksTo?: number;
  /** Blocks of both forks. */
  readonly blocks: number;
  /** The record of a file, with its forks. */
  readonly record?: DataView;
}

function decodeEntry(view: DataView, key: number, data: number, end: number, type: number): Entry {
  const name = readName(view, key + KEY.nameLength, data);
  const id = view.getUint32(data + FILE.id);
  if (type === RECORD.folder) return { kind: "folder", name, id, isCompressed: false, blocks: 0 };
  const mode = view.getUint16(data + FILE.mode) & MODE.type;
  const isLink =
    view.getUint32(data + FILE.type) === HARD_LINK.type &&
    view.getUint32(data + FILE.creator) === HARD_LINK.creator;
  return {
    kind: mode === MODE.link ? "symlink" : mode === MODE.file || mode === 0 ? "file" : "special",
    name,
    id,
    isCompressed: (view.getUint8(data + FILE.ownerFlags) & COMPRESSED) !== 0,
    ...(isLink && { linksTo: view.getUint32(data + FILE.special) }),
    blocks: forkBlocks(view, data + FILE.data) + forkBlocks(view, data + FILE.resource),
    record: new DataView(view.buffer, view.byteOffset + data, end - data),
  };
}

const byParent =
  (parent: number): CompareKey =>
  (view, key) =>
    parentOf(view, key) - parent;

/** Visits what the folder holds until `visit` returns false. @throws Refused */
export async function visitFolder(
  tree: Tree,
  folder: number,
  visit: (entry: Entry) => boolean,
): Promise<void> {
  await visitFrom(tree, byParent(folder), (view, key, data, end) => {
    if (parentOf(view, key) !== folder) return false;
    const type = recordType(tree, view, key, data, end);
    const isThread = type === RECORD.folderThread || type === RECORD.fileThread;
    return isThread || visit(decodeEntry(view, key, data, end, type));
  });
}

/**
 * The entry of that name in a folder of which all names are ASCII: there the order of the tree is known without the
 * guest's table of cases. @throws Refused
 */
export async function findPlain(
  tree: Tree,
  folder: number,
  name: string,
  ignoresCase: boolean,
): Promise<Entry | undefined> {
  const fold = (text: string): string => (ignoresCase ? text.toLowerCase() : text);
  const wanted = fold(name);
  const compare: CompareKey = (view, key) => {
    const found = fold(readName(view, key + KEY.nameLength, key + 2 + view.getUint16(key)));
    return parentOf(view, key) - folder || (found < wanted ? -1 : found > wanted ? 1 : 0);
  };
  let entry: Entry | undefined;
  await visitFrom(tree, compare, (view, key, data, end) => {
    const type = compare(view, key) === 0 ? recordType(tree, view, key, data, end) : 0;
    if (type === RECORD.folder || type === RECORD.file) entry = decodeEntry(view, key, data, end, type);
    return false;
  });
  return entry;
}

export interface Thread {
  readonly parent: number;
  readonly name: string;
}

/** Where the file or folder with this number is. @throws Refused */
export async function readThread(tree: Tree, id: number): Promise<Thread | undefined> {
  let thread: Thread | undefined;
  await visitFrom(tree, byParent(id), (view, key, data, end) => {
    const type = parentOf(view, key) === id ? recordType(tree, view, key, data, end) : 0;
    if (type === RECORD.folderThread || type === RECORD.fileThread) {
      thread = {
        parent: view.getUint32(data + THREAD.parent),
        name: readName(view, data + THREAD.nameLength, end),
      };
    }
    return false;
  });
  return thread;
}
