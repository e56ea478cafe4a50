/**
 * VHDX, the format of Hyper-V: blocks of 1 to 256 MiB, a table of them, and a log through which its writers change both.
 *
 *   | header section | log | BAT | metadata | blocks and sector bitmaps, in the order they were first written … |
 *
 *   guest offset → block → BAT entry: state and place in MiB      in a differencing disk → sector bitmap → parent
 *
 * A log that waits is replayed in memory to read, and in the file before anything is written. Our own changes go past
 * the log: an entry lies in one sector, and the order of the writes makes each of them safe (H12).
 * Rooms: `structures`, `header`, `log`, `replayed` (a log in memory), `regions`, `metadata`, `locator` (the parent),
 * `bat`, `image` (all of it together), `create`. Specification: [MS-VHDX].
 */
import type { HostFile, ReadableFile } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { BlockImage, WritableBlockImage } from "./blocks/image.ts";
import type { Image, ImageFormat, OpenParent, WritableImage } from "./format.ts";
import { forgottenPlaces } from "./vhdx/bat.ts";
import { parseOptions, writeNewImage } from "./vhdx/create.ts";
import { hasSignature, newDataGuid, newWriteGuid, readHeaders, updateHeaders } from "./vhdx/header.ts";
import { describeImage, openMetadata } from "./vhdx/image.ts";
import { referencesOf } from "./vhdx/locator.ts";
import { applyReplay, readReplay } from "./vhdx/log.ts";
import { NO_GUID } from "./vhdx/structures.ts";

export const vhdx: ImageFormat = {
  name: "vhdx",
  about: {
    kinds: "fixed, dynamic, differencing; a log that waits",
    packs: true,
    checks: "errors, leaks",
    layers: "chain, by DataWriteGuid",
  },

  async probe(source) {
    await using file = await source.open();
    return await hasSignature(file);
  },

  async references(source) {
    await using file = await source.open();
    return referencesOf((await openMetadata(file)).metadata.parent);
  },

  open(source, openParent) {
    return opened(
      () => source.open(),
      async (host) => {
        const image = await openMetadata(host);
        const { layout, facts } = await describeImage(image, image.file, openParent);
        return new BlockImage(layout, facts);
      },
    );
  },

  openWritable(source, openParent) {
    if (!source.openWritable) throw new DiskError("unsupported", `${source.name} can only be read`);
    return opened(source.openWritable.bind(source), async (file) => {
      await replay(file, openParent);
      return writableImage(file, openParent);
    });
  },

  async create(source, options, openParent) {
    const parsed = parseOptions(options);
    if (!source.create) throw new DiskError("unsupported", `${source.name}: no file can be made here`);
    const parents: OpenParent =
      openParent ?? (() => Promise.reject(new DiskError("usage", "a parent is not possible here")));
    const parent = parsed.backing === undefined ? undefined : await parents(parsed.backing, "vhdx");
    try {
      if (parent) requireSuitable(parent, parsed.logicalSectorBytes);
      return await opened(source.create.bind(source), async (file) => {
        await writeNewImage(file, parsed, parent);
        return writableImage(file, parents);
      });
    } finally {
      await parent?.[Symbol.asyncDispose]();
    }
  },
};

/** What `make` makes of an open file, or nothing left open. */
async function opened<F extends ReadableFile, T>(
  open: () => Promise<F>,
  make: (file: F) => Promise<T>,
): Promise<T> {
  const file = await open();
  try {
    return await make(file);
  } catch (error) {
    await file[Symbol.asyncDispose]();
    throw error;
  }
}

/** Carries out what the log says, if it says anything. Whoever is interrupted finds it there again. */
async function replay(file: HostFile, openParent: OpenParent): Promise<void> {
  const found = await readHeaders(file);
  if (found.current.logGuid === NO_GUID) return;
  const updates = await readReplay(file, found.current);
  // What could not be opened afterwards is not touched.
  const preview = await openMetadata(file);
  const { facts } = await describeImage(preview, preview.file, openParent);
  await facts.parent?.[Symbol.asyncDispose]();
  const headers = await updateHeaders(file, found, newWriteGuid());
  if (updates.fileBytes > file.bytes) await file.truncate(updates.fileBytes);
  await applyReplay(file, updates);
  await file.flush();
  await updateHeaders(file, headers, { logGuid: NO_GUID });
}

async function writableImage(file: HostFile, openParent: OpenParent): Promise<WritableImage> {
  const image = await openMetadata(file);
  const { regions, metadata } = image;
  const { layout, facts, bat } = await describeImage(image, file, openParent);
  return new WritableBlockImage(layout, facts, {
    // Both at once: what is written here, the guest reads.
    begin: async () => {
      await updateHeaders(file, await readHeaders(file), newDataGuid());
      if (metadata.leaveBlocksAllocated) return;
      for await (const { at, after } of forgottenPlaces(file, regions.bat, bat)) await file.write(at, after);
      await file.flush();
    },
    complete: (block) => bat.table.complete(block),
  });
}

/** @throws DiskError `usage` when no child can be made of `parent` */
function requireSuitable(parent: Image, logicalSectorBytes: number): void {
  const sector = parent.details["logicalSectorBytes"];
  if (parent.format !== "vhdx") throw new DiskError("usage", `a ${parent.format} image cannot be the parent`);
  if (sector === logicalSectorBytes) return;
  throw new DiskError("usage", `logical_sector_size ${logicalSectorBytes}: the parent has ${String(sector)}`);
}
