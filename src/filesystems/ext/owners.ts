/**
 * What an owner of blocks is called: a fixed structure (numbers below zero), an inode of the filesystem's own, or a
 * file with its path.
 */
import {
  listedKind,
  LISTED_MAX,
  type FoundFile,
  type ListedFile,
  type OwnerDescription,
} from "../filesystem.ts";
import { Paths } from "../paths.ts";
import { unlessDamaged } from "../refused.ts";
import { inlineRest } from "./attributes.ts";
import { blockRuns } from "./block-map.ts";
import { directoriesOf } from "./directory.ts";
import type { Volume } from "./groups.ts";
import { FLAG, INODE, inodeAt, MAP_AT, MAP_BYTES, mapKind, readInode, TYPE, type Inode } from "./inode.ts";
import { STRUCTURES, type Structure } from "./layout.ts";
import type { Superblock } from "./superblock.ts";

/** The owner number of a fixed structure: below zero, inodes are above. */
export function structureOwner(structure: Structure, group: number): number {
  return -1 - (group * STRUCTURES.length + STRUCTURES.indexOf(structure));
}

const KINDS: ReadonlyMap<number, OwnerDescription["kind"]> = new Map([
  [TYPE.file, "file"],
  [TYPE.directory, "directory"],
  [TYPE.symlink, "symlink"],
]);

export class Owners {
  readonly #volume: Volume;
  readonly #paths: Paths<Inode>;
  readonly #own: ReadonlyMap<number, OwnerDescription>;

  constructor(volume: Volume) {
    this.#volume = volume;
    this.#paths = new Paths(directoriesOf(volume));
    this.#own = ownInodes(volume.sb);
  }

  async describe(owner: number): Promise<OwnerDescription> {
    if (owner < 0) return describeStructure(-1 - owner);
    const own = this.#own.get(owner);
    if (own !== undefined) return own;
    const nameless: OwnerDescription = { kind: "unknown", name: `inode ${owner}` };
    const inode = await unlessDamaged(readInode(this.#volume, owner));
    if (inode === undefined) return nameless;
    if ((inode.flags & FLAG.eaInode) !== 0) {
      return { kind: "metadata", name: `extended attribute value, inode ${owner}` };
    }
    const kind = KINDS.get(inode.type) ?? "special";
    const path = await unlessDamaged(this.#paths.pathOf(inode));
    if (path === undefined)
      return { kind, name: `${kind} without a name, inode ${owner}`, bytes: inode.size };
    return { kind, name: kind, path, bytes: inode.size };
  }

  async find(path: string): Promise<FoundFile | undefined> {
    const inode = await unlessDamaged(this.#paths.lookUp(path));
    if (inode === undefined) return undefined;
    const extents = await unlessDamaged(this.#extentsOf(inode));
    if (extents === undefined) return undefined;
    const fixed = fixedBecause(inode);
    return { owner: inode.number, kind: kindOf(inode), bytes: inode.size, ...(fixed && { fixed }), extents };
  }

  async list(path: string, atMost = LISTED_MAX): Promise<readonly ListedFile[] | undefined> {
    const directory = await unlessDamaged(this.#paths.lookUp(path));
    if (directory === undefined || directory.type !== TYPE.directory) return undefined;
    const listed: ListedFile[] = [];
    for (const { name, inode: number } of (await unlessDamaged(this.#paths.entriesOf(directory))) ?? []) {
      if (listed.length >= atMost) break;
      const inode = await unlessDamaged(readInode(this.#volume, number));
      if (inode === undefined) continue;
      const kind = kindOf(inode);
      const allocatedBytes = kind === "directory" ? 0 : await this.#allocatedBytes(inode);
      listed.push({ name, kind, allocatedBytes });
    }
    return listed;
  }

  async #allocatedBytes(inode: Inode): Promise<number> {
    if (mapKind(this.#volume.sb, inode) === "none") return 0;
    const runs = (await unlessDamaged(blockRuns(this.#volume, inode))) ?? [];
    return runs.reduce((sum, { blocks }) => sum + blocks * this.#volume.sb.blockBytes, 0);
  }

  async #extentsOf(inode: Inode): Promise<FoundFile["extents"]> {
    const { blockBytes } = this.#volume.sb;
    if (mapKind(this.#volume.sb, inode) === "none") return this.#inlineExtents(inode);
    const runs = await blockRuns(this.#volume, inode);
    return runs.map(({ logical, start, blocks, unwritten }) => ({
      fileOffset: logical * blockBytes,
      at: start * blockBytes,
      bytes: blocks * blockBytes,
      unwritten,
    }));
  }

  /** Content that lies in the inode: where the block map would be, and on in an attribute. */
  #inlineExtents(inode: Inode): FoundFile["extents"] {
    const isInline = (inode.flags & FLAG.inlineData) !== 0;
    if (!isInline && inode.type !== TYPE.symlink) return [];
    const at = inodeAt(this.#volume, inode.number);
    const first = Math.min(inode.size, MAP_BYTES);
    const rest = isInline ? inlineRest(inode) : new Uint8Array(0);
    const restAt = at + rest.byteOffset - inode.whole.byteOffset;
    return [
      { fileOffset: 0, at: at + MAP_AT, bytes: first, unwritten: false },
      { fileOffset: MAP_BYTES, at: restAt, bytes: rest.length, unwritten: false },
    ].filter(({ bytes }) => bytes > 0);
  }
}

const kindOf = ({ type }: Inode): ListedFile["kind"] => listedKind(KINDS.get(type) ?? "special");

function fixedBecause({ flags }: Inode): string | undefined {
  if ((flags & FLAG.inlineData) !== 0) return "inline";
  if ((flags & FLAG.encrypted) !== 0) return "encrypted";
  return (flags & FLAG.verity) === 0 ? undefined : "checksummed";
}

function describeStructure(index: number): OwnerDescription {
  const structure = STRUCTURES[index % STRUCTURES.length]!;
  const group = Math.floor(index / STRUCTURES.length);
  if (structure === "boot block" || structure === "multi-mount protection block") {
    return { kind: "metadata", name: structure };
  }
  const isCopied = structure === "superblock" || structure === "group descriptors";
  if (isCopied && group === 0) return { kind: "metadata", name: structure };
  return {
    kind: "metadata",
    name: isCopied ? `${structure}, copy in group ${group}` : `${structure} of group ${group}`,
  };
}

/** Inodes that belong to the filesystem itself; none of them has a path. */
function ownInodes(sb: Superblock): Map<number, OwnerDescription> {
  const own = new Map<number, OwnerDescription>();
  const add = (inode: number, name: string, kind: OwnerDescription["kind"] = "metadata") => {
    if (inode !== 0) own.set(inode, { kind, name });
  };
  add(INODE.badBlocks, "bad blocks");
  add(INODE.bootLoader, "boot loader");
  add(INODE.resize, "resize inode");
  add(sb.usrQuotaInode, "user quota");
  add(sb.grpQuotaInode, "group quota");
  add(sb.prjQuotaInode, "project quota");
  add(sb.orphanFileInode, "orphan file");
  add(sb.journalInode, "journal", "journal");
  return own;
}
