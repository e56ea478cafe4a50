/**
 * Fuzzing of the virtual replay: journals that debugfs wrote, with a revoke and two transactions.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { crc32c } from "../../src/bytes/checksum.ts";
import { viewOf } from "../../src/bytes/struct.ts";
import { readBytes } from "../../src/device/device.ts";
import { assert } from "../../src/error.ts";
import { BLOCK_TYPE, CommitBlock, Header, TAG_FLAG } from "../../src/filesystems/ext/journal-blocks.ts";
import { checksumWithout, JOURNAL_MAGIC, JournalSuperblock } from "../../src/filesystems/ext/journal.ts";
import { isRefusal, type JournalExtent, replayJournal } from "../../src/filesystems/ext/replay.ts";
import { SUPERBLOCK_AT, SuperblockLayout } from "../../src/filesystems/ext/superblock.ts";
import {
  chunksOf,
  type FuzzTarget,
  fuzzDevice,
  outcome,
  type Sample,
  spotOf,
} from "../../src/testing/fuzz.ts";
import { attempt, run } from "../../src/testing/tools.ts";

const BLOCK_BYTES = 1024;
/** What the transactions write take part of. */
const LOG_BYTES = 16 * BLOCK_BYTES;
const PAYLOAD = Buffer.from("ullage".padEnd(128, "."));

/** Features of mke2fs, and how debugfs opens the journal. */
const VARIANTS: Readonly<Record<string, readonly [features: string, open: string]>> = {
  "no checksums": ["^metadata_csum,^64bit", "jo"],
  "64-bit": ["^metadata_csum,64bit", "jo"],
  "checksums v3": ["metadata_csum,64bit", "jo -c -v 3"],
  "checksums v2": ["metadata_csum,^64bit", "jo -c -v 2"],
};

interface JournalSample extends Sample {
  readonly extents: readonly JournalExtent[];
}

export const journal: FuzzTarget = {
  name: "journal",
  needs: ["mke2fs", "debugfs"],

  async samples(folder) {
    return Object.entries(VARIANTS).map(([name, [features, open]]) =>
      makeSample(folder, name, features, open),
    );
  },

  run(bytes, random, sample, folder) {
    return outcome(async () => {
      const { extents } = sample as JournalSample;
      const device = fuzzDevice(bytes, sample.bytes.length);
      const { uuid } = SuperblockLayout.decode(sample.bytes, SUPERBLOCK_AT);
      const place = { kind: "inode", extents } as const;
      const replay = await replayJournal({ device, blockBytes: BLOCK_BYTES, uuid, journal: place });
      if (isRefusal(replay)) return replay.code;
      const { overlay, writes } = replay;
      assert(writes.within({ start: 0, end: overlay.bytes }).equals(writes), "writes lie on the device");
      const before = await readBytes(device, 0, device.bytes);
      const after = await readBytes(overlay, 0, overlay.bytes);
      for (const { start, end } of writes) after.set(before.subarray(start, end), start);
      assert(Buffer.compare(before, after) === 0, "nothing changes outside the writes");
      if (!random.oneIn(JUDGED_ONE_IN) || bytes.length < sample.bytes.length) return "replayed";
      return judge(bytes, await readBytes(overlay, 0, overlay.bytes), extents, folder);
    });
  },
};

const JUDGED_ONE_IN = 10;

/** e2fsck's own replay of the mutant must leave the same blocks; but the journal's and the superblock's. */
function judge(
  bytes: Uint8Array,
  replayed: Uint8Array,
  extents: readonly JournalExtent[],
  folder: string,
): string {
  const image = join(folder, "judged.img");
  writeFileSync(image, bytes);
  const { stdout, status } = attempt("e2fsck", ["-y", "-E", "journal_only", image]);
  if (status > 1 || stdout.includes("? yes")) return "replayed, but not by e2fsck";
  const expected = new Uint8Array(readFileSync(image));
  for (const content of [expected, replayed]) {
    content.fill(0, SUPERBLOCK_AT, SUPERBLOCK_AT + BLOCK_BYTES);
    for (const { start, blocks } of extents)
      content.fill(0, start * BLOCK_BYTES, (start + blocks) * BLOCK_BYTES);
  }
  const at = expected.findIndex((byte, i) => byte !== replayed[i]);
  assert(at < 0, `e2fsck's replay differs in block ${Math.floor(at / BLOCK_BYTES)}: ${stdout}`);
  return "replayed, as by e2fsck";
}

