/**
 * The md superblock of version 0.90: 1024 words in the last whole 64 KiB but one of the member, in the order of bytes of
 * the machine that wrote them.
 *
 *   | data …                                     | superblock | bitmap |  less than 64 KiB |
 *
 * It does not say where it lies: a partition at the end of a disk shares it with the disk.
 * Source: Linux, include/uapi/linux/raid/md_p.h and drivers/md/md.c.
 */
import { viewOf } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { corrupt, MD_MAGIC, obstacleOf, type Superblock } from "./superblock.ts";

const KiB = 1024;
const RESERVED_BYTES = 64 * KiB;
const SUPERBLOCK_BYTES = 4096;
/** Version 0.91 is that of a set that is being reshaped. */
const MINOR = 90;

/** Numbers of words. */
export const WORD = {
  major: 1,
  minor: 2,
  uuid: 5,
  level: 7,
  usedKiB: 8,
  members: 10,
  restOfUuid: 13,
  updated: 32,
  state: 33,
  failed: 36,
  checksum: 38,
  events: 39,
  layout: 64,
  chunkBytes: 65,
  disks: 128,
  thisDisk: 992,
} as const;
const DISKS = 27;
const DISK_WORDS = 32;
/** Within the description of a disk. */
const DISK_ROLE = 3;
const DISK_STATE = 4;

const STATE_CLEAN = 1;
const STATE_BITMAP = 1 << 8;
const DISK_ACTIVE = 1 << 1;
const DISK_SYNC = 1 << 2;
/** Write mostly, fail fast. */
const DISK_INDIFFERENT = (1 << 9) | (1 << 10);

export function placeOfVersion0(bytes: number): number {
  return Math.floor(bytes / RESERVED_BYTES) * RESERVED_BYTES - RESERVED_BYTES;
}

/** @throws DiskError `corrupt` */
export async function readVersion0(disk: BlockDevice): Promise<Superblock> {
  const at = placeOfVersion0(disk.bytes);
  const view = viewOf(await readBytes(disk, at, SUPERBLOCK_BYTES));
  const isLittle = view.getUint32(0, true) === MD_MAGIC;
  const word = (number: number): number => view.getUint32(number * 4, isLittle);
  if (word(0) !== MD_MAGIC || word(WORD.major) !== 0)
    throw corrupt("0.90", at, `has version ${word(WORD.major)}, expected 0`);
  const found = checksum(word);
  if (found !== word(WORD.checksum))
    throw corrupt("0.90", at, `has checksum ${found}, expected ${word(WORD.checksum)}`);
  const roles = Array.from({ length: DISKS }, (_, i) => WORD.disks + i * DISK_WORDS)
    .filter((disk) => isInService(word(disk + DISK_STATE)))
    .map((disk) => word(disk + DISK_ROLE));
  const own = WORD.thisDisk;
  const role = isInService(word(own + DISK_STATE)) ? word(own + DISK_ROLE) : undefined;
  const level = word(WORD.level) | 0;
  const uuid = [WORD.uuid, ...[0, 1, 2].map((i) => WORD.restOfUuid + i)].map(word);
  const high = isLittle ? WORD.events + 1 : WORD.events;
  const low = isLittle ? WORD.events : WORD.events + 1;
  return {
    version: "0.90",
    place: { start: at, end: at + SUPERBLOCK_BYTES },
    uuid: uuid.map((one) => one.toString(16).padStart(8, "0")).join(":"),
    name: "",
    level,
    layout: level === 0 ? undefined : word(WORD.layout),
    chunkBytes: word(WORD.chunkBytes),
    members: word(WORD.members),
    role,
    active: roles,
    events: (BigInt(word(high)) << 32n) | BigInt(word(low)),
    updated: BigInt(word(WORD.updated)),
    usedBytes: word(WORD.usedKiB) * KiB,
    data: { start: 0, end: at },
    bitmap:
      (word(WORD.state) & STATE_BITMAP) === 0
        ? undefined
        : { start: at + SUPERBLOCK_BYTES, end: Math.min(at + RESERVED_BYTES, disk.bytes) },
    obstacle: obstacleOf(
      role,
      word(WORD.minor) === MINOR ? [] : [`version 0.${word(WORD.minor)}: a reshape under way`],
      stateOf(word(WORD.state), word(WORD.failed)),
    ),
  };
}

function stateOf(state: number, failed: number): string[] {
  const unknown = (state & ~(STATE_CLEAN | STATE_BITMAP)) >>> 0;
  return [
    ...((state & STATE_CLEAN) === 0 ? ["was not stopped cleanly"] : []),
    ...(unknown === 0 ? [] : [`is in state 0x${unknown.toString(16)}`]),
    ...(failed === 0 ? [] : [`counts ${failed} failed members`]),
  ];
}

function isInService(state: number): boolean {
  return (state & ~DISK_INDIFFERENT) === (DISK_ACTIVE | DISK_SYNC);
}

/** The sum of all words but the checksum's own, folded once. */
function checksum(word: (number: number) => number): number {
  let sum = 0;
  for (let number = 0; number < SUPERBLOCK_BYTES / 4; number++) {
    if (number !== WORD.checksum) sum += word(number);
  }
  return ((sum % 2 ** 32) + Math.floor(sum / 2 ** 32)) >>> 0;
}
