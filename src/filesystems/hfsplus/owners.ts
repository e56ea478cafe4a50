/**
 * What an owner of blocks is called, and paths in both directions.
 *
 *   down   root → the records of a folder → …     names are compared decomposed, and folded where the volume folds them
 *   up     the thread of a number → its parent and name → the parent's thread → …
 *
 * A hard link is followed to its file in the private folder; links to folders, symlinks and aliases are not. On disk a
 * name may hold "/", which the guest shows as ":", as is done here.
 */
import { printable } from "../../bytes/text.ts";
import { cache } from "../../device/cache.ts";
import { LISTED_MAX, type FoundFile, type ListedFile, type OwnerDescription } from "../filesystem.ts";
import { unlessDamaged } from "../refused.ts";
import { FILE, findPlain, readThread, ROOT, visitFolder, type Entry } from "./catalog.ts";
import { decodeFork, FORK_BYTES, type Fork } from "./fork.ts";
import { extentsOf, FORK_TYPE } from "./overflow.ts";
import { CATALOG_ID } from "./volume-header.ts";
import type { Volume } from "./volume.ts";

/** The owners below zero: special files by their number, and what is none. */
export const OWNER = { header: -1, copy: -2, journalInfo: -9, journal: -10, wrapper: -11 } as const;

const OWN: ReadonlyMap<number, string> = new Map([
  [OWNER.header, "volume header"],
  [OWNER.copy, "copy of the volume header"],
  [OWNER.journalInfo, "journal info block"],
  [OWNER.wrapper, "HFS wrapper"],
  [-CATALOG_ID.extents, "extents overflow file"],
  [-CATALOG_ID.catalog, "catalog file"],
  [-CATALOG_ID.badBlocks, "bad blocks"],
  [-CATALOG_ID.allocation, "allocation file"],
  [-CATALOG_ID.startup, "startup file"],
  [-CATALOG_ID.attributes, "attributes file"],
]);

const DEPTH_MAX = 1024;
const PRIVATE_FOLDER = "\0\0\0\0HFS+ Private Data";
const LISTED = { folder: "directory", file: "file", symlink: "other", special: "other" } as const;
const KIND = { folder: "directory", file: "file", symlink: "symlink", special: "special" } as const;

export class Owners {
  readonly #volume: Volume;
  #privateFolder: Promise<number | undefined> | undefined;

  constructor(volume: Volume) {
    const cached = <T extends { readonly device: Volume["device"] }>(tree: T): T => ({
      ...tree,
      device: cache(tree.device),
    });
    this.#volume = { ...volume, catalog: cached(volume.catalog), overflow: cached(volume.overflow) };
  }

