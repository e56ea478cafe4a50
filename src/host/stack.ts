/**
 * What lies under an image: the host's filesystem, and the devices below it, as far as Linux tells.
 *
 *   image ── ext4 ── dm-0 (LVM) ── sda2 ── sda     /sys/dev/block/MAJOR:MINOR → …/block/dm-0/slaves/sda2
 *                                                   a partition's folder lies in its disk's
 *
 * Seen through are partitions, LVM's volumes that lie on disks themselves, dm-crypt, multipath, and RAID levels that
 * write in place. Everything else is opaque: thin volumes, snapshots, caches, loop devices, virtual and network disks.
 *
 * `queue/rotational` says 1 also where the kernel knows nothing. What spins says so itself, in the VPD page "block device
 * characteristics" (SBC-4, B1h): its rate in turns per minute at byte 4, and at byte 8, in bits 4 and 5, whether it is
 * zoned: 1 host-aware, 2 device-managed (shingled).
 */
import { closeSync, existsSync, openSync, readdirSync, readFileSync, realpathSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { codeOf } from "./failure.ts";
import { deviceNumber } from "./medium.ts";
import { platform } from "./platform.ts";
import { mountOf } from "./space.ts";

/** `magnetic`: a disk that turns, and writes where it was told to. */
export type MediumKind = "magnetic" | "shingled" | "flash" | "unknown";

export interface StackDevice {
  /** `sda` */
  readonly name: string;
  readonly medium: MediumKind;
  /** Whether it takes discards; undefined where nothing tells. */
  readonly discards: boolean | undefined;
}

export interface Stack {
  /** As the kernel calls it; undefined where the image is a block device itself. */
  readonly filesystem: string | undefined;
  /** ext4 writes the content of this file to its journal first; undefined where nothing tells. */
  readonly journalsData: boolean | undefined;
  /** The filesystem passes on what is freed, by itself (mount option `discard`). */
  readonly passesDiscards: boolean;
  /** The disks at the bottom; empty where a layer above them is opaque. */
  readonly devices: readonly StackDevice[];
  /** The first layer that is not seen through: `loop0`. */
  readonly opaque: string | undefined;
}

/** Where Linux tells about itself. Tests have their own. */
export interface Roots {
  readonly sys: string;
  readonly proc: string;
}

const HOST: Roots = { sys: "/sys", proc: "/proc" };

/** Of the file or block device at `path`. Never fails: what is not known is told as unknown. */
export function stackOf(path: string, roots: Roots = HOST): Stack {
  const stats = statSync(path, { bigint: true, throwIfNoEntry: false });
  if (stats === undefined) return UNKNOWN;
  if (stats.isBlockDevice())
    return {
      filesystem: undefined,
      journalsData: false,
      passesDiscards: true,
      ...devicesUnder(stats.rdev, roots),
    };
  const { filesystem, options } = mountOf(realpathSync.native(path));
  const below = devicesUnder(stats.dev, roots);
  return {
    filesystem,
    journalsData: filesystem === "ext4" ? journalsData(path, stats.dev, roots) : false,
    passesDiscards: options.includes("discard"),
    ...below,
  };
}

const UNKNOWN: Stack = {
  filesystem: "unknown",
  journalsData: undefined,
  passesDiscards: false,
  devices: [],
  opaque: "the host",
};

/** Of the file alone (`chattr +j`), or of the whole filesystem (`data=journal`), which lists all its options in /proc. */
function journalsData(path: string, dev: bigint, { sys, proc }: Roots): boolean | undefined {
  const folder = folderOf(dev, sys);
  const options = folder && textOf(join(proc, "fs/ext4", basename(folder), "options"));
  if (options === undefined) return undefined;
  if (options.split("\n").includes("data=journal")) return true;
  return attributeOf(path);
}

function attributeOf(path: string): boolean | undefined {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (error) {
    if (codeOf(error) === undefined) throw error;
    return undefined;
  }
  try {
    return platform()?.journalsData?.(fd);
  } finally {
    closeSync(fd);
  }
}

type Under = Pick<Stack, "devices" | "opaque">;

function devicesUnder(number: bigint, { sys }: Roots): Under {
  const folder = folderOf(number, sys);
  // Btrfs, overlayfs, NFS and tmpfs have numbers that belong to no device.
  if (folder === undefined) return { devices: [], opaque: `device ${deviceNumber(number)}` };
  const found = new Map<string, StackDevice>();
  const opaque = descend(folder, found, 0);
  return opaque === undefined ? { devices: [...found.values()], opaque } : { devices: [], opaque };
}

function folderOf(number: bigint, sys: string): string | undefined {
  try {
    return realpathSync.native(join(sys, "dev/block", deviceNumber(number)));
  } catch {
    return undefined;
  }
}

const DEPTH_MAX = 16;

/** @returns the name of the first layer that is opaque */
function descend(folder: string, found: Map<string, StackDevice>, depth: number): string | undefined {
  const name = basename(folder);
  if (depth > DEPTH_MAX) return name;
  if (existsSync(join(folder, "partition"))) return descend(dirname(folder), found, depth + 1);
  const slaves = foldersIn(join(folder, "slaves"));
  if (slaves.length === 0) {
    if (!/^(sd[a-z]+|nvme\d+(c\d+)?n\d+)$/.test(name)) return name;
    found.set(name, diskAt(folder));
    return undefined;
  }
  if (!writesInPlace(folder, slaves)) return name;
  for (const slave of slaves) {
    const opaque = descend(slave, found, depth + 1);
    if (opaque !== undefined) return opaque;
  }
  return undefined;
}

const isMapped = (folder: string): boolean => basename(folder).startsWith("dm-");

/** What device mapper was told is seen in its names alone: who lies on another volume of LVM may be thin, or cached. */
function writesInPlace(folder: string, slaves: readonly string[]): boolean {
  const level = textOf(join(folder, "md/level"))?.trim();
  if (level !== undefined) return ["raid0", "raid1", "raid10", "linear"].includes(level);
  const uuid = textOf(join(folder, "dm/uuid"))?.trim() ?? "";
  if (/^(CRYPT-(LUKS1|LUKS2|PLAIN)|mpath)-/.test(uuid)) return true;
  const isLvm = (each: string): boolean => textOf(join(each, "dm/uuid"))?.startsWith("LVM-") ?? true;
  // Its own volumes carry no suffix: `LVM-…-tpool`, `LVM-…-real`, `LVM-…-cow` are parts of something else.
  return /^LVM-[A-Za-z0-9]{64}\s*$/.test(uuid) && !slaves.some((slave) => isMapped(slave) && isLvm(slave));
}

function diskAt(folder: string): StackDevice {
  const discardBytes = textOf(join(folder, "queue/discard_max_bytes"));
  return {
    name: basename(folder),
    medium: mediumAt(folder),
    discards: discardBytes === undefined ? undefined : Number(discardBytes) > 0,
  };
}

const TURNS_AT = 4;
const TURNS_MIN = 0x401;
const ZONED_AT = 8;

function mediumAt(folder: string): MediumKind {
  if (textOf(join(folder, "queue/rotational"))?.trim() === "0") return "flash";
  const zoned = textOf(join(folder, "queue/zoned"))?.trim();
  if (zoned !== undefined && zoned !== "none") return "shingled";
  const page = bytesOf(join(folder, "device/vpd_pgb1"));
  if (zoned === undefined || page === undefined || page.length <= ZONED_AT) return "unknown";
  const turns = page.readUInt16BE(TURNS_AT);
  if (turns < TURNS_MIN || turns === 0xffff) return turns === 1 ? "flash" : "unknown";
  return ((page[ZONED_AT]! >>> 4) & 3) === 0 ? "magnetic" : "shingled";
}

function foldersIn(folder: string): string[] {
  try {
    return readdirSync(folder).map((name) => realpathSync.native(join(folder, name)));
  } catch {
    return [];
  }
}

function textOf(path: string): string | undefined {
  return bytesOf(path)?.toString("latin1");
}

function bytesOf(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch {
    return undefined;
  }
}
