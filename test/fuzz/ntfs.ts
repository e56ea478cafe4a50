/**
 * Fuzzing of the NTFS reader. Its judge is ntfsresize: what a mutant is proven to have free, ntfsresize's own walk of
 * all run lists must not find in use, and rubbish in it must not change a word of what it says (H1).
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { ExtentSet } from "../../src/bytes/extents.ts";
import { assert } from "../../src/error.ts";
import { BootLayout } from "../../src/filesystems/ntfs/boot.ts";
import { BlockLayout, HeaderLayout, IDENTIFIER, PlacesLayout } from "../../src/filesystems/ntfs/shadow.ts";
import { ntfs as reader } from "../../src/filesystems/ntfs.ts";
import {
  chunksOf,
  type FuzzTarget,
  fuzzDevice,
  outcome,
  type Sample,
  type Spot,
  spotOf,
} from "../../src/testing/fuzz.ts";
import { inNtfs, makeNtfs } from "../../src/testing/ntfs.ts";
import { attempt } from "../../src/testing/tools.ts";
import { readThrough } from "./filesystem.ts";

const MiB = 2 ** 20;
const PAYLOAD = Buffer.from("ullage".padEnd(128, "."));
/** What an emptied log is full of. */
const EMPTY = Buffer.alloc(128, 0xff);

const SHADOWS = "shadow copies";
const VARIANTS: Readonly<Record<string, readonly string[]>> = {
  "512-byte clusters": ["-c", "512"],
  "4 KiB clusters": ["-c", "4096"],
  "4 KiB sectors": ["-s", "4096"],
  [SHADOWS]: ["-c", "4096"],
};

const JUDGED_ONE_IN = 4;

export const ntfs: FuzzTarget = {
  name: "ntfs",
  needs: ["mkntfs", "ntfs-3g", "ntfsresize", "mount", "setfattr"],

  async samples(folder) {
    const tree = join(folder, "tree");
    growTree(tree);
    const samples: Sample[] = [];
    for (const [name, options] of Object.entries(VARIANTS)) {
      samples.push(await makeSample(folder, tree, name, options));
    }
    return samples;
  },

  run(bytes, random, sample, folder) {
    return outcome(async () => {
      const device = fuzzDevice(bytes, sample.bytes.length);
      const filesystem = await reader.open([device], { replay: false, shadowLoss: random.oneIn(3) });
      const free = await readThrough(filesystem, device.bytes, [
        "/",
        "/MANY/file-17",
        "/holes",
        "/many/gone",
        "/many",
      ]);
      if (typeof free === "string") return free;
      if (bytes.length === sample.bytes.length && random.oneIn(JUDGED_ONE_IN)) {
        judge(bytes, free, filesystem.blockBytes, folder);
      }
      return "proven";
    });
  },
};

function growTree(tree: string): void {
  mkdirSync(tree);
  writeFileSync(join(tree, "large"), Buffer.alloc(150_000, PAYLOAD));
  const holes = Buffer.alloc(61 * 8192);
  for (let at = 0; at < holes.length; at += 8192) holes.fill(PAYLOAD, at, at + 4096);
  writeFileSync(join(tree, "holes"), holes);
}

async function makeSample(
  folder: string,
  tree: string,
  name: string,
  options: readonly string[],
): Promise<Sample> {
  const image = makeNtfs(join(folder, "ntfs.img"), 3 * MiB, ...options);
  inNtfs(
    image,
    `mkdir many packed
     for i in $(seq 50); do head -c $((i * 20)) "${tree}/large" > many/file-$i; done
     cp "${tree}/large" large
     cp --sparse=always "${tree}/holes" holes
     cp "${tree}/large" large:stream
     setfattr -h -v 0x00000800 -n system.ntfs_attrib_be packed
     head -c 50000 "${tree}/large" > packed/text
     head -c 4096 /dev/zero > hiberfil.sys`,
  );
  const bytes = new Uint8Array(readFileSync(image));
  const extra = name === SHADOWS ? addShadows(bytes, await roomIn(bytes)) : [];
  const chunks = chunksOf(bytes, (chunk) => PAYLOAD.equals(chunk) || EMPTY.equals(chunk));
  return { name, bytes, spots: [...favourites(bytes, chunks, extra), ...chunks], fix: mirrorFix(bytes) };
}

