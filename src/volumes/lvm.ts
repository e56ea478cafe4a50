/**
 * LVM2: linear logical volumes on one physical volume.
 *
 *   | label | metadata area | physical extents: root … home … root … (free) … | metadata area? |
 *
 * Everything else that LVM can do (stripes, mirrors, RAID, thin pools, caches, snapshots, volumes on several disks)
 * is recognised and counts as used. Metadata counts only when every area that is in use says the same.
 *
 * Source: LVM2, lib/format_text/layout.h.
 */
import { ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { readGroup } from "./lvm/group.ts";
import { labelSectors, type PhysicalVolume, readLabel } from "./lvm/label.ts";
import { readMetadataText } from "./lvm/metadata-area.ts";
import { type Region, tableOrRefusal, volumeOf } from "./table.ts";
import type { VolumeScheme, VolumeTable } from "./volume.ts";

export const lvm: VolumeScheme = {
  name: "lvm2",
  async probe(disk) {
    return (await labelSectors(disk)).length > 0;
  },
  open([disk]) {
    const hint = "see what `vgck` and `pvck` say about it in the guest";
    return tableOrRefusal("lvm2", disk!, hint, () => readTable(disk!));
  },
};

async function readTable(disk: BlockDevice): Promise<VolumeTable> {
  const pv = await readLabel(disk);
  if (pv.deviceBytes > disk.bytes) {
    const message = `LVM physical volume of ${pv.deviceBytes} bytes on a device of ${disk.bytes}`;
    throw new DiskError("corrupt", message, { code: "lvm-range" });
  }
  const group = readGroup(await agreedText(disk, pv), pv, disk.bytes);
  const regions: Region[] = [
    { name: "LVM label", ...pv.label },
    ...pv.metadataAreas.map((area) => ({ name: "LVM metadata area", ...area })),
    ...pv.bootAreas.map((area) => ({ name: "LVM boot loader area", ...area })),
    { name: `free extents of ${group.name}`, ...group.extents },
  ];
  return {
    scheme: "lvm2",
    volumes: group.volumes.map(({ name, pieces, refusal }) => {
      const identity = { name, label: "", type: "logical volume", ...(refusal && { refusal }) };
      return volumeOf(identity, disk, pieces);
    }),
    gaps: [group.free.subtract(ExtentSet.from(pv.bootAreas))],
    notes: [],
    describe: (_, at) => regions.find(({ start, end }) => start <= at && at < end)?.name ?? "LVM alignment",
  };
}

/** The text on which all metadata areas agree. @throws DiskError when there is none */
async function agreedText(disk: BlockDevice, pv: PhysicalVolume): Promise<string> {
  const texts = new Set<string>();
  for (const area of pv.metadataAreas) {
    const text = await readMetadataText(disk, area);
    if (text !== undefined) texts.add(text);
  }
  const [text, other] = texts;
  if (other !== undefined) {
    throw new DiskError("corrupt", "the metadata areas of the LVM physical volume differ", {
      code: "lvm-contradiction",
    });
  }
  if (text === undefined) {
    throw new DiskError("unsupported", "the LVM physical volume holds no metadata of its volume group", {
      code: "lvm-no-metadata",
      hint: "its metadata is on another disk of the group, or it belongs to none",
    });
  }
  return text;
}
