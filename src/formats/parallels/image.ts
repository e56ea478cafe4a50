/**
 * A Parallels image of one file, opened: its layout, its facts, and the mark of who writes to it.
 *
 *   in_use   as found → 0x746f6e59, durable, before the first write → as found, when everything is durable
 */
import { size } from "../../bytes/sizes.ts";
import type { BlockDevice, HostFile, ReadableFile } from "../../device/device.ts";
import { BlockImage, type ImageFacts, WritableBlockImage } from "../blocks/image.ts";
import type { WriterHooks } from "../blocks/write.ts";
import { readExtension } from "./extension.ts";
import { corrupt, EMPTY_IMAGE, type Geometry, Header, InUse, readGeometry } from "./header.ts";
import { layoutOf, type ParallelsImage, readBat, refuseWriting } from "./layout.ts";

/** @param parent the layer below, in a bundle */
export async function readParallels<F extends ReadableFile>(
  file: F,
  fileName = "",
  parent?: BlockDevice,
): Promise<ParallelsImage<F>> {
  const geometry = await readGeometry(file);
  const bat = await readBat(file, geometry);
  if ((geometry.flags & EMPTY_IMAGE) !== 0 && bat.highest > 0) {
    throw corrupt("header: flags", Header.at.flags, "the bit of an empty image", "no cluster in the BAT");
  }
  const extension = await readExtension(file, geometry);
  const layout = layoutOf(file, geometry, bat, { fileName, parent, extension });
  return { geometry, extension, isAligned: bat.isAligned, layout };
}

function factsOf(image: ParallelsImage): ImageFacts {
  const { geometry, extension } = image;
  const { clusterBytes, version, inUse } = geometry;
  const bitmaps = extension?.bitmaps ?? 0;
  return {
    format: "parallels",
    summary: [
      `${size(clusterBytes)} clusters`,
      ...(bitmaps > 0 ? [`${bitmaps} dirty bitmaps`] : []),
      ...(inUse === InUse.open ? ["not closed"] : []),
    ].join(", "),
    details: { version, clusterBytes, bitmaps, notClosed: inUse === InUse.open },
    references: [],
    identifiers: [],
    parent: undefined,
    requireWritable: () => refuseWriting(image),
  };
}

export async function openImage(file: ReadableFile): Promise<BlockImage> {
  const image = await readParallels(file);
  return new BlockImage(image.layout, factsOf(image));
}

export async function openWritableImage(file: HostFile): Promise<WritableBlockImage> {
  const image = await readParallels(file);
  return new WritableBlockImage(image.layout, factsOf(image), markingUse(file, image.geometry));
}

export function markingUse(file: HostFile, { inUse, flags }: Geometry): WriterHooks {
  return {
    async begin() {
      if ((flags & EMPTY_IMAGE) !== 0) await writeWord(file, Header.at.flags, flags & ~EMPTY_IMAGE);
      await writeWord(file, Header.at.in_use, InUse.open);
    },
    finish: () => writeWord(file, Header.at.in_use, inUse),
  };
}

async function writeWord(file: HostFile, at: number, word: number): Promise<void> {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, word, true);
  await file.write(at, bytes);
  await file.flush();
}
