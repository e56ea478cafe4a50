/**
 * A volume group as its metadata describes it, seen from its physical volumes.
 *
 *   pv0   | … | PE 0 | PE 1 | PE 2 |        PE: physical extent, all of one size
 *               \_ root, segment 1 _/
 *   pv1   | … | PE 0 | PE 1 | PE 2 |
 *                 \_ root, segment 2
 *
 * All of its physical volumes must be there: another may hold newer metadata, by which this one's extents are not what
 * they seem.
 */
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import { DiskError, type Refusal } from "../../error.ts";
import type { Segment, Stretch } from "../mapped.ts";
import { type Region, rejectOverlaps } from "../table.ts";
import { type Logical, readLogical, refusalOf, usersOf } from "./logical.ts";
import { mirrorOf, outOfSync } from "./mirror.ts";
import { areasOf, labelUuid, type Member, physicalVolumes } from "./physical.ts";
import { parseText, type Section } from "./text.ts";

const CONTENTS = "Text Format Volume Group";
const NAME = /^[A-Za-z0-9_.+-]+$/;

export interface Group {
  readonly name: string;
  /** Per disk: the physical extents, in bytes. */
  readonly extents: readonly Extent[];
  readonly volumes: readonly LogicalVolume[];
  /** Per disk: of the physical extents, those that neither a logical volume nor LVM itself holds. */
  readonly free: readonly ExtentSet[];
  /** What serves an opened volume and is no part of it: the superblocks and bitmaps of a mirror. */
  readonly serving: readonly (Region & Stretch)[];
}

export interface LogicalVolume {
  readonly name: string;
  /** Where it lies. Parts that lie on other logical volumes are missing; then it is refused. */
  readonly segments: readonly Segment[];
  readonly refusal?: Refusal;
}

export interface Summary {
  readonly name: string;
  readonly uuid: string;
  /** UUIDs of the physical volumes, as their labels have them. */
  readonly members: readonly string[];
}

/** Whose metadata the text is. @throws DiskError `corrupt` */
export function summaryOf(text: string): Summary {
  const [name, group] = groupIn(text);
  const members = group.sections("physical_volumes").map(([, section]) => labelUuid(section));
  return { name, uuid: group.string("id"), members };
}

/**
 * @throws DiskError `corrupt`, or `refused` for a group that is exported, shared, partial or read-only, or of which a
 * physical volume is missing
 */
export async function readGroup(text: string, members: readonly Member[]): Promise<Group> {
  const [name, group] = groupIn(text);
  rejectStatus(name, group);
  const volumes = physicalVolumes(group, members);
  const parts = group
    .sections("logical_volumes")
    .map(([lv, section]) => readLogical(named(lv, "a logical volume"), section, volumes));
  const held = members.map((_, disk) =>
    parts.flatMap(({ lv, stretches }) =>
      stretches.filter((one) => one.disk === disk).map((one) => ({ ...one, name: `${name}/${lv}` })),
    ),
  );
  for (const [disk, { pv }] of members.entries()) {
    const areas = areasOf(pv).map((area) => ({ name: "area of the physical volume", ...area }));
    rejectOverlaps([...held[disk]!, ...areas], "lvm-overlap");
  }
  const users = usersOf(parts);
  const mirrors = await openMirrors(name, parts, users, members);
  const { hidden, serving } = mirrors;
  const others = parts.filter(({ lv }) => !hidden.has(lv));
  return {
    name,
    extents: members.map((_, disk) => volumes.list.find((one) => one.disk === disk)!.extents),
    volumes: [
      ...others.map((part) => ({
        name: `${name}/${part.lv}`,
        segments: part.segments,
        ...refusalOf(part, users.get(part.lv)),
      })),
      ...mirrors.volumes,
    ],
    free: members.map((_, disk) => {
      const { extents } = volumes.list.find((one) => one.disk === disk)!;
      return ExtentSet.of(extents).subtract(ExtentSet.from([...held[disk]!, ...areasOf(members[disk]!.pv)]));
    }),
    serving,
  };
}

/** The mirrors among the logical volumes, with the names of all that each is made of. */
async function openMirrors(
  group: string,
  parts: readonly Logical[],
  users: ReturnType<typeof usersOf>,
  members: readonly Member[],
) {
  const byName = new Map(parts.map((part) => [part.lv, part]));
  const disks = members.map(({ disk }) => disk);
  const volumes: LogicalVolume[] = [];
  const serving: (Region & Stretch)[] = [];
  const hidden = new Set<string>();
  for (const part of parts) {
    const mirror = mirrorOf(part, byName, users);
    if (mirror === undefined) continue;
    const refusal = await outOfSync(disks, mirror);
    volumes.push({ name: `${group}/${part.lv}`, segments: mirror.segments, ...(refusal && { refusal }) });
    for (const lv of [part.lv, ...mirror.parts]) hidden.add(lv);
    serving.push(...mirror.metas.map((meta) => ({ name: `mirror log of ${group}/${part.lv}`, ...meta })));
  }
  return { volumes, serving, hidden };
}

function groupIn(text: string): readonly [string, Section] {
  const root = parseText(text);
  if (root.string("contents") !== CONTENTS || root.number("version") !== 1) {
    throw corrupt(`contents are "${root.string("contents")}", expected "${CONTENTS}" of version 1`);
  }
  const groups = root.sections();
  if (groups.length !== 1) throw corrupt(`${groups.length} volume groups in one text, expected 1`);
  const [[name, group]] = groups as [readonly [string, Section]];
  return [named(name, "the volume group"), group];
}

function named(name: string, what: string): string {
  if (!NAME.test(name)) throw corrupt(`the name of ${what} is not allowed`);
  return name;
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

function corrupt(message: string, code = "lvm-damaged"): DiskError {
  return new DiskError("corrupt", `LVM metadata: ${message}`, { code });
}
