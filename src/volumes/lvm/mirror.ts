/**
 * Logical volumes of type `raid1`: several images that hold the same, each with a superblock and a bitmap of its own.
 *
 *   root            raid1 of   root_rmeta_0  root_rimage_0     root_rmeta_1  root_rimage_1      hidden volumes
 *   root_rmeta_0    | "DmRd" superblock | 4096: write-intent bitmap |
 *
 * The images are one volume only while all of them are in sync; else nobody knows what a free block of one of them is to
 * the others. Source: Linux, drivers/md/dm-raid.c.
 */
import { raw, struct, u32le, bits64le } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import type { Refusal } from "../../error.ts";
import { linear, type Segment, type Stretch } from "../mapped.ts";
import { bitmapObstacle } from "../write-intent.ts";
import type { Logical } from "./logical.ts";
import type { Section } from "./text.ts";

const MAGIC = 0x64_52_6d_44;
const BITMAP_AT = 4096;
const SECTOR_BYTES = 512;
const FEATURE_V190 = 1;
/** LVM itself makes ten at most. */
const IMAGES_MAX = 64;
/** A position behind every end: there is nothing left to synchronise. */
const NOWHERE = 0xffff_ffff_ffff_ffffn;

export const RaidSuperblock = struct({
  magic: u32le,
  compatFeatures: u32le,
  devices: u32le,
  position: u32le,
  events: bits64le,
  failedDevices: bits64le,
  recoveryOffset: bits64le,
  resyncOffset: bits64le,
  level: u32le,
  layout: u32le,
  stripeSectors: u32le,
  flags: u32le,
  reshapePosition: bits64le,
  newLevel: u32le,
  newLayout: u32le,
  newStripeSectors: u32le,
  deltaDisks: u32le,
  arraySectors: bits64le,
  dataOffset: bits64le,
  newDataOffset: bits64le,
  sectors: bits64le,
  failedToo: raw(24),
  incompatFeatures: u32le,
});

export interface Mirror {
  readonly lv: string;
  readonly segments: readonly Segment[];
  /** Names of the hidden volumes that it consists of. */
  readonly parts: readonly string[];
  /** Where the superblocks lie, in the order of the images. */
  readonly metas: readonly Stretch[];
  readonly bytes: number;
}

const SEGMENT_NAMES: ReadonlySet<string> = new Set([
  "start_extent",
  "extent_count",
  "type",
  "tags",
  "device_count",
  "region_size",
  "raids",
]);

/** The mirror that `volume` is, of images as plain as can be; undefined where it is none. */
export function mirrorOf(
  volume: Logical,
  all: ReadonlyMap<string, Logical>,
  users: ReadonlyMap<string, readonly string[]>,
): Mirror | undefined {
  const [first, second] = volume.section.sections();
  if (first === undefined || second !== undefined || volume.status !== undefined) return undefined;
  const names = imageNames(first[1]);
  if (names === undefined || users.has(volume.lv)) return undefined;
  const parts = names.map((name) => all.get(name));
  const plain = parts.filter(
    (part) => part !== undefined && isPlainPart(part) && users.get(part.lv)?.length === 1,
  ) as Logical[];
  if (plain.length !== names.length || new Set(names).size !== names.length) return undefined;
  const metas = plain.filter((_, i) => i % 2 === 0);
  const images = plain.filter((_, i) => i % 2 === 1);
  if (metas.some(({ stretches }) => stretches.length !== 1)) return undefined;
  if (images.some(({ extents }) => extents !== volume.extents)) return undefined;
  const segments = aligned(images.map(({ stretches }) => stretches));
  const bytes = segments.reduce((sum, { chunkBytes }) => sum + chunkBytes, 0);
  return { lv: volume.lv, segments, parts: names, metas: metas.map(({ stretches }) => stretches[0]!), bytes };
}

