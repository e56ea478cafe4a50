/**
 * LVM2: linear, striped and mirrored (raid1) logical volumes on the physical volumes of a group.
 *
 *   | label | metadata area | physical extents: root … home … root … (free) … | metadata area? |
 *
 * Everything else that LVM can do (thin pools, caches, snapshots, parity, moves under way) is recognised and counts as
 * used. Metadata counts only when every area that is in use, on every physical volume, says the same.
 *
 * Source: LVM2, lib/format_text/layout.h.
 */
import type { BlockDevice } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { readGroup, summaryOf } from "./lvm/group.ts";
import { labelSectors, readLabel } from "./lvm/label.ts";
import { readMetadataText } from "./lvm/metadata-area.ts";
import type { Member } from "./lvm/physical.ts";
import { mappedVolume } from "./mapped.ts";
import { type Region, tableOrRefusal } from "./table.ts";
import type { VolumeScheme, VolumeTable } from "./volume.ts";

export const lvm: VolumeScheme = {
  name: "lvm2",
  async probe(disk) {
    return (await labelSectors(disk)).length > 0;
  },
  async membership(disk) {
    const kind = "LVM2 volume group";
    try {
      const own = await readMember(disk);
      const member = own.pv.uuid;
      const text = await textOf([own]);
      if (text === undefined) return { kind, set: "", name: "", member, total: Infinity };
      const { name, uuid, members } = summaryOf(text);
      return { kind, set: uuid, name, member, members, total: members.length };
    } catch (error) {
      if (error instanceof DiskError && error.kind !== "io" && error.kind !== "interrupted") return undefined;
      throw error;
    }
  },
  open(disks) {
    const hint = "see what `vgck` and `pvck` say about it in the guest";
    return tableOrRefusal("lvm2", disks[0]!, hint, () => readTable(disks), disks.length);
  },
};

async function readTable(disks: readonly BlockDevice[]): Promise<VolumeTable> {
  const members: Member[] = [];
  for (const disk of disks) members.push(await readMember(disk));
  const text = await textOf(members);
  if (text === undefined) {
    throw new DiskError("unsupported", "the LVM physical volume holds no metadata of its volume group", {
      code: "lvm-no-metadata",
      hint: "its metadata is on another disk of the group, or it belongs to none",
    });
  }
  const group = await readGroup(text, members);
  const regions = members.map(({ pv }, disk): Region[] => [
    { name: "LVM label", ...pv.label },
    ...pv.metadataAreas.map((area) => ({ name: "LVM metadata area", ...area })),
    ...pv.bootAreas.map((area) => ({ name: "LVM boot loader area", ...area })),
    ...group.serving.filter((region) => region.disk === disk),
    { name: `free extents of ${group.name}`, ...group.extents[disk]! },
  ]);
  return {
    scheme: "lvm2",
    volumes: group.volumes.map(({ name, segments, refusal }) => {
      const identity = { name, label: "", type: "logical volume", ...(refusal && { refusal }) };
      return mappedVolume(identity, disks, segments);
    }),
    gaps: group.free,
    notes: [],
    describe: (disk, at) =>
      regions[disk]?.find(({ start, end }) => start <= at && at < end)?.name ?? "LVM alignment",
  };
}

async function readMember(disk: BlockDevice): Promise<Member> {
  const pv = await readLabel(disk);
  if (pv.deviceBytes > disk.bytes) {
    const message = `LVM physical volume of ${pv.deviceBytes} bytes on a device of ${disk.bytes}`;
    throw new DiskError("corrupt", message, { code: "lvm-range" });
  }
  return { disk, pv };
}

/** The text on which all metadata areas agree; undefined where none is in use. @throws DiskError */
async function textOf(members: readonly Member[]): Promise<string | undefined> {
  const texts = new Set<string>();
  for (const { disk, pv } of members) {
    for (const area of pv.metadataAreas) {
      const text = await readMetadataText(disk, area);
      if (text !== undefined) texts.add(text);
    }
  }
  const [text, other] = texts;
  if (other !== undefined) {
    const where = members.length > 1 ? "physical volumes" : "physical volume";
    throw new DiskError("corrupt", `the metadata areas of the LVM ${where} differ`, {
      code: "lvm-contradiction",
    });
  }
  return text;
}