function makeSample(folder: string, name: string, features: string, open: string): JournalSample {
  const [image, data] = [join(folder, "journal.img"), join(folder, "data")];
  writeFileSync(data, Buffer.alloc(BLOCK_BYTES * 4, PAYLOAD));
  writeFileSync(image, new Uint8Array(3 * 2 ** 20));
  run("mke2fs", ["-q", "-t", "ext4", "-b", `${BLOCK_BYTES}`, "-J", "size=1", "-O", features, image]);
  const writes = [`jw -b 1500-1503 ${data}`, "jw -r 1501,1600", `jw -b 1502-1505 ${data}`];
  run("debugfs", ["-w", "-f", "-", image], [open, ...writes, "jc", ""].join("\n"));
  const bytes = new Uint8Array(readFileSync(image));
  const stat = run("debugfs", ["-R", "stat <8>", image]);
  const extents = [...stat.matchAll(/\((\d+)-(\d+)\):(\d+)/g)].map(([, first, last, start]) => ({
    logical: Number(first),
    start: Number(start),
    blocks: Number(last) - Number(first) + 1,
  }));
  const places = extents.flatMap(({ start, blocks }) =>
    Array.from({ length: blocks }, (_, i) => (start + i) * BLOCK_BYTES),
  );
  const log = places.slice(0, LOG_BYTES / BLOCK_BYTES);
  const own = log.flatMap((place) =>
    chunksOf(bytes.subarray(place, place + BLOCK_BYTES), (chunk) => PAYLOAD.equals(chunk)).map((spot) => ({
      ...spot,
      at: spot.at + place,
    })),
  );
  const headers = own
    .filter(({ at }) => at % BLOCK_BYTES === 0)
    .flatMap(({ at }) => [spotOf(Header, at), { at: at + Header.bytes, bytes: 48 }]);
  return {
    name,
    bytes,
    extents,
    fix(mutant) {
      const gathered = Buffer.concat(log.map((at) => mutant.subarray(at, at + BLOCK_BYTES)));
      fix(gathered);
      log.forEach((at, i) => mutant.set(gathered.subarray(i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES), at));
    },
    spots: [spotOf(JournalSuperblock, log[0]!), ...own, ...headers, ...headers],
  };
}

/** Sets the checksums of v2 and v3 anew. */
function fix(log: Uint8Array): void {
  const { incompat, uuid } = JournalSuperblock.decode(log);
  const version = (incompat & 0x10) !== 0 ? 3 : (incompat & 8) !== 0 ? 2 : 0;
  if (version === 0) return;
  const seed = crc32c(0xffffffff, uuid);
  const block = (index: number) => log.subarray(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES);
  const superblock = log.subarray(0, JournalSuperblock.bytes);
  const checksum = checksumWithout(0xffffffff, superblock, JournalSuperblock.at.checksum);
  JournalSuperblock.encode({ checksum }, log);
  for (let index = 1; index < LOG_BYTES / BLOCK_BYTES; index++) {
    const bytes = block(index);
    const { magic, type } = Header.decode(bytes);
    if (magic !== JOURNAL_MAGIC) continue;
    if (type === BLOCK_TYPE.commit) {
      CommitBlock.encode({ checksum: checksumWithout(seed, bytes, CommitBlock.at.checksum) }, bytes);
      continue;
    }
    if (type === BLOCK_TYPE.descriptor)
      fixTags(bytes, version, (incompat & 2) !== 0, seed, (i) => block(index + i));
    viewOf(bytes).setUint32(BLOCK_BYTES - 4, checksumWithout(seed, bytes, BLOCK_BYTES - 4));
  }
}

function fixTags(
  descriptor: Uint8Array,
  version: 2 | 3,
  wide: boolean,
  seed: number,
  dataBlock: (index: number) => Uint8Array,
): void {
  const view = viewOf(descriptor);
  const tagBytes = version === 3 ? 16 : wide ? 14 : 10;
  const sequence = descriptor.subarray(Header.at.sequence, Header.at.sequence + 4);
  for (let at = Header.bytes, index = 1; at + tagBytes <= BLOCK_BYTES - 4; index++) {
    const crc = crc32c(crc32c(seed, sequence), dataBlock(index));
    if (version === 3) view.setUint32(at + 12, crc);
    else view.setUint16(at + 4, crc & 0xffff);
    const flags = version === 3 ? view.getUint32(at + 4) : view.getUint16(at + 6);
    if ((flags & TAG_FLAG.last) !== 0) break;
    at += tagBytes + ((flags & TAG_FLAG.sameUuid) === 0 ? 16 : 0);
  }
}
