/**
 * NTFS 3.0 and 3.1: the allocation map, the walk over all file records, and who owns what.
 *
 *   ntfs.ts                 the door: what FileSystem asks for
 *   ntfs/boot.ts            geometry
 *   ntfs/table.ts           $MFT            ntfs/record.ts  ntfs/attributes.ts  ntfs/list.ts  ntfs/runs.ts  ntfs/stream.ts
 *   ntfs/state.ts           $Volume, hibernation                                ntfs/log.ts: $LogFile
 *   ntfs/shadow.ts          what shadow copies need
 *   ntfs/bitmap.ts          free()
 *   ntfs/walk.ts            walk()          ntfs/spread.ts  ntfs/index-batch.ts
 *   ntfs/owners.ts          describe(), find(), list()      ntfs/directory.ts  ntfs/names.ts
 *
 * libyal/libfsntfs documentation/ and layout.h of ntfs-3g are the specification; ntfsprogs, ntfs-3g, partclone and
 * libvshadow are the judges in the tests.
 */
import { ExtentSet } from "../bytes/extents.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import type { FileSystem, FileSystemReader, FoundFile, ReadOptions, Visit } from "./filesystem.ts";
import { freeExtents } from "./ntfs/bitmap.ts";
import { type Geometry, NAME, NAME_AT, readBoot } from "./ntfs/boot.ts";
import { checkLog } from "./ntfs/log.ts";
import { OWNER, Owners } from "./ntfs/owners.ts";
import { readShadows, type Shadows } from "./ntfs/shadow.ts";
import { checkHibernation, checkVolume, readLabel } from "./ntfs/state.ts";
import { FileTable } from "./ntfs/table.ts";
import { walk } from "./ntfs/walk.ts";
import { Door } from "./door.ts";

export const ntfs: FileSystemReader = {
  name: "ntfs",

  async probe(member) {
    if (member.bytes < 512) return false;
    return Buffer.from(await readBytes(member, NAME_AT, NAME.length)).toString("latin1") === NAME;
  },

  async open(members, options) {
    const filesystem = new Ntfs(members[0]!);
    await filesystem.open(options);
    return filesystem;
  },
};

class Ntfs extends Door implements FileSystem {
  readonly name = "ntfs";
  readonly witness = { map: "$Bitmap", walk: "file record walk" };
  label = "";
  readonly #device: BlockDevice;
  #geometry: Geometry | undefined;
  #table: FileTable | undefined;
  /** What shadow copies may read in place: free clusters, and clusters that belong to other files by now. */
  #shadowed = ExtentSet.EMPTY;

  constructor(device: BlockDevice) {
    super();
    this.#device = device;
  }

  get uuid(): string {
    return (this.#geometry?.serial ?? 0n).toString(16).toUpperCase().padStart(16, "0");
  }

  get blockBytes(): number {
    return this.#geometry?.clusterBytes ?? 4096;
  }

  get bytes(): number {
    const geometry = this.#geometry;
    const bytes = geometry === undefined ? this.#device.bytes : geometry.backupAt + geometry.sectorBytes;
    return Math.min(bytes, this.#device.bytes);
  }

  async open(options: ReadOptions): Promise<void> {
    const table = await this.guarded(async () => {
      this.#geometry = await readBoot(this.#device);
      return FileTable.open(this.#device, this.#geometry);
    });
    if (table === undefined) return;
    this.#table = table;
    this.owners = new Owners(table);
    await this.guarded(async () => {
      this.label = await readLabel(table);
      await checkHibernation(table);
      await checkLog(table);
      await checkVolume(table);
      await table.checkMirror();
      if (options.shadowLoss !== true) this.#keepShadows(await readShadows(this.#device));
    });
  }

  #keepShadows(shadows: Shadows | undefined): void {
    if (shadows === undefined) return;
    this.#shadowed = shadows.kept.alignOutward(this.blockBytes);
    this.notes.push(
      `free clusters that ${shadows.stores} shadow copies may read count as used (--allow shadow-loss gives them up)`,
    );
  }

  async free(): Promise<readonly ExtentSet[]> {
    const free = await this.guarded(async () => {
      if (this.#table === undefined || this.refusal !== undefined) return ExtentSet.EMPTY;
      const claimed = await freeExtents(this.#table);
      return claimed.subtract(this.#shadowed);
    });
    return [free ?? ExtentSet.EMPTY];
  }

  async walk(visit: Visit): Promise<void> {
    const table = this.#table;
    if (table === undefined) return;
    await this.guarded(() => walk(table, visit));
    for (const { start, end } of this.#shadowed) visit(0, start, end, OWNER.shadows);
  }

  override async find(path: string): Promise<FoundFile | undefined> {
    const found = await super.find(path);
    if (found === undefined || found.fixed !== undefined) return found;
    const isShared = found.extents.some(({ at, bytes }) =>
      this.#shadowed.touches({ start: at, end: at + bytes }),
    );
    return isShared ? { ...found, fixed: "shared" } : found;
  }
}
