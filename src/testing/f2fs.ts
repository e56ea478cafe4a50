/**
 * F2FS volumes for tests: made by mkfs.f2fs, filled from a folder by sload.f2fs.
 */
import { join } from "node:path";
import { viewOf } from "../bytes/struct.ts";
import { CheckpointLayout } from "../filesystems/f2fs/checkpoint.ts";
import {
  BLOCK_BYTES,
  checksumOf,
  MAGIC,
  SUPERBLOCK_AT,
  SuperblockLayout,
} from "../filesystems/f2fs/superblock.ts";
import { run } from "./tools.ts";

export function makeVolume(
  folder: string,
  name: string,
  options: readonly string[],
  mebibytes = 200,
): string {
  const image = join(folder, name);
  run("truncate", ["-s", `${mebibytes}M`, image]);
  run("mkfs.f2fs", ["-q", ...options, image]);
  return image;
}

/** Sets the checksums of a superblock, of the head or foot of a checkpoint, anew. */
export function reseal(bytes: Uint8Array): void {
  const view = viewOf(bytes);
  if (view.getUint32(SUPERBLOCK_AT, true) === MAGIC) {
    const { at } = SuperblockLayout;
    const whole = bytes.subarray(SUPERBLOCK_AT, SUPERBLOCK_AT + at.checksum);
    view.setUint32(SUPERBLOCK_AT + at.checksum, checksumOf(whole), true);
  }
  if (view.getUint32(CheckpointLayout.at.checksumOffset, true) === BLOCK_BYTES - 4) {
    view.setUint32(BLOCK_BYTES - 4, checksumOf(bytes.subarray(0, BLOCK_BYTES - 4)), true);
  }
}
