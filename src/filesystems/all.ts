/** Every filesystem reader, in the order in which they are probed. */
import { ext } from "./ext.ts";
import type { FileSystemReader } from "./filesystem.ts";
import { xfs } from "./xfs.ts";

export const FILESYSTEMS: readonly FileSystemReader[] = [ext, xfs];
