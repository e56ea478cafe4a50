/** Every filesystem reader, in the order in which they are probed. */
import { exfat } from "./exfat.ts";
import { ext } from "./ext.ts";
import { fat } from "./fat.ts";
import type { FileSystemReader } from "./filesystem.ts";
import { hfsplus } from "./hfsplus.ts";
import { ntfs } from "./ntfs.ts";
import { swap } from "./swap.ts";
import { xfs } from "./xfs.ts";

export const FILESYSTEMS: readonly FileSystemReader[] = [ext, fat, exfat, ntfs, hfsplus, xfs, swap];
