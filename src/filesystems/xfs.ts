/**
 * XFS, versions 4 and 5: the allocation map, the walk over all inodes, and who owns what.
 *
 *   xfs.ts                 the door: what FileSystem asks for
 *   xfs/superblock.ts      geometry                     xfs/features.ts
 *   xfs/recovery.ts        how a volume is opened       xfs/log.ts: whether it was left clean; xfs/replay.ts: if not
 *   xfs/headers.ts         AGF, AGI, AGFL               xfs/trees.ts: the B+trees of an allocation group
 *   xfs/free-space.ts      free()
 *   xfs/walk.ts            walk()                       xfs/chunks.ts  xfs/inode.ts  xfs/fork.ts  xfs/shared.ts  xfs/reverse-map.ts
 *   xfs/owners.ts          describe(), find(), list()   xfs/directory.ts  xfs/structures.ts
 *
 * "XFS Algorithms & Data Structures" (xfs-documentation) is the specification; xfsprogs is the judge in the tests.
 */
import { ExtentSet } from "../bytes/extents.ts";
import { uuidText } from "../bytes/struct.ts";
import { printable } from "../bytes/text.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import type { FileSystem, FileSystemReader, Visit } from "./filesystem.ts";
import { checkFeatures } from "./xfs/features.ts";
import { freeExtents } from "./xfs/free-space.ts";
import { readHeaders, type Volume } from "./xfs/headers.ts";
import { Owners } from "./xfs/owners.ts";
import { checkState, openVolume } from "./xfs/recovery.ts";
import { MAGIC, readSuperblock, SuperblockLayout, type Superblock } from "./xfs/superblock.ts";
import { walk } from "./xfs/walk.ts";
import { Door } from "./door.ts";

export const xfs: FileSystemReader = {
  name: "xfs",

  async probe(member) {
    if (member.bytes < SuperblockLayout.bytes) return false;
    return Buffer.from(await readBytes(member, 0, MAGIC.length)).toString("latin1") === MAGIC;
  },

  async open(members, { replay }) {
    const filesystem = new XfsFileSystem(members[0]!);
    await filesystem.open(replay);
    return filesystem;
  },
};

class XfsFileSystem extends Door implements FileSystem {
  readonly name = "xfs";
  readonly witness = { map: "free space trees", walk: "inode walk" };
  readonly #device: BlockDevice;
  #sb: Superblock | undefined;
  #volume: Volume | undefined;
  /** After a replay: what was free before it, too. */
  #spare: ExtentSet | undefined;

  constructor(device: BlockDevice) {
    super();
    this.#device = device;
  }

  get label(): string {
    return this.#sb === undefined
      ? ""
      : printable(Buffer.from(this.#sb.label).toString().replace(/\0.*$/s, ""));
  }

  get uuid(): string {
    return uuidText(this.#sb?.uuid ?? new Uint8Array(16));
  }

  get blockBytes(): number {
    return this.#sb?.blockBytes ?? 4096;
  }

  get bytes(): number {
    return Math.min(this.#sb?.bytes ?? this.#device.bytes, this.#device.bytes);
  }

  get isUnclean(): boolean {
    return this.#spare !== undefined;
  }

  async open(replay: boolean): Promise<void> {
    await this.guarded(async () => {
      const sb = (this.#sb = await readSuperblock(this.#device));
      checkFeatures(sb);
      checkState(this.#device, sb);
      const recovered = await openVolume(this.#device, sb, replay);
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
      this.#use({ device: this.#device, sb, ags: await readHeaders(this.#device, sb) });
    });
  }

  #use(volume: Volume): void {
    this.#sb = volume.sb;
    this.#volume = volume;
    this.owners = new Owners(volume);
    if (volume.ags.some(({ hasUnlinked }) => hasUnlinked)) {
      this.notes.push("files that were deleted while open count as used until the guest has cleaned up");
    }
  }

  async free(): Promise<readonly ExtentSet[]> {
    const volume = this.#volume;
    const free = await this.guarded(async () => {
      if (volume === undefined || this.refusal !== undefined) return ExtentSet.EMPTY;
      if (this.#spare === undefined) return freeExtents(volume);
      return (await freeExtents(volume, "stale")).intersect(this.#spare);
    });
    return [free ?? ExtentSet.EMPTY];
  }

  async walk(visit: Visit): Promise<void> {
    const volume = this.#volume;
    if (volume !== undefined) await this.guarded(() => walk(volume, visit));
  }
}
