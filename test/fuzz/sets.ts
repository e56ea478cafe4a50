/**
 * Fuzzing of what lies over several disks, LVM2 and Linux RAID, and of two tables that only a slice has: disklabels and
 * swap headers. Whatever a mutant says, volumes lie on the disks and apart, and `find` undoes `places`.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ExtentBuilder } from "../../src/bytes/extents.ts";
import { viewOf } from "../../src/bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../src/device/device.ts";
import { slice } from "../../src/device/slice.ts";
import { assert } from "../../src/error.ts";
import { HeaderLE, swap } from "../../src/filesystems/swap.ts";
import { type FuzzTarget, fuzzDevice, outcome, type Sample, spotOf } from "../../src/testing/fuzz.ts";
import { fixChecksum, memberSuperblock } from "../../src/testing/mdraid.ts";
import { withLoop } from "../../src/testing/partitions.ts";
import { run } from "../../src/testing/tools.ts";
import { bsd, Disklabel, Partition } from "../../src/volumes/bsd.ts";
import { lvm } from "../../src/volumes/lvm.ts";
import { Label, lvmCrc } from "../../src/volumes/lvm/label.ts";
import { Header as AreaHeader, Slot } from "../../src/volumes/lvm/metadata-area.ts";
import { mdraid } from "../../src/volumes/mdraid.ts";
import { SuperblockV1 } from "../../src/volumes/mdraid/version-1.ts";
import type { VolumeTable } from "../../src/volumes/volume.ts";
import { BitmapHeader } from "../../src/volumes/write-intent.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const SECTOR_BYTES = 512;
const LABEL_AT = 512;
const SUPERBLOCK_AT = 4096;

/** Each member, one behind the other. */
const MEMBER_BYTES: Readonly<Record<string, number>> = {
  lvm: 8 * MiB,
  "RAID 10": 256 * KiB,
  "RAID 0": 256 * KiB,
};

export const sets: FuzzTarget = {
  name: "sets",
  needs: ["pvcreate", "losetup", "mkswap"],

  async samples(folder) {
    return [
      lvmSample(folder),
      raidSample("RAID 10", { level: 10, layout: 0x102, chunkSectors: 8, usedSectors: 256 }, 3),
      raidSample("RAID 0", { level: 0, layout: 1, chunkSectors: 8, features: 0x1000 }, 3),
      bsdSample(),
      swapSample(folder),
    ];
  },

  run(bytes, _random, sample) {
    return outcome(async () => {
      const device = fuzzDevice(bytes, Math.max(bytes.length, sample.deviceBytes ?? 0));
      if (sample.name === "swap") return checkSwap(device);
      const memberBytes = MEMBER_BYTES[sample.name] ?? device.bytes;
      const disks: BlockDevice[] = [];
      for (let start = 0; start < device.bytes; start += memberBytes) {
        disks.push(slice(device, { start, end: Math.min(device.bytes, start + memberBytes) }));
      }
      const scheme = sample.name === "lvm" ? lvm : sample.name === "bsd" ? bsd : mdraid;
      for (const disk of disks) {
        await scheme.probe(disk);
        const membership = await scheme.membership?.(disk);
        assert((membership?.members?.length ?? 0) < 100_000, "members are counted");
      }
      if (disks.length === 0) return "empty";
      const table = await scheme.open(disks);
      await check(disks, table);
      return `${scheme.name} ${table.refusal?.code ?? "opened"}`;
    });
  },
};

async function checkSwap(device: BlockDevice): Promise<string> {
  if (!(await swap.probe(device))) return "none";
  const area = await swap.open([device], { replay: false });
  const scratch = area.scratch!;
  assert(scratch.within({ start: 64 * KiB, end: device.bytes }).equals(scratch), "the header is kept");
  await area.walk((_, start, end) => assert(start >= 0 && start < end && end <= device.bytes, "in the area"));
  return area.refusal?.code ?? "opened";
}

