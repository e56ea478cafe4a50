/**
 * An open VHDX file as a layout of blocks, with its parent and what its header says.
 *
 *   headers ─→ log, replayed in memory ─→ region table ─→ metadata ─→ BAT ─→ blocks
 *
 * Nothing but the headers is believed before the log is replayed. Specification: [MS-VHDX] 2.1, 2.3.3.
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import type { ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { batched } from "../../reclaim/batched.ts";
import type { Step, Wish } from "../../reclaim/plan.ts";
import type { ImageFacts } from "../blocks/image.ts";
import type { BlockLayout } from "../blocks/layout.ts";
import { SLOTS_MAX, ZERO } from "../blocks/table.ts";
import type { Finding, Image, OpenParent } from "../format.ts";
import {
  BAT_ENTRY_BYTES,
  type Bat,
  BITMAP_BYTES,
  entryOf,
  forgottenPlaces,
  readBat,
  sectorsHeld,
  writeEntry,
} from "./bat.ts";
import {
  damagedHeaders,
  type HeaderChange,
  headerSteps,
  type Headers,
  newDataGuid,
  readHeaders,
} from "./header.ts";
import { openLinked, referencesOf } from "./locator.ts";
import { readReplay } from "./log.ts";
import { type Metadata, readMetadata } from "./metadata.ts";
import { damagedTables, readRegions, type Regions } from "./regions.ts";
import { replayed } from "./replayed.ts";
import { corrupt, HEADERS_AT, MIB, NO_GUID, REGION_TABLES_AT } from "./structures.ts";

/** A file whose log is empty, or replayed in memory. */
export interface Opened<F extends ReadableFile> {
  readonly file: F | ReadableFile;
  readonly headers: Headers;
  readonly regions: Regions;
  readonly metadata: Metadata;
  readonly isReplayed: boolean;
}

/** Reads everything but the BAT. @throws DiskError `corrupt`, `unsupported` */
export async function openMetadata<F extends ReadableFile>(host: F): Promise<Opened<F>> {
  const headers = await readHeaders(host);
  const isReplayed = headers.current.logGuid !== NO_GUID;
  const file = isReplayed ? await replayed(host, await readReplay(host, headers.current)) : host;
  const regions = await readRegions(file, headers.current);
  return { file, headers, regions, metadata: await readMetadata(file, regions.metadata), isReplayed };
}

/** The image's layout and facts, with its parent opened. */
export async function describeImage<F extends ReadableFile>(
  { headers, regions, metadata, isReplayed }: Opened<F>,
  file: F,
  openParent: OpenParent,
): Promise<{ readonly layout: BlockLayout<F>; readonly facts: ImageFacts; readonly bat: Bat }> {
  const bat = await readBat(file, regions.bat, metadata);
  requireBitmaps(bat, regions, file.bytes);
  const parent = metadata.parent && (await parentOf(metadata, openParent));
  return {
    layout: layoutOf({ file, regions, metadata, bat, parent }),
    facts: { ...factsOf(headers, metadata, parent, isReplayed), check: () => damagedCopies(file) },
    bat,
  };
}

/** A copy that is lost costs no data, but nobody is left to serve if the other one is lost, too. */
async function* damagedCopies(file: ReadableFile): AsyncGenerator<Finding> {
  const tell = (what: string, at: number): Finding => {
    const message = `${what} at ${at} is damaged or differs; the other one serves`;
    return { kind: "leak", isMendable: false, count: 1, message };
  };
  for (const at of await damagedHeaders(file)) yield tell("header", at);
  for (const at of await damagedTables(file)) yield tell("region table", at);
}

/** Sector bitmaps lie in the file, and neither over a region nor over each other. */
function requireBitmaps(bat: Bat, { all }: Regions, fileBytes: number): void {
  const regions = ExtentSet.from(all);
  const places = bitmapExtents(bat).sort((a, b) => a.start - b.start);
  for (const [i, place] of places.entries()) {
    const isInside = place.start >= MIB && place.end <= fileBytes;
    const isAlone = !regions.touches(place) && (i === 0 || places[i - 1]!.end <= place.start);
    if (isInside && isAlone) continue;
    throw corrupt("sector bitmap", place.start, "a place that is another's", `its own, before ${fileBytes}`);
  }
}

async function parentOf(metadata: Metadata, openParent: OpenParent): Promise<Image> {
  const parent = await openLinked(metadata.parent!, openParent);
  const sector = parent.details["logicalSectorBytes"];
  if (sector === metadata.logicalSectorBytes) return parent;
  await parent[Symbol.asyncDispose]();
  const found = `parent: logical sectors of ${sector} bytes`;
  throw new DiskError("corrupt", `${found}, the child has ${metadata.logicalSectorBytes}`);
}

