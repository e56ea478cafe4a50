/**
 * When a file was last written to: how somebody notices that another program did. Block devices do not tell.
 */
import {
  type BigIntStats,
  chmodSync,
  readdirSync,
  readlinkSync,
  realpathSync,
  statSync,
  unlinkSync,
} from "node:fs";
import { join } from "node:path";
import type { ReadableFile } from "../device/device.ts";
import { codeOf, hostError } from "./failure.ts";
import { HostReader } from "./file.ts";
import { identityOf } from "./medium.ts";

export interface LastChange {
  readonly bytes: number;
  /** In nanoseconds since 1970. */
  readonly modified: string;
  readonly identity: string;
}

/** Where an open file really lies; undefined for what is no plain file of the host. */
export function realPathOf(file: ReadableFile): string | undefined {
  if (!(file instanceof HostReader) || file.medium.kind !== "file") return undefined;
  return process.platform === "linux"
    ? readlinkSync(`/proc/self/fd/${file.fd}`)
    : realpathSync.native(file.path);
}

/** Where a path leads, links followed. @throws DiskError `io` where it leads nowhere */
export function realPath(path: string): string {
  return attempt(path, () => realpathSync.native(path));
}

/** @throws DiskError `io` */
export function lastChangeOf(path: string): LastChange {
  const stats = attempt(path, () => statSync(path, { bigint: true }));
  return { bytes: Number(stats.size), modified: String(stats.mtimeNs), identity: identityOf(stats) };
}

/** Of a folder and everything below it, as one. @throws DiskError `io` */
export function lastChangeBelow(folder: string): LastChange {
  const top = attempt(folder, () => statSync(folder, { bigint: true }));
  let bytes = 0n;
  let modified = top.mtimeNs;
  const count = (stats: BigIntStats): void => {
    if (stats.isFile()) bytes += stats.size;
    if (stats.mtimeNs > modified) modified = stats.mtimeNs;
  };
  attempt(folder, () => {
    for (const { parentPath, name } of readdirSync(folder, { recursive: true, withFileTypes: true })) {
      const stats = statSync(join(parentPath, name), { bigint: true, throwIfNoEntry: false });
      if (stats !== undefined) count(stats);
    }
  });
  return { bytes: Number(bytes), modified: String(modified), identity: identityOf(top) };
}

/** Nobody may read a file who may not read that other one. @throws DiskError `io` */
export function protectLike(path: string, other: string): void {
  attempt(path, () => chmodSync(path, statSync(other).mode & 0o666));
}

/** Removes a file that may be gone already. @throws DiskError `io` */
export function removeFile(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (codeOf(error) !== "ENOENT") throw hostError(error, `${path}: remove`);
  }
}

function attempt<T>(path: string, call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw hostError(error, `${path}: look at`);
  }
}
