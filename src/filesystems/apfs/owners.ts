/**
 * What an owner of blocks is called, and where a file lies.
 *
 *   owner → object id of a stream → inode (its own id, or found by a search) → names of its parents up to the root
 *
 * With several volumes a path begins with the name of one: `/Macintosh HD/Users`.
 */
import { shownName } from "../../bytes/text.ts";
import { cache } from "../../device/cache.ts";
import { readScattered } from "../reading.ts";
import { unlessDamaged } from "../refused.ts";
import {
  listedKind,
  LISTED_MAX,
  type FoundFile,
  type ListedFile,
  type OwnerDescription,
} from "../filesystem.ts";
import type { Contents, Volume } from "./contents.ts";
import { FileTree, isOfTree, type FileRecord } from "./file-tree.ts";
import { ENTRY, MODE, readEntry, readInode, type Entry, type Inode } from "./inode.ts";
import { readNode, visitRecords } from "./node.ts";
import type { Area } from "./objects.ts";
import { readObjectMap, type ObjectMap } from "./omap.ts";
import { KIND, kindOf, localOf, objectOf, ownerIn, readFileExtent, volumeOf } from "./records.ts";
import { structureOf } from "./structures.ts";
import { FEATURE_CASE_INSENSITIVE, FEATURE_INSENSITIVE, nameOf, SEALED, UNENCRYPTED } from "./volume.ts";

const ROOT = 2n;
const DEPTH_MAX = 1024;
/** How many streams that are not their inode's own may be remembered. */
const STREAMS_MAX = 1 << 21;
const ATTRIBUTE_IS_STREAM = 1;

interface Lookup {
  readonly volume: Volume;
  readonly map: ObjectMap;
  readonly tree: FileTree;
  /** Streams of clones and of extended attributes, and their inodes. */
  streams?: Promise<ReadonlyMap<bigint, bigint>>;
}

interface FoundInode {
  readonly lookup: Lookup;
  readonly inode: Inode;
}

const partsOf = (path: string): string[] => path.split("/").filter((part) => part !== "" && part !== ".");

export class Owners {
  readonly #contents: Contents;
  readonly #area: Area;
  readonly #lookups = new Map<number, Promise<Lookup>>();

  constructor(contents: Contents) {
    this.#contents = contents;
    const { device, blockBytes, blocks } = contents.container;
    this.#area = { device: cache(device, { blockBytes: Math.max(blockBytes, 16384) }), blockBytes, blocks };
  }

  async describe(owner: number): Promise<OwnerDescription> {
    if (owner < 0) return this.#describeStructure(owner);
    const volume = this.#contents.volumes[volumeOf(owner)];
    const id = objectOf(owner);
    const nameless: OwnerDescription = {
      kind: "unknown",
      name: `object ${id} of volume ${volume ? nameOf(volume.sb) : "?"}`,
    };
    if (volume === undefined) return nameless;
    return (await unlessDamaged(this.#describeFile(volume, id))) ?? nameless;
  }

  #describeStructure(owner: number): OwnerDescription {
    const { structure, volume: number } = structureOf(owner);
    if (number === undefined) return { kind: "metadata", name: structure };
    const volume = this.#contents.volumes[number];
    return { kind: "metadata", name: `${structure} of volume ${volume ? nameOf(volume.sb) : number}` };
  }

  async #describeFile(volume: Volume, id: bigint): Promise<OwnerDescription | undefined> {
    const lookup = await this.#lookup(volume);
    let inode = await inodeOf(lookup, id);
    if (inode?.stream !== id) {
      const other = (await (lookup.streams ??= this.#streams(lookup))).get(id);
      if (other !== undefined) inode = await inodeOf(lookup, other);
    }
    if (inode === undefined)
      return { kind: "file", name: `file of a snapshot, object ${id} of volume ${nameOf(volume.sb)}` };
    const kind = kindOfMode(inode.mode);
    const path = await this.#pathOf(lookup, inode);
    return { kind, name: kind, bytes: inode.bytes, ...(path !== undefined && { path }) };
  }

  async #pathOf(lookup: Lookup, inode: Inode): Promise<string | undefined> {
    const names: string[] = [];
    let at: Inode | undefined = inode;
    for (let depth = 0; depth < DEPTH_MAX && at !== undefined; depth++) {
      if (at.id === ROOT) return `${this.#prefix(lookup.volume)}/${names.join("/")}`;
      names.unshift(shownName(at.name));
      at = await inodeOf(lookup, at.parent);
    }
    return undefined;
  }

  #prefix(volume: Volume): string {
    return this.#contents.volumes.length === 1 ? "" : `/${folderOf(volume)}`;
  }

