/**
 * The partition table of the IBM PC: four entries in sector 0, one of which may hold a chain of logical partitions.
 *
 *   | MBR | boot loader | partition 1 |  gap  | extended: | EBR | 5 | EBR | 6 |  | last MiB |
 *
 * Sectors are 512 bytes. On a disk with 4096-byte sectors the same numbers mean other places, and nothing in the
 * table tells; gaps are therefore given away only where the other reading would run past the end of the disk.
 *
 * Specification: UEFI 2.10, section 5.2.
 */
import { type Extent, ExtentSet } from "../bytes/extents.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { readExtended } from "./mbr/extended.ts";
import { isExtended, type MbrEntry, readEntries, SECTOR_BYTES, TYPE_PROTECTIVE } from "./boot-record.ts";
import { mbrTypeName, reachOutside, setOf } from "./partition-types.ts";
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

export const mbr: VolumeScheme = {
  name: "mbr",
  async probe(disk) {
    const entries = await readEntries(disk, 0);
    return (
      entries !== undefined && entries.length > 0 && entries.every(({ type }) => type !== TYPE_PROTECTIVE)
    );
  },
  open([disk]) {
    const hint = "see what `fdisk -l` says about it";
    return tableOrRefusal("mbr", disk!, hint, () => readTable(disk!));
  },
};

interface Partition extends Extent {
  readonly number: number;
  readonly type: number;
}

interface Layout {
  readonly partitions: readonly Partition[];
  /** Boot records of logical partitions, each with the room up to its partition. */
  readonly records: readonly Region[];
}

async function readTable(disk: BlockDevice): Promise<VolumeTable> {
  const entries = (await readEntries(disk, 0)) ?? [];
  const { partitions, records } = await readLayout(disk, entries);
  await rejectRivals("mbr", disk, partitions);
  const regions = [{ name: "master boot record", start: 0, end: SECTOR_BYTES }, ...records];
  const doubt = await doubtAboutGaps(disk, partitions);
  const gaps = doubt === undefined ? gapsBetween(disk, partitions, records) : ExtentSet.EMPTY;
  return {
    scheme: "mbr",
    volumes: partitions.map((partition) => {
      const type = mbrTypeName(partition.type);
      const set = setOf(type);
      const unlessMember = set === undefined ? {} : { unlessMember: memberRefusal(set) };
      return volumeOf({ name: `${partition.number}`, label: "", type, ...unlessMember }, disk, [partition]);
    }),
    gaps: [gaps],
    notes: doubt === undefined ? [] : [`gaps between partitions count as used: ${doubt}`],
    describe: (_, at) => describeOutside(at, regions, partitions),
  };
}

async function readLayout(disk: BlockDevice, entries: readonly MbrEntry[]): Promise<Layout> {
  const primaries = entries.map((entry) => ({
    ...extentOf(entry),
    number: entry.slot + 1,
    type: entry.type,
  }));
  for (const { number, start, end } of primaries) {
    if (end > disk.bytes) {
      const message = `MBR partition ${number} at ${start}-${end} ends behind the disk of ${disk.bytes} bytes`;
      throw new DiskError("corrupt", message, { code: "mbr-range" });
    }
  }
  rejectOverlaps(primaries.map(named), "mbr-overlap");
  const containers = entries.filter(isExtended);
  if (containers.length > 1) {
    throw new DiskError(
      "unsupported",
      `MBR has ${containers.length} extended partitions, expected at most one`,
    );
  }
  const plain = primaries.filter(({ number }) => containers[0]?.slot !== number - 1);
  if (containers[0] === undefined) return { partitions: plain, records: [] };

  const { logicals, records } = await readExtended(disk, extentOf(containers[0]));
  const logical = logicals.map((partition, i) => ({ ...partition, number: 5 + i }));
  const recordRegions = records.map((record) => ({
    ...record,
    name: `extended boot record at ${record.start}`,
  }));
  rejectOverlaps([...logical.map(named), ...recordRegions], "mbr-overlap");
  return { partitions: [...plain, ...logical], records: recordRegions };
}

function extentOf({ firstSector, sectors }: MbrEntry): Extent {
  return { start: firstSector * SECTOR_BYTES, end: (firstSector + sectors) * SECTOR_BYTES };
}

function named({ number, start, end }: Partition): Region {
  return { name: `MBR partition ${number}`, start, end };
}

/** Why space between partitions may belong to someone all the same. */
async function doubtAboutGaps(
  disk: BlockDevice,
  partitions: readonly Partition[],
): Promise<string | undefined> {
  const within = reachOutside(partitions.map(({ type }) => mbrTypeName(type)));
  if (within !== undefined) return within;
  const sectorsEnd = Math.max(...partitions.map(({ end }) => end / SECTOR_BYTES));
  if (sectorsEnd * 4096 <= disk.bytes) return "the table may count sectors of 512 or of 4096 bytes";
  for (const at of [512, 4096, disk.bytes - 512, disk.bytes - 4096]) {
    if (at < 0 || at + 8 > disk.bytes) continue;
    const found = Buffer.from(await readBytes(disk, at, 8)).toString("latin1");
    if (found === "EFI PART") return `a GPT header lies at ${at}`;
  }
  return undefined;
}
