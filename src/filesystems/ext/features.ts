/**
 * The feature words of the superblock. A bit that is not listed as understood refuses the whole filesystem (H1): an
 * unknown feature may keep data where nobody looked. Compatible bits too: what nobody knows is not vouched for.
 *
 * Names are those of `mke2fs -O` (ext4(5)).
 */
import type { Superblock } from "./superblock.ts";
import { Refused } from "../refused.ts";

export const COMPAT = {
  dir_prealloc: 0x1,
  imagic_inodes: 0x2,
  has_journal: 0x4,
  ext_attr: 0x8,
  resize_inode: 0x10,
  dir_index: 0x20,
  lazy_bg: 0x40,
  exclude_inode: 0x80,
  exclude_bitmap: 0x100,
  sparse_super2: 0x200,
  fast_commit: 0x400,
  stable_inodes: 0x800,
  orphan_file: 0x1000,
} as const;

export const INCOMPAT = {
  compression: 0x1,
  filetype: 0x2,
  needs_recovery: 0x4,
  journal_dev: 0x8,
  meta_bg: 0x10,
  extent: 0x40,
  "64bit": 0x80,
  mmp: 0x100,
  flex_bg: 0x200,
  ea_inode: 0x400,
  dirdata: 0x1000,
  metadata_csum_seed: 0x2000,
  large_dir: 0x4000,
  inline_data: 0x8000,
  encrypt: 0x10000,
  casefold: 0x20000,
} as const;

export const RO_COMPAT = {
  sparse_super: 0x1,
  large_file: 0x2,
  btree_dir: 0x4,
  huge_file: 0x8,
  uninit_bg: 0x10,
  dir_nlink: 0x20,
  extra_isize: 0x40,
  snapshot: 0x80,
  quota: 0x100,
  bigalloc: 0x200,
  metadata_csum: 0x400,
  replica: 0x800,
  "read-only": 0x1000,
  project: 0x2000,
  shared_blocks: 0x4000,
  verity: 0x8000,
  orphan_present: 0x10000,
} as const;

/** Known by name, but nothing here vouches for a filesystem that has one. */
const REFUSED = new Set([
  "lazy_bg",
  "exclude_inode",
  "exclude_bitmap",
  "compression",
  "dirdata",
  "btree_dir",
  "snapshot",
  "replica",
  "shared_blocks",
]);

/** @throws Refused `feature-unknown` or `feature-unsupported`, naming the bit */
export function checkFeatures(sb: Superblock): void {
  const words = [
    ["compat", sb.compat, COMPAT],
    ["incompat", sb.incompat, INCOMPAT],
    ["ro_compat", sb.roCompat, RO_COMPAT],
  ] as const;
  for (const [word, value, known] of words) {
    const names = new Map<number, string>(Object.entries(known).map(([name, bit]) => [bit, name]));
    for (let shift = 0; shift < 32; shift++) {
      const bit = (1 << shift) >>> 0;
      if ((value & bit) === 0) continue;
      const name = names.get(bit);
      if (name === undefined) {
        throw new Refused(
          "feature-unknown",
          `superblock: ${word} feature bit 0x${bit.toString(16)} is unknown`,
          "a newer Ullage may know it",
        );
      }
      if (REFUSED.has(name)) {
        throw new Refused(
          "feature-unsupported",
          `superblock: the feature ${name} is not supported`,
          "all of this filesystem counts as used",
        );
      }
    }
  }
}

/** What ext3 may have beyond ext2, as blkid tells them apart. */
const EXT3_INCOMPAT = INCOMPAT.filetype | INCOMPAT.needs_recovery | INCOMPAT.meta_bg;
const EXT3_RO_COMPAT = RO_COMPAT.sparse_super | RO_COMPAT.large_file | RO_COMPAT.btree_dir;

export function generation(sb: Superblock): "ext2" | "ext3" | "ext4" {
  if ((sb.incompat & ~EXT3_INCOMPAT) !== 0 || (sb.roCompat & ~EXT3_RO_COMPAT) !== 0) return "ext4";
  return (sb.compat & COMPAT.has_journal) !== 0 ? "ext3" : "ext2";
}