  async find(path: string): Promise<FoundFile | undefined> {
    const found = await unlessDamaged(this.#lookUp(path));
    return found === undefined || found === "volumes" ? undefined : this.#fileOf(found);
  }

  /** A file of one volume, whatever the volume is called. */
  async findIn(volume: Volume, path: string): Promise<FoundFile | undefined> {
    const found = await unlessDamaged(this.#inodeAt(volume, partsOf(path)));
    return found && this.#fileOf(found);
  }

  async #fileOf({ inode, lookup }: FoundInode): Promise<FoundFile | undefined> {
    const extents = await unlessDamaged(this.#extentsOf(lookup, inode));
    if (extents === undefined) return undefined;
    const fixed = fixedBecause(lookup.volume, inode);
    const owner = ownerIn(lookup.volume.number, localOf(inode.stream));
    const kind = listedKind(kindOfMode(inode.mode));
    return { owner, kind, bytes: inode.bytes, ...(fixed && { fixed }), extents };
  }

  async #extentsOf({ tree }: Lookup, inode: Inode): Promise<FoundFile["extents"]> {
    const extents: { fileOffset: number; at: number; bytes: number; unwritten: boolean }[] = [];
    const { blockBytes } = this.#area;
    await tree.recordsOf(inode.stream, ({ kind, key, value }) => {
      if (kind !== KIND.fileExtent) return;
      const node = new DataView(key.buffer);
      const [keyAt, valueAt] = [key.byteOffset, value.byteOffset];
      readFileExtent(
        node,
        keyAt,
        key.byteLength,
        valueAt,
        value.byteLength,
        blockBytes,
        (start, blocks, fileOffset) =>
          extents.push({ fileOffset, at: start * blockBytes, bytes: blocks * blockBytes, unwritten: false }),
      );
    });
    return extents;
  }

  async list(path: string, atMost = LISTED_MAX): Promise<readonly ListedFile[] | undefined> {
    const found = await unlessDamaged(this.#lookUp(path));
    if (found === "volumes") {
      return this.#contents.volumes.map((volume) => ({
        name: folderOf(volume),
        kind: "directory",
        allocatedBytes: 0,
      }));
    }
    if (found === undefined || kindOfMode(found.inode.mode) !== "directory") return undefined;
    const listed: ListedFile[] = [];
    const entries = (await unlessDamaged(entriesOf(found.lookup, found.inode.id))) ?? [];
    for (const entry of entries.slice(0, atMost)) {
      const isFile = entry.kind === ENTRY.file;
      const inode = isFile ? await unlessDamaged(inodeOf(found.lookup, entry.inode)) : undefined;
      const kind = isFile ? "file" : entry.kind === ENTRY.directory ? "directory" : "other";
      listed.push({ name: shownName(entry.name), kind, allocatedBytes: inode?.allocatedBytes ?? 0 });
    }
    return listed;
  }

  /** The inode at a path; `volumes` above them. @throws Refused */
  async #lookUp(path: string): Promise<FoundInode | "volumes" | undefined> {
    const names = partsOf(path);
    let volume = this.#contents.volumes[0];
    if (this.#contents.volumes.length > 1) {
      const name = names.shift();
      if (name === undefined) return "volumes";
      volume = this.#contents.volumes.find((one) => this.#prefix(one) === `/${name}`);
    }
    return volume && this.#inodeAt(volume, names);
  }

  async #inodeAt(volume: Volume, names: readonly string[]): Promise<FoundInode | undefined> {
    const lookup = await this.#lookup(volume);
    let inode = await inodeOf(lookup, ROOT);
    for (const name of names) {
      if (inode === undefined || kindOfMode(inode.mode) !== "directory") return undefined;
      const same = sameName(volume, name);
      const entry = (await entriesOf(lookup, inode.id)).find(same);
      inode = entry && (await inodeOf(lookup, entry.inode));
    }
    return inode && { lookup, inode };
  }

  #lookup(volume: Volume): Promise<Lookup> {
    const known = this.#lookups.get(volume.number);
    if (known !== undefined) return known;
    const opening = this.#open(volume);
    this.#lookups.set(volume.number, opening);
    return opening;
  }

  async #open(volume: Volume): Promise<Lookup> {
    const { transaction } = this.#contents.container.sb;
    const map = await readObjectMap(this.#area, "object map", volume.sb.objectMap, transaction, () => {});
    return { volume, map, tree: new FileTree(this.#area, map, volume.sb.tree) };
  }

  /** Searches all versions of the tree once. @throws Refused */
  async #streams({ map }: Lookup): Promise<ReadonlyMap<bigint, bigint>> {
    const streams = new Map<bigint, bigint>();
    const order = Uint32Array.from(map.ids.keys()).filter((index) => !map.isEncrypted(index));
    order.sort((a, b) => map.blocks[a]! - map.blocks[b]!);
    const positions = Float64Array.from(order, (index) => map.blocks[index]!);
    const { device } = this.#contents.container;
    await readScattered(device, this.#area.blockBytes, positions, (place, bytes) => {
      if (!isOfTree(bytes, map, order[place]!)) return;
      const node = readNode(bytes, positions[place]!);
      if (node.level > 0) return;
      visitRecords(node, undefined, (view, key, keyBytes, value, valueBytes) => {
        if (keyBytes < 8 || streams.size >= STREAMS_MAX) return;
        const id = view.getBigUint64(key, true) & ((1n << 60n) - 1n);
        const kind = kindOf(view, key);
        const isAttribute = kind === KIND.attribute && valueBytes >= 12;
        if (isAttribute && (view.getUint16(value, true) & ATTRIBUTE_IS_STREAM) !== 0) {
          streams.set(view.getBigUint64(value + 4, true), id);
        }
        if (kind !== KIND.inode || valueBytes < 16) return;
        const stream = view.getBigUint64(value + 8, true);
        if (stream !== id) streams.set(stream, id);
      });
    });
    return streams;
  }
}

