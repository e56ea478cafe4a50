/**
 * Fuzzing of the virtual replay of an XFS: logs that the kernel wrote, as a power failure leaves them, with their
 * checksums set right again.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { viewOf } from "../../src/bytes/struct.ts";
import { assert } from "../../src/error.ts";
import { xfs as reader } from "../../src/filesystems/xfs.ts";
import {
  decodeHeader,
  HEADER_BYTES,
  recordChecksum,
  SECTOR_BYTES,
} from "../../src/filesystems/xfs/log-ring.ts";
import { SuperblockLayout } from "../../src/filesystems/xfs/superblock.ts";
import { prove } from "../../src/reclaim/prove.ts";
import { type FuzzTarget, fuzzDevice, outcome, type Sample, type Spot } from "../../src/testing/fuzz.ts";
import { withMount } from "../../src/testing/kernel-guest.ts";
import { run } from "../../src/testing/tools.ts";
import { makeXfs } from "../../src/testing/xfs.ts";

const BYTES = 16 * 2 ** 20;
const CHECKSUM_AT = 32;
const LIFE = `cd "$1"; i=0; while [ $i -lt 40 ]; do echo $i > file$i; i=$((i+1)); done; cp --reflink=auto file1 clone
i=0; while [ $i -lt 60 ]; do dd if=/dev/zero of=pieces bs=1k count=1 seek=$((i * 5)) conv=notrunc status=none; i=$((i+1)); done
sync -f .; rm file1*; mkdir deep; mv file2 deep; truncate -s 100k pieces; : > last; sync last; xfs_io -x -c shutdown .`;

const VARIANTS: Readonly<Record<string, string>> = {
  plain: "-b size=1024 -d agcount=1",
  owners: "-m rmapbt=1 -i nrext64=1 -b size=1024 -d agcount=1 -l su=32k",
};

export const xfsLog: FuzzTarget = {
  name: "xfs-log",
  needs: ["mkfs.xfs", "xfs_io"],

  async samples(folder) {
    return Object.entries(VARIANTS).map(([name, options]) => {
      const image = join(folder, "xfs.img");
      makeXfs(image, options, `${BYTES}`);
      withMount(image, { start: 0, end: BYTES }, "rw", (root) => run("sh", ["-c", LIFE, "sh", root]));
      return sampleOf(name, image);
    });
  },

  run(bytes, _random, sample) {
    return outcome(async () => {
      const device = fuzzDevice(bytes, sample.bytes.length);
      const filesystem = await reader.open([device], { replay: true });
      await filesystem.find("/deep/file2");
      const { free, refusal } = await prove(filesystem, "full");
      const all = free[0]!;
      assert(all.within({ start: 0, end: device.bytes }).equals(all), "free space lies on the device");
      if (refusal === undefined) return filesystem.isUnclean === true ? "replayed" : "clean";
      assert(all.count === 0, "a refused filesystem gives nothing away");
      return refusal.code;
    });
  },
};

function sampleOf(name: string, image: string): Sample {
  const bytes = new Uint8Array(readFileSync(image));
  const { logStart, logBlocks, blockBytes } = SuperblockLayout.decode(bytes);
  const log = { start: logStart * blockBytes, end: (logStart + logBlocks) * blockBytes };
  const spots: Spot[] = [];
  for (const { at, sectors } of recordsOf(bytes, log)) {
    spots.push({ at, bytes: 44 });
    for (let sector = 1; sector < sectors; sector++) {
      for (let part = 0; part < SECTOR_BYTES; part += 128) {
        spots.push({ at: at + sector * SECTOR_BYTES + part, bytes: 128 });
      }
    }
  }
  return { name, bytes, spots, fix: (mutant) => fixChecksums(mutant, log) };
}

function* recordsOf(bytes: Uint8Array, log: { start: number; end: number }) {
  for (let at = log.start; at + SECTOR_BYTES <= Math.min(log.end, bytes.length); at += SECTOR_BYTES) {
    const header = decodeHeader(bytes, at, true);
    if (header !== undefined && at + header.sectors * SECTOR_BYTES <= bytes.length) yield { at, ...header };
  }
}

function fixChecksums(bytes: Uint8Array, log: { start: number; end: number }): void {
  for (const { at, headers, sectors, bytes: dataBytes } of recordsOf(bytes, log)) {
    const record = bytes.subarray(at, at + sectors * SECTOR_BYTES);
    viewOf(record).setUint32(CHECKSUM_AT, recordChecksum(record, headers, dataBytes, HEADER_BYTES[0]!), true);
  }
}
