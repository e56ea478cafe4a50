/**
 * UDIF, Apple's disk image for distribution (`.dmg`): packed, described by a property list, read only.
 *
 *   | chunk: zlib | chunk: raw | … | property list: which chunk holds which sectors | koly |
 *
 * Rooms: `trailer`, `chunks` (the block tables), `image`.
 * Specification: libmodi's "Mac OS disk image types", "Universal Disk Image Format".
 */
import type { ImageFormat } from "./format.ts";
import { readBlocks } from "./udif/chunks.ts";
import { UdifImage } from "./udif/image.ts";
import { kindOf, readTrailer } from "./udif/trailer.ts";

export const udif: ImageFormat = {
  name: "dmg",
  about: {
    kinds: "raw, zero, zlib, bzip2 chunks",
    packs: false,
    checks: "checksums",
    layers: "",
  },

  async probe(source) {
    await using file = await source.open();
    return (await kindOf(file)) !== undefined;
  },

  references: () => Promise.resolve([]),

  async open(source) {
    const file = await source.open();
    try {
      const trailer = await readTrailer(file);
      return new UdifImage(file, trailer, await readBlocks(file, trailer));
    } catch (error) {
      await file[Symbol.asyncDispose]();
      throw error;
    }
  },
};
