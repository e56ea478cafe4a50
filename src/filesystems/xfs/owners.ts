/**
 * What an owner of blocks is called: a structure of the filesystem (numbers below zero), an inode of its own, or a
 * file with its path.
 */
import type { ExtentSet } from "../../bytes/extents.ts";
import {
  listedKind,
  LISTED_MAX,
  type FoundFile,
  type ListedFile,
  type OwnerDescription,
} from "../filesystem.ts";
import { Paths } from "../paths.ts";
import { unlessDamaged } from "../refused.ts";
import { directoriesOf } from "./directory.ts";
import { dataRuns, type Run } from "./fork.ts";
import type { Volume } from "./headers.ts";
import { FORMAT, placeOf, readInode, TYPE, type Inode } from "./inode.ts";
import { readShared } from "./shared.ts";
import { describeStructure } from "./structures.ts";
import type { Superblock } from "./superblock.ts";

const KINDS: ReadonlyMap<number, OwnerDescription["kind"]> = new Map([
  [TYPE.file, "file"],
  [TYPE.directory, "directory"],
  [TYPE.symlink, "symlink"],
]);

export class Owners {
  readonly #volume: Volume;
  readonly #paths: Paths<Inode>;
  readonly #own: ReadonlyMap<number, string>;
  #shared: ExtentSet | undefined;

  constructor(volume: Volume) {
    this.#volume = volume;
    this.#paths = new Paths(directoriesOf(volume));
    this.#own = ownInodes(volume.sb);
  }

  async describe(owner: number): Promise<OwnerDescription> {
    if (owner < 0) return describeStructure(owner);
    const own = this.#own.get(owner);
    if (own !== undefined) return { kind: "metadata", name: own };
    const inode = await unlessDamaged(readInode(this.#volume, owner));
    if (inode === undefined) return { kind: "unknown", name: `inode ${owner}` };
    const kind = KINDS.get(inode.type) ?? "special";
    const path = await unlessDamaged(this.#paths.pathOf(inode));
    if (path === undefined)
      return { kind, name: `${kind} without a name, inode ${owner}`, bytes: inode.size };
    return { kind, name: kind, path, bytes: inode.size };
  }

  async find(path: string): Promise<FoundFile | undefined> {
    const inode = await unlessDamaged(this.#paths.lookUp(path));
    if (inode === undefined) return undefined;
    const { number: owner, size: bytes } = inode;
    const kind = kindOf(inode);
    if (inode.data.format === FORMAT.local) {
      const at = placeOf(this.#volume.sb, owner)! + inode.data.start;
      return {
        owner,
        kind,
        bytes,
        fixed: "inline",
        extents: [{ fileOffset: 0, at, bytes, unwritten: false }],
      };
    }
    const found = await unlessDamaged(this.#runsOf(inode));
    if (found === undefined) return undefined;
    const { runs, fixed } = found;
    const { blockBytes } = this.#volume.sb;
    const extents = runs.map(({ logical, start, blocks, unwritten }) => ({
      fileOffset: logical * blockBytes,
      at: start * blockBytes,
      bytes: blocks * blockBytes,
      unwritten,
    }));
    return { owner, kind, bytes, ...(fixed && { fixed }), extents };
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
      const allocatedBytes = kind === "directory" ? 0 : inode.blocks * this.#volume.sb.blockBytes;
      listed.push({ name, kind, allocatedBytes });
    }
    return listed;
  }

  /** @throws Refused */
  async #runsOf(inode: Inode): Promise<{ runs: readonly Run[]; fixed: string | undefined }> {
    const runs = await dataRuns(this.#volume, inode);
    return { runs, fixed: await this.#fixedBecause(inode, runs) };
  }

  /** Why the bytes are not simply the content. In version 5 all that is no file's data bears headers of its own. */
  async #fixedBecause(inode: Inode, runs: readonly Run[]): Promise<string | undefined> {
    if (inode.type !== TYPE.file) return this.#volume.sb.version === 5 ? "checksummed" : undefined;
    if (!inode.isShareable) return undefined;
    this.#shared ??= (await readShared(this.#volume, () => {})).shared;
    const shared = this.#shared;
    const isShared = runs.some(({ start, blocks }) => shared.touches({ start, end: start + blocks }));
    return isShared ? "shared" : undefined;
  }
}

const kindOf = ({ type }: Inode): ListedFile["kind"] => listedKind(KINDS.get(type) ?? "special");

/** Inodes that belong to the filesystem itself; none of them has a path. */
function ownInodes({ quotaInodes, realtimeInodes }: Superblock): Map<number, string> {
  const own = new Map<number, string>();
  const add = (inode: number | undefined, name: string) => {
    if (inode !== undefined) own.set(inode, name);
  };
  add(quotaInodes.user, "user quota");
  add(quotaInodes.group, "group quota");
  add(quotaInodes.project, "project quota");
  add(realtimeInodes.bitmap, "realtime bitmap");
  add(realtimeInodes.summary, "realtime summary");
  return own;
}
