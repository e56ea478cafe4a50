/**
 * Sparse image, Apple's growing disk image in one file (`.sparseimage`).
 *
 *   | header: which band lies in which place | place 0: band 7 | place 1: band 0 | …
 *
 * Rooms: `nodes` (header and index), `image`.
 * Specification: libmodi's "Mac OS sparse image format".
 */
import { DiskError } from "../error.ts";
import { made } from "./blocks/flat.ts";
import type { CreateOptions, ImageFormat } from "./format.ts";
import { openSparse, openWritableSparse } from "./sparseimage/image.ts";
import {
  BAND_BYTES_MAX,
  hasMagic,
  Header,
  HEADER_ENTRIES,
  MAGIC,
  NODE_BYTES,
  SECTOR_BYTES,
  VERSION,
} from "./sparseimage/nodes.ts";

export const sparseimage: ImageFormat = {
  name: "sparseimage",
  about: {
    kinds: "with and without index nodes",
    packs: false,
    checks: "errors",
    layers: "",
  },

  async probe(source) {
    await using file = await source.open();
    return await hasMagic(file);
  },

  references: () => Promise.resolve([]),
  open: async (source) => made(await source.open(), openSparse),

  async openWritable(source) {
    if (!source.openWritable) throw new DiskError("unsupported", `${source.name} can only be read`);
    return made(await source.openWritable(), openWritableSparse);
  },

  async create(source, options) {
    const header = headerOf(options);
    if (!source.create) throw new DiskError("unsupported", `${source.name}: no file can be made here`);
    return made(await source.create(), async (file) => {
      await file.truncate(NODE_BYTES);
      await file.write(0, header);
      await file.flush();
      return openWritableSparse(file);
    });
  },
};

const BAND_BYTES = 2 ** 20;

/** Bands so long that one node has an entry for each. @throws DiskError `usage` */
function headerOf({ virtualBytes, options }: CreateOptions): Uint8Array {
  const [unknown] = Object.keys(options);
  if (unknown !== undefined) throw new DiskError("usage", `sparse images have no option ${unknown}`);
  if (virtualBytes % SECTOR_BYTES !== 0)
    throw new DiskError("usage", `${virtualBytes} bytes: expected whole sectors`);
  let bandBytes = BAND_BYTES;
  while (bandBytes < BAND_BYTES_MAX && bandBytes * HEADER_ENTRIES < virtualBytes) bandBytes *= 2;
  if (bandBytes * HEADER_ENTRIES < virtualBytes) {
    throw new DiskError("usage", `a sparse image of ${virtualBytes} bytes is not made here`, {
      hint: `at most ${BAND_BYTES_MAX * HEADER_ENTRIES}; a sparse bundle may be larger`,
    });
  }
  const sectors = virtualBytes / SECTOR_BYTES;
  const header = new Uint8Array(NODE_BYTES);
  Header.encode(
    {
      magic: MAGIC,
      version: VERSION,
      band_sectors: bandBytes / SECTOR_BYTES,
      flags: 1,
      sectors_low: sectors % 2 ** 32,
      sectors,
    },
    header,
  );
  return header;
}
