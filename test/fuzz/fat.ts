/**
 * Fuzzing of the FAT and exFAT readers. The judges are fsck.fat and fsck.exfat: what they find damaged is never proven,
 * and rubbish in what a mutant is proven to have free does not change a word of what they say (H1).
 */
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { assert } from "../../src/error.ts";
import { exfat as exfatReader } from "../../src/filesystems/exfat.ts";
import { BootSector as ExfatBoot } from "../../src/filesystems/exfat/boot-region.ts";
import { fat as fatReader } from "../../src/filesystems/fat.ts";
import { BootSector, Fat16Part, Fat32Part } from "../../src/filesystems/fat/boot-sector.ts";
import type { FileSystemReader } from "../../src/filesystems/filesystem.ts";
import { ENTRY_BYTES, ExfatDraft, filledExfat } from "../../src/testing/exfat.ts";
import { FAT_TOOLS, makeFat } from "../../src/testing/fat.ts";
import {
  chunksOf,
  type FuzzTarget,
  fuzzDevice,
  outcome,
  type Sample,
  type Spot,
  spotOf,
} from "../../src/testing/fuzz.ts";
import type { Random } from "../../src/testing/seeds.ts";
import { attempt } from "../../src/testing/tools.ts";
import { readThrough } from "./filesystem.ts";

const JUDGED_ONE_IN = 4;

/** @param checker says with `-n` what it thinks of an image */
async function runCase(
  reader: FileSystemReader,
  checker: string,
  bytes: Uint8Array,
  random: Random,
  sample: Sample,
  folder: string,
): Promise<string> {
  const device = fuzzDevice(bytes, sample.deviceBytes ?? sample.bytes.length);
  if (!(await reader.probe(device))) return "not recognised";
  const filesystem = await reader.open([device], { replay: false });
  const free = await readThrough(filesystem, device.bytes, [
    "/",
    "/deep/er",
    "/large.bin",
    "/in a row/linked/leaf",
  ]);
  if (typeof free === "string") return free;
  if (bytes.length < sample.bytes.length || !random.oneIn(JUDGED_ONE_IN)) return "proven";
  const image = join(folder, "judged.img");
  const before = judge(checker, image, bytes, device.bytes);
  assert(before.isSound, `proven, but ${checker} finds damage:\n${before.told}`);
  const rubbed = bytes.slice();
  for (const { start, end } of free) rubbed.fill(0xdb, start, end);
  const after = judge(checker, image, rubbed, device.bytes);
  assert(after.told === before.told, `rubbish in what is free is seen:\n${before.told}\n${after.told}`);
  return "proven, judged";
}

/** What fsck.fat tells and we need not refuse: lost clusters, which stay, and what no cluster depends on. */
const HARMLESS = /Reclaimed \d+ unused|Label|Bad short file name|between boot sector and its backup/i;

function judge(checker: string, image: string, bytes: Uint8Array, deviceBytes: number) {
  writeFileSync(image, bytes);
  truncateSync(image, deviceBytes);
  const { status, stdout } = attempt(checker, ["-n", image]);
  return { told: stdout, isSound: status === 0 || HARMLESS.test(stdout) };
}

/** These count as often as all the rest. */
function withFavourites(often: readonly Spot[], rest: readonly Spot[]): Spot[] {
  const favourites = Array.from({ length: Math.ceil(rest.length / 2) }, (_, i) => often[i % often.length]!);
  return [...favourites, ...rest];
}

const FATS = [
  { name: "FAT12", options: ["-F", "12"], kibibytes: 3000 },
  { name: "FAT16", options: ["-F", "16", "-s", "1", "-a"], kibibytes: 3000 },
  { name: "FAT32", options: ["-F", "32", "-s", "1"], kibibytes: 34_000 },
];

export const fat: FuzzTarget = {
  name: "fat",
  needs: FAT_TOOLS,

  async samples(folder) {
    return FATS.map(({ name, options, kibibytes }) => {
      const whole = readFileSync(makeFat(join(folder, name), options, kibibytes));
      const boot = BootSector.decode(whole);
      const fatAt = boot.reservedSectors * boot.sectorBytes;
      const fatSectors = boot.fatSectors16 || whole.readUInt32LE(BootSector.bytes);
      const fatBytes = fatSectors * boot.sectorBytes;
      const bytes = new Uint8Array(whole.subarray(0, 3 << 20));
      const structures = [spotOf(BootSector, 0), spotOf(name === "FAT32" ? Fat32Part : Fat16Part, 36)];
      // The content of files is random: only what comes before most of it is looked at.
      const chunks = chunksOf(bytes.subarray(0, fatAt + 2 * fatBytes + 40_000), () => false);
      return {
        name,
        bytes,
        deviceBytes: whole.length,
        spots: withFavourites(structures, chunks),
        fix: (mutant) => void mutant.copyWithin(fatAt + fatBytes, fatAt, fatAt + fatBytes),
      };
    });
  },

  run: (bytes, random, sample, folder) =>
    outcome(() => runCase(fatReader, "fsck.fat", bytes, random, sample, folder)),
};

export const exfat: FuzzTarget = {
  name: "exfat",
  needs: ["mkfs.exfat", "fsck.exfat"],

  async samples(folder) {
    return ["512", "4096"].map((clusterBytes) => {
      const draft = filledExfat(folder, 3 << 20, "-c", clusterBytes, "-b", "64K");
      const bytes = new Uint8Array(draft.bytes);
      const spots = chunksOf(bytes.subarray(0, draft.directoriesEnd), () => false);
      return {
        name: `clusters of ${clusterBytes}`,
        bytes,
        spots: withFavourites([spotOf(ExfatBoot, 0)], spots),
        fix: (mutant) => fixChecksums(mutant, draft),
      };
    });
  },

  run: (bytes, random, sample, folder) =>
    outcome(() => runCase(exfatReader, "fsck.exfat", bytes, random, sample, folder)),
};

function fixChecksums(bytes: Uint8Array, { heapAt, directoriesEnd, bytes: original }: ExfatDraft): void {
  const mutant = new ExfatDraft(Buffer.from(original));
  mutant.bytes.set(bytes);
  mutant.fixBoot();
  for (let at = heapAt; at < directoriesEnd; at += ENTRY_BYTES) {
    const isSet = mutant.bytes[at] === 0x85;
    if (isSet && at + (1 + mutant.bytes[at + 1]!) * ENTRY_BYTES <= bytes.length) mutant.fixSet(at);
  }
  bytes.set(mutant.bytes);
}
