/** Every filesystem reader, in the order in which they are probed. */
<<<<<<< HEAD
import { apfs } from "./apfs.ts";
||||||| 8dc7182
=======
import { exfat } from "./exfat.ts";
>>>>>>> main
import { ext } from "./ext.ts";
import { fat } from "./fat.ts";
import type { FileSystemReader } from "./filesystem.ts";
import { ntfs } from "./ntfs.ts";

<<<<<<< HEAD
export const FILESYSTEMS: readonly FileSystemReader[] = [ext, apfs];
||||||| 8dc7182
export const FILESYSTEMS: readonly FileSystemReader[] = [ext];
=======
export const FILESYSTEMS: readonly FileSystemReader[] = [ext, fat, exfat, ntfs];
>>>>>>> main
