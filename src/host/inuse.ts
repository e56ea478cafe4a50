/**
 * Whether somebody else may be writing to an image: asked by readers, who then call their figures inexact. Nothing is
 * locked, and nothing fails because of the answer.
 */
import { closeSync, constants, fstatSync, openSync, statSync } from "node:fs";
import { join } from "node:path";
import { hostError } from "./failure.ts";
import { lockedByWriter } from "./lock.ts";
import { identityOf } from "./medium.ts";
import { platform } from "./platform.ts";
import { hostSource } from "./source.ts";
import { deviceUsersOf, loopDevicesOf } from "./users.ts";

/** A bundle is held by one of the files that lie directly in it; who has more of them than this is none. */
const BUNDLE_FILES_MAX = 1000;

async function folderInUse(path: string): Promise<boolean> {
  const names = await hostSource(path).folder!.list("");
  for (const name of names.slice(0, BUNDLE_FILES_MAX)) if (await inUse(join(path, name))) return true;
  return false;
}

/** Our own writers count too, also those of this process. */
export async function inUse(path: string): Promise<boolean> {
  try {
    const stats = statSync(path, { bigint: true });
    if (stats.isDirectory()) return await folderInUse(path);
    if (stats.isBlockDevice() && deviceUsersOf(stats.rdev).length > 0) return true;
    if (!stats.isFile() && !stats.isBlockDevice()) return false;
    if (loopDevicesOf(identityOf(stats)).length > 0) return true;
  } catch (error) {
    throw hostError(error, `${path}: open`);
  }
  const fd = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
  try {
    return lockedByWriter(fd, identityOf(fstatSync(fd, { bigint: true })), platform()?.locks);
  } finally {
    closeSync(fd);
  }
}
