/**
 * Parallels' expandable image (`.hds`): one table that says where in the file each cluster of the disk lies.
 *
 *   | header | BAT | cluster 7 | cluster 0 | nobody's | cluster 2 | format extension | …
 *
 * Rooms: `header`, `layout` (the BAT as a table of blocks), `extension` (dirty bitmaps), `create`, `image` (all of it
 * together).
 * Specification: QEMU's docs/interop/parallels.txt.
 */
import type { ReadableFile } from "../device/device.ts";
import type { Source } from "../device/source.ts";
import { DiskError } from "../error.ts";
import type { ImageFormat } from "./format.ts";
import { draftOf, writeNew } from "./parallels/create.ts";
import { hasMagic } from "./parallels/header.ts";
import { openImage, openWritableImage } from "./parallels/image.ts";

export const parallels: ImageFormat = {
  name: "parallels",

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

/** What `make` makes of an open file, or nothing left open. */
async function orClosed<F extends ReadableFile, T>(file: F, make: (file: F) => Promise<T>): Promise<T> {
  try {
    return await make(file);
  } catch (error) {
    await file[Symbol.asyncDispose]();
    throw error;
  }
}
