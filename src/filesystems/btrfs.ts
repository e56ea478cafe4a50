/**
 * Btrfs: the allocation map, the walk over all trees, older roots, and who owns what.
 *
 *   btrfs.ts                 the door: what FileSystem asks for
 *   btrfs/superblock.ts      the superblock and its copies       btrfs/features.ts  btrfs/checksums.ts
 *   btrfs/opening.ts         how a volume is opened              btrfs/chunks.ts: logical address → device
 *   btrfs/volume.ts          how nodes are read                  btrfs/node.ts  btrfs/trees.ts  btrfs/root-items.ts
 *   btrfs/free.ts            free()                              btrfs/extent-map.ts  devices.ts  free-space-tree.ts
 *   btrfs/walk.ts            walk()                              btrfs/file-extents.ts  btrfs/owners.ts
 *   btrfs/older.ts           generations to go back to, for both
 *   btrfs/files.ts           describe(), find(), list()          btrfs/paths.ts  btrfs/inodes.ts  btrfs/lookup.ts
 *
 * Documentation/dev/On-disk-format.rst of btrfs-progs is the specification; btrfs-progs and the kernel are the judges
 * in the tests.
 */
import { ExtentSet } from "../bytes/extents.ts";
import { uuidText } from "../bytes/struct.ts";
import { printable } from "../bytes/text.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import type { Membership } from "../device/membership.ts";
import { checkLog } from "./btrfs/features.ts";
import { Files } from "./btrfs/files.ts";
import { freeExtents } from "./btrfs/free.ts";
import { openMembers, openVolume, type Volume } from "./btrfs/opening.ts";
import { Owners } from "./btrfs/owners.ts";
import {
  MAGIC,
  readSuperblock,
  SUPERBLOCK_AT,
  SuperblockLayout,
  type Superblock,
} from "./btrfs/superblock.ts";
import { walk } from "./btrfs/walk.ts";
import type { FileSystem, FileSystemReader, ReadOptions, Visit } from "./filesystem.ts";
import { unlessDamaged } from "./refused.ts";
import { Door } from "./door.ts";

export const btrfs: FileSystemReader = {
  name: "btrfs",

  async probe(member) {
    if (member.bytes < SUPERBLOCK_AT + SuperblockLayout.bytes) return false;
    const magic = await readBytes(member, SUPERBLOCK_AT + SuperblockLayout.at.magic, MAGIC.length);
    return Buffer.from(magic).toString("latin1") === MAGIC;
  },

  async membership(member): Promise<Membership | undefined> {
    if (!(await btrfs.probe(member))) return undefined;
    const sb = await unlessDamaged(readSuperblock(member));
    if (sb === undefined) return undefined;
    return {
      kind: "Btrfs",
      set: uuidText(sb.fsid),
      name: labelOf(sb),
      member: `${sb.deviceId}`,
      total: sb.devices,
    };
  },

  async open(members, options) {
    const filesystem = new BtrfsFileSystem(members);
    await filesystem.open(options);
    return filesystem;
  },
};

const labelOf = (sb: Superblock): string => printable(Buffer.from(sb.label).toString().replace(/\0.*$/s, ""));

const LOG_NOTE = "a log tree waits to be replayed: what it refers to counts as used";

class BtrfsFileSystem extends Door implements FileSystem {
  readonly name = "btrfs";
  readonly witness = { map: "extent tree", walk: "tree walk" };
  readonly #devices: readonly BlockDevice[];
  #sb: Superblock | undefined;
  #volume: Volume | undefined;
  readonly #owners = new Owners();

  constructor(devices: readonly BlockDevice[]) {
    super();
    this.#devices = devices;
  }

  get label(): string {
    return this.#sb === undefined ? "" : labelOf(this.#sb);
  }

  get uuid(): string {
    return uuidText(this.#sb?.fsid ?? new Uint8Array(16));
  }

  get blockBytes(): number {
    return this.#sb?.sectorBytes ?? 4096;
  }

  get bytes(): number {
    const { bytes } = this.#devices[0]!;
    return Math.min(this.#sb?.deviceBytes ?? bytes, bytes);
  }

  get isUnclean(): boolean {
    return this.#sb !== undefined && this.#sb.logRoot !== 0;
  }

  async open(options: ReadOptions): Promise<void> {
    await this.guarded(async () => {
      this.#sb = await readSuperblock(this.#devices[0]!);
      const members = await openMembers(this.#devices);
      this.#volume = await openVolume(members);
      this.owners = new Files(this.#volume, this.#owners);
      checkLog(this.#sb, options.replay);
      if (this.#sb.logRoot !== 0) this.notes.push(LOG_NOTE);
    });
  }

  async free(): Promise<readonly ExtentSet[]> {
    const volume = this.#volume;
    const free = await this.guarded(async () =>
      volume === undefined || this.refusal !== undefined ? undefined : freeExtents(volume, this.#owners),
    );
    return free ?? this.#devices.map(() => ExtentSet.EMPTY);
  }

  async walk(visit: Visit): Promise<void> {
    const volume = this.#volume;
    if (volume !== undefined) await this.guarded(() => walk(volume, this.#owners, visit));
  }
}
