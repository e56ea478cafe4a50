/**
 * APFS: a container with one map of free space for all of its volumes and their snapshots.
 *
 *   apfs.ts                  the door: what FileSystem asks for
 *   apfs/checkpoint.ts       the newest checkpoint            apfs/superblock.ts  apfs/objects.ts
 *   apfs/free.ts             free()                           apfs/spaceman.ts
 *   apfs/contents.ts         volumes, and what is unfinished  apfs/volume.ts  apfs/omap.ts
 *   apfs/walk.ts             walk()                           apfs/claims.ts  apfs/snapshots.ts  apfs/records.ts
 *   apfs/owners.ts           describe(), find(), list()       apfs/file-tree.ts  apfs/inode.ts  apfs/structures.ts
 *   apfs/sleep.ts            a guest that hibernates
 *   apfs/tree.ts             B-trees                          apfs/node.ts
 *
 * The Apple File System Reference (2020-06-22) is the specification; partclone, apfsck, The Sleuth Kit and the Linux
 * driver are the judges in the tests.
 */
import { ExtentSet } from "../bytes/extents.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { openContainer } from "./apfs/checkpoint.ts";
import { checkReaper, readContents, type Contents } from "./apfs/contents.ts";
import { freeExtents } from "./apfs/free.ts";
import { Owners } from "./apfs/owners.ts";
import { checkAwake } from "./apfs/sleep.ts";
import { MAGIC, uuidOf } from "./apfs/superblock.ts";
import { checkVolume, nameOf, SEALED, UNENCRYPTED } from "./apfs/volume.ts";
import { walk } from "./apfs/walk.ts";
import type { FileSystem, FileSystemReader, Visit } from "./filesystem.ts";
import { Door } from "./door.ts";

const MAGIC_AT = 32;
const SMALLEST_BYTES = 4096;

export const apfs: FileSystemReader = {
  name: "apfs",

  async probe(member) {
    if (member.bytes < SMALLEST_BYTES) return false;
    const magic = await readBytes(member, MAGIC_AT, 4);
    return Buffer.from(magic).readUInt32LE() === MAGIC;
  },

  async open(members) {
    const container = new ApfsContainer(members[0]!);
    await container.open();
    return container;
  },
};

class ApfsContainer extends Door implements FileSystem {
  readonly name = "apfs";
  readonly witness = { map: "bitmaps", walk: "object walk" };
  readonly #device: BlockDevice;
  #contents: Contents | undefined;

  constructor(device: BlockDevice) {
    super();
    this.#device = device;
  }

  get label(): string {
    return this.#contents?.volumes.map(({ sb }) => nameOf(sb)).join(", ") ?? "";
  }

  get uuid(): string {
    return this.#contents === undefined ? "" : uuidOf(this.#contents.container.sb);
  }

  get blockBytes(): number {
    return this.#contents?.container.blockBytes ?? SMALLEST_BYTES;
  }

  get bytes(): number {
    if (this.#contents === undefined) return this.#device.bytes;
    const { blocks, blockBytes } = this.#contents.container;
    return blocks * blockBytes;
  }

  /** What is refused gives nothing away, but is read on, so that owners can be told. */
  async open(): Promise<void> {
    const container = await this.guarded(() => openContainer(this.#device));
    if (container === undefined) return;
    await this.guarded(() => checkReaper(container));
    const contents = (this.#contents = await this.guarded(() => readContents(container)));
    if (contents === undefined) return;
    const owners = (this.owners = new Owners(contents));
    await this.guarded(() => checkAwake(contents, owners));
    if (container.isBehind) {
      this.notes.push("the guest was not shut down in order: its last checkpoint counts");
    }
    for (const { sb } of contents.volumes) {
      await this.guarded(async () => checkVolume(sb));
      if ((sb.flags & UNENCRYPTED) === 0n) this.notes.push(`volume ${nameOf(sb)} is encrypted`);
      if ((sb.incompat & SEALED) !== 0n) this.notes.push(`volume ${nameOf(sb)} is sealed`);
      if (sb.snapshots > 0)
        this.notes.push(`volume ${nameOf(sb)}: ${sb.snapshots} snapshots keep their blocks`);
    }
  }

  async free(): Promise<readonly ExtentSet[]> {
    const free = await this.guarded(async () => {
      if (this.#contents === undefined || this.refusal !== undefined) return ExtentSet.EMPTY;
      return freeExtents(this.#contents.container);
    });
    return [free ?? ExtentSet.EMPTY];
  }

  async walk(visit: Visit): Promise<void> {
    await this.guarded(async () => {
      if (this.#contents !== undefined) await walk(this.#contents, visit);
    });
  }
}
