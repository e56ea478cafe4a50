/** APFS. */
import { ExtentSet } from "../bytes/extents.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { openContainer, type Container } from "./apfs/checkpoint.ts";
import { freeExtents } from "./apfs/spaceman.ts";
import { MAGIC, uuidOf } from "./apfs/superblock.ts";
import { Guarded } from "./refused.ts";
import type {
  FileSystem,
  FileSystemReader,
  FoundFile,
  ListedFile,
  OwnerDescription,
  Visit,
} from "./filesystem.ts";

export const apfs: FileSystemReader = {
  name: "apfs",

  async probe(member) {
    if (member.bytes < 4096) return false;
    const magic = await readBytes(member, 32, 4);
    return Buffer.from(magic).readUInt32LE() === MAGIC;
  },

  async open([device]) {
    const container = new ApfsContainer(device!);
    await container.open();
    return container;
  },
};

class ApfsContainer extends Guarded implements FileSystem {
  readonly name = "apfs";
  readonly witness = { map: "space manager", walk: "object maps + extent records" };
  readonly #device: BlockDevice;
  #container: Container | undefined;
  constructor(device: BlockDevice) {
    super();
    this.#device = device;
  }
  get label() {
    return "";
  }
  get uuid() {
    return this.#container ? uuidOf(this.#container.sb) : "";
  }
  get blockBytes() {
    return this.#container?.blockBytes ?? 4096;
  }
  get bytes() {
    return this.#container ? this.#container.blocks * this.#container.blockBytes : this.#device.bytes;
  }
  async open() {
    this.#container = await this.guarded(() => openContainer(this.#device));
  }
  async free() {
    const container = this.#container;
    const free = await this.guarded(async () =>
      container && !this.refusal ? freeExtents(container) : ExtentSet.EMPTY,
    );
    return [free ?? ExtentSet.EMPTY];
  }
  async walk(_visit: Visit) {}
  async describe(_owner: number): Promise<OwnerDescription> {
    return { kind: "unknown", name: "" };
  }
  async find(_path: string): Promise<FoundFile | undefined> {
    return undefined;
  }
  async list(_path: string): Promise<readonly ListedFile[] | undefined> {
    return undefined;
  }
}
