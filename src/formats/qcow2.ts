/**
 * qcow2, QEMU's own format: the guest's clusters lie in the file in the order they were first written.
 *
 *   | header | refcount table | refcount blocks | L1 table | L2 tables and clusters, mixed … |
 *
 *   guest offset → L1 → L2 → host cluster        refcount of a host cluster: how many of all mappings refer to it
 *
 * Rooms: `image` (all of it together), `header`, `tables` (mapping), `refcounts`, `read` (one disk of the image),
 * `compressed`, `snapshots`, `structures` (where tables lie), `check` over `references`, `plan` and `pack`, `create`.
 * Specification: QEMU's docs/interop/qcow2.txt.
 */
import type { HostFile, ReadableFile } from "../device/device.ts";
import type { Source } from "../device/source.ts";
import { DiskError } from "../error.ts";
import type { Image, ImageFormat, OpenParent } from "./format.ts";
import { openContext, type Qcow2Context } from "./qcow2/context.ts";
import { hasMagic, readHeader, type Header } from "./qcow2/header.ts";
import { Qcow2Image, referencesOf } from "./qcow2/image.ts";
import { WritableQcow2Image } from "./qcow2/writable.ts";

export const qcow2: ImageFormat = {
  name: "qcow2",

  async probe(source) {
    await using file = await source.open();
    return hasMagic(file);
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
};

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
