/**
 * The judge of a virtual replay is e2fsck's real one, on a copy: every block must come out the same. The journals are
 * those of the kernel, taken as a crash would leave them, and the damaged ones of e2fsprogs' own tests.
 */
import assert from "node:assert/strict";
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { type BlockDevice, readBytes, wholeMap } from "../../device/device.ts";
import { corpusFiles, unpack } from "../../testing/corpus.ts";
import { Random, seeds } from "../../testing/seeds.ts";
import { attempt, requires, requiresRoot, run, scratch } from "../../testing/tools.ts";
import { INCOMPAT } from "./features.ts";
import {
  isJournalEmpty,
  isRefusal,
  type JournalExtent,
  type JournalPlace,
  type JournalledFileSystem,
  type Replay,
  replayJournal,
} from "./replay.ts";
import { SUPERBLOCK_AT, SuperblockLayout } from "./superblock.ts";

function memoryDevice(bytes: Uint8Array): BlockDevice {
  return {
    bytes: bytes.length,
    read: async (at, into) => into.set(bytes.subarray(at, at + into.length)),
    async *map(range) {
      yield [{ ...range, kind: "data", shared: false, depth: 0 }];
    },
    [Symbol.asyncDispose]: async () => {},
  };
}

/** A filesystem in a file, and its external journal in another. */
interface Disk {
  readonly image: string;
  readonly journal?: string;
}

interface Opened {
  readonly bytes: Uint8Array;
  readonly extents: readonly JournalExtent[];
  readonly filesystem: JournalledFileSystem;
}

function open({ image, journal }: Disk): Opened {
  const bytes = new Uint8Array(readFileSync(image)); // a slice of a Buffer would not be a copy
  const { logBlockSize, uuid, journalUuid } = SuperblockLayout.decode(bytes, SUPERBLOCK_AT);
  const extents = journal === undefined ? extentsOf(image) : [];
  const place: JournalPlace =
    journal === undefined
      ? { kind: "inode", extents }
      : { kind: "device", device: memoryDevice(readFileSync(journal)), journalUuid };
  const device = memoryDevice(bytes);
  return { bytes, extents, filesystem: { device, blockBytes: 1024 << logBlockSize, uuid, journal: place } };
}

/** The journal inode's blocks as debugfs sees them. */
function extentsOf(image: string): JournalExtent[] {
  const stat = attempt("debugfs", ["-c", "-R", "stat <8>", image]).stdout;
  return [...stat.matchAll(/\((\d+)(?:-(\d+))?\):(\d+)/g)].map(([, first, last, start]) => ({
    logical: Number(first),
    start: Number(start),
    blocks: Number(last ?? first) - Number(first) + 1,
  }));
}

/** What differs between two superblocks that have been replayed by two hands: times and counters of the tool. */
function comparable(bytes: Uint8Array): Record<string, unknown> {
  const ignored = { mountTime: 0, writeTime: 0, mounts: 0, lastCheck: 0, checksum: 0 };
  return { ...SuperblockLayout.decode(bytes, SUPERBLOCK_AT), ...ignored };
}

function blocksThatDiffer(a: Uint8Array, b: Uint8Array, blockBytes: number): number[] {
  const blocks: number[] = [];
  const differ = (start: number, end: number) =>
    Buffer.compare(a.subarray(start, end), b.subarray(start, end)) !== 0;
  for (let chunk = 0; chunk < a.length; chunk += 1024 * 1024) {
    const end = Math.min(a.length, chunk + 1024 * 1024);
    if (!differ(chunk, end)) continue;
    for (let at = chunk; at < end; at += blockBytes)
      if (differ(at, at + blockBytes)) blocks.push(at / blockBytes);
  }
  return blocks;
}

/**
 * Every block of the overlay must be what e2fsck's own replay leaves; but the journal's, which e2fsck empties. False,
 * without a comparison, where e2fsck repaired more than that.
 */
