/**
 * VMDK, VMware's format: a descriptor in text, and extents that hold the disk as it is, in grains, or compressed.
 *
 *   disk.vmdk        # Disk DescriptorFile … RW 4192256 SPARSE "disk-s001.vmdk" …
 *   disk-s001.vmdk   | header | grain directories and tables | grain | grain | …
 *
 * Rooms: `descriptor` (the text), `open` (files, parent, parts), `part`; `sparse-header`, `grains` and `sparse` (written
 * in place), `compressed`, `esx` (COWD and seSparse, only read), `flat`; `image` (all parts together), `writable`;
 * `create`, `stream-writer` and `stream-image`.
 * Specification: VMware, Virtual Disk Format 5.0; libyal/libvmdk, "VMWare Virtual Disk Format".
 */
import type { HostFile, ReadableFile } from "../device/device.ts";
import type { Source } from "../device/source.ts";
import { DiskError } from "../error.ts";
import type { ImageFormat, OpenParent } from "./format.ts";
import { descriptorText, extentsOf, parseOptions, type VmdkOptions, writeNewDisk } from "./vmdk/create.ts";
import { VmdkImage } from "./vmdk/image.ts";
import { findDescriptor, kindOf, openDisk, referencesOf, type VmdkDisk } from "./vmdk/open.ts";
import { StreamedVmdkImage } from "./vmdk/stream-image.ts";
import { StreamWriter } from "./vmdk/stream-writer.ts";
import { WritableVmdkImage } from "./vmdk/writable.ts";

export const vmdk: ImageFormat = {
  name: "vmdk",
  about: {
    kinds: "sparse, flat, split, custom, vmfs; streamOptimized, COWD and seSparse are only read",
    packs: true,
    checks: "errors, leaks",
    layers: "chain, by CID",
  },

  async probe(source) {
    await using file = await source.open();
    return (await kindOf(file)) !== undefined;
  },

  async references(source) {
    await using file = await source.open();
    const described = await findDescriptor(file);
    // An extent names nothing: what it is built on is told by its descriptor.
    return described === undefined ? [] : referencesOf(described.descriptor, described.header !== undefined);
  },

  async open(source, openParent) {
    const openFile = (from: Source) => from.open();
    return new VmdkImage(await opened(source, openFile, openParent));
  },

  async openWritable(source, openParent) {
    return new WritableVmdkImage(await opened(source, writable, openParent));
  },

  async create(source, options, openParent) {
    const wanted = parseOptions(options);
    const parents: OpenParent =
      openParent ?? (() => Promise.reject(new DiskError("usage", "a backing file is not possible here")));
    const parentCid = await contentIdOf(wanted.backingName, parents);
    if (wanted.subformat === "streamOptimized") return newStream(source, wanted);
    const files = new Map<string, HostFile>();
    try {
      await writeNewDisk(source, wanted, parentCid, files);
      return new WritableVmdkImage(await openDisk(files.get("")!, async (name) => files.get(name)!, parents));
    } catch (error) {
      for (const file of files.values()) await file[Symbol.asyncDispose]();
      throw error;
    }
  },
};

/** The CID of the disk that a new one is built on. */
async function contentIdOf(name: string | undefined, openParent: OpenParent): Promise<string | undefined> {
  if (name === undefined) return undefined;
  await using parent = await openParent(name, "vmdk");
  const [cid] = parent.identifiers ?? [];
  if (parent.format === "vmdk" && cid !== undefined) return cid;
  throw new DiskError("usage", `backing_file is a ${parent.format} image, expected vmdk`);
}

async function newStream(source: Source, options: VmdkOptions): Promise<StreamedVmdkImage> {
  const descriptor = descriptorText(options, extentsOf(options, source.name), undefined);
  if (!source.create) throw new DiskError("unsupported", `${source.name}: no file can be made here`);
  const file = await source.create();
  try {
    const writer = await StreamWriter.begin(file, options.sectors, descriptor);
    const none = () => Promise.reject(new DiskError("corrupt", "a stream names another file"));
    const reopen = async () => new VmdkImage(await openDisk(file, none, none));
    return new StreamedVmdkImage(file, options.sectors, writer, reopen);
  } catch (error) {
    await file[Symbol.asyncDispose]();
    throw error;
  }
}

function writable(source: Source): Promise<HostFile> {
  if (source.openWritable) return source.openWritable();
  throw new DiskError("unsupported", `${source.name} can only be read`);
}

/** Opens the files of a disk, or leaves none of them open. */
async function opened<F extends ReadableFile>(
  source: Source,
  openFile: (source: Source) => Promise<F>,
  openParent: OpenParent,
): Promise<VmdkDisk<F>> {
  const files = [await openFile(source)];
  try {
    const openExtent = async (name: string) => {
      const file = await openFile(await source.refer(name));
      files.push(file);
      return file;
    };
    return await openDisk(files[0]!, openExtent, openParent);
  } catch (error) {
    for (const file of files) await file[Symbol.asyncDispose]();
    throw error;
  }
}