  /** The name of the volume. */
  async label(): Promise<string> {
    return printable((await readThread(this.#volume.catalog, ROOT))?.name ?? "");
  }

  async describe(owner: number): Promise<OwnerDescription> {
    if (owner === OWNER.journal) return { kind: "journal", name: "journal" };
    const own = OWN.get(owner);
    if (own !== undefined) return { kind: "metadata", name: own };
    const nameless: OwnerDescription = { kind: "unknown", name: `file ${owner}` };
    return (await unlessDamaged(this.#describeFile(owner))) ?? nameless;
  }

  async #describeFile(id: number): Promise<OwnerDescription | undefined> {
    const thread = await readThread(this.#volume.catalog, id);
    if (thread === undefined) return undefined;
    const entry = await this.#entryIn(
      thread.parent,
      (found) => found.id === id && found.name === thread.name,
    );
    if (entry === undefined) return undefined;
    const kind = KIND[entry.kind];
    const path = await this.#pathOf(thread.parent, thread.name);
    return {
      kind,
      name: path === undefined ? `${kind} without a path, number ${id}` : kind,
      ...(path !== undefined && { path }),
      bytes: this.#fork(entry, FILE.data)?.bytes ?? 0,
    };
  }

  async #pathOf(parent: number, name: string): Promise<string | undefined> {
    const names = [shown(name)];
    let folder = parent;
    for (let depth = 0; depth < DEPTH_MAX; depth++) {
      if (folder === ROOT) return `/${names.reverse().join("/")}`;
      const thread = await readThread(this.#volume.catalog, folder);
      if (thread === undefined) return undefined;
      names.push(shown(thread.name));
      folder = thread.parent;
    }
    return undefined;
  }

  async find(path: string): Promise<FoundFile | undefined> {
    return unlessDamaged(this.#find(path));
  }

  async #find(path: string): Promise<FoundFile | undefined> {
    const entry = await this.#lookUp(path);
    if (entry === undefined) return undefined;
    const { id: owner, isCompressed } = entry;
    const fork = this.#fork(entry, isCompressed ? FILE.resource : FILE.data);
    const kind = LISTED[entry.kind];
    if (fork === undefined) return { owner, kind, bytes: 0, extents: [] };
    const extents = await this.#placesOf(owner, isCompressed ? FORK_TYPE.resource : FORK_TYPE.data, fork);
    return { owner, kind, bytes: fork.bytes, ...(isCompressed && { fixed: "compressed" }), extents };
  }

  async list(path: string, atMost = LISTED_MAX): Promise<readonly ListedFile[] | undefined> {
    const folder = await unlessDamaged(this.#lookUp(path));
    if (folder?.kind !== "folder") return undefined;
    const listed: ListedFile[] = [];
    const links: { readonly index: number; readonly entry: Entry }[] = [];
    await unlessDamaged(
      visitFolder(this.#volume.catalog, folder.id, (entry) => {
        if (entry.linksTo !== undefined) links.push({ index: listed.length, entry });
        listed.push(this.#listed(entry, entry.name));
        return listed.length < atMost;
      }),
    );
    for (const { index, entry } of links) {
      const file = await unlessDamaged(this.#followed(entry));
      if (file !== undefined) listed[index] = this.#listed(file, entry.name);
    }
    return listed;
  }

  #listed({ kind, blocks }: Entry, name: string): ListedFile {
    const allocatedBytes = blocks * this.#volume.header.blockBytes;
    return { name: shown(name), kind: LISTED[kind], allocatedBytes };
  }

  async #lookUp(path: string): Promise<Entry | undefined> {
    let entry: Entry | undefined = { kind: "folder", name: "", id: ROOT, isCompressed: false, blocks: 0 };
    for (const name of path.split("/").filter((part) => part !== "" && part !== ".")) {
      if (entry?.kind !== "folder") return undefined;
      const wanted = this.#folded(name);
      entry = await this.#entryIn(
        entry.id,
        (found) => this.#folded(found.name.replaceAll("/", ":")) === wanted || shown(found.name) === name,
      );
    }
    return entry && this.#followed(entry);
  }

  /** As the guest compares names; its table of cases is older than this one. */
  #folded(name: string): string {
    const decomposed = name.normalize("NFD");
    return this.#volume.ignoresCase ? decomposed.toLowerCase() : decomposed;
  }

  async #entryIn(folder: number, isWanted: (entry: Entry) => boolean): Promise<Entry | undefined> {
    let wanted: Entry | undefined;
    await visitFolder(this.#volume.catalog, folder, (entry) => {
      if (isWanted(entry)) wanted = entry;
      return wanted === undefined;
    });
    return wanted;
  }

  /** The file itself, where `entry` is one of its hard links. */
  async #followed(entry: Entry): Promise<Entry> {
    if (entry.linksTo === undefined) return entry;
    this.#privateFolder ??= this.#entryIn(ROOT, ({ name }) => name === PRIVATE_FOLDER).then(
      (found) => found?.id,
    );
    const folder = await this.#privateFolder;
    if (folder === undefined) return entry;
    const { catalog, ignoresCase } = this.#volume;
    return (await findPlain(catalog, folder, `iNode${entry.linksTo}`, ignoresCase)) ?? entry;
  }

  #fork({ record }: Entry, at: number): Fork | undefined {
    if (record === undefined) return undefined;
    const bytes = new Uint8Array(record.buffer, record.byteOffset + at, FORK_BYTES);
    return decodeFork("file", bytes, this.#volume.header);
  }

  async #placesOf(file: number, forkType: number, fork: Fork): Promise<FoundFile["extents"]> {
    const { header, overflow } = this.#volume;
    const extents = await extentsOf(overflow, header, file, forkType, fork);
    const places: { fileOffset: number; at: number; bytes: number; unwritten: boolean }[] = [];
    let fileOffset = 0;
    for (let i = 0; i < extents.length; i += 2) {
      const bytes = extents[i + 1]! * header.blockBytes;
      places.push({ fileOffset, at: extents[i]! * header.blockBytes, bytes, unwritten: false });
      fileOffset += bytes;
    }
    return places;
  }
}

const shown = (name: string): string => printable(name.normalize("NFC").replaceAll("/", ":"));
