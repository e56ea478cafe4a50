/**
 * Fuzzing of the HFS+ reader. Its judge is The Sleuth Kit: what a mutant is proven to have free can be overwritten, and
 * every file that it recovers from the mutant stays the same.
 */
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { ExtentSet } from "../../src/bytes/extents.ts";
import { viewOf } from "../../src/bytes/struct.ts";
import { assert } from "../../src/error.ts";
import { hfsplus as reader } from "../../src/filesystems/hfsplus.ts";
import { checksumOf } from "../../src/filesystems/hfsplus/journal.ts";
import { TreeHeader } from "../../src/filesystems/hfsplus/tree.ts";
import { VolumeHeader } from "../../src/filesystems/hfsplus/volume-header.ts";
import {
  chunksOf,
  type FuzzTarget,
  fuzzDevice,
  outcome,
  type Sample,
  spotOf,
} from "../../src/testing/fuzz.ts";
import { makeHfsPlus, makeWrapped, type HfsPlusOptions } from "../../src/testing/hfsplus.ts";
import { attempt } from "../../src/testing/tools.ts";
import { readThrough } from "./filesystem.ts";

const HEADER_AT = 1024;

const FILES = Array.from({ length: 16 }, (_, i) => ({
  name: `file${i}`,
  data: 1 + ((i * 5) % 20),
  resource: i % 5 === 0 ? 9 : 0,
}));
const WITH_ATTRIBUTES = FILES.map((file, i) => ({ ...file, attribute: i % 4 === 0 ? 3 * i : 0 }));

const VARIANTS: Readonly<Record<string, HfsPlusOptions & { readonly at?: number }>> = {
  "HFS+, 512": { bytes: 2 ** 20, blockBytes: 512, nodeBytes: 1024, badBlocks: 3, files: FILES },
  attributes: {
    bytes: 2 ** 20,
    blockBytes: 512,
    nodeBytes: 512,
    hasAttributes: true,
    files: WITH_ATTRIBUTES,
  },
  "HFSX, journal": {
    bytes: 2 ** 20,
    blockBytes: 1024,
    nodeBytes: 1024,
    kind: "HFSX",
    journal: "empty",
    files: FILES,
  },
  wrapped: { bytes: 2 ** 20, at: 8192, blockBytes: 1024, nodeBytes: 1024, files: FILES },
};

export const hfsplus: FuzzTarget = {
  name: "hfsplus",
  needs: ["tsk_recover"],

  async samples(folder) {
    return Object.entries(VARIANTS).map(([name, options]) => makeSample(folder, name, options));
  },

  run(bytes, random, sample, folder) {
    return outcome(async () => {
      const device = fuzzDevice(bytes, sample.bytes.length);
      if (!(await reader.probe(device))) return "not recognised";
      const filesystem = await reader.open([device], { replay: false });
      const free = await readThrough(filesystem, device.bytes, ["/", "/file7"]);
      if (typeof free === "string") return free;
      if (bytes.length === sample.bytes.length && random.oneIn(JUDGED_ONE_IN)) judge(bytes, free, folder);
      return "proven";
    });
  },
};

const JUDGED_ONE_IN = 8;

function makeSample(folder: string, name: string, { at, ...options }: HfsPlusOptions): Sample {
  const path = join(folder, "hfsplus.img");
  rmSync(path, { force: true });
  if (at === undefined) makeHfsPlus(path, options);
  else makeWrapped(path, { ...options, at });
  const bytes = new Uint8Array(readFileSync(path));
  const start = at ?? 0;
  const header = VolumeHeader.decode(bytes, start + HEADER_AT);
  const treeAt = (fork: Uint8Array) => start + viewOf(fork).getUint32(16) * header.blockBytes;
  const often = [
    spotOf(VolumeHeader, start + HEADER_AT),
    ...[header.extents, header.catalog].map((fork) => spotOf(TreeHeader, treeAt(fork))),
    ...(options.hasAttributes ? [spotOf(TreeHeader, treeAt(header.attributesFile))] : []),
  ];
  const chunks = chunksOf(bytes, () => false);
  const spots = Array.from({ length: Math.ceil(chunks.length / 3) }, (_, i) => often[i % often.length]!);
  return { name, bytes, spots: [...spots, ...chunks], fix: (mutant) => fixJournal(mutant, start) };
}

/** Sets the checksum of the journal's header right, where there is a journal. */
function fixJournal(bytes: Uint8Array, start: number): void {
  const header = start + HEADER_AT;
  if (header + VolumeHeader.bytes > bytes.length) return;
  const { blockBytes, journalInfoBlock } = VolumeHeader.decode(bytes, header);
  const view = viewOf(bytes);
  const info = start + journalInfoBlock * blockBytes;
  if (journalInfoBlock === 0 || info + 180 > bytes.length) return;
  const at = start + view.getUint32(info + 40);
  if (at + 44 > bytes.length) return;
  view.setUint32(at + 36, checksumOf(bytes.subarray(at)), true);
}

/** Junk in what is free must not be seen in any file that is recovered. */
function judge(bytes: Uint8Array, free: ExtentSet, folder: string): void {
  const junk = bytes.slice();
  for (const { start, end } of free) junk.fill(0xdb, start, end);
  const [before, after] = [bytes, junk].map((content) => recovered(content, folder));
  assert(before === after, `junk in free blocks is seen by The Sleuth Kit:\n${before}\n${after}`);
}

/** A line of hash and name for every file that The Sleuth Kit recovers. */
function recovered(bytes: Uint8Array, folder: string): string {
  const image = join(folder, "judged.img");
  const files = join(folder, "judged");
  writeFileSync(image, bytes);
  rmSync(files, { recursive: true, force: true });
  attempt("timeout", ["10", "tsk_recover", "-a", "-f", "hfs", image, files]);
  return attempt("sh", ["-c", 'cd "$1" && find . -type f -exec sha256sum {} + | sort', "sh", files]).stdout;
}
