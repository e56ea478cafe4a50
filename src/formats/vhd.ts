/**
 * VHD, the format of Virtual PC, of early Hyper-V and of Azure: fixed, dynamic and differencing.
 *
 *   fixed     | the guest's bytes                                      | footer |
 *   dynamic   | footer | header | block table | bitmap, block 7 | …    | footer |
 *
 * Rooms: `footer`, `header`, `layout` (the block table), `parent`, `image` (open for reading and writing), `create`.
 * The disk is as long as the footer's current size says; QEMU takes the geometry instead, which is a little less, from
 * images whose creator is not known to mean the size.
 * Specification: Microsoft's Virtual Hard Disk Image Format Specification 1.0.
 */
import type { Source } from "../device/source.ts";
import { DiskError } from "../error.ts";
import { made } from "./blocks/flat.ts";
import type { ImageFormat } from "./format.ts";
import { parseOptions, writeNewImage } from "./vhd/create.ts";
import { hasCookie, readFooters } from "./vhd/footer.ts";
import { readHeader, readParentNames } from "./vhd/header.ts";
import { openVhd, openWritableVhd } from "./vhd/image.ts";
import { referenceOf } from "./vhd/parent.ts";

export const vhd: ImageFormat = {
  name: "vhd",
  about: {
    kinds: "fixed, dynamic, differencing",
    packs: true,
    checks: "errors, leaks",
    layers: "chain, by unique id",
  },

  async probe(source) {
    await using file = await source.open();
    return await hasCookie(file);
  },

  async references(source) {
    await using file = await source.open();
    const { kind, footer } = await readFooters(file);
    if (kind !== "differencing") return [];
    return referenceOf(await readParentNames(file, await readHeader(file, footer)));
  },

  open: async (source, openParent) => made(await source.open(), (file) => openVhd(file, openParent)),

  async openWritable(source, openParent) {
    if (!source.openWritable) throw new DiskError("unsupported", `${source.name} can only be read`);
    return made(await source.openWritable(), (file) => openWritableVhd(file, openParent));
  },

  async create(source, asked, openParent) {
    const options = parseOptions(asked);
    const create = creator(source);
    const noParent = () => Promise.reject(new DiskError("usage", "a backing file is not possible here"));
    const parents = openParent ?? noParent;
    // A parent that cannot be opened is to fail before a file is made.
    const parent = options.backing === undefined ? undefined : await parents(options.backing, "vhd");
    await parent?.[Symbol.asyncDispose]();
    return made(await create(), async (file) => {
      await writeNewImage(file, options, parent);
      return openWritableVhd(file, parents);
    });
  },
};

function creator(source: Source): NonNullable<Source["create"]> {
  if (source.create) return source.create.bind(source);
  throw new DiskError("unsupported", `${source.name}: no file can be made here`);
}