async function compareWithE2fsck(
  t: TestContext,
  disk: Disk,
  { bytes, extents, filesystem }: Opened,
  replay: Replay,
): Promise<boolean> {
  const folder = scratch(t);
  const judge = join(folder, "judge");
  copyFileSync(disk.image, judge);
  const args = ["-y", "-E", "journal_only", judge];
  if (disk.journal !== undefined) {
    copyFileSync(disk.journal, join(folder, "judge.journal"));
    args.unshift("-j", join(folder, "judge.journal"));
  }
  const { stdout, status } = attempt("e2fsck", args);
  if (stdout.includes("? yes")) return false;
  assert(status <= 1, stdout);
  const expected = readFileSync(judge);
  const found = await readBytes(replay.overlay, 0, replay.overlay.bytes);
  const { blockBytes } = filesystem;
  const isOwn = (block: number) =>
    block === Math.floor(SUPERBLOCK_AT / blockBytes) ||
    extents.some(({ start, blocks }) => block >= start && block < start + blocks);
  const differing = blocksThatDiffer(found, expected, blockBytes).filter((block) => !isOwn(block));
  const changed = blocksThatDiffer(bytes, expected, blockBytes).filter((block) => !isOwn(block));
  assert.deepEqual(differing, [], `blocks differ from e2fsck's replay: ${stdout}`);
  assert(changed.every((block) => replay.writes.has(block * blockBytes)));
  assert.deepEqual(comparable(found), comparable(expected));
  return true;
}

/** A disk as the kernel leaves it when it dies right after `script`, whose folder is the mount point. */
function dirtyDisk(t: TestContext, make: string, mountOptions: string, script: string): string {
  const folder = scratch(t);
  const image = join(folder, "image");
  const prelude = `cd ${folder}; truncate -s 24M image; mkdir mount; ${make} image 24M`;
  run("sh", ["-ec", prelude]);
  run("mount", ["-o", `loop,${mountOptions}`, image, join(folder, "mount")]);
  try {
    run("sh", ["-ec", script, "sh", join(folder, "mount")]);
    copyFileSync(image, `${image}.dirty`);
  } finally {
    run("umount", [join(folder, "mount")]);
  }
  return `${image}.dirty`;
}

/** Directories and files that come and go: bitmaps, inodes and directory blocks change and are revoked. */
const BUSY = `cd $1
mkdir kept gone; for i in $(seq 150); do head -c $((i * 97)) /dev/urandom > kept/f$i; : > gone/a-long-name-that-fills-a-block-$i; done
sync; rm -r gone; sync; mkdir again; for i in $(seq 90); do head -c 5000 /dev/urandom > again/$i; done; sync; rm kept/f1*; sync`;

/** Directory blocks become blocks of a file: the journal's old copies of them must not come back. */
const REUSED = `cd $1
mkdir gone; for i in $(seq 600); do : > gone/a-long-name-that-fills-a-block-$i; done; sync
rm -r gone; sync; head -c 30M /dev/urandom > full || true; sync`;

/** With data=journal: file blocks that begin with the magic must be escaped. */
const ESCAPED = `cd $1
for i in 1 2 3 4 5 6 7 8; do printf '\\300;9\\230magic %4088s' $i > magic$i; done; sync
for i in 2 4; do rm magic$i; done; sync; head -c 100000 /dev/urandom > other; sync`;

/** More than the smallest journal holds. */
const WRAPPING = `cd $1
for round in $(seq 60); do for i in 1 2 3 4; do head -c 6000 /dev/urandom > d$round-$i; done; rm -f d$((round - 2))-*; sync; done`;

const matrix: readonly (readonly [name: string, make: string, mount: string, script: string])[] = [
  ["ext4, checksums v3, 64-bit, 4k", "mke2fs -q -t ext4 -b 4096", "commit=60", BUSY],
  ["ext4, checksums v3, 32-bit, 1k", "mke2fs -q -t ext4 -b 1024 -O ^64bit", "commit=60", BUSY],
  ["ext4, no checksums", "mke2fs -q -t ext4 -b 4096 -O ^64bit,^metadata_csum", "commit=60", BUSY],
  ["ext4, no checksums, 64-bit, 2k", "mke2fs -q -t ext4 -b 2048 -O 64bit,^metadata_csum", "commit=60", BUSY],
  ["ext4, checksums v1", "mke2fs -q -t ext4 -b 4096 -O ^metadata_csum", "journal_checksum", BUSY],
  ["ext3, 1k", "mke2fs -q -t ext3 -b 1024", "commit=60", BUSY],
  ["revoked, 4k", "mke2fs -q -t ext4 -b 4096", "commit=60", REUSED],
  ["revoked, ext3, 1k", "mke2fs -q -t ext3 -b 1024", "commit=60", REUSED],
  ["data in the journal, escaped", "mke2fs -q -t ext4 -b 4096", "data=journal", ESCAPED],
  ["data in the journal, escaped, ext3", "mke2fs -q -t ext3 -b 1024", "data=journal", ESCAPED],
  ["bigalloc, orphan file", "mke2fs -q -t ext4 -b 4096 -O bigalloc,orphan_file", "commit=60", BUSY],
  ["around the ring", "mke2fs -q -t ext4 -b 1024 -J size=1", "data=journal", WRAPPING],
];

