/**
 * HFS+ and HFSX: the allocation file, the walk over catalog, extents and attributes, and who owns what.
 *
 *   hfsplus.ts                   the door: what FileSystem asks for
 *   hfsplus/volume-header.ts     geometry, state          hfsplus/wrapper.ts: HFS around it   hfsplus/journal.ts
 *   hfsplus/volume.ts            the special files        hfsplus/fork.ts  hfsplus/overflow.ts: extents
 *   hfsplus/allocation.ts        free()
 *   hfsplus/walk.ts              walk()                   hfsplus/tree.ts  hfsplus/tree-node.ts  hfsplus/catalog.ts
 *   hfsplus/owners.ts            describe(), find(), list()
 *
 * Technical Note TN1150, "HFS Plus Volume Format", is the specification.
 */
import { createHash } from "node:crypto";
import { ExtentSet, type Extent } from "../bytes/extents.ts";
import { uuidText } from "../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { slice } from "../device/slice.ts";
import type { FileSystem, FileSystemReader, FoundFile, Visit } from "./filesystem.ts";
import { freeExtents } from "./hfsplus/allocation.ts";
import { checkJournal, type Journal } from "./hfsplus/journal.ts";
import { OWNER, Owners } from "./hfsplus/owners.ts";
import {
  CATALOG_ID,
  checkState,
  HEADER_AT,
  readHeader,
  SIGNATURE,
  type Header,
} from "./hfsplus/volume-header.ts";
import { openVolume, specialFile, type Volume } from "./hfsplus/volume.ts";
import { walk } from "./hfsplus/walk.ts";
import { embeddedIn, readMasterDirectoryBlock } from "./hfsplus/wrapper.ts";
import { Door } from "./door.ts";

const HEADER_END = 2048;
const VERSIONS = [4, 5];

export const hfsplus: FileSystemReader = {
  name: "hfsplus",

  async probe(member) {
    if (member.bytes < HEADER_END) return false;
    const [high, low, , version] = await readBytes(member, HEADER_AT, 4);
    const signature = high! * 256 + low!;
    if (signature === SIGNATURE.plus || signature === SIGNATURE.x) return VERSIONS.includes(version!);
    return (await readMasterDirectoryBlock(member)) !== undefined;
  },

  async open(members) {
    const filesystem = new HfsPlus(members[0]!);
    await filesystem.open();
    return filesystem;
  },
};

class HfsPlus extends Door implements FileSystem {
  readonly witness = { map: "allocation file", walk: "catalog walk" };
  label = "";
  readonly #device: BlockDevice;
  /** Where the volume lies in its wrapper. */
  #range: Extent;
  #isWrapped = false;
  #header: Header | undefined;
  #volume: Volume | undefined;
  #journal: Journal | undefined;

  constructor(device: BlockDevice) {
    super();
    this.#device = device;
    this.#range = { start: 0, end: device.bytes };
  }

  get name(): string {
    if (this.#header === undefined && this.#isWrapped) return "hfs";
    return this.#header?.isX ? "hfsx" : "hfsplus";
  }

  /** As the guest makes one of the eight bytes that identify a volume. */
  get uuid(): string {
    const identifier = this.#header?.identifier ?? new Uint8Array(8);
    if (identifier.every((byte) => byte === 0)) return "";
    const hash = createHash("md5").update(UUID_NAMESPACE).update(identifier).digest();
    hash[6] = 0x30 | (hash[6]! & 0x0f);
    hash[8] = 0x80 | (hash[8]! & 0x3f);
    return uuidText(hash);
  }

  /** Blocks are counted from the start of the volume, which a wrapper need not align. */
  get blockBytes(): number {
    let bytes = this.#header?.blockBytes ?? 4096;
    while (this.#range.start % bytes !== 0) bytes /= 2;
    return bytes;
  }

  get bytes(): number {
    return this.#header === undefined ? this.#device.bytes : this.#range.start + this.#header.bytes;
  }

  async open(): Promise<void> {
    await this.guarded(async () => {
      const wrapper = await readMasterDirectoryBlock(this.#device);
      this.#isWrapped = wrapper !== undefined;
      if (wrapper !== undefined) this.#range = embeddedIn(wrapper, this.#device.bytes);
      const inner = slice(this.#device, this.#range);
      this.#header = await readHeader(inner);
      await this.guarded(async () => {
        checkState(this.#header!);
        this.#journal = await checkJournal(inner, this.#header!);
      });
      this.#volume = await openVolume(inner, this.#header);
      const owners = new Owners(this.#volume);
      this.owners = owners;
      this.label = await owners.label();
    });
  }

  async free(): Promise<readonly ExtentSet[]> {
    const volume = this.#volume;
    const free = await this.guarded(async () => {
      if (volume === undefined || this.refusal !== undefined) return ExtentSet.EMPTY;
      const file = await specialFile(volume, CATALOG_ID.allocation);
      return (await freeExtents(file, volume.header)).shift(this.#range.start);
    });
    return [free ?? ExtentSet.EMPTY];
  }

  async walk(visit: Visit): Promise<void> {
    const volume = this.#volume;
    if (volume === undefined) return;
    const { start } = this.#range;
    await this.guarded(async () => {
      if (this.#isWrapped) visit(0, 0, start, OWNER.wrapper);
      await walk(volume, this.#journal, (from, to, owner) => visit(0, start + from, start + to, owner));
    });
  }

  override async find(path: string): Promise<FoundFile | undefined> {
    const found = await super.find(path);
    return (
      found && {
        ...found,
        extents: found.extents.map((extent) => ({ ...extent, at: extent.at + this.#range.start })),
      }
    );
  }
}

/** The name space that Apple's tools hash before a volume's identifier. */
const UUID_NAMESPACE = Buffer.from("b3e20f39f29211d697a400306543ecac", "hex");
