/** Every filesystem reader, in the order in which they are probed. */
import { ext } from "./ext.ts";
import { hfsplus } from "./hfsplus.ts";
import type { FileSystemReader } from "./filesystem.ts";

export const FILESYSTEMS: readonly FileSystemReader[] = [ext, hfsplus];
