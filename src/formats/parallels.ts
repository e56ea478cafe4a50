/**
 * Parallels' expandable image (`.hds`): one table that says where in the file each cluster of the disk lies. And its
 * bundle (`.hdd`): a folder of such images, one for each snapshot and each part of the disk.
 *
 *   | header | BAT | cluster 7 | cluster 0 | nobody's | cluster 2 | format extension | …
 *
 *   disk.hdd/DiskDescriptor.xml, disk.hdd/disk.hdd.0.{5fbaabe3-…}.hds, …
 *
 * Rooms: `header`, `layout` (the BAT as a table of blocks), `extension` (dirty bitmaps), `create`, `image` (all of it
 * together); `descriptor`, `storage` (one file of a bundle), `bundle`.
 * Specification: QEMU's docs/interop/parallels.txt and prl-xml.txt.
 */
import type { ReadableFile } from "../device/device.ts";
import type { Folder, Source } from "../device/source.ts";
import { DiskError } from "../error.ts";
import type { ImageFormat } from "./format.ts";
import { ParallelsBundle, type Shot, WritableParallelsBundle } from "./parallels/bundle.ts";
import { draftOf, writeNew } from "./parallels/create.ts";
import {
  chainOf,
  type Descriptor,
  DESCRIPTOR,
  imageOf,
  isDescriptor,
  readDescriptor,
} from "./parallels/descriptor.ts";
import { hasMagic } from "./parallels/header.ts";
import { openImage, openWritableImage } from "./parallels/image.ts";
import { type Layer, readLayer } from "./parallels/storage.ts";

export const parallels: ImageFormat = {
  name: "parallels",
  about: {
    kinds: ".hds v1 and v2; with dirty bitmaps only read",
    packs: true,
    checks: "errors, leaks",
    layers: "",
  },

  async probe(source) {
    await using file = await source.open();
    return await hasMagic(file);
  },

  references: () => Promise.resolve([]),

  async open(source) {
    return orClosed(await source.open(), openImage);
  },

  async openWritable(source) {
    if (!source.openWritable) throw new DiskError("unsupported", `${source.name} can only be read`);
    return orClosed(await source.openWritable(), openWritableImage);
  },

  async create(source: Source, options) {
    const draft = draftOf(options);
    if (!source.create) throw new DiskError("unsupported", `${source.name}: no file can be made here`);
    return orClosed(await source.create(), async (file) => {
      await writeNew(file, draft);
      return openWritableImage(file);
    });
  },
};

export const parallelsBundle: ImageFormat = {
  name: "parallels-bundle",
  about: {
    kinds: ".hdd: plain and compressed storages",
    packs: true,
    checks: "errors, leaks",
    layers: "snapshot tree",
  },
  isBundle: true,

  async probe({ folder }) {
    if (!(await folder?.list(""))?.includes(DESCRIPTOR)) return false;
    await using file = await folder!.file(DESCRIPTOR).open();
    return await isDescriptor(file);
  },

  references: () => Promise.resolve([]),

  async open(source) {
    const folder = folderOf(source);
    return new ParallelsBundle(await openShot(folder, undefined, readable(folder)));
  },

  async openWritable(source) {
    const folder = folderOf(source);
    return new WritableParallelsBundle(
      await openShot(folder, undefined, async (name) => {
        const file = folder.file(name);
        if (!file.openWritable) throw new DiskError("unsupported", `${file.name} can only be read`);
        return file.openWritable();
      }),
    );
  },
};

function folderOf({ folder, name }: Source): Folder {
  if (folder) return folder;
  throw new DiskError("usage", `${name}: a Parallels bundle is a folder, and this is none`);
}

function readable(folder: Folder): (name: string) => Promise<ReadableFile> {
  return (name) => folder.file(name).open();
}

/** @param above the snapshot, as the one above it was described; undefined: the one that is written */
async function openShot<F extends ReadableFile>(
  folder: Folder,
  above: { readonly guid: string; readonly descriptor: Descriptor } | undefined,
  openFile: (name: string) => Promise<F>,
): Promise<Shot<F>> {
  const descriptorFile = await openFile(DESCRIPTOR);
  const opened: AsyncDisposable[] = [descriptorFile];
  try {
    const descriptor = above?.descriptor ?? (await readDescriptor(descriptorFile));
    const [guid, below] = chainOf(descriptor, above?.guid ?? descriptor.top);
    const openBelow = async (shot: string) =>
      new ParallelsBundle(await openShot(folder, { guid: shot, descriptor }, readable(folder)));
    const parent = below === undefined ? undefined : await openBelow(below);
    if (parent) opened.push(parent);
    const layers: Layer<F>[] = [];
    for (const [index, storage] of descriptor.storages.entries()) {
      const image = imageOf(storage, guid!);
      const file = await openFile(image.file);
      opened.push(file);
      layers.push(await readLayer(file, image, storage, parent?.deviceOf(index)));
    }
    return { guid: guid!, descriptor, descriptorFile, layers, parent, open: openBelow };
  } catch (error) {
    for (const file of opened) await file[Symbol.asyncDispose]();
    throw error;
  }
}

/** What `make` makes of an open file, or nothing left open. */
async function orClosed<F extends ReadableFile, T>(file: F, make: (file: F) => Promise<T>): Promise<T> {
  try {
    return await make(file);
  } catch (error) {
    await file[Symbol.asyncDispose]();
    throw error;
  }
}
