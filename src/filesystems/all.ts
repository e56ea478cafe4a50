/** Every filesystem reader, in the order in which they are probed. */
import { ext } from "./ext.ts";
import { ntfs } from "./ntfs.ts";
import type { FileSystemReader } from "./filesystem.ts";

export const FILESYSTEMS: readonly FileSystemReader[] = [ext, ntfs];
