/**
 * Fuzzing of the XFS reader. Its judge is xfs_repair: rubbish in what a mutant is proven to have free must not change a
 * word of what it says (H1).
 */
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { viewOf } from "../../src/bytes/struct.ts";
import type { ExtentSet } from "../../src/bytes/extents.ts";
import { assert } from "../../src/error.ts";
import { xfs as reader } from "../../src/filesystems/xfs.ts";
import { AgfLayout, AgflLayout, AgiLayout } from "../../src/filesystems/xfs/headers.ts";
import { checksumOf } from "../../src/filesystems/xfs/refused.ts";
import { SuperblockLayout } from "../../src/filesystems/xfs/superblock.ts";
import {
  chunksOf,
  type FuzzTarget,
  fuzzDevice,
  outcome,
  type Sample,
  type Spot,
  spotOf,
} from "../../src/testing/fuzz.ts";
import { withMount } from "../../src/testing/kernel-guest.ts";
import { attempt, run } from "../../src/testing/tools.ts";
import { makeXfs } from "../../src/testing/xfs.ts";
import { readThrough } from "./filesystem.ts";

const PAYLOAD = Buffer.from("ullage".padEnd(128, "."));
const BYTES = 16 * 2 ** 20;
const JUDGED_ONE_IN = 6;

const VARIANTS: Readonly<Record<string, string>> = {
  "version 4": "-m crc=0 -b size=1024 -d agcount=1",
  "version 4, small and old": "-m crc=0 -b size=512 -i size=256,attr=1 -n ftype=0 -l version=1 -d agcount=1",
  "version 5": "-b size=1024 -d agcount=1",
  "owners, large counts": "-m rmapbt=1 -i nrext64=1 -b size=1024 -d agcount=1",
};

/** As root the kernel fills one more: trees of extents, shared blocks, long directories. */
const FILLED = "filled by the kernel";
const FILL = `cd "$1"; cp -r "$2/." .
i=0; while [ $i -lt 90 ]; do dd if=many/file-50 of=pieces bs=900 count=1 seek=$((i * 5)) conv=notrunc status=none; i=$((i+1)); done
cp --reflink=always large clone; for i in $(seq 60); do : > "deep/a rather long name, number $i"; done; rm many/*3*`;

export const xfs: FuzzTarget = {
  name: "xfs",
  needs: ["mkfs.xfs", "xfs_repair"],

  async samples(folder) {
    const tree = join(folder, "tree");
    growTree(tree);
    const samples = Object.entries(VARIANTS).map(([name, options]) => {
      const image = join(folder, "xfs.img");
      makeXfs(image, `${options} -p ${join(folder, "prototype")}`, `${BYTES}`);
      return sampleOf(name, image);
    });
    if (process.getuid?.() === 0) samples.push(fill(folder, tree));
    return samples;
  },

  run(bytes, random, sample, folder) {
    return outcome(async () => {
      const device = fuzzDevice(bytes, sample.bytes.length);
      const filesystem = await reader.open([device], { replay: false });
      const free = await readThrough(filesystem, device.bytes, [
        "/",
        "/many/file-17",
        "/pieces",
        "/deep/er/link",
        "/deep",
      ]);
      if (typeof free === "string") return free;
      if (bytes.length === sample.bytes.length && random.oneIn(JUDGED_ONE_IN)) judge(bytes, free, folder);
      return "proven";
    });
  },
};

function growTree(tree: string): void {
  const folder = join(tree, "..");
  const file = (name: string, bytes: number) => writeFileSync(join(tree, name), Buffer.alloc(bytes, PAYLOAD));
  for (const name of ["", "many", "deep", "deep/er"]) mkdirSync(join(tree, name));
  for (let i = 0; i < 60; i++) file(`many/file-${i}`, (i * 37) % 2500);
  file("large", 400_000);
  symlinkSync("long/".repeat(40), join(tree, "deep/er/link"));
  const many = Array.from({ length: 60 }, (_, i) => `file-${i} ---644 0 0 ${tree}/many/file-${i}`);
  const link = `er d--755 0 0\nlink l--777 0 0 ${"long/".repeat(40)}\n$`;
  const lines = [
    "large ---644 0 0 " + join(tree, "large"),
    "many d--755 0 0",
    ...many,
    "$",
    "deep d--755 0 0",
    link,
  ];
  writeFileSync(join(folder, "prototype"), ["boot", "0 0", "d--755 0 0", ...lines, "$", "$", ""].join("\n"));
}

