/**
 * A Parallels image as a table of blocks: entry → place of the cluster in the file.
 *
 *   WithoutFreeSpace   place = entry × 512          WithouFreSpacExt   place = entry × cluster
 *
 * Slots count whole clusters from `data_off` on, as the specification has them lie. Images of sectors whose clusters lie
 * elsewhere are read in slots of a sector, and not written.
 */
import { ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes, type ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { BlockLayout } from "../blocks/layout.ts";
import { ABSENT, BlockTable, SLOTS_MAX } from "../blocks/table.ts";
import type { Extension } from "./extension.ts";
import { BAT_ENTRY_BYTES, corrupt, EMPTY_IMAGE, type Geometry, Header, InUse } from "./header.ts";

/** So much of the BAT is read at a time. */
const CHUNK_ENTRIES = 256 * 1024;

export interface Bat {
  /** As they lie on disk; 0: not allocated. */
  readonly entries: BlockTable;
  /** The last entry of the file, and whether every cluster lies on the grid that begins at `data_off`. */
  readonly highest: number;
  readonly isAligned: boolean;
}

/** @throws DiskError `corrupt` */
export async function readBat(file: ReadableFile, geometry: Geometry): Promise<Bat> {
  const { entries: count, dataAt, entryUnitBytes, clusterBytes } = geometry;
  const entries = new BlockTable(count);
  let highest = 0;
  let isAligned = true;
  for (let first = 0; first < count; first += CHUNK_ENTRIES) {
    const length = Math.min(CHUNK_ENTRIES, count - first);
    const view = viewOf(await readBytes(file, batEntryAt(first), length * BAT_ENTRY_BYTES));
    for (let i = 0; i < length; i++) {
      const entry = view.getUint32(i * BAT_ENTRY_BYTES, true);
      if (entry === 0) continue;
      if (entry * entryUnitBytes < dataAt || entry >= SLOTS_MAX) {
        throw corrupt(`BAT entry ${first + i}`, batEntryAt(first + i), entry, `a place from ${dataAt} on`);
      }
      highest = Math.max(highest, entry);
      isAligned &&= (entry * entryUnitBytes - dataAt) % clusterBytes === 0;
      entries.set(first + i, entry);
    }
  }
  return { entries, highest, isAligned };
}

function batEntryAt(block: number): number {
  return Header.bytes + block * BAT_ENTRY_BYTES;
}

export interface ParallelsImage<F extends ReadableFile = ReadableFile> {
  readonly geometry: Geometry;
  readonly extension: Extension | undefined;
  readonly isAligned: boolean;
  readonly layout: BlockLayout<F>;
}

/** @param parent the layer below, in a bundle with snapshots */
export function layoutOf<F extends ReadableFile>(
  file: F,
  geometry: Geometry,
  { entries, highest, isAligned }: Bat,
  { fileName, parent, extension }: LayoutContext,
): BlockLayout<F> {
  const { clusterBytes, entryUnitBytes, dataAt } = geometry;
  const onGrid = isAligned;
  const baseBytes = onGrid ? dataAt : 0;
  const unitBytes = onGrid ? clusterBytes : entryUnitBytes;
  const table = new BlockTable(geometry.entries);
  entries.eachMapped(0, entries.blocks, (block, entry) => {
    table.set(block, (entry * entryUnitBytes - baseBytes) / unitBytes);
  });
  const highestSlot = (highest * entryUnitBytes - baseBytes) / unitBytes;
  return {
    fileName,
    file,
    bytes: geometry.bytes,
    parent,
    blockBytes: clusterBytes,
    headBytes: 0,
    baseBytes,
    unitBytes,
    table,
    entries: {
      copies: 1,
      bytes: BAT_ENTRY_BYTES,
      at: batEntryAt,
      write(view, at, _block, slot) {
        const entry = slot === ABSENT ? 0 : (baseBytes + slot * unitBytes) / entryUnitBytes;
        if (entry > 0xffff_ffff) {
          throw new DiskError(
            "unsupported",
            `Parallels: a BAT entry cannot say ${entry}: the file is too long`,
          );
        }
        view.setUint32(at, entry, true);
      },
    },
    // There is no state for "zeros" above a parent (H9).
    freed: parent === undefined ? ABSENT : undefined,
    // QEMU takes what lies behind the highest cluster for a leak.
    keeps: (block) => table.get(block) === highestSlot,
    blocksStartBytes: dataAt,
    fixed: extension?.clusters ?? ExtentSet.EMPTY,
    tailBytes: 0,
    endAlignBytes: 1,
    structureAt(at) {
      if (at < Header.bytes) return "header";
      if (at < batEntryAt(geometry.entries)) return `BAT entry ${Math.floor((at - Header.bytes) / 4)}`;
      if (at < dataAt) return "padding behind the BAT";
      return extension?.clusters.has(at) ? "format extension" : undefined;
    },
  };
}

export interface LayoutContext {
  readonly fileName: string;
  readonly parent: BlockDevice | undefined;
  readonly extension: Extension | undefined;
}

/** @throws DiskError where the specification or our own ignorance forbids writing (H17) */
export function refuseWriting({ geometry, extension, isAligned }: Omit<ParallelsImage, "layout">): void {
  const { inUse, flags } = geometry;
  if (inUse === InUse.open) {
    throw new DiskError("refused", "the Parallels image is marked as open: it was not closed, or is in use", {
      code: "dirty",
      hint: "shut the guest down; after a crash, qemu-img check -r all",
    });
  }
  if (inUse !== InUse.closed && inUse !== InUse.old) {
    throw new DiskError(
      "unsupported",
      `Parallels header: in_use is 0x${inUse.toString(16)}, which is not known`,
    );
  }
  if ((flags & ~EMPTY_IMAGE) !== 0) {
    throw new DiskError("unsupported", `Parallels header: flags 0x${flags.toString(16)} are not known`);
  }
  if (extension !== undefined) {
    const { bitmaps, unknown } = extension;
    const what = [...(bitmaps > 0 ? [`${bitmaps} dirty bitmaps`] : []), ...unknown].join(", ");
    throw new DiskError("refused", `the Parallels image has a format extension (${what || "empty"})`, {
      code: "bitmaps",
      hint: "end the incremental backups and remove their bitmaps first",
    });
  }
  if (!isAligned) {
    throw new DiskError("unsupported", "clusters of the Parallels image are not aligned to each other", {
      hint: "convert it: qemu-img convert -O parallels",
    });
  }
}
