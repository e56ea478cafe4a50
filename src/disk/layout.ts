/**
 * What lies on the disks of a guest: a tree of regions a disk, and what lies over several of them. A partition table has
 * volumes, a volume may hold another table (LVM2 in a partition) or a filesystem; leaves that nobody reads count as used.
 *
 *   disk 0 ── gpt ──┬─ 1  ext4
 *                   └─ 2  member of vg0 ─┐
 *                                        ├─ vg0 ──┬─ vg0/root  ext4
 *   disk 1 ─────────── member of vg0 ────┘        └─ vg0/swap  swap
 *
 *   layout.ts           the tree, and where its bytes lie
 *   layout/content.ts   what a region holds
 *   layout/sets.ts      members of one set, brought together (H36)
 */
import { type Extent, ExtentBuilder, type ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import type { Membership } from "../device/membership.ts";
import type { Refusal } from "../error.ts";
import { FILESYSTEMS } from "../filesystems/all.ts";
import type { FileSystem, FileSystemReader, ReadOptions } from "../filesystems/filesystem.ts";
import type { VolumeOptions, VolumeScheme, VolumeTable } from "../volumes/volume.ts";
import { contentOf } from "./layout/content.ts";
import { joinSets } from "./layout/sets.ts";

export type LayoutOptions = ReadOptions &
  Pick<VolumeOptions, "keys"> & {
    /** Headers of what is encrypted without showing it: for regions in which nothing is recognised. */
    readonly headers?: readonly BlockDevice[];
  };

/** Number of the disk that is judged; the others only complete its sets. */
export const OWN_DISK = 0;

export interface Place {
  readonly disk: number;
  readonly at: number;
  readonly bytes: number;
}

export interface Region {
  /** `2`, or `3/vg/root`; "" for the whole disk. */
  readonly name: string;
  readonly label: string;
  /** What the table around it says it holds. */
  readonly type: string;
  readonly device: BlockDevice;
  /** What lies on the disks is ciphertext (H34). */
  readonly encrypted: boolean;
  /** Where a range of the region lies on the disks: ascending in the region; a mirror gives several a byte. */
  places(range: Extent): Iterable<Place>;
  /** The same places in no order and joined where they can be: for ranges that may be as long as the region. */
  footprint(range: Extent): Iterable<Place>;
  /** The region's byte that lies at `at` of a disk. */
  find(disk: number, at: number): number | undefined;
  content: Content;
}

export type Content =
  | {
      readonly kind: "table";
      readonly table: VolumeTable;
      /** What it lies on, in the order of its disks: the region itself, or all members of the set. */
      readonly members: readonly Region[];
      readonly children: readonly Region[];
    }
  | FileSystemContent
  | { readonly kind: "stranger"; readonly name: string | null; readonly reason: Refusal }
  | MemberContent;

export interface FileSystemContent {
  readonly kind: "filesystem";
  readonly filesystem: FileSystem;
  readonly reader: FileSystemReader;
  /** The devices it lies on, in its own order: the region itself, or all members of the set. */
  readonly members: readonly Region[];
}

/** A device of a set. What the set holds stands among the `sets` of the layout. */
export interface MemberContent {
  readonly kind: "member";
  readonly membership: Membership;
  readonly opener: Opener;
  /** Why the set could not be opened; undefined once it was. */
  reason: Refusal | undefined;
}

export type Opener =
  | { readonly as: "table"; readonly scheme: VolumeScheme }
  | { readonly as: "filesystem"; readonly reader: FileSystemReader };

export interface Layout {
  /** One a disk. */
  readonly roots: readonly Region[];
  /** Volumes and filesystems that lie over several devices. */
  readonly sets: readonly Region[];
}

/** @throws DiskError `io` only: what the bytes of the disks can cause becomes a refusal in the tree */
export async function layOut(disks: readonly BlockDevice[], options: LayoutOptions): Promise<Layout> {
  const roots: Region[] = [];
  for (const [number, disk] of disks.entries()) {
    const root = wholeDisk(disk, number);
    root.content = await contentOf(root, options, 0);
    roots.push(root);
  }
  const layout = { roots, sets: await joinSets(roots, options) };
  await reopenWithJournals(layout, options);
  return layout;
}

function wholeDisk(device: BlockDevice, number: number): Region {
  const places = ({ start, end }: Extent): Place[] => [{ disk: number, at: start, bytes: end - start }];
  return {
    name: "",
    label: "",
    type: "disk",
    device,
    encrypted: false,
    places,
    footprint: places,
    find: (disk, at) => (disk === number && at >= 0 && at < device.bytes ? at : undefined),
    content: UNREAD,
  };
}

/** Stands where a region is made before its content is known. */
export const UNREAD: Content = {
  kind: "stranger",
  name: null,
  reason: { code: "unread", message: "not read yet", hint: "" },
};

/** Every leaf and every table of the judged disk, outside first, then those of the sets. */
export function* regionsOf({ roots, sets }: Layout): Generator<Region> {
  yield* below(roots[OWN_DISK]!);
  for (const set of sets) yield* below(set);
}

/** Everything on all disks. */
export function* allRegionsOf({ roots, sets }: Layout): Generator<Region> {
  for (const region of [...roots, ...sets]) yield* below(region);
}

export function* below(region: Region): Generator<Region> {
  yield region;
  if (region.content.kind === "table") for (const child of region.content.children) yield* below(child);
}

/** A set of a region's bytes as bytes of the judged disk, clipped to the region. */
export function onDisk(region: Region, set: ExtentSet): ExtentSet {
  const out = new ExtentBuilder(set.count);
  for (const extent of set.within({ start: 0, end: region.device.bytes })) {
    for (const { disk, at, bytes } of region.footprint(extent))
      if (disk === OWN_DISK) out.add(at, at + bytes);
  }
  return out.build();
}

/** Where the region begins on the judged disk; undefined when none of it lies there. */
export function startOf(region: Region): number | undefined {
  for (const { disk, at } of region.footprint({ start: 0, end: region.device.bytes })) {
    if (disk === OWN_DISK) return at;
  }
  return undefined;
}

/** A filesystem that misses its external journal is opened again with the journal devices found on the same disks. */
async function reopenWithJournals(layout: Layout, options: LayoutOptions): Promise<void> {
  const refusedFor = (code: string) =>
    [...allRegionsOf(layout)].filter(
      ({ content }) => content.kind === "filesystem" && content.filesystem.refusal?.code === code,
    );
  const journals = refusedFor("journal-device").map(({ device }) => device);
  if (journals.length === 0) return;
  for (const region of refusedFor("journal-missing")) {
    const { content } = region;
    if (content.kind !== "filesystem") continue;
    const filesystem = await content.reader.open([region.device, ...journals], options);
    region.content = { ...content, filesystem };
  }
}

/** Readers that take the device for theirs. */
export async function readersOf(device: BlockDevice): Promise<FileSystemReader[]> {
  const readers = [];
  for (const reader of FILESYSTEMS) if (await reader.probe(device)) readers.push(reader);
  return readers;
}