/** Of the superblocks and images, in turn. */
function imageNames(segment: Section): readonly string[] | undefined {
  if (segment.string("type") !== "raid1") return undefined;
  if (segment.names().some((name) => !SEGMENT_NAMES.has(name))) return undefined;
  const names = segment.array("raids");
  if (names.length < 4 || names.length > 2 * IMAGES_MAX) return undefined;
  if (names.length !== segment.number("device_count") * 2) return undefined;
  return names.every((name) => typeof name === "string") ? names : undefined;
}

/** Hidden, and one extent behind the other. */
function isPlainPart({ layout, words, section, segments }: Logical): boolean {
  return (
    layout === undefined &&
    words.length === 2 &&
    words.includes("READ") &&
    words.includes("WRITE") &&
    section.array("flags").length === 0 &&
    segments.every(({ columns }) => columns.length === 1)
  );
}

/** Segments that end wherever a stretch of any image ends. */
function aligned(images: readonly (readonly Stretch[])[]): Segment[] {
  const segments: Segment[] = [];
  const at = images.map(() => ({ index: 0, within: 0 }));
  for (;;) {
    const rests = images.map((stretches, i) => {
      const stretch = stretches[at[i]!.index];
      return stretch && { ...stretch, start: stretch.start + at[i]!.within };
    });
    if (rests.includes(undefined)) return segments;
    const bytes = Math.min(...rests.map((rest) => rest!.end - rest!.start));
    const [first, ...copies] = rests.map((rest) => ({ ...rest!, end: rest!.start + bytes }));
    segments.push(linear(first!, ...copies));
    for (const [i, rest] of rests.entries()) {
      const isUsedUp = rest!.end - rest!.start === bytes;
      at[i] = isUsedUp
        ? { index: at[i]!.index + 1, within: 0 }
        : { ...at[i]!, within: at[i]!.within + bytes };
    }
  }
}

/** Why its images may differ; undefined when they are in sync. @throws DiskError `io` */
export async function outOfSync(disks: readonly BlockDevice[], mirror: Mirror): Promise<Refusal | undefined> {
  let events: bigint | undefined;
  for (const [position, meta] of mirror.metas.entries()) {
    const disk = disks[meta.disk]!;
    if (meta.end - meta.start < BITMAP_AT) return refused(mirror, "its superblock has no room");
    const superblock = RaidSuperblock.decode(await readBytes(disk, meta.start, SECTOR_BYTES));
    events ??= superblock.events;
    const obstacle =
      superblockObstacle(superblock, position, mirror.metas.length, events) ??
      (await bitmapObstacle(
        disk,
        { start: meta.start + BITMAP_AT, end: meta.end },
        mirror.bytes / SECTOR_BYTES,
        events,
      ));
    if (obstacle !== undefined) return refused(mirror, `image ${position}: ${obstacle}`);
  }
  return undefined;
}

function superblockObstacle(
  found: ReturnType<typeof RaidSuperblock.decode>,
  position: number,
  devices: number,
  events: bigint,
): string | undefined {
  if (found.magic !== MAGIC) return "it has no superblock";
  if (found.devices !== devices || found.position !== position)
    return `its superblock is of image ${found.position} of ${found.devices}, expected ${position} of ${devices}`;
  if (found.level !== 1) return `its superblock is of level ${found.level}, expected 1`;
  if (found.events !== events)
    return `its superblock counts ${found.events} events, that of image 0 ${events}`;
  const features = found.compatFeatures & ~FEATURE_V190;
  if (features !== 0 || found.incompatFeatures !== 0)
    return `its superblock has features 0x${features.toString(16)} and 0x${found.incompatFeatures.toString(16)}`;
  if (found.failedDevices !== 0n || found.failedToo.some((byte) => byte !== 0)) return "an image has failed";
  if (found.recoveryOffset !== NOWHERE || found.resyncOffset !== NOWHERE) return "it is not in sync";
  if (found.flags !== 0 || found.deltaDisks !== 0) return "it is being reshaped";
  return undefined;
}

function refused({ lv }: Mirror, message: string): Refusal {
  return {
    code: "lvm-mirror",
    message: `logical volume ${lv}: ${message}`,
    hint: "let the guest synchronise the mirror and shut it down: see `lvs -o+sync_percent`",
  };
}
