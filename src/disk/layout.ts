/**
 * What lies on a disk: a tree of regions. A partition table has volumes, a volume may hold another table (LVM2 in a
 * partition) or a filesystem; the leaves that nobody reads count as used.
 *
 *   disk ── gpt ──┬─ 1  ext4
 *                 └─ 2  lvm2 ──┬─ vg/root  ext4
 *                              └─ vg/swap  stranger
 */
import { type Extent, ExtentBuilder, type ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import { DiskError, type Refusal } from "../error.ts";
import { FILESYSTEMS } from "../filesystems/all.ts";
import type { FileSystem, ReadOptions } from "../filesystems/filesystem.ts";
import { SCHEMES } from "../volumes/all.ts";
import type { Volume, VolumeTable } from "../volumes/volume.ts";
import { foreignContent } from "./recognise.ts";

/** A partition holding a volume group holding a disk image of partitions: deeper than this is a loop or a joke. */
const DEPTH_MAX = 4;

export interface Region {
  /** `2`, or `3/vg/root`; "" for the whole disk. */
  readonly name: string;
  readonly label: string;
  /** What the table around it says it holds. */
  readonly type: string;
  readonly device: BlockDevice;
  /** Where a range of the region lies on the disk: ascending in the region. */
  places(range: Extent): Iterable<{ readonly at: number; readonly bytes: number }>;
  /** The region's byte that lies at `at` of the disk. */
  find(at: number): number | undefined;
  readonly content: Content;
}

export type Content =
  | { readonly kind: "table"; readonly table: VolumeTable; readonly children: readonly Region[] }
  | { readonly kind: "filesystem"; readonly filesystem: FileSystem }
  | { readonly kind: "stranger"; readonly name: string | null; readonly reason: Refusal };

/** @throws DiskError `io` only: what the bytes of the disk can cause becomes a refusal in the tree */
export async function layOut(disk: BlockDevice, options: ReadOptions): Promise<Region> {
  const whole: Omit<Region, "content"> = {
    name: "",
    label: "",
    type: "disk",
    device: disk,
    *places({ start, end }) {
      yield { at: start, bytes: end - start };
    },
    find: (at) => (at >= 0 && at < disk.bytes ? at : undefined),
  };
  const root = { ...whole, content: await contentOf(whole, options, 0) };
  return reopenWithJournals(root, options);
}

/** Every leaf and every table of the tree, outside first. */
export function* regionsOf(region: Region): Generator<Region> {
  yield region;
  if (region.content.kind === "table") {
    for (const child of region.content.children) yield* regionsOf(child);
  }
}

/** A set of a region's bytes as bytes of the disk, clipped to the region. */
export function onDisk(region: Region, set: ExtentSet): ExtentSet {
  const out = new ExtentBuilder(set.count);
  let offset = 0;
  for (const { at, bytes } of region.places({ start: 0, end: region.device.bytes })) {
    const part = set.within({ start: offset, end: offset + bytes });
    for (let i = 0; i < part.count; i++) out.add(part.start(i) - offset + at, part.end(i) - offset + at);
    offset += bytes;
  }
  return out.build();
}

async function contentOf(
  region: Omit<Region, "content">,
  options: ReadOptions,
  depth: number,
): Promise<Content> {
  const { device } = region;
  try {
    const readers = [];
    for (const reader of FILESYSTEMS) if (await reader.probe(device)) readers.push(reader);
    const schemes = [];
    for (const scheme of SCHEMES) if (await scheme.probe(device)) schemes.push(scheme);
    const member = schemes.find(({ hidesContent }) => hidesContent);
    if (member) return await tableOf(region, await member.open([device]), options, depth);
    const foreign = readers.length > 0 ? await foreignContent(device) : undefined;
    const names = [...readers, ...schemes].map(({ name }) => name).concat(foreign ?? []);
    if (readers.length > 0 && names.length > 1) {
      return stranger(
        null,
        "ambiguous",
        `looks like ${names.join(" and ")} at once`,
        "wipe the stale signature (wipefs) in the guest",
      );
    }
    if (readers[0]) return { kind: "filesystem", filesystem: await readers[0].open([device], options) };
    if (schemes[0]) return await tableOf(region, await schemes[0].open([device]), options, depth);
    return await strangerOf(device);
  } catch (error) {
    if (!(error instanceof DiskError) || error.kind === "io") throw error;
    return stranger(
      null,
      error.code ?? error.kind,
      error.message,
      error.hint ?? "everything here counts as used",
    );
  }
}

async function tableOf(
  region: Omit<Region, "content">,
  table: VolumeTable,
  options: ReadOptions,
  depth: number,
): Promise<Content> {
  const children: Region[] = [];
  for (const volume of table.volumes) {
    const child = nested(region, volume);
    let content: Content;
    if (volume.refusal) content = { kind: "stranger", name: null, reason: volume.refusal };
    else if (depth === DEPTH_MAX) {
      content = stranger(
        null,
        "too-deep",
        `volumes are nested more than ${DEPTH_MAX} deep`,
        "survey the inner disk alone",
      );
    } else content = await contentOf(child, options, depth + 1);
    children.push({ ...child, content });
  }
  return { kind: "table", table, children };
}

function nested(outer: Omit<Region, "content">, volume: Volume): Omit<Region, "content"> {
  return {
    name: outer.name === "" ? volume.name : `${outer.name}/${volume.name}`,
    label: volume.label,
    type: volume.type,
    device: volume.device,
    *places(range) {
      for (const { at, bytes } of volume.places(range)) yield* outer.places({ start: at, end: at + bytes });
    },
    find: (at) => {
      const inOuter = outer.find(at);
      return inOuter === undefined ? undefined : volume.find(0, inOuter);
    },
  };
}

async function strangerOf(device: BlockDevice): Promise<Content> {
  const name = (await foreignContent(device)) ?? null;
  return name === null
    ? stranger(null, "unknown", "nothing here is recognised", "--also zeros returns what holds only zeros")
    : stranger(name, "unsupported", `${name} is not read yet`, "trim inside the guest, or use --also zeros");
}

function stranger(name: string | null, code: string, message: string, hint: string): Content {
  return { kind: "stranger", name, reason: { code, message, hint } };
}

/** A filesystem that misses its external journal is opened again with the journal devices found on the same disk. */
async function reopenWithJournals(root: Region, options: ReadOptions): Promise<Region> {
  const journals: BlockDevice[] = [];
  for (const region of regionsOf(root)) {
    if (
      region.content.kind === "filesystem" &&
      region.content.filesystem.refusal?.code === "journal-device"
    ) {
      journals.push(region.device);
    }
  }
  if (journals.length === 0) return root;
  const again = async (region: Region): Promise<Region> => {
    const { content } = region;
    if (content.kind === "table") {
      const children = [];
      for (const child of content.children) children.push(await again(child));
      return { ...region, content: { ...content, children } };
    }
    if (content.kind !== "filesystem" || content.filesystem.refusal?.code !== "journal-missing")
      return region;
    for (const reader of FILESYSTEMS) {
      if (!(await reader.probe(region.device))) continue;
      const filesystem = await reader.open([region.device, ...journals], options);
      return { ...region, content: { kind: "filesystem", filesystem } };
    }
    return region;
  };
  return again(root);
}
