/**
 * VDI, VirtualBox's own format: dynamic, fixed and differencing.
 *
 *   | header | block map | block 0 | block 1 | …
 *
 * Rooms: `header`, `layout` (the block map), `parent` (found by its UUID), `image` (open for reading and writing),
 * `create`.
 * Specification: VirtualBox, src/VBox/Storage/VDICore.h.
 */
import { DiskError } from "../error.ts";
import { made } from "./blocks/flat.ts";
import type { ImageFormat, OpenParent } from "./format.ts";
import { parseOptions, writeNewImage } from "./vdi/create.ts";
import { hasSignature, type HeaderFields, readHeader } from "./vdi/header.ts";
import { openVdi, openWritableVdi } from "./vdi/image.ts";
import { referenceOf } from "./vdi/parent.ts";

export const vdi: ImageFormat = {
  name: "vdi",
  about: {
    kinds: "fixed, dynamic, differencing",
    packs: true,
    checks: "errors, leaks",
    layers: "chain, by UUID",
  },

  async probe(source) {
    await using file = await source.open();
    return await hasSignature(file);
  },

  async references(source) {
    await using file = await source.open();
    const { parent } = await readHeader(file);
    return parent === undefined ? [] : [referenceOf(parent)];
  },

  open: async (source, openParent) => made(await source.open(), (file) => openVdi(file, source, openParent)),

  async openWritable(source, openParent) {
    if (!source.openWritable) throw new DiskError("unsupported", `${source.name} can only be read`);
    return made(await source.openWritable(), (file) => openWritableVdi(file, source, openParent));
  },

  async create(source, asked, openParent) {
    const options = parseOptions(asked);
    if (!source.create) throw new DiskError("unsupported", `${source.name}: no file can be made here`);
    const noParent = () => Promise.reject(new DiskError("usage", "a backing file is not possible here"));
    const parents = openParent ?? noParent;
    const parent = options.backing === undefined ? undefined : await headerOf(options.backing, parents);
    return made(await source.create(), async (file) => {
      await writeNewImage(file, options, parent);
      return openWritableVdi(file, source, parents);
    });
  },
};

/** The header of an image that is to be the parent, and can be opened as such. */
async function headerOf(name: string, openParent: OpenParent): Promise<HeaderFields> {
  await using parent = await openParent(name, "vdi");
  return (await readHeader(parent.files.get("")!)).fields;
}
