/**
 * The Apple Partition Map.
 *
 *   block 0         1 …                         64 (usual)
 *   | "ER" record | entry | entry | entry | … | partition | Apple_Free | partition | … |
 *                 '- the map is a partition itself -'
 *
 * The record in block 0 says how long a block is, 512 to 4096 bytes; every entry says how many there are. Images of CDs
 * are often hybrids: an ISO 9660 filesystem whose blocks lie among the partitions, an MBR in the same block 0, two maps
 * for blocks of both lengths. Nobody can say which of them the guest goes by, so they are refused.
 *
 * Specification: Inside Macintosh: Devices, chapter 3, "The Partition Map".
 */
import { type Extent, ExtentSet } from "../bytes/extents.ts";
import { ascii, skip, struct, u16be, u32be } from "../bytes/struct.ts";
import { printable } from "../bytes/text.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { readEntries } from "./boot-record.ts";
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

const DriverRecord = struct({
  signature: u16be,
  blockBytes: u16be,
  blocks: u32be,
  device: skip(8),
  drivers: u16be,
});
const RECORD_SIGNATURE = 0x4552;
/** The firmware loads it from there, whatever the map says. Its length counts sectors of 512 bytes. */
const Driver = struct({ start: u32be, sectors: u16be, system: skip(2) });
const DRIVERS_MAX = Math.floor((512 - DriverRecord.bytes) / Driver.bytes);

export const Entry = struct({
  signature: u16be,
  pad: skip(2),
  mapBlocks: u32be,
  start: u32be,
  blocks: u32be,
  name: ascii(32),
  type: ascii(32),
});
const ENTRY_SIGNATURE = 0x504d;

/** A map with more entries is not one that anybody made. */
const ENTRIES_MAX = 1024;
const BLOCK_SIZES = [512, 1024, 2048, 4096];
const TYPE = { map: "Apple_partition_map", free: "Apple_Free" };
const MEMBERS: ReadonlyMap<string, string> = new Map([
  ["Apple_RAID", "an Apple RAID set"],
  ["Apple_RAID_Offline", "an Apple RAID set"],
  ["Apple_CoreStorage", "a Core Storage group"],
]);

export const apm: VolumeScheme = {
  name: "apm",
  async probe(disk) {
    const blockBytes = await blockSize(disk);
    return blockBytes !== undefined && (await hasEntry(disk, blockBytes));
  },
  open([disk]) {
    const hint = "see what `parted` or `mmls -t mac` says about it";
    return tableOrRefusal("apm", disk!, hint, () => readTable(disk!));
  },
};

interface Partition extends Extent {
  readonly number: number;
  readonly type: string;
  readonly label: string;
}

/** How long a block is, by the record in block 0; undefined where there is none. */
async function blockSize(disk: BlockDevice): Promise<number | undefined> {
  if (disk.bytes < 1024) return undefined;
  const { signature, blockBytes } = DriverRecord.decode(await readBytes(disk, 0, DriverRecord.bytes));
  return signature === RECORD_SIGNATURE && BLOCK_SIZES.includes(blockBytes) ? blockBytes : undefined;
}

async function hasEntry(disk: BlockDevice, at: number): Promise<boolean> {
  if (at + Entry.bytes > disk.bytes) return false;
  return Entry.decode(await readBytes(disk, at, Entry.bytes)).signature === ENTRY_SIGNATURE;
}

async function readTable(disk: BlockDevice): Promise<VolumeTable> {
  const blockBytes = (await blockSize(disk))!;
  await rejectHybrids(disk, blockBytes);
  const partitions = await readPartitions(disk, blockBytes);
  const record = { name: "driver descriptor record", start: 0, end: blockBytes };
  const maps = partitions.filter(({ type }) => type === TYPE.map).map(named);
  const reserved = [...maps, ...(await readDrivers(disk, blockBytes))];
  rejectOverlaps([record, ...partitions.map(named)], "apm-overlap");
  const taken = partitions.filter(({ type }) => type !== TYPE.free && type !== TYPE.map);
  await rejectRivals("apm", disk, taken);
  return {
    scheme: "apm",
    volumes: taken.map((partition) => {
      const { number, label, type } = partition;
      const set = MEMBERS.get(type);
      const unlessMember = set === undefined ? {} : { unlessMember: memberRefusal(set) };
      return volumeOf({ name: `${number}`, label, type, ...unlessMember }, disk, [partition]);
    }),
    gaps: [taken.length === 0 ? ExtentSet.EMPTY : gapsBetween(disk, taken, reserved)],
    notes: [],
    describe: (_, at) => describeOutside(at, [record, ...reserved], taken),
  };
}

