/**
 * Fuzzing of partition tables and of LVM2. Whatever a mutant says, volumes and gaps must lie on the disk and apart.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { crc32 } from "../../src/bytes/checksum.ts";
import { ExtentBuilder } from "../../src/bytes/extents.ts";
import { viewOf } from "../../src/bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../src/device/device.ts";
import { assert } from "../../src/error.ts";
import {
  chunksOf,
  type FuzzTarget,
  fuzzDevice,
  outcome,
  type Sample,
  spotOf,
} from "../../src/testing/fuzz.ts";
import { withLoop } from "../../src/testing/partitions.ts";
import { run } from "../../src/testing/tools.ts";
import { SCHEMES } from "../../src/volumes/all.ts";
import { Entry as ApmEntry } from "../../src/volumes/apm.ts";
import { Entry, Header as GptHeader } from "../../src/volumes/gpt/header.ts";
import { Label, lvmCrc } from "../../src/volumes/lvm/label.ts";
import { Header as AreaHeader, Slot } from "../../src/volumes/lvm/metadata-area.ts";
import type { VolumeTable } from "../../src/volumes/volume.ts";

const MiB = 1024 * 1024;
const SECTOR_BYTES = 512;

export const volumes: FuzzTarget = {
  name: "volumes",
  needs: ["sfdisk", "pvcreate", "losetup", "parted"],

  async samples(folder) {
    return [mbrSample(folder), gptSample(folder), lvmSample(folder), apmSample(folder)];
  },

  run(bytes, random, { deviceBytes }) {
    return outcome(async () => {
      const disk = fuzzDevice(bytes, random.oneIn(4) ? bytes.length : deviceBytes);
      const words: string[] = [];
      for (const scheme of SCHEMES) {
        if (!(await scheme.probe(disk))) continue;
        const table = await scheme.open([disk]);
        await check(disk, table);
        words.push(`${scheme.name} ${table.refusal?.code ?? "opened"}`);
      }
      return words.join(", ");
    });
  },
};

async function check(disk: BlockDevice, table: VolumeTable): Promise<void> {
  const whole = { start: 0, end: disk.bytes };
  const taken = new ExtentBuilder();
  let bytes = 0;
  assert(table.refusal === undefined || table.volumes.length === 0, "a refused table has no volumes");
  for (const volume of table.volumes) {
    const { device } = volume;
    let at = 0;
    for (const place of volume.places({ start: 0, end: device.bytes })) {
      assert(place.at >= 0 && place.at + place.bytes <= disk.bytes, "a volume lies on the disk");
      assert(volume.find(0, place.at) === at, "find undoes places");
      taken.add(place.at, place.at + place.bytes);
      at += place.bytes;
    }
    assert(at === device.bytes, "places cover the volume");
    bytes += at;
    const probed = Math.min(SECTOR_BYTES, device.bytes);
    await readBytes(device, 0, probed);
    await readBytes(device, device.bytes - probed, probed);
  }
  const used = taken.build();
  assert(used.bytes === bytes, "no two volumes share a byte");
  for (const gaps of table.gaps) {
    assert(gaps.within(whole).equals(gaps), "gaps lie on the disk");
    assert(gaps.intersect(used).count === 0, "a gap is in no volume");
  }
  for (const at of [0, SECTOR_BYTES, Math.floor(disk.bytes / 2), disk.bytes - 1]) table.describe(0, at);
}

function sample(name: string, path: string, fields: Sample["spots"], rest: Partial<Sample>): Sample {
  const bytes = new Uint8Array(readFileSync(path));
  const chunks = chunksOf(bytes, () => false);
  const often = Array.from({ length: chunks.length }, (_, i) => fields[i % fields.length]!);
  return { name, bytes, spots: [...often, ...chunks], ...rest };
}

function mbrSample(folder: string): Sample {
  const path = join(folder, "mbr.img");
  writeFileSync(path, new Uint8Array(10 * MiB));
  const script =
    "label: dos\nsize=1M, type=83, bootable\nsize=1M, type=82\ntype=5\nsize=1M\nsize=512K\nsize=512K\n";
  run("sfdisk", ["-q", path], script);
  const entries = Array.from({ length: 4 }, (_, i) => ({ at: 446 + i * 16, bytes: 16 }));
  const fields = entries.map((entry) => ({
    ...entry,
    fields: [0, 4, 8, 12].map((at) => ({ at, bytes: at < 8 ? 1 : 4 })),
  }));
  return sample("mbr", path, fields, {});
}

function apmSample(folder: string): Sample {
  const path = join(folder, "apm.img");
  writeFileSync(path, new Uint8Array(4 * MiB));
  const parts = "mklabel mac mkpart one hfs+ 1MiB 2MiB mkpart two hfs+ 2MiB 3MiB";
  run("parted", ["-s", path, ...parts.split(" ")]);
  const entries = [0, 1, 2, 3, 4].map((i) => spotOf(ApmEntry, SECTOR_BYTES * (1 + i)));
  return sample("apm", path, [{ at: 0, bytes: 8 }, ...entries], {});
}

function gptSample(folder: string): Sample {
  const path = join(folder, "gpt.img");
  writeFileSync(path, new Uint8Array(4 * MiB));
  run("sfdisk", ["-q", path], "label: gpt\nsize=512K, name=one\nsize=1M, type=swap\nsize=64K\n");
  const backup = 4 * MiB - SECTOR_BYTES;
  const entries = [0, 1, 2, 3].map((i) => spotOf(Entry, 1024 + i * Entry.bytes));
  const fields = [spotOf(GptHeader, SECTOR_BYTES), spotOf(GptHeader, backup), ...entries];
  return sample("gpt", path, fields, { fix: fixGpt });
}

/** Both headers and arrays; the backup's array is made the primary's where the primary's was changed. */
function fixGpt(bytes: Uint8Array): void {
  const view = viewOf(bytes);
  for (const header of [SECTOR_BYTES, bytes.length - SECTOR_BYTES]) {
    const entriesAt = Number(view.getBigUint64(header + GptHeader.at.entriesLba, true)) * SECTOR_BYTES;
    const arrayBytes =
      view.getUint32(header + GptHeader.at.entryCount, true) *
      view.getUint32(header + GptHeader.at.entryBytes, true);
    if (entriesAt + arrayBytes <= bytes.length) {
      if (header !== SECTOR_BYTES && arrayBytes <= 16384)
        bytes.copyWithin(entriesAt, 1024, 1024 + arrayBytes);
      const crc = crc32(bytes.subarray(entriesAt, entriesAt + arrayBytes));
      view.setUint32(header + GptHeader.at.entriesCrc, crc, true);
    }
    const headerBytes = Math.min(SECTOR_BYTES, view.getUint32(header + GptHeader.at.headerBytes, true));
    view.setUint32(header + GptHeader.at.headerCrc, 0, true);
    view.setUint32(
      header + GptHeader.at.headerCrc,
      crc32(bytes.subarray(header, header + headerBytes)),
      true,
    );
  }
}

