/**
 * Whether the filesystem may be believed at all: its features are known, nobody has it mounted, it was left clean.
 */
import { crc32c } from "../../bytes/checksum.ts";
import { struct, skip, u32le } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { checkFeatures } from "./features.ts";
import { Refused } from "../refused.ts";
import { badChecksum, damaged } from "./refused.ts";
import { hasIncompat, hasRoCompat, STATE_ERROR, STATE_VALID, type Superblock } from "./superblock.ts";

/** Multi-mount protection: the sequence number tells who has the filesystem open. */
const MmpBlock = struct({ magic: u32le, sequence: u32le, rest: skip(1012), checksum: u32le });
const MMP_MAGIC = 0x4d4d50;
const MMP_CLEAN = 0xff4d4d50;
const MMP_FSCK = 0xe24d4d50;

/** Whether a journal waits to be replayed. */
export function needsReplay(sb: Superblock): boolean {
  return hasIncompat(sb, "needs_recovery");
}

/** Whether inodes without a name wait to be deleted: their blocks are still allocated. */
export function hasOrphans(sb: Superblock): boolean {
  return sb.lastOrphan !== 0 || hasRoCompat(sb, "orphan_present");
}

/** @throws Refused */
export async function checkState(device: BlockDevice, sb: Superblock): Promise<void> {
  checkFeatures(sb);
  if (sb.bytes > device.bytes) {
    throw new Refused(
      "truncated",
      `the filesystem has ${sb.bytes} bytes, the device only ${device.bytes}`,
      "the image or the partition was cut: restore its size",
    );
  }
  if (hasIncompat(sb, "mmp")) await checkMmp(device, sb);
  if ((sb.state & STATE_ERROR) !== 0) {
    throw new Refused(
      "error-state",
      `superblock: state 0x${sb.state.toString(16)}: the kernel found errors in this filesystem`,
      "run e2fsck on it in the guest, then try again",
    );
  }
  if ((sb.state & STATE_VALID) === 0 && !needsReplay(sb)) {
    throw new Refused(
      "not-clean",
      `superblock: state 0x${sb.state.toString(16)}: the filesystem was not unmounted cleanly`,
      "boot the guest and shut it down cleanly, or run e2fsck",
    );
  }
}

async function checkMmp(device: BlockDevice, sb: Superblock): Promise<void> {
  if (sb.mmpBlock <= sb.firstBlock || sb.mmpBlock >= sb.blocks) {
    throw damaged(`superblock: MMP block ${sb.mmpBlock} found, inside ${sb.blocks} blocks expected`);
  }
  const bytes = await readBytes(device, sb.mmpBlock * sb.blockBytes, MmpBlock.bytes);
  const mmp = MmpBlock.decode(bytes);
  if (mmp.magic !== MMP_MAGIC) {
    throw damaged(`MMP block ${sb.mmpBlock}: magic 0x${mmp.magic.toString(16)} found, 0x4d4d50 expected`);
  }
  const expected = crc32c(sb.seed, bytes, 0, MmpBlock.at.checksum);
  if (sb.checksums && mmp.checksum !== expected) throw badChecksum("MMP block", mmp.checksum, expected);
  if (mmp.sequence !== MMP_CLEAN) {
    throw new Refused(
      "mmp-in-use",
      `MMP block ${sb.mmpBlock}: ${mmp.sequence === MMP_FSCK ? "e2fsck has" : "a host has"} this filesystem open`,
      "shut its user down; if it crashed, run tune2fs -f -E clear_mmp",
    );
  }
}
