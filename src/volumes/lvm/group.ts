/**
 * A volume group as its metadata describes it, seen from one of its physical volumes.
 *
 *   physical volume   | … | PE 0 | PE 1 | PE 2 | PE 3 | PE 4 |         PE: physical extent, all of one size
 *                           \___ root, segment 1 ___/      \
 *                                                           root, segment 2
 *
 * A logical volume is opened only when it is linear, whole on this device, plain in its status and when no other one
 * builds upon it: a snapshot reads its origin's free blocks, a thin volume its pool. The rest counts as used.
 */
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import { DiskError, type Refusal } from "../../error.ts";
import { rejectOverlaps } from "../table.ts";
import { type PhysicalVolume, SECTOR_BYTES } from "./label.ts";
import { parseText, type Section } from "./text.ts";

const CONTENTS = "Text Format Volume Group";
const NAME = /^[A-Za-z0-9_.+-]+$/;

export interface Group {
  readonly name: string;
  /** The physical extents of this device, in bytes. */
  readonly extents: Extent;
  readonly volumes: readonly LogicalVolume[];
  /** Of the physical extents, those that no logical volume holds. */
  readonly free: ExtentSet;
}

export interface LogicalVolume {
  readonly name: string;
  /** What of it lies on this device, in the order of its segments. All of it, unless it is refused. */
  readonly pieces: readonly Extent[];
  readonly refusal?: Refusal;
}

/** @throws DiskError `corrupt`, or `refused` for a group that is exported, shared, partial or read-only */
export function readGroup(text: string, pv: PhysicalVolume, deviceBytes: number): Group {
  const root = parseText(text);
  if (root.string("contents") !== CONTENTS || root.number("version") !== 1) {
    throw corrupt(`contents are "${root.string("contents")}", expected "${CONTENTS}" of version 1`);
  }
  const groups = root.sections();
  if (groups.length !== 1) throw corrupt(`${groups.length} volume groups in one text, expected 1`);
  const [[name, group]] = groups as [readonly [string, Section]];
  if (!NAME.test(name)) throw corrupt("the name of the volume group is not allowed");
  rejectStatus(name, group);
  const own = ownVolume(group, pv, deviceBytes);
  const parts = group.sections("logical_volumes").map(([lv, section]) => readParts(lv, section, own));
  const claims = parts.flatMap(({ lv, pieces }) =>
    pieces.map((piece) => ({ name: `${name}/${lv}`, ...piece })),
  );
  rejectOverlaps(
    [...claims, ...pv.metadataAreas.map((area) => ({ name: "metadata area", ...area }))],
    "lvm-overlap",
  );
  const users = usersOf(parts);
  return {
    name,
    extents: own.extents,
    volumes: parts.map((part) => ({
      name: `${name}/${part.lv}`,
      pieces: part.pieces,
      ...refusalOf(part, users.get(part.lv)),
    })),
    free: ExtentSet.of(own.extents).subtract(ExtentSet.from(claims)),
  };
}

const GROUP_STATUS: ReadonlySet<unknown> = new Set(["RESIZEABLE", "READ", "WRITE"]);

function rejectStatus(name: string, group: Section): void {
  const strange = [
    ...group.array("status").filter((word) => !GROUP_STATUS.has(word)),
    ...group.array("flags"),
    ...(group.has("lock_type") && group.string("lock_type") !== "none" ? [group.string("lock_type")] : []),
    ...["READ", "WRITE"].filter((word) => !group.array("status").includes(word)).map((word) => `not ${word}`),
  ];
  if (strange.length > 0) {
    throw new DiskError("refused", `volume group ${name} is ${strange.join(", ")}`, {
      code: "lvm-status",
      hint: "import or repair the group in its guest first",
    });
  }
}

interface OwnVolume {
  /** What the text calls it: `pv0`. */
  readonly name: string;
  readonly others: ReadonlySet<string>;
  readonly extentBytes: number;
  readonly extents: Extent;
}

function ownVolume(group: Section, pv: PhysicalVolume, deviceBytes: number): OwnVolume {
  if (group.string("format") !== "lvm2")
    throw corrupt(`format is "${group.string("format")}", expected "lvm2"`);
  const extentBytes = group.number("extent_size") * SECTOR_BYTES;
  if (extentBytes === 0) throw corrupt("extent_size is 0");
  const all = group.sections("physical_volumes");
  const owns = all.filter(([, section]) => section.string("id").replaceAll("-", "") === pv.uuid);
  if (owns.length !== 1)
    throw corrupt(`${owns.length} physical volumes have the UUID ${pv.uuid}, expected 1`);
  const [[name, own]] = owns as [readonly [string, Section]];
  const strange = [...own.array("flags"), ...own.array("status").filter((word) => word !== "ALLOCATABLE")];
  if (strange.length > 0) {
    throw new DiskError("refused", `physical volume ${name} is ${strange.join(", ")}`, {
      code: "lvm-status",
    });
  }
  const start = own.number("pe_start") * SECTOR_BYTES;
  const extents = { start, end: start + own.number("pe_count") * extentBytes };
  const [data, secondData] = pv.dataAreas;
  if (data?.start !== start || secondData !== undefined) {
    throw corrupt(`extents begin at ${start}, expected the label's one data area at ${data?.start}`);
  }
  const limit = Math.min(deviceBytes, pv.deviceBytes, data.end === 0 ? Infinity : data.end);
  if (extents.end > limit)
    throw corrupt(`extents end at ${extents.end}, the device at ${limit}`, "lvm-range");
  const others = new Set(all.map(([other]) => other).filter((other) => other !== name));
  return { name, others, extentBytes, extents };
}

