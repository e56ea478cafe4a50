/**
 * F2FS: the segment information table, the walk over all nodes, and who owns what.
 *
 *   f2fs.ts              the door: what FileSystem asks for
 *   f2fs/superblock.ts   geometry and features               f2fs/checkpoint.ts: state, and which copies count
 *   f2fs/segments.ts     free()
 *   f2fs/walk.ts         walk()                              f2fs/nodes.ts  f2fs/node.ts
 *   f2fs/owners.ts       describe(), find(), list()
 *
 * Documentation/filesystems/f2fs.rst and include/linux/f2fs_fs.h of Linux are the specification; the kernel, fsck.f2fs
 * and partclone are the judges in the tests.
 */
import { ExtentSet } from "../bytes/extents.ts";
import { uuidText } from "../bytes/struct.ts";
import { printable } from "../bytes/text.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { checkState, readCheckpoints, FLAG, type Checkpoint } from "./f2fs/checkpoint.ts";
import { versionOf } from "./f2fs/node.ts";
import { readNodeTable } from "./f2fs/nodes.ts";
import { Owners } from "./f2fs/owners.ts";
import { notClean } from "./f2fs/refused.ts";
import { freeExtents } from "./f2fs/segments.ts";
import { BLOCK_BYTES, MAGIC, readSuperblock, SUPERBLOCK_AT, type Superblock } from "./f2fs/superblock.ts";
import { walk, type Volume } from "./f2fs/walk.ts";
import type { FileSystem, FileSystemReader, Visit } from "./filesystem.ts";
import { Door } from "./door.ts";

export const f2fs: FileSystemReader = {
  name: "f2fs",

  async probe(member) {
    if (member.bytes < 2 * BLOCK_BYTES) return false;
    const magic = await readBytes(member, SUPERBLOCK_AT, 4);
    return Buffer.from(magic).readUInt32LE() === MAGIC;
  },

  async open(members) {
    const filesystem = new F2fsFileSystem(members[0]!);
    await filesystem.open();
    return filesystem;
  },
};

interface Checkpoints {
  readonly newest: Checkpoint;
  readonly earlier: Checkpoint | undefined;
}

class F2fsFileSystem extends Door implements FileSystem {
  readonly name = "f2fs";
  readonly witness = { map: "segments", walk: "node walk" };
  readonly blockBytes = BLOCK_BYTES;
  readonly #device: BlockDevice;
  #sb: Superblock | undefined;
  #checkpoints: Checkpoints | undefined;
  #volume: Volume | undefined;

  constructor(device: BlockDevice) {
    super();
    this.#device = device;
  }

  get label(): string {
    const name = this.#sb === undefined ? "" : Buffer.from(this.#sb.volumeName).toString("utf16le");
    return printable(name.replace(/\0.*$/s, ""));
  }

  get uuid(): string {
    return uuidText(this.#sb?.uuid ?? new Uint8Array(16));
  }

  get bytes(): number {
    return this.#sb === undefined ? this.#device.bytes : this.#sb.blocks * BLOCK_BYTES;
  }

  /** What is refused gives nothing away, but is read on, so that owners can be told. */
  async open(): Promise<void> {
    await this.guarded(async () => {
      const device = this.#device;
      const sb = (this.#sb = await readSuperblock(device));
      const checkpoints = await readCheckpoints(device, sb);
      await this.guarded(async () => {
        checkState(checkpoints.newest);
        await this.#checkLog(checkpoints.newest);
      });
      const table = await readNodeTable(device, sb, checkpoints.newest);
      this.#checkpoints = checkpoints;
      this.#volume = { device, sb, table };
      this.owners = new Owners(this.#volume);
      if ((checkpoints.newest.fields.flags & FLAG.orphans) !== 0) {
        this.notes.push("files that were deleted while open count as used until the guest has cleaned up");
      }
    });
  }

  /** After a clean unmount nothing was logged that a mount would roll forward. */
  async #checkLog({ nextNodeBlock, fields }: Checkpoint): Promise<void> {
    if ((nextNodeBlock + 1) * BLOCK_BYTES > this.#device.bytes) return;
    const next = await readBytes(this.#device, nextNodeBlock * BLOCK_BYTES, BLOCK_BYTES);
    if (versionOf(next) === fields.version % 2 ** 32) {
      throw notClean("there are nodes behind the checkpoint that a mount would recover");
    }
  }

  async free(): Promise<readonly ExtentSet[]> {
    const free = await this.guarded(async () => {
      if (this.#checkpoints === undefined || this.refusal !== undefined) return ExtentSet.EMPTY;
      const { newest, earlier } = this.#checkpoints;
      return freeExtents(this.#device, this.#volume!.sb, newest, earlier);
    });
    return [free ?? ExtentSet.EMPTY];
  }

  async walk(visit: Visit): Promise<void> {
    await this.guarded(async () => {
      if (this.#volume !== undefined) await walk(this.#volume, visit);
    });
  }
}
