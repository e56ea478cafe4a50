/** Every filesystem reader, in the order in which they are probed. */
import { apfs } from "./apfs.ts";
import { ext } from "./ext.ts";
import type { FileSystemReader } from "./filesystem.ts";

export const FILESYSTEMS: readonly FileSystemReader[] = [ext, apfs];
