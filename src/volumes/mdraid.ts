/**
 * Linux software RAID: sets of levels 0, 1, 10 and linear, of which every member is given.
 *
 *   member 0   | superblock | bitmap | data: 0 2 4 … |        RAID 0, version 1.2
 *   member 1   | superblock | bitmap | data: 1 3 5 … |
 *
 * A set is read only when it is whole, was stopped cleanly, and nothing of it is under way: then every copy of a byte is
 * the same, and a freed block is given back on all of its members. What shows through a member is never read as if it
 * were alone.
 *
 *   mdraid/superblock.ts   one shape for both kinds: mdraid/version-0.ts, mdraid/version-1.ts
 *   mdraid/set.ts          where the bytes of the set lie
 */
import { ExtentSet } from "../bytes/extents.ts";
import { viewOf } from "../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { mappedVolume } from "./mapped.ts";
import { levelName, segmentsOf } from "./mdraid/set.ts";
import { MD_MAGIC, SECTOR_BYTES, type Superblock } from "./mdraid/superblock.ts";
import { placeOfVersion0, readVersion0 } from "./mdraid/version-0.ts";
import { ELSEWHERE, PLACES, readVersion1 } from "./mdraid/version-1.ts";
import { type Region, rejectOverlaps, tableOrRefusal } from "./table.ts";
import type { VolumeScheme, VolumeTable } from "./volume.ts";
import { bitmapObstacle } from "./write-intent.ts";

export const mdraid: VolumeScheme = {
  name: "mdraid",
  hidesContent: true,
  async probe(disk) {
    return (await readers(disk)).length > 0;
  },
  async membership(disk) {
    try {
      const { uuid, name, role, members } = await readMember(disk);
      if (role === undefined || members > MEMBERS_MAX) return undefined;
      const ids = Array.from({ length: members }, (_, i) => `${i}`);
      return { kind: "Linux RAID", set: uuid, name, member: `${role}`, members: ids, total: members };
    } catch (error) {
      if (error instanceof DiskError && error.kind !== "io" && error.kind !== "interrupted") return undefined;
      throw error;
    }
  },
  open(disks) {
    const hint = "see what `mdadm --examine` says about it in the guest";
    return tableOrRefusal("mdraid", disks[0]!, hint, () => readSet(disks), disks.length);
  },
};

/** More than md itself ever has. */
const MEMBERS_MAX = 1920;

/** The readers of all superblocks whose magic is there. */
async function readers(disk: BlockDevice): Promise<(() => Promise<Superblock>)[]> {
  const found: (() => Promise<Superblock>)[] = [];
  const magicAt = async (at: number): Promise<DataView | undefined> =>
    at < 0 || at + SECTOR_BYTES > disk.bytes ? undefined : viewOf(await readBytes(disk, at, 4));
  const old = await magicAt(placeOfVersion0(disk.bytes));
  if (old?.getUint32(0, true) === MD_MAGIC || old?.getUint32(0, false) === MD_MAGIC)
    found.push(() => readVersion0(disk));
  for (const version of ["1.0", "1.1", "1.2"] as const) {
    const head = await magicAt(PLACES[version](disk.bytes));
    if (head?.getUint32(0, true) !== MD_MAGIC || (version === "1.0" && (await isOfPartition(disk)))) continue;
    found.push(() => readVersion1(disk, version));
  }
  return found;
}

/** Whether the superblock near the end is that of a partition which ends with the disk. */
async function isOfPartition(disk: BlockDevice): Promise<boolean> {
  try {
    await readVersion1(disk, "1.0");
    return false;
  } catch (error) {
    if (!(error instanceof DiskError) || error.kind === "io" || error.kind === "interrupted") throw error;
    return error.code === ELSEWHERE;
  }
}

/** @throws DiskError `corrupt`, `refused` */
async function readMember(disk: BlockDevice): Promise<Superblock> {
  const [first, second] = await readers(disk);
  if (first === undefined) throw new DiskError("corrupt", "no Linux RAID superblock", { code: "md-damaged" });
  if (second !== undefined) {
    throw new DiskError("refused", "two Linux RAID superblocks are there, one of them stale", {
      code: "md-ambiguous",
      hint: "wipe the stale one: see `wipefs`",
    });
  }
  return first();
}

