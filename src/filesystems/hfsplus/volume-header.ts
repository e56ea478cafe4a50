/**
 * The volume header: geometry, state, and where the special files lie.
 *
 *   0      1024   1536                                                    -1024   -512
 *   | boot | header | … allocation blocks from byte 0 on …                 | copy | reserved |
 *
 * The copy is written only when a special file grows: it must agree on what never changes. Its place is told by the
 * end of the partition, so it may lie behind the last allocation block.
 *
 * Technical Note TN1150, "Volume Header"; newer attribute bits are those of Apple's hfs_format.h.
 */
import { ascii, raw, skip, struct, u16be, u32be } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { Refused } from "../refused.ts";
import { decodeFork, FORK_BYTES, type Fork } from "./fork.ts";
import { contradiction, damaged, HINT, unknown } from "./refused.ts";

export const HEADER_AT = 1024;
export const SIGNATURE = { plus: 0x482b, x: 0x4858 } as const;

export const VolumeHeader = struct({
  signature: u16be,
  version: u16be,
  attributes: u32be,
  lastMountedVersion: ascii(4),
  journalInfoBlock: u32be,
  createDate: u32be,
  otherDates: skip(12),
  counts: skip(8),
  blockBytes: u32be,
  blocks: u32be,
  freeBlocks: u32be,
  allocationHints: skip(12),
  nextCatalogId: u32be,
  writeCount: skip(4),
  encodings: skip(8),
  finderInfo: skip(24),
  identifier: raw(8),
  allocation: raw(FORK_BYTES),
  extents: raw(FORK_BYTES),
  catalog: raw(FORK_BYTES),
  attributesFile: raw(FORK_BYTES),
  startup: raw(FORK_BYTES),
});

const ATTRIBUTE = {
  hardwareLock: 1 << 7,
  unmounted: 1 << 8,
  sparedBlocks: 1 << 9,
  noCacheRequired: 1 << 10,
  bootVolumeInconsistent: 1 << 11,
  catalogIdsReused: 1 << 12,
  journaled: 1 << 13,
  inconsistent: 1 << 14,
  softwareLock: 1 << 15,
  expandedTimes: 1 << 29,
  contentProtection: 1 << 30,
  unusedNodesZeroed: 1 << 31,
} as const;

const KNOWN = Object.values(ATTRIBUTE).reduce((all, bit) => all | bit, 0);

export const CATALOG_ID = { extents: 3, catalog: 4, badBlocks: 5, allocation: 6, startup: 7, attributes: 8 };

export interface Header {
  readonly isX: boolean;
  readonly attributes: number;
  readonly lastMountedVersion: string;
  readonly isJournaled: boolean;
  readonly journalInfoBlock: number;
  readonly blockBytes: number;
  readonly blocks: number;
  readonly bytes: number;
  readonly freeBlocks: number;
  readonly identifier: Uint8Array;
  /** By their number in the catalog. */
  readonly forks: ReadonlyMap<number, Fork>;
  /** Where the copy lies, in bytes. */
  readonly copyAt: number;
}

type Fields = ReturnType<typeof VolumeHeader.decode>;

/** @throws Refused for a geometry that cannot be */
export async function readHeader(device: BlockDevice): Promise<Header> {
  const fields = VolumeHeader.decode(await readBytes(device, HEADER_AT, VolumeHeader.bytes));
  const isX = fields.signature === SIGNATURE.x;
  const version = isX ? 5 : 4;
  if (fields.version !== version) {
    throw unknown(`volume header: version ${fields.version} found, ${version} expected`);
  }
  const geometry = geometryOf(fields, device.bytes);
  const copyAt = await findCopy(device, fields, geometry.bytes);
  const fork = (name: string, bytes: Uint8Array) => decodeFork(name, bytes, geometry);
  return {
    ...geometry,
    isX,
    attributes: fields.attributes,
    lastMountedVersion: fields.lastMountedVersion,
    isJournaled: (fields.attributes & ATTRIBUTE.journaled) !== 0,
    journalInfoBlock: fields.journalInfoBlock,
    freeBlocks: fields.freeBlocks,
    identifier: fields.identifier,
    forks: new Map([
      [CATALOG_ID.allocation, fork("allocation file", fields.allocation)],
      [CATALOG_ID.extents, fork("extents overflow file", fields.extents)],
      [CATALOG_ID.catalog, fork("catalog file", fields.catalog)],
      [CATALOG_ID.attributes, fork("attributes file", fields.attributesFile)],
      [CATALOG_ID.startup, fork("startup file", fields.startup)],
    ]),
    copyAt,
  };
}

