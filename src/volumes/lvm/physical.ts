/**
 * The physical volumes of a group: what its metadata says of each, held against the label of the disk that it is.
 *
 *   label     UUID, length of the device, where data begins
 *   metadata  id, pe_start, pe_count, status, flags
 */
import type { Extent } from "../../bytes/extents.ts";
import type { BlockDevice } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { type PhysicalVolume, SECTOR_BYTES } from "./label.ts";
import type { Section } from "./text.ts";

/** One disk of the group, and what its label says. */
export interface Member {
  readonly disk: BlockDevice;
  readonly pv: PhysicalVolume;
}

/** A physical volume of the group, on one of the disks. */
export interface OwnVolume {
  /** What the text calls it: `pv0`. */
  readonly name: string;
  readonly disk: number;
  readonly extents: Extent;
}

export interface PhysicalVolumes {
  readonly extentBytes: number;
  readonly list: readonly OwnVolume[];
}

/** @throws DiskError `corrupt`, or `refused` where one is missing or marked */
export function physicalVolumes(group: Section, members: readonly Member[]): PhysicalVolumes {
  if (group.string("format") !== "lvm2")
    throw corrupt(`format is "${group.string("format")}", expected "lvm2"`);
  const extentBytes = group.number("extent_size") * SECTOR_BYTES;
  if (extentBytes === 0) throw corrupt("extent_size is 0");
  const all = group.sections("physical_volumes");
  const uuids = all.map(([, section]) => labelUuid(section));
  for (const { pv } of members) {
    const count = uuids.filter((uuid) => uuid === pv.uuid).length;
    if (count !== 1) throw corrupt(`${count} physical volumes have the UUID ${pv.uuid}, expected 1`);
  }
  const list = all.map(([name, section]) => {
    const disk = members.findIndex(({ pv }) => pv.uuid === labelUuid(section));
    if (disk < 0) throw missing(name, section);
    return ownVolume(name, section, disk, members[disk]!, extentBytes);
  });
  if (list.length !== members.length) throw corrupt("a physical volume is there twice");
  return { extentBytes, list };
}

function missing(name: string, section: Section): DiskError {
  return new DiskError("refused", `physical volume ${name}, ${section.string("id")}, is on another disk`, {
    code: "lvm-missing-pv",
    hint: "name every disk of the group: --with OTHER, or survey them together",
  });
}

function ownVolume(
  name: string,
  section: Section,
  disk: number,
  { disk: device, pv }: Member,
  extentBytes: number,
): OwnVolume {
  const strange = [
    ...section.array("flags"),
    ...section.array("status").filter((word) => word !== "ALLOCATABLE"),
  ];
  if (strange.length > 0) {
    throw new DiskError("refused", `physical volume ${name} is ${strange.join(", ")}`, {
      code: "lvm-status",
    });
  }
  const start = section.number("pe_start") * SECTOR_BYTES;
  const extents = { start, end: start + section.number("pe_count") * extentBytes };
  const [data, secondData] = pv.dataAreas;
  if (data?.start !== start || secondData !== undefined) {
    throw corrupt(`extents begin at ${start}, expected the label's one data area at ${data?.start}`);
  }
  const limit = Math.min(device.bytes, pv.deviceBytes, data.end === 0 ? Infinity : data.end);
  if (extents.end > limit)
    throw corrupt(`extents end at ${extents.end}, the device at ${limit}`, "lvm-range");
  return { name, disk, extents };
}

/** What LVM keeps for itself, and for boot loaders. */
export function areasOf({ label, metadataAreas, bootAreas }: PhysicalVolume): readonly Extent[] {
  return [label, ...metadataAreas, ...bootAreas];
}

/** The UUID as the label has it. */
export function labelUuid(section: Section): string {
  return section.string("id").replaceAll("-", "");
}

function corrupt(message: string, code = "lvm-damaged"): DiskError {
  return new DiskError("corrupt", `LVM metadata: ${message}`, { code });
}
