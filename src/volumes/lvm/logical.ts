/**
 * One logical volume of the metadata: its segments, and what stands in the way of opening it by itself.
 *
 *   | segment 1: extents 0-9 on pv0 | segment 2: extents 10-17, striped over pv0 and pv1 |
 *
 * A volume is opened when all of its segments lie on physical volumes, its status is plain and no other one builds upon
 * it: a snapshot reads its origin's free blocks, a thin volume its pool. Whatever else there is counts as used.
 */
import { DiskError, type Refusal } from "../../error.ts";
import { linear, type Segment, type Stretch } from "../mapped.ts";
import { SECTOR_BYTES } from "./label.ts";
import type { PhysicalVolumes } from "./physical.ts";
import type { Section } from "./text.ts";

export interface Logical {
  readonly lv: string;
  readonly segments: readonly Segment[];
  /** The same as stretches of the disks. */
  readonly stretches: readonly Stretch[];
  readonly extents: number;
  /** What speaks against its status, and against a layout of anything but extents. */
  readonly status: Obstacle | undefined;
  readonly layout: Obstacle | undefined;
  /** The words of its status. */
  readonly words: readonly unknown[];
  /** Names in its segments, which may be logical volumes that it builds upon. */
  readonly mentions: ReadonlySet<string>;
  readonly section: Section;
}

export interface Obstacle {
  readonly code: "lvm-layout" | "lvm-status";
  readonly message: string;
}

const VOLUME_STATUS: ReadonlySet<unknown> = new Set(["READ", "WRITE", "VISIBLE", "FIXED_MINOR"]);

/** The names that a plain segment has. Any other means something that is not understood. */
const SEGMENT_NAMES: ReadonlySet<string> = new Set([
  "start_extent",
  "extent_count",
  "tags",
  "type",
  "stripe_count",
  "stripe_size",
  "stripes",
]);

/** @throws DiskError `corrupt` */
export function readLogical(lv: string, section: Section, volumes: PhysicalVolumes): Logical {
  const sections = section.sections();
  if (sections.length !== section.number("segment_count") || sections.length === 0) {
    throw corrupt(`${lv} has ${sections.length} segments, expected ${section.number("segment_count")}`);
  }
  const mentions = new Set<string>();
  const segments: Segment[] = [];
  let layout: Obstacle | undefined;
  let extents = 0;
  for (const [name, segment] of sections) {
    const count = segment.number("extent_count");
    if (segment.number("start_extent") !== extents || count === 0) {
      throw corrupt(`${lv}/${name} begins at extent ${segment.number("start_extent")}, expected ${extents}`);
    }
    extents += count;
    for (const [key, text] of segment.strings()) if (key !== "type" && key !== "tags") mentions.add(text);
    const found = readSegment(`${lv}/${name}`, segment, volumes);
    segments.push(...found.segments);
    layout ??= found.obstacle;
  }
  return {
    lv,
    segments,
    stretches: segments.flatMap(({ columns }) => columns),
    extents,
    status: statusObstacle(section),
    layout,
    words: section.array("status"),
    mentions,
    section,
  };
}

function statusObstacle(section: Section): Obstacle | undefined {
  const status = section.array("status");
  const strange = [...status.filter((word) => !VOLUME_STATUS.has(word)), ...section.array("flags")];
  const absent = ["READ", "WRITE", "VISIBLE"].filter((word) => !status.includes(word));
  if (strange.length + absent.length === 0) return undefined;
  return {
    code: "lvm-status",
    message: `it is ${[...strange, ...absent.map((word) => `not ${word}`)].join(", ")}`,
  };
}

interface SegmentFound {
  readonly segments: readonly Segment[];
  readonly obstacle: Obstacle | undefined;
}

