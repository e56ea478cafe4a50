/**
 * What an owner of clusters is called: one of the filesystem's own files (numbers below zero), or a file with its path.
 *
 *   down   root → entry → entry → …          up   $FILE_NAME → parent → parent → … root
 *
 * Reparse points are not followed.
 */
import {
  listedKind,
  LISTED_MAX,
  type FoundFile,
  type ListedFile,
  type OwnerDescription,
} from "../filesystem.ts";
import { unlessDamaged } from "../refused.ts";
import { ATTRIBUTE_FLAG, TYPE } from "./attributes.ts";
import { decodeName, eachEntry, type Entry, findEntry, type NameRecord } from "./directory.ts";
import { type Fold, readFold, shownText } from "./names.ts";
import { HOLE } from "./runs.ts";
import type { Stream } from "./stream.ts";
import { type File, FILE, type FileTable } from "./table.ts";

/** Records of the filesystem's own files, which the guest does not show. */
const SYSTEM_RECORDS = 16;
const SYSTEM_NAMES: readonly string[] = [
  "$MFT",
  "$MFTMirr",
  "$LogFile",
  "$Volume",
  "$AttrDef",
  "root directory",
  "$Bitmap",
  "$Boot",
  "$BadClus",
  "$Secure",
  "$UpCase",
  "$Extend",
];
/** Owners that are no files. Numbers of file records have 48 bits. */
export const OWNER = { backup: -1 - SYSTEM_RECORDS, shadows: 2 ** 48 } as const;

const DEPTH_MAX = 1024;
const TAG = { mountPoint: 0xa0000003, symlink: 0xa000000c, compressed: 0x80000017 } as const;

/** The owner number of a file: below zero for the filesystem's own. */
export function ownerOf(number: number): number {
  return number < SYSTEM_RECORDS && number !== FILE.root ? -1 - number : number;
}

export class Owners {
  readonly #table: FileTable;
  #fold: Promise<Fold> | undefined;

  constructor(table: FileTable) {
    this.#table = table;
  }