async function check(disks: readonly BlockDevice[], table: VolumeTable): Promise<void> {
  assert(table.refusal === undefined || table.volumes.length === 0, "a refused table has no volumes");
  const taken = disks.map(() => new ExtentBuilder());
  const bytes = disks.map(() => 0);
  for (const volume of table.volumes) {
    const { device } = volume;
    for (const place of volume.places({ start: 0, end: device.bytes })) {
      assert(
        place.at >= 0 && place.at + place.bytes <= disks[place.disk]!.bytes,
        "a volume lies on its disks",
      );
      const found = volume.find(place.disk, place.at);
      assert(found !== undefined && found >= 0 && found < device.bytes, "find undoes places");
      taken[place.disk]!.add(place.at, place.at + place.bytes);
      bytes[place.disk]! += place.bytes;
    }
    const probed = Math.min(SECTOR_BYTES, device.bytes);
    await readBytes(device, 0, probed);
    await readBytes(device, device.bytes - probed, probed);
  }
  for (const [i, builder] of taken.entries()) {
    const used = builder.build();
    assert(used.bytes === bytes[i], "no two volumes share a byte");
    assert(table.gaps[i]!.intersect(used).count === 0, "a gap is in no volume");
    for (const at of [0, 4096, disks[i]!.bytes - 1]) table.describe(i, at);
  }
}

function lvmSample(folder: string): Sample {
  const paths = ["a", "b"].map((name) => join(folder, `sets-${name}.img`));
  const memberBytes = MEMBER_BYTES["lvm"]!;
  for (const path of paths) run("truncate", ["-s", `${memberBytes}`, path]);
  withLoop(paths[0]!, SECTOR_BYTES, (a) =>
    withLoop(paths[1]!, SECTOR_BYTES, (b) => {
      const config =
        `devices { filter=["a|^${a}$|","a|^${b}$|","r|.*|"] use_devicesfile=0 hints="none" } ` +
        `backup { backup=0 archive=0 } global { locking_dir="${folder}" use_lvmpolld=0 } ` +
        `activation { udev_sync=0 udev_rules=0 monitoring=0 }`;
      const create = ["lvcreate", "-an", "-Zn", "-Wn"];
      for (const [tool, ...args] of [
        ["pvcreate", "--metadatasize", "32k", "--dataalignment", "64k", a, b],
        ["vgcreate", "-s", "64k", "vg", a, b],
        [...create, "-L", "1M", "-i", "2", "-I", "4k", "-n", "striped", "vg"],
        [...create, "-L", "1M", "-n", "plain", "vg", a],
        ["lvextend", "-L", "2M", "vg/plain", b],
      ]) {
        run(tool!, ["--driverloaded", "n", "--config", config, ...args]);
      }
    }),
  );
  const bytes = new Uint8Array(Buffer.concat(paths.map((path) => readFileSync(path))));
  const spots = [0, memberBytes].flatMap((start) => {
    const slot = Slot.decode(bytes, start + 4096 + AreaHeader.bytes);
    const text = { at: start + 4096 + slot.offset, bytes: slot.bytes };
    const header = [spotOf(Label, start + LABEL_AT), spotOf(AreaHeader, start + 4096)];
    return [...header, spotOf(Slot, start + 4096 + AreaHeader.bytes), text, text, text];
  });
  return { name: "lvm", bytes, spots, fix: fixLvm };
}

/** The text of the second disk becomes that of the first. */
function fixLvm(bytes: Uint8Array): void {
  const [first, second] = [0, MEMBER_BYTES["lvm"]!];
  if (bytes.length < second + 64 * KiB) return;
  bytes.copyWithin(second + 4096, 4096, 4096 + 32 * KiB);
  for (const start of [first, second]) {
    const view = viewOf(bytes);
    const area = start + 4096;
    const slotAt = area + AreaHeader.bytes;
    const text = area + Number(view.getBigUint64(slotAt + Slot.at.offset, true) & 0x7fffn);
    const textBytes = Number(view.getBigUint64(slotAt + Slot.at.bytes, true) & 0x7fffn);
    view.setUint32(slotAt + Slot.at.crc, lvmCrc(bytes.subarray(text, text + textBytes)), true);
    view.setUint32(area, lvmCrc(bytes.subarray(area + AreaHeader.at.magic, area + SECTOR_BYTES)), true);
    const label = bytes.subarray(start + LABEL_AT, start + LABEL_AT + SECTOR_BYTES);
    Label.encode({ crc: lvmCrc(label.subarray(Label.at.headerOffset)) }, label);
  }
}