function readSegment(what: string, segment: Section, volumes: PhysicalVolumes): SegmentFound {
  const type = segment.string("type");
  if (type !== "striped") {
    for (const [, text] of segment.strings()) {
      if (volumes.list.some(({ name }) => name === text))
        throw corrupt(`${what} of type "${type}" lies on ${text} directly`, "lvm-layout");
    }
    return { segments: [], obstacle: { code: "lvm-layout", message: `it has a segment of type "${type}"` } };
  }
  const stripes = segment.array("stripes");
  const stripeCount = segment.number("stripe_count");
  const extentsEach = segment.number("extent_count") / stripeCount;
  if (stripes.length !== stripeCount * 2 || !Number.isInteger(extentsEach)) {
    throw corrupt(`${what} has ${stripes.length / 2} stripes, expected ${stripeCount}`);
  }
  const columns: Stretch[] = [];
  const [unknown] = segment.names().filter((name) => !SEGMENT_NAMES.has(name));
  let obstacle: Obstacle | undefined =
    unknown === undefined ? undefined : { code: "lvm-layout", message: `it has a segment with "${unknown}"` };
  for (let i = 0; i < stripes.length; i += 2) {
    const [on, first] = [stripes[i]!, stripes[i + 1]!];
    if (typeof on !== "string" || typeof first !== "number")
      throw corrupt(`${what} has a stripe without a place`);
    const place = stretchAt(what, on, first, extentsEach, volumes);
    if (place !== undefined) columns.push(place);
    else obstacle ??= { code: "lvm-layout", message: `a part of it lies on the logical volume ${on}` };
  }
  if (stripeCount === 1 || columns.length < stripeCount)
    return { segments: columns.map((column) => linear(column)), obstacle };
  const chunkBytes = stripeBytes(what, segment, extentsEach * volumes.extentBytes);
  return { segments: [{ columns, chunkBytes, copies: 1 }], obstacle };
}

/** Undefined where `on` is no physical volume. */
function stretchAt(
  what: string,
  on: string,
  first: number,
  count: number,
  { list, extentBytes }: PhysicalVolumes,
): Stretch | undefined {
  const volume = list.find(({ name }) => name === on);
  if (volume === undefined) return undefined;
  const start = volume.extents.start + first * extentBytes;
  const end = start + count * extentBytes;
  if (first < 0 || !Number.isInteger(first) || end > volume.extents.end) {
    throw corrupt(`${what} lies at ${start}-${end}, the extents end at ${volume.extents.end}`, "lvm-range");
  }
  return { disk: volume.disk, start, end };
}

function stripeBytes(what: string, segment: Section, columnBytes: number): number {
  const bytes = segment.number("stripe_size") * SECTOR_BYTES;
  const isPowerOfTwo = bytes > 0 && Number.isInteger(Math.log2(bytes));
  if (!isPowerOfTwo || columnBytes % bytes !== 0)
    throw corrupt(`${what} has stripes of ${bytes} bytes in columns of ${columnBytes}`);
  return bytes;
}

/** Which logical volume builds upon which: by its name in a segment. */
export function usersOf(volumes: readonly Logical[]): ReadonlyMap<string, readonly string[]> {
  const users = new Map<string, string[]>();
  for (const { lv, mentions } of volumes) {
    for (const name of mentions) {
      const known = users.get(name);
      if (known === undefined) users.set(name, [lv]);
      else known.push(lv);
    }
  }
  return users;
}

export function refusalOf(
  { status, layout, lv }: Logical,
  users: readonly string[] = [],
): { refusal?: Refusal } {
  const reason: Obstacle | undefined =
    status ??
    layout ??
    (users[0] === undefined ? undefined : { code: "lvm-layout", message: `${users[0]} builds upon it` });
  if (reason === undefined) return {};
  return {
    refusal: {
      code: reason.code,
      message: `logical volume ${lv}: ${reason.message}`,
      hint: "linear, striped and mirrored (raid1) volumes are read; trim in the guest: fstrim",
    },
  };
}

function corrupt(message: string, code = "lvm-damaged"): DiskError {
  return new DiskError("corrupt", `LVM metadata: ${message}`, { code });
}
