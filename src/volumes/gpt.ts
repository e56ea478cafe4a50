/**
 * The GUID partition table.
 *
 *   | protective MBR | header | entries | boot loader | partitions and gaps … | entries | header |
 *   '---------------- primary ---------'                                      '---- backup -----'
 *
 * Everything is kept twice. One valid copy is enough to know the partitions; two valid copies that differ are not,
 * since nobody can say which of them the guest goes by. Sectors are 512 or 4096 bytes; the header's place tells.
 *
 * Specification: UEFI 2.10, section 5.3.
 */
import { type Extent, ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { type Copy, type GptEntry, hasSignature, readCopy } from "./gpt/header.ts";
import { readEntries, SECTOR_BYTES, TYPE_PROTECTIVE } from "./boot-record.ts";
import { gptTypeName, reachOutside, setOf } from "./partition-types.ts";
import { rejectRivals } from "./rivals.ts";
import {
  describeOutside,
  gapsBetween,
  memberRefusal,
  type Region,
  rejectOverlaps,
  tableOrRefusal,
  volumeOf,
} from "./table.ts";
import type { VolumeScheme, VolumeTable } from "./volume.ts";

const SECTOR_SIZES = [512, 4096] as const;

export const gpt: VolumeScheme = {
  name: "gpt",
  /** As firmware and kernels do: a GPT counts only behind a protective MBR. */
  async probe(disk) {
    const entries = await readEntries(disk, 0);
    return entries?.some(({ type }) => type === TYPE_PROTECTIVE) ?? false;
  },
  open([disk]) {
    const hint = "see what `sgdisk --verify` says about it";
    return tableOrRefusal("gpt", disk!, hint, () => readTable(disk!));
  },
};

interface Copies {
  /** The copy to go by. */
  readonly valid: Copy;
  /** What speaks against the other copy. */
  readonly damage: string | undefined;
  readonly regions: readonly Region[];
}

async function readTable(disk: BlockDevice): Promise<VolumeTable> {
  const sectorBytes = await sectorSize(disk);
  const { valid, damage, regions: copies } = await readCopies(disk, sectorBytes);
  const regions = [{ name: "protective MBR", start: 0, end: SECTOR_BYTES }, ...copies];
  const { entries, usable } = valid;
  for (const entry of entries) rejectOutside(entry, usable, disk.bytes);
  rejectOverlaps([...entries.map(named), ...regions], "gpt-overlap");
  await rejectRivals("gpt", disk, entries);
  const hybrid = await isHybrid(disk, sectorBytes, entries);
  const doubt = damage ?? reachOutside(entries.map(({ typeGuid }) => gptTypeName(typeGuid)));
  const gaps = doubt === undefined ? gapsBetween(disk, entries, regions, usable.end) : ExtentSet.EMPTY;
  return {
    scheme: "gpt",
    volumes: entries.map((entry) => {
      const type = gptTypeName(entry.typeGuid);
      const set = setOf(type);
      const unlessMember = set === undefined ? {} : { unlessMember: memberRefusal(set) };
      return volumeOf({ name: `${entry.number}`, label: entry.label, type, ...unlessMember }, disk, [entry]);
    }),
    gaps: [gaps],
    notes: [
      ...(damage === undefined ? [] : [`${damage}; the other copy is used`]),
      ...(hybrid ? ["hybrid MBR"] : []),
      ...(doubt === undefined ? [] : [`gaps between partitions count as used: ${doubt}`]),
    ],
    describe: (_, at) => describeOutside(at, regions, entries),
  };
}

/** @throws DiskError when no copy is valid, or two that differ */
async function readCopies(disk: BlockDevice, sectorBytes: number): Promise<Copies> {
  const primary = await attempt(readCopy(disk, sectorBytes, 1, "primary"));
  const lastLba = Math.floor(disk.bytes / sectorBytes) - 1;
  const backupLba = primary instanceof DiskError ? lastLba : primary.alternateLba;
  const backup = await attempt(readCopy(disk, sectorBytes, backupLba, "backup"));
  if (primary instanceof DiskError) {
    if (backup instanceof DiskError) throw primary;
    return { valid: backup, damage: primary.message, regions: backup.regions };
  }
  if (backup instanceof DiskError)
    return { valid: primary, damage: backup.message, regions: primary.regions };
  if (primary.content !== backup.content) {
    const [at] = backup.regions;
    throw new DiskError("corrupt", `the primary GPT and its backup with the header at ${at?.start} differ`, {
      code: "gpt-contradiction",
    });
  }
  return { valid: primary, damage: undefined, regions: [...primary.regions, ...backup.regions] };
}

/** The sector size that puts a header where one lies. @throws DiskError when none fits, or both */
async function sectorSize(disk: BlockDevice): Promise<number> {
  for (const headerAt of [(bytes: number) => bytes, (bytes: number) => disk.bytes - bytes]) {
    const fitting: number[] = [];
    for (const bytes of SECTOR_SIZES) if (await hasSignature(disk, headerAt(bytes))) fitting.push(bytes);
    if (fitting.length === 2)
      throw new DiskError("corrupt", "GPT headers for sectors of 512 and of 4096 bytes");
    if (fitting.length === 1) return fitting[0]!;
  }
  throw new DiskError(
    "corrupt",
    "the protective MBR announces a GPT, but no header lies in the second or last sector",
  );
}

/** The copy, or what is wrong with it. @throws DiskError `io` */
async function attempt(copy: Promise<Copy>): Promise<Copy | DiskError> {
  try {
    return await copy;
  } catch (error) {
    if (error instanceof DiskError && error.kind !== "io") return error;
    throw error;
  }
}

function named({ number, start, end }: GptEntry): Region {
  return { name: `GPT partition ${number}`, start, end };
}

function rejectOutside({ number, start, end }: GptEntry, usable: Extent, diskBytes: number): void {
  if (start >= usable.start && end <= usable.end && end <= diskBytes) return;
  const message =
    `GPT partition ${number} at ${start}-${end} is outside of the usable range ${usable.start}-${usable.end}` +
    ` or of the disk of ${diskBytes} bytes`;
  throw new DiskError("corrupt", message, { code: "gpt-range" });
}

/**
 * Whether an MBR beside the GPT shows some of its partitions to old systems.
 * @throws DiskError when it shows others
 */
async function isHybrid(
  disk: BlockDevice,
  sectorBytes: number,
  partitions: readonly GptEntry[],
): Promise<boolean> {
  const entries = (await readEntries(disk, 0)) ?? [];
  const shown = entries.filter(({ type }) => type !== TYPE_PROTECTIVE);
  for (const { slot, firstSector, sectors } of shown) {
    const start = firstSector * sectorBytes;
    const end = start + sectors * sectorBytes;
    if (partitions.some((partition) => partition.start === start && partition.end === end)) continue;
    throw new DiskError(
      "corrupt",
      `hybrid MBR partition ${slot + 1} at ${start}-${end} is none of the GPT's`,
      {
        code: "gpt-hybrid",
      },
    );
  }
  return shown.length > 0;
}
