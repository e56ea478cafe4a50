/** Every filesystem reader, in the order in which they are probed. */
import { apfs } from "./apfs.ts";
import { btrfs } from "./btrfs.ts";
import { exfat } from "./exfat.ts";
import { ext } from "./ext.ts";
import { f2fs } from "./f2fs.ts";
import { fat } from "./fat.ts";
import type { FileSystemReader } from "./filesystem.ts";
import { hfsplus } from "./hfsplus.ts";
import { ntfs } from "./ntfs.ts";
import { xfs } from "./xfs.ts";
import { swap } from "./swap.ts";

export const FILESYSTEMS: readonly FileSystemReader[] = [
  ext,
  fat,
  exfat,
  ntfs,
  btrfs,
  hfsplus,
  xfs,
  swap,
  apfs,
  f2fs,
];