/** The boot sector, the table and index blocks count for more than the rest, most of which is `$UpCase`. */
function favourites(bytes: Uint8Array, chunks: readonly Spot[], extra: readonly Spot[]): Spot[] {
  const boot = spotOf(BootLayout, 0);
  const isRecord = ({ at }: Spot) =>
    /^(FILE|INDX)/.test(Buffer.from(bytes.subarray(at & -512, (at & -512) + 4)).toString("latin1"));
  const records = chunks.filter(isRecord);
  const often = [boot, ...extra];
  return [
    ...records,
    ...records,
    ...Array.from({ length: records.length }, (_, i) => often[i % often.length]!),
  ];
}

/** Where free clusters for the blocks of a store are. */
async function roomIn(bytes: Uint8Array): Promise<number> {
  const [free] = await (await reader.open([fuzzDevice(bytes)], { replay: false })).free();
  return free!.atLeast(3 * 16_384).start(0);
}

/** Writes the catalog and the store of a shadow copy. */
function addShadows(bytes: Uint8Array, at: number): Spot[] {
  const [catalog, bitmap, list] = [0, 1, 2].map((index) => at + index * 16_384) as [number, number, number];
  const identity = { identifier: IDENTIFIER, version: 1 };
  const volume = new Uint8Array(16).fill(5);
  HeaderLayout.encode({ ...identity, type: 1, own: 0x1e00, catalog, volume, storage: volume }, bytes, 0x1e00);
  BlockLayout.encode({ ...identity, type: 2, own: catalog, next: 0 }, bytes, catalog);
  BlockLayout.encode({ ...identity, type: 6, own: bitmap, next: 0 }, bytes, bitmap);
  BlockLayout.encode({ ...identity, type: 3, own: list, next: 0 }, bytes, list);
  bytes.fill(0xf7, bitmap + 128, bitmap + 16_384);
  const store = new Uint8Array(16).fill(6);
  PlacesLayout.encode({ type: 2, store }, bytes, catalog + 128);
  PlacesLayout.encode({ type: 3, store, blockList: list, bitmap }, bytes, catalog + 256);
  return [
    spotOf(HeaderLayout, 0x1e00),
    spotOf(PlacesLayout, catalog + 256),
    ...[catalog, bitmap, list].map((at) => spotOf(BlockLayout, at)),
  ];
}

/** Copies the first records into $MFTMirr, as a driver would. */
function mirrorFix(original: Uint8Array): (bytes: Uint8Array) => void {
  const { sectorBytes, sectorsPerCluster, mftCluster, mirrorCluster, recordSize } =
    BootLayout.decode(original);
  const clusterBytes = sectorBytes * sectorsPerCluster;
  const recordBytes = recordSize >= 0x80 ? 2 ** (256 - recordSize) : recordSize * clusterBytes;
  return (bytes) => {
    const at = mftCluster * clusterBytes;
    bytes.copyWithin(mirrorCluster * clusterBytes, at, at + 4 * recordBytes);
  };
}

function judge(bytes: Uint8Array, free: ExtentSet, clusterBytes: number, folder: string): void {
  const image = join(folder, "judged.img");
  const said = (content: Uint8Array) => {
    writeFileSync(image, content);
    const command = 'timeout 5 ntfsresize --info --no-action -f -P "$1" 2>&1';
    return attempt("sh", ["-c", command, "sh", image]).stdout;
  };
  const before = said(bytes);
  for (const [, cluster] of before.matchAll(/accounting failed at (\d+).*missing cluster/g)) {
    const isOurs = free.has(Number(cluster) * clusterBytes);
    assert(!isOurs, `proven free, but ntfsresize finds cluster ${cluster} in use\n${before}`);
  }
  const junk = bytes.slice();
  for (const { start, end } of free) junk.fill(0xdb, start, end);
  const after = said(junk);
  assert(after === before, `junk in free clusters is seen by ntfsresize:\n${before}\n${after}`);
}