  async describe(owner: number): Promise<OwnerDescription> {
    if (owner === OWNER.shadows) return { kind: "unknown", name: "free, but shadow copies may read it" };
    if (owner === OWNER.backup) return { kind: "metadata", name: "backup boot sector" };
    if (owner < 0) {
      const name = SYSTEM_NAMES[-1 - owner] ?? `reserved file record ${-1 - owner}`;
      return { kind: -1 - owner === FILE.log ? "journal" : "metadata", name };
    }
    const file = await unlessDamaged(this.#table.file(owner));
    if (file === undefined) return { kind: "unknown", name: `file record ${owner}` };
    const names = await unlessDamaged(this.#pathOf(file));
    const bytes = (await unlessDamaged(this.#stream(file, TYPE.data)))?.bytes;
    const path = names && `/${names.join("/")}`;
    const isOwn = names?.[0] === "$Extend";
    const kind = isOwn ? "metadata" : kindOf(file);
    const name = path === undefined ? `${kind} without a name, file record ${owner}` : kind;
    return { kind, name, ...(path !== undefined && { path }), ...(bytes !== undefined && { bytes }) };
  }

  async find(path: string): Promise<FoundFile | undefined> {
    return unlessDamaged(this.#find(path));
  }

  async list(path: string, atMost = LISTED_MAX): Promise<readonly ListedFile[] | undefined> {
    const directory = await unlessDamaged(this.#lookUp(path));
    if (directory === undefined || !directory.record.isDirectory) return undefined;
    const entries: Entry[] = [];
    await unlessDamaged(
      eachEntry(this.#table, directory, (entry) => {
        if (!entry.isShort && entry.name !== ".") entries.push(entry);
        return entries.length >= atMost;
      }),
    );
    const listed: ListedFile[] = [];
    for (const entry of entries) {
      const isLink = entry.reparseTag === TAG.symlink || entry.reparseTag === TAG.mountPoint;
      const kind = isLink ? "other" : entry.isDirectory ? "directory" : "file";
      const allocatedBytes = kind === "directory" ? 0 : await this.#allocatedBytes(entry);
      listed.push({ name: shownText(entry.name), kind, allocatedBytes });
    }
    return listed;
  }

  async #find(path: string): Promise<FoundFile | undefined> {
    const file = await this.#lookUp(path);
    if (file === undefined) return undefined;
    const owner = ownerOf(file.record.number);
    const stream = await this.#stream(file, TYPE.data);
    const kind = listedKind(kindOf(file));
    if (stream === undefined) return { owner, kind, bytes: 0, extents: [] };
    const fixed = fixedBecause(file, stream);
    return { owner, kind, bytes: stream.bytes, ...(fixed && { fixed }), extents: this.#extents(stream) };
  }

  /** The file at `path`. @throws Refused when a directory on the way is damaged */
  async #lookUp(path: string): Promise<File | undefined> {
    let file = await this.#table.file(FILE.root);
    for (const name of path.split("/").filter((part) => part !== "" && part !== ".")) {
      if (!file.record.isDirectory) return undefined;
      const entry = await findEntry(this.#table, file, name, await (this.#fold ??= readFold(this.#table)));
      if (entry === undefined) return undefined;
      file = await this.#table.file(entry.reference.number);
      if (file.record.sequence !== entry.reference.sequence) return undefined;
    }
    return file;
  }

  /** The names from the root down to `file`. @throws Refused when a directory on the way is damaged */
  async #pathOf(file: File): Promise<string[] | undefined> {
    const names: string[] = [];
    for (let depth = 0; depth < DEPTH_MAX; depth++) {
      if (file.record.number === FILE.root) return names;
      const named = nameOf(file);
      if (named === undefined) return undefined;
      names.unshift(shownText(named.name));
      file = await this.#table.file(named.parent.number);
      if (file.record.sequence !== named.parent.sequence) return undefined;
    }
    return undefined;
  }

  async #stream(file: File, type: number, name = ""): Promise<Stream | undefined> {
    return this.#table.stream(file, type, name);
  }

  async #allocatedBytes({ reference }: Entry): Promise<number> {
    const file = await unlessDamaged(this.#table.file(reference.number));
    if (file === undefined) return 0;
    let bytes = 0;
    for (const { type, name, content } of file.attributes) {
      if (content.kind === "resident" || content.firstVcn > 0) continue;
      const stream = await unlessDamaged(this.#stream(file, type, name));
      for (const extent of stream === undefined ? [] : this.#extents(stream)) bytes += extent.bytes;
    }
    return bytes;
  }

  #extents({ attribute, initialised, runs }: Stream): FoundFile["extents"] {
    const { clusterBytes, recordBytes } = this.#table.geometry;
    const { content, record } = attribute;
    if (content.kind === "resident") {
      const at = this.#table.runs.position(record.number * recordBytes) + content.at - record.start;
      return content.bytes === 0 ? [] : [{ fileOffset: 0, at, bytes: content.bytes, unwritten: false }];
    }
    const writtenEnd = Math.ceil(initialised / clusterBytes);
    const extents: { fileOffset: number; at: number; bytes: number; unwritten: boolean }[] = [];
    for (let index = 0; index < runs!.count; index++) {
      const { vcn, lcn, clusters } = runs!.run(index);
      if (lcn === HOLE) continue;
      const written = Math.max(0, Math.min(clusters, writtenEnd - vcn));
      for (const [first, count, unwritten] of [
        [0, written, false],
        [written, clusters - written, true],
      ] as const) {
        if (count === 0) continue;
        const [fileOffset, at] = [(vcn + first) * clusterBytes, (lcn + first) * clusterBytes];
        extents.push({ fileOffset, at, bytes: count * clusterBytes, unwritten });
      }
    }
    return extents;
  }
}

/** A name of the file, a long one where it has one. */
function nameOf({ attributes }: File): NameRecord | undefined {
  let short: NameRecord | undefined;
  for (const { type, content, record } of attributes) {
    if (type !== TYPE.fileName || content.kind !== "resident") continue;
    const name = decodeName(record.view, content.at, content.bytes);
    if (!name.isShort) return name;
    short ??= name;
  }
  return short;
}

function kindOf(file: File): OwnerDescription["kind"] {
  const tag = reparseTag(file);
  if (tag === TAG.symlink || tag === TAG.mountPoint) return "symlink";
  return file.record.isDirectory ? "directory" : "file";
}

function fixedBecause(file: File, { attribute }: Stream): string | undefined {
  const { content, flags } = attribute;
  if ((flags & ATTRIBUTE_FLAG.encrypted) !== 0) return "encrypted";
  if ((flags & ATTRIBUTE_FLAG.compressed) !== 0) return "compressed";
  const tag = reparseTag(file);
  if (tag === TAG.compressed) return "compressed";
  if (tag !== 0) return "reparse point";
  return content.kind === "resident" ? "inline" : undefined;
}

/** What kind of reparse point the file is; 0 when it is none. */
function reparseTag({ attributes }: File): number {
  const point = attributes.find(({ type }) => type === TYPE.reparsePoint);
  if (point?.content.kind !== "resident" || point.content.bytes < 4) return point === undefined ? 0 : 1;
  return point.record.view.getUint32(point.content.at, true);
}