const BLOCK_BYTES_MAX = 2 ** 30;

function geometryOf({ blockBytes, blocks, freeBlocks }: Fields, deviceBytes: number) {
  if (blockBytes < 512 || blockBytes > BLOCK_BYTES_MAX || !Number.isInteger(Math.log2(blockBytes))) {
    throw damaged(`volume header: block size ${blockBytes} found, a power of two from 512 expected`);
  }
  const bytes = blocks * blockBytes;
  if (bytes < HEADER_AT + 2 * VolumeHeader.bytes || freeBlocks > blocks) {
    throw damaged(`volume header: ${blocks} blocks of which ${freeBlocks} are free are impossible`);
  }
  if (bytes > deviceBytes) {
    throw new Refused(
      "truncated",
      `volume header: ${bytes} bytes found, but the device has ${deviceBytes}`,
      "the image or the partition is cut short: restore its length first",
    );
  }
  return { blockBytes, blocks, bytes };
}

/** @throws Refused for attributes that are not vouched for, and where the guest was not shut down cleanly (H2) */
export function checkState({ attributes, lastMountedVersion }: Header): void {
  const strange = (attributes & ~KNOWN) >>> 0;
  if (strange !== 0) {
    throw unknown(`volume header: attributes 0x${strange.toString(16)} are not known`);
  }
  if ((attributes & ATTRIBUTE.contentProtection) !== 0) {
    throw new Refused(
      "feature-unsupported",
      "volume header: content protection is not supported",
      "all of this volume counts as used",
    );
  }
  if ((attributes & ATTRIBUTE.unmounted) === 0) {
    throw new Refused(
      "not-clean",
      "volume header: it was not unmounted cleanly",
      "boot the guest and shut it down cleanly, or run fsck_hfs there",
    );
  }
  const isInconsistent = (attributes & (ATTRIBUTE.inconsistent | ATTRIBUTE.bootVolumeInconsistent)) !== 0;
  if (isInconsistent || lastMountedVersion === "FSK!") {
    throw new Refused("error-state", "volume header: the guest found the volume inconsistent", HINT);
  }
}

/**
 * The copy lies 1024 bytes before the end of the partition, less than a block behind the last block; in a partition that
 * grew later, before the end that it had.
 */
async function findCopy(device: BlockDevice, fields: Fields, bytes: number): Promise<number> {
  const places = [device.bytes - HEADER_AT];
  for (let at = bytes - HEADER_AT; at < bytes - HEADER_AT + fields.blockBytes; at += 512) {
    if (at + HEADER_AT > device.bytes || places.length > COPY_PLACES_MAX) break;
    places.push(at);
  }
  for (const at of places) {
    const copy = VolumeHeader.decode(await readBytes(device, at, VolumeHeader.bytes));
    if (copy.signature !== fields.signature) continue;
    for (const name of ["version", "blockBytes", "blocks", "createDate"] as const) {
      if (copy[name] !== fields[name]) {
        throw contradiction(
          `volume header: ${name} ${fields[name]} found, but ${copy[name]} in its copy at ${at}`,
        );
      }
    }
    return at;
  }
  throw damaged(`no copy of the volume header found at ${places[0]!}`);
}

const COPY_PLACES_MAX = 256;