function factsOf(
  { current }: Headers,
  metadata: Metadata,
  parent: Image | undefined,
  isReplayed: boolean,
): ImageFacts {
  const { blockBytes, logicalSectorBytes, physicalSectorBytes, leaveBlocksAllocated } = metadata;
  const type = metadata.parent ? "differencing" : leaveBlocksAllocated ? "fixed" : "dynamic";
  const notes = [
    `${type}, ${blockBytes / MIB} MiB blocks`,
    ...(logicalSectorBytes === 512 ? [] : [`sectors of ${logicalSectorBytes} bytes`]),
    ...(isReplayed ? ["log not yet replayed"] : []),
  ];
  return {
    format: "vhdx",
    summary: notes.join(", "),
    details: {
      type,
      blockBytes,
      logicalSectorBytes,
      physicalSectorBytes,
      virtualDiskId: metadata.virtualDiskId,
      dataWriteGuid: current.dataWriteGuid,
      isLogEmpty: !isReplayed,
    },
    references: referencesOf(metadata.parent),
    identifiers: [current.dataWriteGuid],
    parent,
  };
}

interface Parts<F extends ReadableFile> {
  readonly file: F;
  readonly regions: Regions;
  readonly metadata: Metadata;
  readonly bat: Bat;
  readonly parent: Image | undefined;
}

function layoutOf<F extends ReadableFile>(parts: Parts<F>): BlockLayout<F> {
  const { file, regions, metadata, bat, parent } = parts;
  const { table, shape } = bat;
  const fixed = fixedOf(parts);
  const guids = newDataGuid();
  return {
    fileName: "",
    file,
    bytes: metadata.virtualBytes,
    parent,
    blockBytes: metadata.blockBytes,
    headBytes: 0,
    baseBytes: 0,
    unitBytes: MIB,
    table,
    entries: {
      copies: 1,
      bytes: BAT_ENTRY_BYTES,
      at: (block) => regions.bat.start + entryOf(shape, block) * BAT_ENTRY_BYTES,
      write(view, at, block, slot) {
        writeEntry(view, at, table.stateOf(block, slot), slot < SLOTS_MAX ? slot : 0);
      },
    },
    // LeaveBlocksAllocated: no block gives up its place. Elsewhere only ZERO promises zeros (H9).
    freed: metadata.leaveBlocksAllocated ? undefined : ZERO,
    blocksStartBytes: MIB,
    fixed,
    tailBytes: 0,
    endAlignBytes: MIB,
    ...(table.partial.size > 0 && {
      held: async (block: number) =>
        table.partial.has(block) ? sectorsHeld(file, bat, metadata, block) : undefined,
    }),
    prepare: (wish) => prepared(parts, wish, guids),
    structureAt: (at) => structureAt(parts, fixed, at),
  };
}

/** What lies between the blocks and never moves; of a fixed disk also the room that blocks have without using it. */
function fixedOf<F extends ReadableFile>({ file, regions, metadata, bat }: Parts<F>): ExtentSet {
  const structures = ExtentSet.from([...regions.all, ...bitmapExtents(bat)]);
  if (!metadata.leaveBlocksAllocated) return structures;
  const blocks = new ExtentBuilder();
  bat.table.eachMapped(0, bat.table.blocks, (_, slot) =>
    blocks.add(slot * MIB, slot * MIB + metadata.blockBytes),
  );
  return ExtentSet.of({ start: MIB, end: Math.max(MIB, file.bytes) })
    .subtract(blocks.build())
    .union(structures);
}

function bitmapExtents({ bitmaps }: Bat): Extent[] {
  return Array.from(bitmaps.values(), (start) => ({ start, end: start + BITMAP_BYTES }));
}

function structureAt<F extends ReadableFile>(
  { regions, bat }: Parts<F>,
  fixed: ExtentSet,
  at: number,
): string | undefined {
  if (at < HEADERS_AT[0]) return "file type identifier";
  if (at < REGION_TABLES_AT[0]) return at < HEADERS_AT[1] ? "header 1" : "header 2";
  if (at < MIB) return "region tables";
  const region = regions.all.find(({ start, end }) => at >= start && at < end);
  if (region) return region.name;
  for (const [chunk, start] of bat.bitmaps) {
    if (at >= start && at < start + BITMAP_BYTES) return `sector bitmap ${chunk}`;
  }
  return fixed.has(at) ? "room of a fixed disk" : undefined;
}

/** New identifiers, one header after the other; then the entries that name places without using them. */
async function* prepared<F extends ReadableFile>(
  { file, regions, metadata, bat }: Parts<F>,
  { keepIdentity }: Wish,
  guids: HeaderChange,
): AsyncGenerator<readonly Step[]> {
  const { fileWriteGuid } = guids;
  const change = keepIdentity ? { fileWriteGuid: fileWriteGuid! } : guids;
  yield* headerSteps(file, await readHeaders(file), change);
  // In a fixed disk nothing moves, and the places stay the blocks' own.
  if (!metadata.leaveBlocksAllocated) yield* batched(forgottenPlaces(file, regions.bat, bat));
}
