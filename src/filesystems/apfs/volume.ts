/**
 * The superblock of a volume, found by the container's object map.
 *
 *   volume superblock → object map → file-system tree, versions for the live volume and for every snapshot
 *                     ├ extent records (live)
 *                     └ snapshots → superblock of the snapshot, extent records of the snapshot
 *
 * "Volumes" of the Apple File System Reference.
 */
import { bits64le, raw, skip, struct, u16le, u32le, u64le, uuidText } from "../../bytes/struct.ts";
import { printable } from "../../bytes/text.ts";
import { OBJECT_BYTES } from "./objects.ts";
import { damaged, unfinished, unknown } from "./refused.ts";
import { refuseUnknownBits } from "./superblock.ts";

const MAGIC = 0x42535041;

export const VolumeLayout = struct({
  header: skip(OBJECT_BYTES),
  magic: u32le,
  index: u32le,
  features: bits64le,
  roCompat: bits64le,
  incompat: bits64le,
  unmountTime: skip(8),
  reserved: skip(16),
  allocatedBlocks: u64le,
  metadataKey: skip(20),
  treeType: u32le,
  extentTreeType: u32le,
  snapshotTreeType: u32le,
  objectMap: u64le,
  tree: u64le,
  extentTree: u64le,
  snapshotTree: u64le,
  revertTo: bits64le,
  revertSuperblock: bits64le,
  counts: skip(40),
  snapshots: u64le,
  totals: skip(16),
  uuid: raw(16),
  modified: skip(8),
  flags: bits64le,
  history: skip(48 + 8 * 48),
  volumeName: raw(256),
  nextDocument: skip(4),
  role: u16le,
  pad: skip(2),
  rootTo: bits64le,
  encryptionState: bits64le,
  cloneInfo: skip(16),
  snapshotExtra: skip(8),
  group: skip(16),
  integrity: skip(8),
  fileExtentTree: u64le,
  fileExtentTreeType: u32le,
  reservedType: u32le,
  reservedObject: bits64le,
});

export const FEATURE_CASE_INSENSITIVE = 0x1n;
export const FEATURE_INSENSITIVE = 0x9n;
const INCOMPLETE_RESTORE = 0x10n;
export const SEALED = 0x20n;
/** Case folding, snapshots without data, keys that were rolled, normalization, sealed. */
const INCOMPAT_KNOWN = FEATURE_INSENSITIVE | 0x2n | 0x4n | SEALED;
const FEATURES_KNOWN = 0x1fn;
export const UNENCRYPTED = 0x1n;
/** Unencrypted, two that are reserved, one key for all, extent records are always checked. */
const FLAGS_KNOWN = 0x4fn;

export type VolumeSuperblock = ReturnType<typeof VolumeLayout.decode>;

/** @throws Refused */
export function readVolume(bytes: Uint8Array, block: number): VolumeSuperblock {
  const sb = VolumeLayout.decode(bytes);
  if (sb.magic !== MAGIC) {
    throw damaged(`block ${block}: magic 0x${sb.magic.toString(16)} found, "APSB" expected`);
  }
  return sb;
}

/** @throws Refused for a volume that is not vouched for, or has something unfinished */
export function checkVolume(sb: VolumeSuperblock): void {
  const name = `volume ${nameOf(sb)}`;
  if ((sb.incompat & INCOMPLETE_RESTORE) !== 0n) {
    throw unfinished("restoring", `${name}: its restore from another disk was not finished`);
  }
  refuseUnknownBits(`${name}: features`, sb.features, FEATURES_KNOWN);
  refuseUnknownBits(`${name}: read-only compatible features`, sb.roCompat, 0n);
  refuseUnknownBits(`${name}: incompatible features`, sb.incompat, INCOMPAT_KNOWN);
  refuseUnknownBits(`${name}: flags`, sb.flags, FLAGS_KNOWN);
  if ((sb.revertTo | sb.revertSuperblock) !== 0n) {
    throw unfinished("reverting", `${name}: it is to be reverted to a snapshot`);
  }
  if (sb.encryptionState !== 0n) {
    throw unfinished("encrypting", `${name}: it is being encrypted or decrypted`);
  }
  if (sb.reservedObject !== 0n) throw unknown(`${name}: a structure that is not known found`);
}

export const nameOf = (sb: VolumeSuperblock): string =>
  printable(Buffer.from(sb.volumeName).toString().replace(/\0.*$/s, ""));

export const volumeUuid = (sb: VolumeSuperblock): string => uuidText(sb.uuid);