/** A volume's name as the first part of a path. */
const folderOf = ({ sb }: Volume) => nameOf(sb).replaceAll("/", "\\x2f");

async function inodeOf({ tree }: Lookup, id: bigint): Promise<Inode | undefined> {
  let found: FileRecord | undefined;
  await tree.recordsOf(id, (record) => {
    if (record.kind === KIND.inode) found = record;
  });
  return found && readInode(id, found);
}

async function entriesOf({ tree, volume }: Lookup, directory: bigint): Promise<Entry[]> {
  const isHashed = (volume.sb.incompat & FEATURE_INSENSITIVE) !== 0n;
  const entries: Entry[] = [];
  await tree.recordsOf(directory, (record) => {
    if (record.kind === KIND.entry && entries.length < LISTED_MAX) entries.push(readEntry(record, isHashed));
  });
  return entries;
}

function kindOfMode(mode: number): OwnerDescription["kind"] {
  const kind = mode & MODE.mask;
  if (kind === MODE.directory) return "directory";
  if (kind === MODE.file) return "file";
  return kind === MODE.symlink ? "symlink" : "special";
}

/** Names are the same as the guest compares them: mostly without regard to case and to how accents are composed. */
function sameName({ sb }: Volume, name: string): (entry: Entry) => boolean {
  const ignoresCase = (sb.incompat & FEATURE_CASE_INSENSITIVE) !== 0n;
  const ignoresForm = (sb.incompat & FEATURE_INSENSITIVE) !== 0n;
  const folded = (text: string) => {
    const form = ignoresForm ? text.normalize("NFD") : text;
    return ignoresCase ? form.toLowerCase().normalize("NFD") : form;
  };
  const wanted = folded(name);
  return (entry) => folded(Buffer.from(entry.name).toString()) === wanted || shownName(entry.name) === name;
}

function fixedBecause({ sb }: Volume, inode: Inode): string | undefined {
  if ((sb.flags & UNENCRYPTED) === 0n) return "encrypted";
  if ((sb.incompat & SEALED) !== 0n) return "checksummed";
  if (inode.isCompressed) return "compressed";
  return inode.isCloned || sb.snapshots > 0 ? "shared" : undefined;
}
