/**
 * What is vouched for: feature bits, flags of the superblock, and the state that they tell.
 */
import type { BlockDevice } from "../../device/device.ts";
import { Refused } from "../refused.ts";
import { unsupported } from "./refused.ts";
import type { Superblock } from "./superblock.ts";

type Bits = Readonly<Record<number, string>>;

/** Features that change nothing here, or that are handled. */
const INCOMPAT: Bits = {
  0: "mixed-backref",
  1: "default-subvol",
  2: "mixed-groups",
  3: "compress-lzo",
  4: "compress-zstd",
  5: "big-metadata",
  6: "extended-iref",
  8: "skinny-metadata",
  9: "no-holes",
  10: "metadata-uuid",
  11: "raid1c34",
  16: "simple-quota",
};
const INCOMPAT_REFUSED: Bits = {
  7: "raid56",
  12: "zoned",
  13: "extent-tree-v2",
  14: "raid-stripe-tree",
  15: "encrypt",
  17: "remap-tree",
};
const COMPAT_RO: Bits = {
  0: "free-space-tree",
  1: "free-space-tree-valid",
  2: "verity",
  3: "block-group-tree",
};
/** Written; relocated since the last mount; made of a dump of metadata, in two versions. */
const FLAGS: Bits = { 0: "written", 1: "reloc", 33: "metadump", 34: "metadump-v2" };
const FLAGS_REFUSED: Bits = {
  35: "changing-fsid",
  36: "changing-fsid-v2",
  37: "changing-csum",
  38: "changing-bg-tree",
  39: "changing-data-csum",
  40: "changing-meta-csum",
};
const FLAG_ERROR = 1n << 2n;
const FLAG_SEEDING = 1n << 32n;

const FREE_SPACE_TREE = 3n;
const BLOCK_GROUP_TREE = 1n << 3n;
const SKINNY_METADATA = 1n << 8n;

/** Whether the tree of free space is there and kept up to date. */
export const hasFreeSpaceTree = ({ compatRo }: Superblock): boolean =>
  (compatRo & FREE_SPACE_TREE) === FREE_SPACE_TREE;
/** Whether block groups lie in a tree of their own. */
export const hasBlockGroupTree = ({ compatRo }: Superblock): boolean => (compatRo & BLOCK_GROUP_TREE) !== 0n;
export const hasSkinnyMetadata = ({ incompat }: Superblock): boolean => (incompat & SKINNY_METADATA) !== 0n;

/** @throws Refused */
export function checkState(sb: Superblock): void {
  checkBits("feature", sb.incompat, INCOMPAT, INCOMPAT_REFUSED);
  checkBits("read-only feature", sb.compatRo, COMPAT_RO, {});
  checkBits("compatible feature", sb.compat, {}, {});
  if ((sb.flags & FLAG_SEEDING) !== 0n) {
    throw new Refused(
      "seed",
      "superblock: a seed device, on which other filesystems are built",
      "take the seeding flag away with btrfstune -S 0 when nothing needs it",
    );
  }
  if ((sb.flags & FLAG_ERROR) !== 0n) {
    throw new Refused(
      "error-state",
      "superblock: the kernel found errors in this filesystem",
      "run btrfs check on it in the guest, then try again",
    );
  }
  checkBits("flag", sb.flags, FLAGS, FLAGS_REFUSED);
}

function checkBits(kind: string, found: bigint, vouched: Bits, refused: Bits): void {
  for (let bit = 0; bit < 64; bit++) {
    if (((found >> BigInt(bit)) & 1n) === 0n || bit in vouched) continue;
    if (bit in refused) throw unsupported(`superblock: ${kind} ${refused[bit]}`);
    throw new Refused(
      "feature-unknown",
      `superblock: unknown ${kind} bit ${bit}`,
      "free the space from inside the guest, with fstrim",
    );
  }
}

/** @throws Refused when the device ends before the filesystem's part of it */
export function checkLength(device: BlockDevice, sb: Superblock): void {
  if (sb.deviceBytes > device.bytes) {
    throw new Refused(
      "truncated",
      `device ${sb.deviceId}: ${sb.deviceBytes} bytes expected, only ${device.bytes} found`,
      "the image or the partition was cut: restore its size",
    );
  }
}

export function checkLog(sb: Superblock, replay: boolean): void {
  if (sb.logRoot === 0 || replay) return;
  throw new Refused(
    "journal-dirty",
    `superblock: a log tree at ${sb.logRoot} waits to be replayed: the guest was not shut down cleanly`,
    "boot the guest and shut it down cleanly, or mount the filesystem once, or --allow replay",
  );
}