for (const [name, make, mount, script] of matrix) {
  test(`kernel journal: ${name}`, async (t) => {
    if (!requires(t, "e2fsck", "mke2fs", "debugfs", "mount") || !requiresRoot(t)) return;
    const image = dirtyDisk(t, make, mount, script);
    const opened = open({ image });
    assert.equal(await isJournalEmpty(opened.filesystem), false);
    const replay = await replayJournal(opened.filesystem);
    assert(!isRefusal(replay), JSON.stringify(replay));
    assert(await compareWithE2fsck(t, { image }, opened, replay));
    assert.deepEqual(
      (await wholeMap(replay.overlay)).map(({ kind, start, end }) => [kind, start, end]),
      [["data", 0, opened.bytes.length]],
    );
    assert.equal(SuperblockLayout.decode(opened.bytes, SUPERBLOCK_AT).incompat & INCOMPAT.needs_recovery, 4);
  });
}

/** The damage that e2fsprogs' tests are about; what is not listed here must be replayed. */
const REFUSED: Readonly<Record<string, string>> = {
  j_corrupt_commit_csum: "journal-checksum",
  j_corrupt_descr_csum: "journal-checksum",
  j_corrupt_ext_jnl_sb_block: "journal-checksum",
  j_corrupt_ext_jnl_sb_csum: "journal-checksum",
  j_corrupt_journal_block: "journal-checksum",
  j_corrupt_revoke_rcount: "journal-corrupt",
  j_corrupt_sb_csum: "journal-checksum",
  j_corrupt_sb_magic: "journal-corrupt",
  j_ext_dumpe2fs: "journal-corrupt", // a journal device, no filesystem
  j_recover_fast_commit: "fast-commit",
};

for (const name of corpusFiles(/e2fsprogs\/tests\/j_.*image\.(gz|bz2|tar\.bz2)$/)) {
  const short = name.split("/").at(-2)!;
  test(`corpus: ${short}`, async (t) => {
    if (!requires(t, "e2fsck", "debugfs")) return;
    const unpacked = unpack(t, name);
    const image = join(unpacked, `${short}.img`);
    const disk = name.includes(".tar.") ? { image, journal: `${image}.jnl` } : { image: unpacked };
    const opened = open(disk);
    const replay = await replayJournal(opened.filesystem);
    if (isRefusal(replay)) return assert.equal(replay.code, REFUSED[short], replay.message);
    assert.equal(REFUSED[short], undefined);
    assert(await compareWithE2fsck(t, disk, opened, replay));
  });
}

/** As `dirtyDisk`, with the journal on a device of its own. */
function dirtyDiskWithJournal(t: TestContext, blockBytes: number): Disk {
  const folder = scratch(t);
  const attach = (file: string, size: string) => {
    run("truncate", ["-s", size, join(folder, file)]);
    return run("losetup", ["-f", "--show", join(folder, file)]).trim();
  };
  const loops = [attach("journal", "8M"), attach("image", "24M")];
  try {
    const [journal, disk] = loops as [string, string];
    run("mke2fs", ["-q", "-O", "journal_dev", "-b", `${blockBytes}`, journal]);
    run("mke2fs", ["-q", "-t", "ext4", "-b", `${blockBytes}`, "-J", `device=${journal}`, disk]);
    run("mkdir", [join(folder, "mount")]);
    run("mount", [disk, join(folder, "mount")]);
    try {
      run("sh", ["-ec", BUSY, "sh", join(folder, "mount")]);
      for (const file of ["image", "journal"])
        copyFileSync(join(folder, file), join(folder, `${file}.dirty`));
    } finally {
      run("umount", [join(folder, "mount")]);
    }
  } finally {
    for (const loop of loops) run("losetup", ["-d", loop]);
  }
  return { image: join(folder, "image.dirty"), journal: join(folder, "journal.dirty") };
}