function fill(folder: string, tree: string): Sample {
  const image = join(folder, "xfs.img");
  makeXfs(image, "-b size=1024 -d agcount=1", `${BYTES}`);
  withMount(image, { start: 0, end: BYTES }, "rw", (root) => run("sh", ["-c", FILL, "sh", root, tree]));
  return sampleOf(FILLED, image);
}

function sampleOf(name: string, image: string): Sample {
  const bytes = new Uint8Array(readFileSync(image));
  const { blockBytes, inodeBytes, sectorBytes } = SuperblockLayout.decode(bytes);
  const log = logOf(bytes);
  const chunks = chunksOf(bytes, (chunk) => PAYLOAD.equals(chunk)).filter(
    ({ at }) => at < log.start || at >= log.end,
  );
  const often: readonly Spot[] = [
    spotOf(SuperblockLayout, 0),
    spotOf(AgfLayout, sectorBytes),
    spotOf(AgiLayout, 2 * sectorBytes),
    spotOf(AgflLayout, 3 * sectorBytes),
  ];
  const favourites = Array.from({ length: Math.ceil(chunks.length / 3) }, (_, i) => often[i % often.length]!);
  return {
    name,
    bytes,
    spots: [...favourites, ...chunks, { at: log.start, bytes: 1024 }],
    fix: (mutant) => fixChecksums(mutant, { blockBytes, inodeBytes, sectorBytes }),
  };
}

function logOf(bytes: Uint8Array): { start: number; end: number } {
  const { logStart, logBlocks, blockBytes } = SuperblockLayout.decode(bytes);
  return { start: logStart * blockBytes, end: (logStart + logBlocks) * blockBytes };
}

/** Where a block with such a magic keeps its checksum. */
const CHECKSUM_AT: Readonly<Record<string, number>> = {
  AB3B: 52,
  AB3C: 52,
  IAB3: 52,
  FIB3: 52,
  RMB3: 52,
  R3FC: 52,
  BMA3: 64,
  XDB3: 4,
  XDD3: 4,
};

interface Geometry {
  readonly blockBytes: number;
  readonly inodeBytes: number;
  readonly sectorBytes: number;
}

/** Sets all checksums right of a filesystem with one AG, as its maker would. */
function fixChecksums(bytes: Uint8Array, { blockBytes, inodeBytes, sectorBytes }: Geometry): void {
  const view = viewOf(bytes);
  const fix = (at: number, length: number, field: number) => {
    if (at + length > bytes.length) return;
    view.setUint32(at + field, checksumOf(bytes, at + field, at, at + length), true);
  };
  if ((view.getUint16(SuperblockLayout.at.versionnum) & 0xf) !== 5) return;
  for (const [sector, field] of [224, 216, 312, 32].entries()) fix(sector * sectorBytes, sectorBytes, field);
  for (let at = 4 * sectorBytes; at + blockBytes <= bytes.length; at += blockBytes) {
    const field = CHECKSUM_AT[Buffer.from(bytes.subarray(at, at + 4)).toString("latin1")];
    if (field !== undefined) fix(at, blockBytes, field);
    for (let inode = at; inode < at + blockBytes; inode += inodeBytes) {
      const isInode = view.getUint16(inode) === 0x494e && view.getUint8(inode + 4) === 3;
      if (isInode) fix(inode, inodeBytes, 100);
    }
  }
}

function judge(bytes: Uint8Array, free: ExtentSet, folder: string): void {
  const image = join(folder, "judged.img");
  writeFileSync(image, bytes);
  const said = repair(image);
  const junk = bytes.slice();
  for (const { start, end } of free) junk.fill(0xdb, start, end);
  writeFileSync(image, junk);
  const second = repair(image);
  assert(second === said, `junk in free blocks is seen by xfs_repair:\n${said}\n${second}`);
}

/** What xfs_repair says, but for its clock and places in its memory. */
function repair(image: string): string {
  const { status, stdout, stderr } = attempt("xfs_repair", ["-n", "-P", "-o", "force_geometry", image]);
  const lines = `${stdout}${stderr}`
    .replaceAll(/at 0x[0-9a-f]+/g, "")
    .split("\n")
    .filter((line) => !/\d:\d\d|agno = /.test(line));
  return [`${status}`, ...lines].join("\n");
}