function raidSample(
  name: string,
  values: Parameters<typeof SuperblockV1.encode>[0],
  members: number,
): Sample {
  const memberBytes = MEMBER_BYTES[name]!;
  const bytes = new Uint8Array(members * memberBytes);
  const spots = [];
  for (let role = 0; role < members; role++) {
    const start = role * memberBytes;
    const at = start + SUPERBLOCK_AT;
    const dataSectors = 256 + (values.level === 0 ? role * 24 : 0);
    const places = { superOffset: 8, dataOffset: 128, dataSectors, features: 1, bitmapOffset: 16 };
    bytes.set(memberSuperblock(role, members, { ...places, ...values }), at);
    const bitmap = { magic: 0x6d746962, version: 4, events: 17n, syncSectors: 384, chunkBytes: 4096 };
    BitmapHeader.encode(bitmap, bytes, at + 8192);
    spots.push(spotOf(SuperblockV1, at), { at: at + 256, bytes: members * 2 });
    spots.push(spotOf(BitmapHeader, at + 8192));
  }
  return { name, bytes, spots, fix: (mutant) => fixRaid(mutant, memberBytes) };
}

function fixRaid(bytes: Uint8Array, memberBytes: number): void {
  for (let at = SUPERBLOCK_AT; at + SECTOR_BYTES <= bytes.length; at += memberBytes) {
    fixChecksum(bytes.subarray(at, at + 4096));
  }
}

function bsdSample(): Sample {
  const bytes = new Uint8Array(64 * KiB);
  const marks = { magic: 0x82564557, magicToo: 0x82564557 };
  Disklabel.encode({ ...marks, sectorBytes: 512, partitions: 8, version: 1, end: 128 }, bytes, LABEL_AT);
  const partition = (index: number, offset: number, sectors: number, type: number): void =>
    Partition.encode({ offset, sectors, type }, bytes, LABEL_AT + 148 + index * 16);
  partition(0, 0, 32, 7);
  partition(1, 32, 16, 1);
  partition(2, 0, 128, 0);
  partition(4, 64, 64, 17);
  fixBsd(bytes);
  const spots = [spotOf(Disklabel, LABEL_AT)];
  for (let i = 0; i < 8; i++) spots.push(spotOf(Partition, LABEL_AT + 148 + i * 16));
  return { name: "bsd", bytes, spots, fix: fixBsd };
}

function fixBsd(bytes: Uint8Array): void {
  const view = viewOf(bytes);
  if (bytes.length < 2048) return;
  const count = Math.min(16, view.getUint16(LABEL_AT + Disklabel.at.partitions, true));
  view.setUint16(LABEL_AT + Disklabel.at.checksum, 0, true);
  let sum = 0;
  for (let at = 0; at < 148 + count * 16; at += 2) sum ^= view.getUint16(LABEL_AT + at, true);
  view.setUint16(LABEL_AT + Disklabel.at.checksum, sum, true);
}

function swapSample(folder: string): Sample {
  const path = join(folder, "swap.img");
  run("truncate", ["-s", "256K", path]);
  run("mkswap", ["--label", "fuzz", path]);
  const bytes = new Uint8Array(readFileSync(path));
  return {
    name: "swap",
    bytes,
    spots: [spotOf(HeaderLE, 1024), { at: 1536, bytes: 8 }, { at: 4086, bytes: 10 }],
  };
}
