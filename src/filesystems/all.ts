/** Every filesystem reader, in the order in which they are probed. */
import { ext } from "./ext.ts";
import type { FileSystemReader } from "./filesystem.ts";
import { swap } from "./swap.ts";

export const FILESYSTEMS: readonly FileSystemReader[] = [ext, swap];