/** Where the record in block 0 says that drivers lie: usually in partitions, but nothing holds them there. */
async function readDrivers(disk: BlockDevice, blockBytes: number): Promise<Region[]> {
  const bytes = await readBytes(disk, 0, 512);
  const { drivers } = DriverRecord.decode(bytes);
  if (drivers > DRIVERS_MAX) throw damaged(`${drivers} drivers found, at most ${DRIVERS_MAX} expected`);
  return Array.from({ length: drivers }, (_, index) => {
    const driver = Driver.decode(bytes, DriverRecord.bytes + index * Driver.bytes);
    const start = driver.start * blockBytes;
    return { name: `driver ${index + 1}`, start, end: start + driver.sectors * 512 };
  });
}

const ISO = { at: 0x8001, magic: "CD001" };

/** @throws DiskError when the disk is also a PC's, a CD's, or has a second map for other blocks */
async function rejectHybrids(disk: BlockDevice, blockBytes: number): Promise<void> {
  const others: string[] = [];
  if (((await readEntries(disk, 0)) ?? []).length > 0) others.push("a PC's partition table");
  for (const other of BLOCK_SIZES.filter((bytes) => bytes < blockBytes)) {
    if (await hasEntry(disk, other)) others.push(`a second map for blocks of ${other} bytes`);
  }
  if (ISO.at + ISO.magic.length <= disk.bytes) {
    const found = Buffer.from(await readBytes(disk, ISO.at, ISO.magic.length)).toString("latin1");
    if (found === ISO.magic) others.push("an ISO 9660 filesystem");
  }
  if (others.length === 0) return;
  throw new DiskError("refused", `the disk has an Apple partition map and ${others.join(" and ")}`, {
    code: "apm-hybrid",
    hint: "everything on the disk counts as used",
  });
}

/** @throws DiskError when the map does not add up */
async function readPartitions(disk: BlockDevice, blockBytes: number): Promise<Partition[]> {
  const { mapBlocks } = Entry.decode(await readBytes(disk, blockBytes, Entry.bytes));
  if (mapBlocks === 0 || mapBlocks > ENTRIES_MAX || (1 + mapBlocks) * blockBytes > disk.bytes) {
    throw damaged(`the first entry speaks of ${mapBlocks} entries, 1 to ${ENTRIES_MAX} expected`);
  }
  const bytes = await readBytes(disk, blockBytes, mapBlocks * blockBytes);
  const partitions: Partition[] = [];
  for (let index = 0; index < mapBlocks; index++) {
    const entry = Entry.decode(bytes, index * blockBytes);
    const at = (1 + index) * blockBytes;
    if (entry.signature !== ENTRY_SIGNATURE || entry.mapBlocks !== mapBlocks) {
      throw damaged(
        `entry at ${at}: signature 0x${entry.signature.toString(16)} and ${entry.mapBlocks} entries found,` +
          ` 0x${ENTRY_SIGNATURE.toString(16)} and ${mapBlocks} expected`,
      );
    }
    const start = entry.start * blockBytes;
    const end = start + entry.blocks * blockBytes;
    if (entry.blocks === 0) continue;
    if (end > disk.bytes) {
      const message = `partition ${index + 1} at ${start}-${end} ends behind the disk of ${disk.bytes} bytes`;
      throw new DiskError("corrupt", message, { code: "apm-range" });
    }
    partitions.push({
      number: index + 1,
      start,
      end,
      type: printable(entry.type),
      label: printable(entry.name),
    });
  }
  const covers = partitions.some(
    ({ type, start, end }) =>
      type === TYPE.map && start === blockBytes && end >= (1 + mapBlocks) * blockBytes,
  );
  if (!covers) throw damaged(`no entry is the map's own, with room for ${mapBlocks} entries`);
  return partitions;
}

function damaged(message: string): DiskError {
  return new DiskError("corrupt", `Apple partition map: ${message}`, { code: "apm-damaged" });
}

function named({ number, type, start, end }: Partition): Region {
  return { name: type === TYPE.map ? "Apple partition map" : `partition ${number} (${type})`, start, end };
}
