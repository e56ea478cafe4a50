/** Every filesystem reader, in the order in which they are probed. */
import { btrfs } from "./btrfs.ts";
import { ext } from "./ext.ts";
import type { FileSystemReader } from "./filesystem.ts";

export const FILESYSTEMS: readonly FileSystemReader[] = [ext, btrfs];
