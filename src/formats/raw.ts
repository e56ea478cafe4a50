/**
 * Raw: the guest's bytes as they are, in a file with holes or on a block device.
 *
 *   guest  |######|      |###|         |##|
 *   file   |######| hole |###|  hole   |##|      the host's own map is the mapping table
 *
 * There are no tables: to free is to punch, and there is nothing to check or to pack.
 */
import { size } from "../bytes/sizes.ts";
import type { ReadableFile } from "../device/device.ts";
import type { Source } from "../device/source.ts";
import { DiskError } from "../error.ts";
import { type FlatFacts, FlatImage, made, WritableFlatImage } from "./blocks/flat.ts";
import type { CreateOptions, ImageFormat, WritableImage } from "./format.ts";

export const raw: ImageFormat = {
  name: "raw",
  about: {
    kinds: "files with holes, block devices, parts of either",
    packs: false,
    checks: "no structures",
    layers: "",
  },
  // Any content is a raw disk; the door asks the other formats first.
  probe: () => Promise.resolve(true),
  references: () => Promise.resolve([]),
  open: async (source) => made(await source.open(), async (file) => new FlatImage(file, await factsOf(file))),
  async openWritable(source) {
    if (!source.openWritable) throw new DiskError("unsupported", `${source.name} can only be read`);
    return made(
      await source.openWritable(),
      async (file) => new WritableFlatImage(file, await factsOf(file)),
    );
  },
  create,
};

async function factsOf(file: ReadableFile): Promise<FlatFacts> {
  const { blockBytes } = await file.stat();
  const { bytes } = file;
  const summary = `holes of ${size(blockBytes)}`;
  return { format: "raw", at: 0, bytes, grainBytes: blockBytes, summary, details: {}, identifiers: [] };
}

async function create(source: Source, { virtualBytes, options }: CreateOptions): Promise<WritableImage> {
  const [unknown] = Object.keys(options);
  if (unknown !== undefined) throw new DiskError("usage", `raw images have no option ${unknown}`);
  if (!source.create) throw new DiskError("unsupported", `${source.name}: no file can be made here`);
  return made(await source.create(), async (file) => {
    await file.truncate(virtualBytes);
    return new WritableFlatImage(file, await factsOf(file));
  });
}