for (const blockBytes of [1024, 4096]) {
  test(`kernel journal on a device of its own, blocks of ${blockBytes}`, async (t) => {
    if (!requires(t, "e2fsck", "mke2fs", "losetup", "mount") || !requiresRoot(t)) return;
    const disk = dirtyDiskWithJournal(t, blockBytes);
    const opened = open(disk);
    const replay = await replayJournal(opened.filesystem);
    assert(!isRefusal(replay), JSON.stringify(replay));
    assert(await compareWithE2fsck(t, disk, opened, replay));

    const foreign = await replayJournal({ ...opened.filesystem, uuid: new Uint8Array(16) });
    assert(isRefusal(foreign) && foreign.code === "journal-missing");
    const { device } = opened.filesystem;
    const wrong = { kind: "device", device, journalUuid: new Uint8Array(16) } as const;
    const missing = await replayJournal({ ...opened.filesystem, journal: wrong });
    assert(isRefusal(missing) && missing.code === "journal-missing");
  });
}

test("fast commits: refused where one counts, replayed where none does", async (t) => {
  if (!requires(t, "e2fsck", "mke2fs", "debugfs", "mount") || !requiresRoot(t)) return;
  const make = "mke2fs -q -t ext4 -O fast_commit";
  const without = dirtyDisk(t, make, "commit=60", BUSY);
  const opened = open({ image: without });
  const replay = await replayJournal(opened.filesystem);
  assert(!isRefusal(replay), JSON.stringify(replay));
  assert(await compareWithE2fsck(t, { image: without }, opened, replay));

  const written = `${BUSY}; for i in 1 2 3; do dd if=/dev/urandom of=fast$i bs=4k count=3 conv=fsync status=none; done`;
  const refusal = await replayJournal(open({ image: dirtyDisk(t, make, "commit=60", written) }).filesystem);
  assert(isRefusal(refusal), JSON.stringify(refusal));
  assert.equal(refusal.code, "fast-commit");
});

/** Damages one block of the log: a byte, a word of its head, all of it, or another block in its place. */
function damage(bytes: Uint8Array, { filesystem, extents }: Opened, random: Random): void {
  const { blockBytes } = filesystem;
  const blockAt = (block: number) => {
    const { logical, start } = extents.findLast((extent) => extent.logical <= block)!;
    const at = (start + block - logical) * blockBytes;
    return bytes.subarray(at, at + blockBytes);
  };
  const block = blockAt(random.below(LOG_BLOCKS));
  switch (random.below(4)) {
    case 0:
      block[random.below(blockBytes)]! ^= 1 << random.below(8);
      break;
    case 1:
      block.set(
        random.pick([
          [0, 0, 0, 0],
          [255, 255, 255, 255],
          [0, 0, 0, 9],
        ]),
        random.below(16) * 4,
      );
      break;
    case 2:
      block.fill(0);
      break;
    default:
      block.set(blockAt(random.below(LOG_BLOCKS)).slice());
  }
}

/** About what `BUSY` writes. */
const LOG_BLOCKS = 100;

for (const [name, make, mount] of [
  ["checksums v3", "mke2fs -q -t ext4 -b 4096", "commit=60"],
  ["checksums v1", "mke2fs -q -t ext4 -b 4096 -O ^metadata_csum", "journal_checksum"],
  ["no checksums", "mke2fs -q -t ext4 -b 4096 -O ^64bit,^metadata_csum", "commit=60"],
] as const) {
  test(`damaged journal, ${name}: refused, or as e2fsck replays it`, async (t) => {
    if (!requires(t, "e2fsck", "mke2fs", "debugfs", "mount") || !requiresRoot(t)) return;
    const image = dirtyDisk(t, make, mount, BUSY);
    const whole = open({ image });
    for (const seed of seeds(8)) {
      const bytes = whole.bytes.slice();
      damage(bytes, whole, new Random(seed));
      const opened = { ...whole, bytes, filesystem: { ...whole.filesystem, device: memoryDevice(bytes) } };
      const replay = await replayJournal(opened.filesystem);
      if (isRefusal(replay)) continue;
      writeFileSync(image, bytes);
      await compareWithE2fsck(t, { image }, opened, replay).catch((cause: unknown) => {
        throw new Error(`SEED=${seed}`, { cause });
      });
    }
  });
}
