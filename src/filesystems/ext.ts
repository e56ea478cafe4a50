/**
 * ext2, ext3 and ext4: the allocation map, the walk over all inodes, and who owns what.
 *
 *   ext.ts                 the door: what FileSystem asks for
 *   ext/superblock.ts      geometry and features        ext/features.ts  ext/state.ts
 *   ext/groups.ts          group descriptors            ext/layout.ts: where fixed structures lie
 *   ext/bitmaps.ts         free()
 *   ext/walk.ts            walk()                       ext/claims.ts  ext/inode.ts  ext/block-map.ts
 *   ext/owners.ts          describe(), find()           ext/directory.ts
 *   ext/recovery.ts        how a volume is opened       ext/replay.ts: a dirty journal, replayed in memory
 *
 * Documentation/filesystems/ext4/ of Linux is the specification; e2fsprogs is the judge in the tests.
 */
import { ExtentSet } from "../bytes/extents.ts";
import { uuidText } from "../bytes/struct.ts";
import { printable } from "../bytes/text.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { freeExtents } from "./ext/bitmaps.ts";
import { generation } from "./ext/features.ts";
import { readGroups, type Volume } from "./ext/groups.ts";
import { Owners } from "./ext/owners.ts";
import { openClean, openReplayed } from "./ext/recovery.ts";
import { Refused } from "./refused.ts";
import { checkState, hasOrphans, needsReplay } from "./ext/state.ts";
import { MAGIC, readSuperblock, SUPERBLOCK_AT, SuperblockLayout, type Superblock } from "./ext/superblock.ts";
import { walk } from "./ext/walk.ts";
import type { FileSystem, FileSystemReader, ReadOptions, Visit } from "./filesystem.ts";
import { Door } from "./door.ts";

export const ext: FileSystemReader = {
  name: "ext",

  async probe(member) {
    if (member.bytes < SUPERBLOCK_AT + SuperblockLayout.bytes) return false;
    const magic = await readBytes(member, SUPERBLOCK_AT + SuperblockLayout.at.magic, 2);
    return magic[0]! + magic[1]! * 256 === MAGIC;
  },

  async open(members, options) {
    const filesystem = new ExtFileSystem(members[0]!);
    await filesystem.open(members, options);
    return filesystem;
  },
};

class ExtFileSystem extends Door implements FileSystem {
  readonly witness = { map: "bitmaps", walk: "inode walk" };
  readonly #device: BlockDevice;
  #sb: Superblock | undefined;
  #volume: Volume | undefined;
  /** After a replay: what was free before it, too. */
  #spare: ExtentSet | undefined;

  constructor(device: BlockDevice) {
    super();
    this.#device = device;
  }

  get name(): string {
    return this.#sb === undefined ? "ext" : generation(this.#sb);
  }

  get label(): string {
    return this.#sb === undefined
      ? ""
      : printable(Buffer.from(this.#sb.label).toString().replace(/\0.*$/s, ""));
  }

  get uuid(): string {
    return uuidText(this.#sb?.uuidBytes ?? new Uint8Array(16));
  }

  get blockBytes(): number {
    return this.#sb?.clusterBytes ?? 4096;
  }

  get bytes(): number {
    return Math.min(this.#sb?.bytes ?? this.#device.bytes, this.#device.bytes);
  }

  get isUnclean(): boolean {
    return this.#spare !== undefined;
  }

  async open(members: readonly BlockDevice[], options: ReadOptions): Promise<void> {
    await this.guarded(async () => {
      const sb = (this.#sb = await readSuperblock(this.#device));
      await checkState(this.#device, sb);
      if (needsReplay(sb) && !options.replay) {
        throw new Refused(
          "journal-dirty",
          "the journal holds changes that are not in their place yet: the guest was not shut down cleanly",
          "boot the guest and shut it down cleanly, or run e2fsck, or --allow replay",
        );
      }
      const recovered = await (needsReplay(sb) ? openReplayed : openClean)(members, sb);
      this.#use(recovered.volume);
      this.#spare = recovered.spare;
      this.notes.push(...recovered.notes);
    });
    if (this.#volume === undefined) await this.#openRefused();
  }

  /** What is refused gives nothing away, but who owns its blocks can be told as far as it can be read. */
  async #openRefused(): Promise<void> {
    const sb = this.#sb;
    if (sb === undefined || sb.bytes > this.#device.bytes) return;
    await this.guarded(async () => {
      this.#use({ device: this.#device, sb, groups: await readGroups(this.#device, sb, "count as used") });
    });
  }

  #use(volume: Volume): void {
    this.#sb = volume.sb;
    this.#volume = volume;
    this.owners = new Owners(volume);
    if (hasOrphans(volume.sb)) {
      this.notes.push("files that were deleted while open count as used until the guest has cleaned up");
    }
  }

  async free(): Promise<readonly ExtentSet[]> {
    const volume = this.#volume;
    const free = await this.guarded(async () => {
      if (volume === undefined || this.refusal !== undefined) return ExtentSet.EMPTY;
      const claimed = await freeExtents(volume, "refuse");
      return this.#spare === undefined ? claimed : claimed.intersect(this.#spare);
    });
    return [free ?? ExtentSet.EMPTY];
  }

  async walk(visit: Visit): Promise<void> {
    const volume = this.#volume;
    if (volume !== undefined) await this.guarded(() => walk(volume, visit));
  }
}
