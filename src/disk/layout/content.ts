/**
 * What a region holds: one filesystem, one table of volumes, a part of a set, or a stranger. What looks like two things
 * at once counts as used.
 */
import type { BlockDevice } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { FileSystemReader } from "../../filesystems/filesystem.ts";
import { SCHEMES } from "../../volumes/all.ts";
import type { Volume, VolumeScheme, VolumeTable } from "../../volumes/volume.ts";
import {
  type Content,
  type LayoutOptions,
  type MemberContent,
  type Opener,
  readersOf,
  type Region,
  UNREAD,
} from "../layout.ts";
import { strangerIn } from "../strangers.ts";

/** A partition holding a volume group holding a disk image of partitions: deeper than this is a loop or a joke. */
export const DEPTH_MAX = 4;

/** @throws DiskError `io` */
export async function contentOf(region: Region, options: LayoutOptions, depth: number): Promise<Content> {
  const { device } = region;
  try {
    const readers = await readersOf(device);
    const schemes = await schemesOf(device);
    const member = schemes.find(({ hidesContent }) => hidesContent);
    if (member) {
      const sleeping = await sleepingIn(region, readers, options);
      return sleeping ?? (await volumesIn(region, member, options, depth));
    }
    const foreign = readers.length > 0 ? (await strangerIn(device))?.name : undefined;
    const names = [...readers, ...schemes].map(({ name }) => name).concat(foreign ?? []);
    if (readers.length > 0 && names.length > 1) {
      return (
        (await sleepingIn(region, readers, options)) ??
        stranger(
          null,
          "ambiguous",
          `looks like ${names.join(" and ")} at once`,
          "wipe the stale signature (wipefs) in the guest",
        )
      );
    }
    if (readers[0]) return await filesystemIn(region, readers[0], options);
    if (schemes[0]) return await volumesIn(region, schemes[0], options, depth);
    return (await detachedIn(region, options, depth)) ?? (await strangerOf(device));
  } catch (error) {
    if (!(error instanceof DiskError) || error.kind === "io" || error.kind === "interrupted") throw error;
    const hint = error.hint ?? "everything here counts as used";
    return stranger(null, error.code ?? error.kind, error.message, hint);
  }
}

async function schemesOf(device: BlockDevice): Promise<VolumeScheme[]> {
  const schemes = [];
  for (const scheme of SCHEMES) if (await scheme.probe(device)) schemes.push(scheme);
  return schemes;
}

async function filesystemIn(
  region: Region,
  reader: FileSystemReader,
  options: LayoutOptions,
): Promise<Content> {
  const member = await memberOf(region.device, { as: "filesystem", reader });
  if (member) return member;
  const filesystem = await reader.open([region.device], options);
  return { kind: "filesystem", filesystem, reader, members: [region] };
}

/** Whatever else the region looks like: a guest that sleeps in it refuses the whole disk (H3). */
async function sleepingIn(
  region: Region,
  readers: readonly FileSystemReader[],
  options: LayoutOptions,
): Promise<Content | undefined> {
  for (const reader of readers) {
    const content = await filesystemIn(region, reader, options);
    if (isAsleep(content)) return content;
  }
  return undefined;
}

function isAsleep(content: Content): boolean {
  return content.kind === "filesystem" && content.filesystem.refusal?.code === "hibernated";
}

async function volumesIn(
  region: Region,
  scheme: VolumeScheme,
  options: LayoutOptions,
  depth: number,
): Promise<Content> {
  const member = await memberOf(region.device, { as: "table", scheme });
  if (member) return member;
  const table = await scheme.open([region.device], options);
  const members = [region];
  return { kind: "table", table, members, children: await childrenOf(table, members, options, depth) };
}