function lvmSample(folder: string): Sample {
  const path = join(folder, "lvm.img");
  run("truncate", ["-s", "32M", path]);
  withLoop(path, SECTOR_BYTES, (device) => {
    const config =
      `devices { filter=["a|^${device}$|","r|.*|"] use_devicesfile=0 hints="none" } backup { backup=0 archive=0 } ` +
      `global { locking_dir="${folder}" use_lvmpolld=0 } activation { udev_sync=0 udev_rules=0 monitoring=0 }`;
    const lv = (size: string, name: string) => [
      "lvcreate",
      "-an",
      "-Zn",
      "-Wn",
      "-L",
      size,
      "-n",
      name,
      "vg",
    ];
    for (const [tool, ...args] of [
      ["pvcreate", "--metadatasize", "32k", device],
      ["vgcreate", "-s", "1M", "vg", device],
      lv("10M", "root"),
      lv("4M", "home"),
      ["lvextend", "-L", "12M", "vg/root"],
    ]) {
      run(tool!, ["--driverloaded", "n", "--config", config, ...args]);
    }
  });
  const area = 4096;
  const slot = spotOf(Slot, area + AreaHeader.bytes);
  const made = sample("lvm", path, [spotOf(Label, SECTOR_BYTES), spotOf(AreaHeader, area), slot], {
    fix: fixLvm,
  });
  // All but the first MiB is zeros.
  return { ...made, bytes: made.bytes.slice(0, MiB), deviceBytes: 32 * MiB };
}

function fixLvm(bytes: Uint8Array): void {
  const area = 4096;
  const slotAt = area + AreaHeader.bytes;
  const view = viewOf(bytes);
  const text = area + Number(view.getBigUint64(slotAt + Slot.at.offset, true) & 0xfffffn);
  const textBytes = Number(view.getBigUint64(slotAt + Slot.at.bytes, true) & 0xfffffn);
  if (text + textBytes <= bytes.length) {
    view.setUint32(slotAt + Slot.at.crc, lvmCrc(bytes.subarray(text, text + textBytes)), true);
  }
  view.setUint32(area, lvmCrc(bytes.subarray(area + AreaHeader.at.magic, area + SECTOR_BYTES)), true);
  const label = bytes.subarray(SECTOR_BYTES, 2 * SECTOR_BYTES);
  Label.encode({ crc: lvmCrc(label.subarray(Label.at.headerOffset)) }, label);
}
