/**
 * Proves that the host punches holes as it promises, on a scratch file in the image's own directory, before an image
 * is touched (H18): some ignore a punch, some take more than asked, some say yes and free nothing.
 *
 *   written   | random | random | random | random |      one granule each, flushed
 *   punched            |  hole  |
 *   expected  | same   | zeros  | same   | same   |      same length, and one granule less on the host's disk
 *
 * Where no scratch file can be made or filled (a full disk, a read-only directory), the kernel's word for the kind of
 * filesystem must do: a full disk is the very case that people come with.
 */
import { randomBytes } from "node:crypto";
import { realpathSync, statSync, unlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { readBytes, type HostFile } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { hostError } from "./failure.ts";
import { blockAttribute } from "./medium.ts";
import { platform } from "./platform.ts";
import { hostSource } from "./source.ts";
import { hostFree, settle } from "./space.ts";

export interface HoleVerdict {
  /** Whether the image may be punched. */
  readonly holes: boolean;
  /** Whether that was seen on a scratch file, or is only known of this kind of filesystem. */
  readonly proven: boolean;
  /** Why not, or why not proven. */
  readonly reason?: string;
}

/** Filesystems whose holes are known to be real where they cannot be tried. */
const TRUSTED = new Set(["ext4", "xfs", "btrfs", "tmpfs"]);
/** Those that usually have them, as far as the server or the layer below does. */
const LIKELY = new Set([
  ...TRUSTED,
  "ext3",
  "zfs",
  "f2fs",
  "bcachefs",
  "ocfs2",
  "gfs2",
  "overlay",
  "nfs4",
  "cifs",
  "smb3",
  "virtiofs",
]);

/** For an image: a block device is asked for its discard, a file is tried beside where it really lies. */
export async function probeImage(path: string): Promise<HoleVerdict> {
  try {
    const stats = statSync(path, { bigint: true });
    if (stats.isBlockDevice()) return probeDevice(path, stats.rdev);
    const directory = dirname(realpathSync.native(path));
    // A single file can be mounted from elsewhere: then its directory tells nothing.
    if (statSync(directory, { bigint: true }).dev === stats.dev) return await probeHoles(directory);
  } catch (error) {
    throw hostError(error, `${path}: probe for holes`);
  }
  return byReputation(path, "its directory is on another filesystem");
}

/** What a survey, which must not write anything, takes for granted until a writer tries it. */
export async function assumeHoles(path: string): Promise<HoleVerdict> {
  try {
    const stats = statSync(path, { bigint: true });
    if (stats.isBlockDevice()) return probeDevice(path, stats.rdev);
  } catch (error) {
    throw hostError(error, `${path}: probe for holes`);
  }
  return platform() === undefined ? NO_CALLS : byReputation(path, "not tried", LIKELY);
}

function probeDevice(path: string, rdev: bigint): HoleVerdict {
  if (platform() === undefined) return NO_CALLS;
  if ((blockAttribute(rdev, "queue/write_zeroes_max_bytes") ?? 0) > 0) return { holes: true, proven: false };
  return { holes: false, proven: true, reason: `${path} has no discard that reads as zeros` };
}

const NO_CALLS: HoleVerdict = {
  holes: false,
  proven: true,
  reason: "punching needs koffi, which is not installed for this machine",
};

/** For a directory: makes a scratch file, judges, and leaves nothing behind. */
export async function probeHoles(directory: string): Promise<HoleVerdict> {
  if (platform() === undefined) return NO_CALLS;
  const path = join(directory, `.ullage-probe-${process.pid}-${randomBytes(6).toString("hex")}`);
  let file: HostFile;
  try {
    file = await hostSource(path).create();
  } catch (error) {
    if (!(error instanceof DiskError)) throw error;
    return byReputation(directory, `no scratch file could be made there: ${error.message}`);
  }
  try {
    // Where an open file can lose its name, it does so at once, and not even a kill leaves it behind.
    if (process.platform !== "win32") unlinkSync(path);
    const reason = await whyNoHoles(file, () => settle(directory));
    return reason === undefined ? { holes: true, proven: true } : { holes: false, proven: true, reason };
  } catch (error) {
    if (!(error instanceof DiskError) || error.code !== "no-space") throw error;
    return await withoutRoom(file, directory);
  } finally {
    await file[Symbol.asyncDispose]();
    if (process.platform === "win32") unlinkSync(path);
  }
}

const NO_HOLES = "the host's filesystem does not punch holes";

const GRANULE_BYTES_MIN = 4096;
const GRANULE_BYTES_MAX = 4 * 1024 * 1024;

/**
 * Tries a punch on an empty file of its own and returns what is wrong with it; undefined when nothing is.
 * @param settled returns when late accounts are settled
 */
export async function whyNoHoles(file: HostFile, settled: () => Promise<void>): Promise<string | undefined> {
  const { blockBytes } = await file.stat();
  const granule = Math.min(Math.max(blockBytes, GRANULE_BYTES_MIN), GRANULE_BYTES_MAX);
  // Random, so that a filesystem that compresses or deduplicates has to store it.
  const expected = randomBytes(4 * granule);
  await file.write(0, expected);
  await file.flush();
  const before = await file.stat();
  try {
    await file.punch({ start: granule, end: 2 * granule });
    await file.flush();
  } catch (error) {
    if (!(error instanceof DiskError)) throw error;
    if (error.kind === "unsupported") return NO_HOLES;
    if (error.code === "host-lies") return error.message;
    throw error;
  }
  const after = await file.stat();
  if (after.fileBytes !== expected.length) {
    return `a punch changed the length of a file from ${expected.length} to ${after.fileBytes} bytes`;
  }
  const found = await readBytes(file, 0, expected.length);
  expected.fill(0, granule, 2 * granule);
  for (const [block, what] of ["before it", "itself", "after it", "far after it"].entries()) {
    const range = [block * granule, (block + 1) * granule] as const;
    if (Buffer.compare(found.subarray(...range), expected.subarray(...range)) === 0) continue;
    return block === 1 ? "a punched hole does not read as zeros" : `a punch changed the block ${what}`;
  }
  if (freed(before, after) >= granule) return undefined;
  await settled();
  const bytes = freed(before, await file.stat());
  return bytes >= granule ? undefined : `a punch of ${granule} bytes gave ${bytes} bytes back`;
}

function freed(before: { hostBytes: number | null }, after: { hostBytes: number | null }): number {
  return (before.hostBytes ?? 0) - (after.hostBytes ?? 0);
}

/** A hole punched into a hole needs no room, and at least tells whether the call is known. */
async function withoutRoom(file: HostFile, directory: string): Promise<HoleVerdict> {
  try {
    await file.truncate(2 * GRANULE_BYTES_MIN);
    await file.punch({ start: 0, end: GRANULE_BYTES_MIN });
  } catch (error) {
    if (!(error instanceof DiskError)) throw error;
    if (error.kind === "unsupported") return { holes: false, proven: true, reason: NO_HOLES };
  }
  return byReputation(directory, "there is no space left for a scratch file");
}

async function byReputation(path: string, why: string, trusted = TRUSTED): Promise<HoleVerdict> {
  const { filesystem } = await hostFree(path);
  const holes = trusted.has(filesystem);
  const known = holes ? `${filesystem} is known to punch holes` : `${filesystem} is not known to punch holes`;
  return { holes, proven: false, reason: `${why}; ${known}` };
}