/** What shows with the header in a file of its own: where it shows anything, the header belongs here. */
async function detachedIn(
  region: Region,
  options: LayoutOptions,
  depth: number,
): Promise<Content | undefined> {
  const schemes = SCHEMES.filter(({ detachable }) => detachable);
  for (const header of options.headers ?? []) {
    for (const scheme of schemes) {
      const table = await scheme.open([region.device], { ...options, header });
      const members = [region];
      const children = await childrenOf(table, members, { ...options, headers: [] }, depth);
      if (children.some(({ content }) => content.kind !== "stranger")) {
        return { kind: "table", table, members, children };
      }
    }
  }
  return undefined;
}

/** Undefined when the device is all of what it belongs to. */
async function memberOf(device: BlockDevice, opener: Opener): Promise<MemberContent | undefined> {
  const plugin = opener.as === "table" ? opener.scheme : opener.reader;
  const membership = await plugin.membership?.(device);
  if (membership === undefined || membership.total <= 1) return undefined;
  const { kind, name, set, total } = membership;
  const called = name === "" ? set : `${name} (${set})`;
  const message =
    set === ""
      ? `it cannot say of which ${kind} it is a device, and none that is here expects it`
      : `it is one of ${total} devices of ${kind} ${called}, and not all of them are here`;
  const reason = {
    code: "members-missing",
    message,
    hint: "name all disks of the guest in one command, or with --with",
  };
  return { kind: "member", membership, opener, reason };
}

/** @param on the regions that the table lies on, in its order of disks */
export async function childrenOf(
  table: VolumeTable,
  on: readonly Region[],
  options: LayoutOptions,
  depth: number,
): Promise<Region[]> {
  const children: Region[] = [];
  for (const volume of table.volumes) {
    const child = nested(on, volume);
    if (volume.refusal) child.content = { kind: "stranger", name: null, reason: volume.refusal };
    else if (depth >= DEPTH_MAX) {
      child.content = stranger(
        null,
        "too-deep",
        `volumes are nested more than ${DEPTH_MAX} deep`,
        "survey the inner disk alone",
      );
    } else child.content = await contentOf(child, options, depth + 1);
    if (volume.unlessMember && !saysMore(child.content))
      child.content = { kind: "stranger", name: null, reason: volume.unlessMember };
    children.push(child);
  }
  return children;
}

/** Whether the content is a part of a set, which tells more than the type of a partition; or a guest that sleeps (H3). */
function saysMore(content: Content): boolean {
  if (content.kind === "member")
    return content.opener.as === "table" && content.opener.scheme.hidesContent === true;
  if (content.kind === "table")
    return SCHEMES.some(({ name, hidesContent }) => hidesContent && name === content.table.scheme);
  return isAsleep(content);
}

function nested(on: readonly Region[], volume: Volume): Region {
  const [first, ...others] = on;
  const prefix = others.length === 0 && first!.name !== "" ? `${first!.name}/` : "";
  return {
    name: prefix + volume.name,
    label: volume.label,
    type: volume.type,
    device: volume.device,
    encrypted: (volume.encrypted ?? false) || on.some(({ encrypted }) => encrypted),
    *places(range) {
      for (const { disk, at, bytes } of volume.places(range)) {
        yield* on[disk]!.places({ start: at, end: at + bytes });
      }
    },
    *footprint(range) {
      for (const { disk, at, bytes } of volume.footprint(range)) {
        yield* on[disk]!.footprint({ start: at, end: at + bytes });
      }
    },
    find(disk, at) {
      for (const [number, outer] of on.entries()) {
        const inOuter = outer.find(disk, at);
        const found = inOuter === undefined ? undefined : volume.find(number, inOuter);
        if (found !== undefined) return found;
      }
      return undefined;
    },
    content: UNREAD,
  };
}

async function strangerOf(device: BlockDevice): Promise<Content> {
  const known = await strangerIn(device);
  return known === undefined
    ? stranger(null, "unknown", "nothing here is recognised", "--also zeros returns what holds only zeros")
    : stranger(known.name, "unsupported", `${known.name} is not read`, known.hint);
}

function stranger(name: string | null, code: string, message: string, hint: string): Content {
  return { kind: "stranger", name, reason: { code, message, hint } };
}
