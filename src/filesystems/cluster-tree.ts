/**
 * Names in a tree of directories whose files are clusters, in both directions.
 *
 *   down   root → entry → entry → …                   compared as the guest compares: without regard to case
 *   up     first cluster → directory → … → root       the tree is searched once, as far as needed
 *
 * The owner of clusters is the first of them, which no two files share.
 */
import { clusterAt, visitClusters, type ClusterHeap, type Holding } from "./cluster-chains.ts";
import { LISTED_MAX, type FoundFile, type ListedFile, type OwnerDescription } from "./filesystem.ts";
import { unlessDamaged } from "./refused.ts";

export interface TreeEntry extends Holding {
  /** Fit to be shown. */
  readonly name: string;
  /** Another name by which it is found; "" where there is none. */
  readonly shortName: string;
  readonly isDirectory: boolean;
  /** Bytes that were ever written; what follows reads as zeros. */
  readonly validBytes: number;
  readonly fixed?: string;
}

export interface Tree {
  readonly heap: ClusterHeap;
  readonly root: TreeEntry;
  readonly directoryBytesMax: number;
  /** @throws Refused when the directory is damaged */
  entries(directory: TreeEntry): AsyncIterable<TreeEntry>;
  /** A name in the form in which it is compared. */
  folded(name: string): string;
}

/** How many files and directories the search for paths may remember; beyond, they have no path. */
const REMEMBERED_MAX = 1 << 21;
const DEPTH_MAX = 1024;

export class TreeNames {
  readonly #tree: Tree;
  /** First cluster of a file or directory → that of the directory it is in; 0 is the root. */
  readonly #parents = new Map<number, number>();
  readonly #directories = new Map<number, TreeEntry>();
  readonly #unsearched: number[] = [0];

  constructor(tree: Tree) {
    this.#tree = tree;
    this.#directories.set(0, tree.root);
  }

  async describe(owner: number): Promise<OwnerDescription> {
    if (owner === this.#tree.root.first) return { kind: "directory", name: "directory", path: "/" };
    const nameless: OwnerDescription = { kind: "unknown", name: `clusters from ${owner}` };
    const found = await unlessDamaged(this.#search(owner));
    if (found === undefined) return nameless;
    const kind = found.entry.isDirectory ? "directory" : "file";
    const { bytes } = found.entry;
    return { kind, name: kind, path: found.path, ...(bytes !== undefined && { bytes }) };
  }

  async find(path: string): Promise<FoundFile | undefined> {
    const entry = await unlessDamaged(this.#lookUp(path));
    if (entry === undefined) return undefined;
    const extents = await unlessDamaged(this.#extentsOf(entry));
    if (extents === undefined) return undefined;
    return {
      owner: entry.first,
      kind: entry.isDirectory ? "directory" : "file",
      bytes: entry.bytes ?? extents.reduce((sum, { bytes }) => sum + bytes, 0),
      ...(entry.fixed !== undefined && { fixed: entry.fixed }),
      extents,
    };
  }

  async list(path: string, atMost = LISTED_MAX): Promise<readonly ListedFile[] | undefined> {
    const directory = await unlessDamaged(this.#lookUp(path));
    if (directory === undefined || !directory.isDirectory) return undefined;
    const listed: ListedFile[] = [];
    await unlessDamaged(this.#listInto(directory, listed, atMost));
    return listed;
  }

  async #listInto(directory: TreeEntry, listed: ListedFile[], atMost: number): Promise<void> {
    const { clusterBytes } = this.#tree.heap;
    for await (const { name, isDirectory, bytes } of this.#tree.entries(directory)) {
      if (listed.length >= atMost) return;
      const allocatedBytes = isDirectory ? 0 : Math.ceil(bytes! / clusterBytes) * clusterBytes;
      listed.push({ name, kind: isDirectory ? "directory" : "file", allocatedBytes });
    }
  }

  async #lookUp(path: string): Promise<TreeEntry | undefined> {
    let entry = this.#tree.root;
    for (const name of path.split("/").filter((part) => part !== "" && part !== ".")) {
      if (!entry.isDirectory) return undefined;
      const found = await this.#entryNamed(entry, this.#tree.folded(name));
      if (found === undefined) return undefined;
      entry = found;
    }
    return entry;
  }

  async #entryNamed(directory: TreeEntry, folded: string): Promise<TreeEntry | undefined> {
    for await (const entry of this.#tree.entries(directory)) {
      if (this.#tree.folded(entry.name) === folded) return entry;
      if (entry.shortName !== "" && this.#tree.folded(entry.shortName) === folded) return entry;
    }
    return undefined;
  }

  /** Searches on through the tree until the directory of `owner` is known. @throws Refused */
  async #search(owner: number): Promise<{ entry: TreeEntry; path: string } | undefined> {
    while (!this.#parents.has(owner)) {
      const next = this.#unsearched.pop();
      if (next === undefined || this.#parents.size > REMEMBERED_MAX) return undefined;
      for await (const entry of this.#tree.entries(this.#directories.get(next)!)) {
        if (entry.first === 0 || this.#parents.has(entry.first)) continue;
        this.#parents.set(entry.first, next);
        if (!entry.isDirectory) continue;
        this.#directories.set(entry.first, entry);
        this.#unsearched.push(entry.first);
      }
    }
    let parent = this.#parents.get(owner)!;
    let entry: TreeEntry | undefined;
    for await (const candidate of this.#tree.entries(this.#directories.get(parent)!)) {
      if (candidate.first === owner) entry ??= candidate;
    }
    if (entry === undefined) return undefined;
    let path = `/${entry.name}`;
    for (let depth = 0; parent !== 0 && depth < DEPTH_MAX; depth++) {
      path = `/${this.#directories.get(parent)!.name}${path}`;
      parent = this.#parents.get(parent)!;
    }
    return { entry, path };
  }

  async #extentsOf(entry: TreeEntry): Promise<FoundFile["extents"]> {
    const { heap, root, directoryBytesMax } = this.#tree;
    const extents: { fileOffset: number; at: number; bytes: number; unwritten: boolean }[] = [];
    if (entry.first === 0 && (entry === root || entry.bytes === 0)) return extents;
    const written = entry.isDirectory || entry.validBytes === entry.bytes ? Infinity : entry.validBytes;
    let fileOffset = 0;
    await visitClusters(heap, entry, directoryBytesMax, (first, clusters) => {
      const [start, end] = [fileOffset, fileOffset + clusters * heap.clusterBytes];
      const split = Math.min(Math.max(start, written), end);
      for (const [from, to, unwritten] of [
        [start, split, false],
        [split, end, true],
      ] as const) {
        const at = clusterAt(heap, first) + from - start;
        if (from < to) extents.push({ fileOffset: from, at, bytes: to - from, unwritten });
      }
      fileOffset = end;
    });
    return extents;
  }
}
