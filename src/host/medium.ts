/**
 * What an open descriptor is: a regular file or a block device, how long, and in what granules it can be punched.
 *
 *   block device   /sys/dev/block/MAJOR:MINOR/size                          in 512-byte sectors
 *                  …/queue/logical_block_size, …/queue/discard_granularity   a partition's queue is its parent's
 */
import { type BigIntStats, fstatSync, readFileSync, statfsSync, statSync } from "node:fs";
import { DiskError } from "../error.ts";
import { codeOf, hostError } from "./failure.ts";

export interface Medium {
  readonly kind: "file" | "device";
  readonly bytes: number;
  /** The same string for the same file, whatever its name. */
  readonly identity: string;
  /** The granule in bytes at which the host gives space back. */
  readonly blockBytes: number;
  /** Ranges given to the host's calls must be multiples of this many bytes. */
  readonly alignBytes: number;
}

/** Device and inode, or the number of a block device. */
export function identityOf(stats: BigIntStats): string {
  return stats.isBlockDevice() ? `block ${deviceNumber(stats.rdev)}` : `file ${stats.dev}:${stats.ino}`;
}

/** The identity of what a path leads to, links followed; undefined where there is nothing to see. */
export function identityAt(path: string): string | undefined {
  try {
    return identityOf(statSync(path, { bigint: true }));
  } catch (error) {
    if (codeOf(error) === undefined) throw error;
    return undefined;
  }
}

/** @throws DiskError `unsupported` for what is neither a regular file nor a block device */
export function mediumOf(fd: number, path: string): Medium {
  const stats = fstatSync(fd, { bigint: true });
  const identity = identityOf(stats);
  if (stats.isFile()) {
    const blockBytes = statfsSync(process.platform === "linux" ? `/proc/self/fd/${fd}` : path).bsize;
    return { kind: "file", bytes: narrow(stats.size, path), identity, blockBytes, alignBytes: 1 };
  }
  if (!stats.isBlockDevice()) throw notAnImage(path, stats);
  const attribute = (name: string) => blockAttribute(stats.rdev, name);
  const sectors = attribute("size");
  if (sectors === undefined) {
    throw new DiskError("unsupported", `${path}: the length of this block device is unknown (no sysfs)`);
  }
  const alignBytes = attribute("queue/logical_block_size") ?? 512;
  const blockBytes = Math.max(attribute("queue/discard_granularity") ?? 0, alignBytes);
  return { kind: "device", bytes: sectors * 512, identity, blockBytes, alignBytes };
}

/** Why a path cannot be an image. */
export function notAnImage(path: string, stats: BigIntStats): DiskError {
  const what = stats.isDirectory()
    ? "a directory"
    : stats.isFIFO()
      ? "a FIFO"
      : stats.isSocket()
        ? "a socket"
        : stats.isCharacterDevice()
          ? "a character device"
          : "no file";
  return new DiskError("unsupported", `${path}: it is ${what}; expected a regular file or a block device`, {
    code: "not-a-file",
  });
}

/** A number that the kernel states about a block device; for a partition, of the disk that holds it. */
export function blockAttribute(rdev: bigint, name: string): number | undefined {
  const folder = `/sys/dev/block/${deviceNumber(rdev)}`;
  for (const path of [`${folder}/${name}`, `${folder}/../${name}`]) {
    try {
      return Number(readFileSync(path, "latin1"));
    } catch {
      continue;
    }
  }
  return undefined;
}

/** `MAJOR:MINOR`, from Linux's packing of a device number. */
export function deviceNumber(rdev: bigint): string {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & 0xfffff000n);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n);
  return `${major}:${minor}`;
}

function narrow(bytes: bigint, path: string): number {
  if (bytes > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new DiskError("unsupported", `${path}: ${bytes} bytes are more than 8 PiB`);
  }
  return Number(bytes);
}

/** The length and allocation of an open file as they are now. */
export function sizesOf(fd: number, path: string): { fileBytes: number; hostBytes: number } {
  try {
    const stats = fstatSync(fd, { bigint: true });
    return { fileBytes: narrow(stats.size, path), hostBytes: Number(stats.blocks) * 512 };
  } catch (error) {
    throw hostError(error, `${path}: stat`);
  }
}
