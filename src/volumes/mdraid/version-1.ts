/**
 * The md superblock of version 1: little-endian, near the end of the member (1.0), at its start (1.1) or behind 4 KiB
 * (1.2).
 *
 *   1.0   | data …                                      | bitmap | superblock |
 *   1.1   | superblock | bitmap | … | data … |
 *   1.2   | 4 KiB | superblock | bitmap | … | data … |
 *
 * Source: Linux, include/uapi/linux/raid/md_p.h and drivers/md/md.c.
 */
import {
  ascii,
  bits64le,
  raw,
  skip,
  struct,
  u32le,
  u64le,
  u8,
  uuidText,
  viewOf,
} from "../../bytes/struct.ts";
import { printable } from "../../bytes/text.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { corrupt, MD_MAGIC, obstacleOf, SECTOR_BYTES, type Superblock } from "./superblock.ts";

export const SuperblockV1 = struct({
  magic: u32le,
  major: u32le,
  features: u32le,
  pad0: u32le,
  uuid: raw(16),
  name: ascii(32),
  created: skip(8),
  level: u32le,
  layout: u32le,
  usedSectors: u64le,
  chunkSectors: u32le,
  members: u32le,
  bitmapOffset: u32le,
  newLevel: skip(4),
  reshapePosition: skip(8),
  reshape: skip(16),
  dataOffset: u64le,
  dataSectors: u64le,
  superOffset: u64le,
  recoveryOffset: bits64le,
  number: u32le,
  corrected: skip(4),
  deviceUuid: skip(16),
  deviceFlags: u8,
  badBlocks: skip(7),
  updated: bits64le,
  events: bits64le,
  resyncOffset: bits64le,
  checksum: u32le,
  roles: u32le,
});

const ROLES_AT = 256;
/** The superblock with all of its roles takes 4 KiB at most. */
const ROLES_MAX = 1920;
const SUPERBLOCK_BYTES = 4096;
const ROLE_MEMBERS_MAX = 0xff00;
/** A position behind every end: there is nothing left to synchronise. */
const NOWHERE = 0xffff_ffff_ffff_ffffn;

const FEATURE_BITMAP = 1;
const FEATURE_RAID0_LAYOUT = 0x1000;
const FEATURE_NAMES: readonly (readonly [number, string])[] = [
  [2, "a recovery under way"],
  [4, "a reshape under way"],
  [8, "a list of bad blocks"],
  [16, "a replacement under way"],
  [32, "a reshape under way"],
  [64, "a reshape under way"],
  [128, "a recovery under way"],
  [256, "a cluster"],
  [512, "a journal"],
  [1024, "a partial parity log"],
  [2048, "partial parity logs"],
];
const KNOWN = FEATURE_NAMES.reduce((bits, [bit]) => bits | bit, FEATURE_BITMAP | FEATURE_RAID0_LAYOUT);
/** Write mostly, fail fast: they change nothing of where bytes lie. */
const DEVICE_FLAGS = 3;

/** Code of what is thrown for a superblock that is whole and says that it lies in another place. */
export const ELSEWHERE = "md-elsewhere";

/** Where the superblock lies on a device of so many bytes. */
export const PLACES: Readonly<Record<"1.0" | "1.1" | "1.2", (bytes: number) => number>> = {
  "1.0": (bytes) => Math.floor((Math.floor(bytes / SECTOR_BYTES) - 16) / 8) * 8 * SECTOR_BYTES,
  "1.1": () => 0,
  "1.2": () => 4096,
};

/** @throws DiskError `corrupt` */
export async function readVersion1(disk: BlockDevice, version: keyof typeof PLACES): Promise<Superblock> {
  const at = PLACES[version](disk.bytes);
  const bytes = await readBytes(disk, at, Math.min(SUPERBLOCK_BYTES, disk.bytes - at));
  const sb = SuperblockV1.decode(bytes);
  if (sb.magic !== MD_MAGIC || sb.major !== 1)
    throw corrupt(version, at, `has version ${sb.major}, expected 1`);
  const end = ROLES_AT + sb.roles * 2;
  if (sb.roles > ROLES_MAX || end > bytes.length) throw corrupt(version, at, `has ${sb.roles} roles`);
  const found = checksum(bytes.subarray(0, end));
  if (found !== sb.checksum) throw corrupt(version, at, `has checksum ${found}, expected ${sb.checksum}`);
  if (sb.superOffset * SECTOR_BYTES !== at)
    throw corrupt(version, at, `says that it lies at ${sb.superOffset * SECTOR_BYTES}`, ELSEWHERE);
  const roles = Array.from({ length: sb.roles }, (_, i) => viewOf(bytes).getUint16(ROLES_AT + i * 2, true));
  const role = roles[sb.number];
  const start = sb.dataOffset * SECTOR_BYTES;
  return {
    version,
    place: { start: at, end: Math.min(at + SUPERBLOCK_BYTES, disk.bytes) },
    uuid: uuidText(sb.uuid),
    name: printable(sb.name),
    level: sb.level | 0,
    layout: sb.level === 0 && (sb.features & FEATURE_RAID0_LAYOUT) === 0 ? undefined : sb.layout,
    chunkBytes: sb.chunkSectors * SECTOR_BYTES,
    members: sb.members,
    role: role !== undefined && role < ROLE_MEMBERS_MAX ? role : undefined,
    active: roles.filter((one) => one < ROLE_MEMBERS_MAX),
    events: sb.events,
    updated: sb.updated,
    usedBytes: sb.usedSectors * SECTOR_BYTES,
    data: { start, end: start + sb.dataSectors * SECTOR_BYTES },
    bitmap: bitmapOf(sb, at, start, disk.bytes),
    obstacle: obstacleOf(
      role !== undefined && role < ROLE_MEMBERS_MAX ? role : undefined,
      featuresOf(sb),
      sb.resyncOffset === NOWHERE ? [] : ["is not in sync, or was not stopped cleanly"],
    ),
  };
}

type Fields = ReturnType<typeof SuperblockV1.decode>;

function bitmapOf({ features, bitmapOffset }: Fields, at: number, data: number, deviceBytes: number) {
  if ((features & FEATURE_BITMAP) === 0) return undefined;
  const start = at + (bitmapOffset | 0) * SECTOR_BYTES;
  const end = [at, data].filter((border) => border > start);
  return { start, end: Math.min(deviceBytes, ...end) };
}

function featuresOf({ features, deviceFlags }: Fields): string[] {
  const names = FEATURE_NAMES.filter(([bit]) => (features & bit) !== 0).map(([, name]) => name);
  const unknown = (features & ~KNOWN) >>> 0;
  if (unknown !== 0) names.push(`features 0x${unknown.toString(16)}`);
  if ((deviceFlags & ~DEVICE_FLAGS) !== 0) names.push(`device flags 0x${deviceFlags.toString(16)}`);
  return names;
}

/** The sum of all words but the checksum's own, folded once. */
function checksum(bytes: Uint8Array): number {
  const view = viewOf(bytes);
  let sum = 0;
  for (let at = 0; at + 4 <= bytes.length; at += 4) {
    if (at !== SuperblockV1.at.checksum) sum += view.getUint32(at, true);
  }
  if (bytes.length % 4 === 2) sum += view.getUint16(bytes.length - 2, true);
  return ((sum % 2 ** 32) + Math.floor(sum / 2 ** 32)) >>> 0;
}