/** One logical volume, as far as this device knows it. */
interface Parts {
  readonly lv: string;
  readonly pieces: readonly Extent[];
  /** Why it cannot be opened by itself. */
  readonly obstacle: Obstacle | undefined;
  /** Names in its segments, which may be logical volumes that it builds upon. */
  readonly mentions: ReadonlySet<string>;
}

interface Obstacle {
  readonly code: "lvm-layout" | "lvm-missing-pv" | "lvm-status";
  readonly message: string;
}

const VOLUME_STATUS: ReadonlySet<unknown> = new Set(["READ", "WRITE", "VISIBLE", "FIXED_MINOR"]);

function readParts(lv: string, section: Section, own: OwnVolume): Parts {
  if (!NAME.test(lv)) throw corrupt("the name of a logical volume is not allowed");
  const segments = section.sections();
  if (segments.length !== section.number("segment_count") || segments.length === 0) {
    throw corrupt(`${lv} has ${segments.length} segments, expected ${section.number("segment_count")}`);
  }
  const mentions = new Set<string>();
  const pieces: Extent[] = [];
  let obstacle = statusObstacle(section);
  let nextExtent = 0;
  for (const [name, segment] of segments) {
    const count = segment.number("extent_count");
    if (segment.number("start_extent") !== nextExtent || count === 0) {
      throw corrupt(
        `${lv}/${name} begins at extent ${segment.number("start_extent")}, expected ${nextExtent}`,
      );
    }
    nextExtent += count;
    for (const [key, text] of segment.strings()) if (key !== "type") mentions.add(text);
    const found = readSegment(`${lv}/${name}`, segment, own);
    pieces.push(...found.pieces);
    obstacle ??= found.obstacle;
  }
  return { lv, pieces, obstacle, mentions };
}

function statusObstacle(section: Section): Obstacle | undefined {
  const status = section.array("status");
  const strange = [...status.filter((word) => !VOLUME_STATUS.has(word)), ...section.array("flags")];
  const missing = ["READ", "WRITE", "VISIBLE"].filter((word) => !status.includes(word));
  if (strange.length + missing.length === 0) return undefined;
  return {
    code: "lvm-status",
    message: `it is ${[...strange, ...missing.map((word) => `not ${word}`)].join(", ")}`,
  };
}

function readSegment(
  what: string,
  segment: Section,
  own: OwnVolume,
): { pieces: readonly Extent[]; obstacle: Obstacle | undefined } {
  const type = segment.string("type");
  if (type !== "striped") {
    for (const [, text] of segment.strings()) {
      if (text === own.name)
        throw corrupt(`${what} of type "${type}" lies on ${text} directly`, "lvm-layout");
    }
    return { pieces: [], obstacle: { code: "lvm-layout", message: `it has a segment of type "${type}"` } };
  }
  const stripes = segment.array("stripes");
  const stripeCount = segment.number("stripe_count");
  const extentsEach = segment.number("extent_count") / stripeCount;
  if (stripes.length !== stripeCount * 2 || !Number.isInteger(extentsEach)) {
    throw corrupt(`${what} has ${stripes.length / 2} stripes, expected ${stripeCount}`);
  }
  const pieces: Extent[] = [];
  let obstacle: Obstacle | undefined;
  if (stripeCount > 1) obstacle = { code: "lvm-layout", message: `it is striped over ${stripeCount} areas` };
  for (let i = 0; i < stripes.length; i += 2) {
    const [on, first] = [stripes[i]!, stripes[i + 1]!];
    if (typeof on !== "string" || typeof first !== "number")
      throw corrupt(`${what} has a stripe without a place`);
    if (on === own.name) pieces.push(pieceAt(what, first, extentsEach, own));
    else obstacle ??= elsewhere(on, own);
  }
  return { pieces, obstacle };
}

function pieceAt(what: string, first: number, count: number, own: OwnVolume): Extent {
  const start = own.extents.start + first * own.extentBytes;
  const end = start + count * own.extentBytes;
  if (first < 0 || !Number.isInteger(first) || end > own.extents.end) {
    throw corrupt(`${what} lies at ${start}-${end}, the extents end at ${own.extents.end}`, "lvm-range");
  }
  return { start, end };
}

function elsewhere(on: string, own: OwnVolume): Obstacle {
  if (own.others.has(on))
    return { code: "lvm-missing-pv", message: `a part of it lies on another disk, ${on}` };
  return { code: "lvm-layout", message: `a part of it lies on the logical volume ${on}` };
}

/** Which logical volume builds upon which: by its name in a segment. */
function usersOf(parts: readonly Parts[]): ReadonlyMap<string, string> {
  const users = new Map<string, string>();
  for (const { lv, mentions } of parts) for (const name of mentions) users.set(name, lv);
  return users;
}

function refusalOf({ obstacle, lv }: Parts, user: string | undefined): { refusal?: Refusal } {
  const reason: Obstacle | undefined =
    obstacle ?? (user === undefined ? undefined : { code: "lvm-layout", message: `${user} builds upon it` });
  if (reason === undefined) return {};
  const message = `logical volume ${lv}: ${reason.message}`;
  return {
    refusal: {
      code: reason.code,
      message,
      hint: "only linear volumes on one disk are read; trim in the guest",
    },
  };
}

function corrupt(message: string, code = "lvm-damaged"): DiskError {
  return new DiskError("corrupt", `LVM metadata: ${message}`, { code });
}