async function readSet(disks: readonly BlockDevice[]): Promise<VolumeTable> {
  const found: Superblock[] = [];
  for (const disk of disks) found.push(await readMember(disk));
  for (const member of found) rejectState(member);
  const members = found.toSorted((a, b) => a.role! - b.role!);
  rejectIncomplete(members);
  const order = members.map((member) => found.indexOf(member));
  const bySet = members.map((_, i) => disks[order[i]!]!);
  const regions = members.map((member, i) => regionsOf(member, bySet[i]!.bytes));
  for (const [i, member] of members.entries()) await rejectBitmap(bySet[i]!, member);
  const [{ level, name, uuid }] = members as [Superblock];
  const segments = segmentsOf(members).map((segment) => ({
    ...segment,
    columns: segment.columns.map((column) => ({ ...column, disk: order[column.disk]! })),
  }));
  const identity = { name: `md/${shortName(name, uuid)}`, label: name, type: levelName(level) };
  return {
    scheme: "mdraid",
    volumes: [mappedVolume(identity, disks, segments)],
    gaps: disks.map(() => ExtentSet.EMPTY),
    notes: [],
    describe: (disk, at) =>
      regions[order.indexOf(disk)]?.find(({ start, end }) => start <= at && at < end)?.name ??
      "Linux RAID reserve",
  };
}

/** What mdadm calls it under /dev/md: without the host that made it. */
function shortName(name: string, uuid: string): string {
  return name.slice(name.indexOf(":") + 1) || uuid.slice(0, 8);
}

function rejectState({ obstacle, version, place }: Superblock): void {
  if (obstacle === undefined) return;
  const message = `member of a Linux RAID set, superblock ${version} at ${place.start}: ${obstacle.message}`;
  throw new DiskError("refused", message, {
    code: obstacle.code,
    hint: "let the guest bring the set in order and shut it down: see /proc/mdstat",
  });
}

/** Every role once, each member believing that all are in service, and all of the same mind. */
function rejectIncomplete(members: readonly Superblock[]): void {
  const [first] = members as [Superblock];
  const mind = (member: Superblock): string =>
    JSON.stringify([
      member.uuid,
      member.version,
      member.level,
      member.layout,
      member.chunkBytes,
      member.members,
      member.usedBytes,
      `${member.events}`,
      `${member.updated}`,
    ]);
  if (members.some((member) => mind(member) !== mind(first))) {
    throw new DiskError("corrupt", "the superblocks of the Linux RAID set differ", {
      code: "md-contradiction",
    });
  }
  const isWhole = (roles: readonly number[]): boolean =>
    roles.length === first.members && roles.toSorted((a, b) => a - b).every((role, i) => role === i);
  if (isWhole(members.map(({ role }) => role!)) && members.every(({ active }) => isWhole(active))) return;
  const message = `the Linux RAID set has ${members.length} of ${first.members} members in service`;
  throw new DiskError("refused", message, {
    code: "md-degraded",
    hint: "name every disk of the set: --with OTHER, or let the guest repair it",
  });
}

function regionsOf(member: Superblock, deviceBytes: number): readonly Region[] {
  const data: Region = { name: "Linux RAID data", ...member.data };
  const fixed: Region[] = [{ name: "Linux RAID superblock", ...member.place }];
  if (member.bitmap !== undefined) fixed.push({ name: "Linux RAID bitmap", ...member.bitmap });
  for (const { name, start, end } of [data, ...fixed]) {
    if (start >= 0 && start < end && end <= deviceBytes) continue;
    const message = `${name} at ${start}-${end} does not lie on the member of ${deviceBytes} bytes`;
    throw new DiskError("corrupt", message, { code: "md-range" });
  }
  rejectOverlaps([data, ...fixed], "md-overlap");
  return [...fixed, data];
}

async function rejectBitmap(disk: BlockDevice, member: Superblock): Promise<void> {
  if (member.bitmap === undefined) return;
  const obstacle = await bitmapObstacle(disk, member.bitmap, member.usedBytes / SECTOR_BYTES, member.events);
  if (obstacle === undefined) return;
  throw new DiskError("refused", `Linux RAID set: ${obstacle}`, {
    code: "md-dirty",
    hint: "let the guest synchronise the set and shut it down: see /proc/mdstat",
  });
}
