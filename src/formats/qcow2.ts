/**
 * qcow2, QEMU's own format: the guest's clusters lie in the file in the order they were first written.
 *
 *   | header | refcount table | refcount blocks | L1 table | L2 tables and clusters, mixed … |
 *
 *   guest offset → L1 → L2 → host cluster        refcount of a host cluster: how many of all mappings refer to it
 *
 * Rooms: `image` (all of it together), `header`, `tables` (mapping), `refcounts`, `read` (one disk of the image),
 * `compressed`, `snapshots`, `structures` (where tables lie), `check` over `references`, `create`; `plan` over `unmap`
 * (entries), `holes` (the host's space), `release` (counts) and `pack` over `pointers`; `repair`; `writable` over `write`,
 * `changes` (what is not durable yet), `allocate` and `bitmap-keeper`.
 * Specification: QEMU's docs/interop/qcow2.txt.
 */
import type { HostFile, ReadableFile } from "../device/device.ts";
import type { Source } from "../device/source.ts";
import { DiskError } from "../error.ts";
import type { Image, ImageFormat, OpenParent } from "./format.ts";
import { openContext, type Qcow2Context } from "./qcow2/context.ts";
import { draftImage, parseOptions, writeNewImage } from "./qcow2/create.ts";
import { hasMagic, readHeader, type Header } from "./qcow2/header.ts";
import { Qcow2Image, referencesOf } from "./qcow2/image.ts";
import { WritableQcow2Image } from "./qcow2/writable.ts";

export const qcow2: ImageFormat = {
  name: "qcow2",
  about: {
    kinds: "v2, v3; subclusters, compressed clusters, external data files",
    packs: true,
    checks: "errors, leaks",
    layers: "internal snapshots; backing chain",
  },

  async probe(source) {
    await using file = await source.open();
    return await hasMagic(file);
  },

  async references(source) {
    await using file = await source.open();
    return referencesOf(await readHeader(file));
  },

  open(source, openParent) {
    return opened(
      openParent,
      () => source.open(),
      async (name) => (await source.refer(name)).open(),
      (context, parent) => new Qcow2Image(context, parent),
    );
  },

  openWritable(source, openParent) {
    return opened(
      openParent,
      () => writable(source),
      async (name) => writable(await source.refer(name)),
      (context, parent) => new WritableQcow2Image(context, parent),
    );
  },

  async create(source, options, openParent) {
    const draft = draftImage(parseOptions(options));
    const makeFile = source.create?.bind(source);
    if (!makeFile) throw new DiskError("unsupported", `${source.name}: no file can be made here`);
    const parents: OpenParent =
      openParent ?? (() => Promise.reject(new DiskError("usage", "a backing file is not possible here")));
    const openData = (name: string) => newDataFile(source, name, draft.options.virtualBytes);
    const { backing, dataFile } = draft.options;
    // Whatever cannot be opened is to fail before a file is made.
    if (backing) await (await parents(backing.name, backing.format))[Symbol.asyncDispose]();
    if (dataFile) await (await openData(dataFile.name))[Symbol.asyncDispose]();
    return opened(
      parents,
      async () => {
        const file = await makeFile();
        await writeNewImage(file, draft);
        return file;
      },
      openData,
      (context, parent) => new WritableQcow2Image(context, parent),
    );
  },
};

/**
 * The external data file of a new image: an empty one that its owner made, or the raw disk that the image is to
 * describe.
 */
async function newDataFile(source: Source, name: string, virtualBytes: number): Promise<HostFile> {
  const file = await writable(await source.refer(name));
  if (file.bytes <= virtualBytes) {
    await file.truncate(virtualBytes);
    return file;
  }
  await file[Symbol.asyncDispose]();
  throw new DiskError("usage", `data_file has ${file.bytes} bytes, the disk only ${virtualBytes}`);
}

async function writable(source: Source): Promise<HostFile> {
  if (source.openWritable) return source.openWritable();
  throw new DiskError("unsupported", `${source.name} can only be read`);
}

/** Opens the files of an image and makes something of them, or leaves none of them open. */
async function opened<File extends ReadableFile, T>(
  openParent: OpenParent,
  openFile: () => Promise<File>,
  openData: (name: string) => Promise<File>,
  make: (context: Qcow2Context<File>, parent: Image | undefined) => T,
): Promise<T> {
  const files = [await openFile()];
  try {
    const context = await openContext(files[0]!, async (name) => {
      const data = await openData(name);
      files.push(data);
      return data;
    });
    return make(context, await parentOf(context.header, openParent));
  } catch (error) {
    for (const file of files) await file[Symbol.asyncDispose]();
    throw error;
  }
}

async function parentOf(header: Header, openParent: OpenParent): Promise<Image | undefined> {
  return header.backing && openParent(header.backing.name, header.backing.format);
}
