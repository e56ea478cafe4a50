/**
 * One wound each, in an otherwise healthy XFS: every guard is seen to refuse (H1, H2, H24). xfs_db inflicts them, and
 * sets the checksums right, unless the checksum is what is to be seen.
 */
import assert from "node:assert/strict";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  truncateSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import type { Refusal } from "../src/error.ts";
import { xfs } from "../src/filesystems/xfs.ts";
import { checksumOf } from "../src/filesystems/xfs/refused.ts";
import { SuperblockLayout } from "../src/filesystems/xfs/superblock.ts";
import { prove } from "../src/reclaim/prove.ts";
import { fileDevice } from "../src/testing/file-device.ts";
import { withMount } from "../src/testing/kernel-guest.ts";
import { requires, requiresRoot, run, scratch } from "../src/testing/tools.ts";
import { makeXfs, xfsDb } from "../src/testing/xfs.ts";

const BYTES = 32 * 2 ** 20;
const folder = mkdtempSync(join(tmpdir(), "ullage-xfs-"));
after(() => rmSync(folder, { recursive: true }));

/** A file in pieces, with a tree of two levels; one that shares its blocks with another; names; free inodes. */
const FILL = `cd "$1"
i=0; while [ $i -lt 400 ]; do dd if=/dev/zero of=pieces bs=1000 count=1 seek=$((i * 5)) conv=notrunc status=none; i=$((i+1)); done
head -c 50000 /dev/urandom > original; cp --reflink=always original clone
head -c 50000 /dev/urandom > plain; head -c 9000 /dev/urandom > other
mkdir dir; for i in $(seq 200); do echo $i > "dir/entry number $i"; done; rm dir/*7*`;

let healthy: string | undefined;

/** A copy of the one filesystem that all wounds are inflicted on. */
function copyOfHealthy(t: TestContext): string {
  if (healthy === undefined) {
    healthy = join(folder, "healthy");
    makeXfs(healthy, "-b size=1024 -m rmapbt=1 -d agcount=2", `${BYTES}`);
    withMount(healthy, { start: 0, end: BYTES }, "rw", (root) => run("sh", ["-c", FILL, "sh", root]));
  }
  const copy = join(scratch(t), "image");
  run("cp", ["--sparse=always", healthy, copy]);
  return copy;
}

function flip(image: string, at: number): void {
  const file = openSync(image, "r+");
  const byte = Buffer.alloc(1);
  readSync(file, byte, 0, 1, at);
  writeSync(file, Buffer.from([byte[0]! ^ 0xff]), 0, 1, at);
  closeSync(file);
}

async function verdict(image: string): Promise<Refusal | undefined> {
  await using device = await fileDevice(image);
  const { refusal } = await prove(await xfs.open([device], { replay: false }), "full");
  return refusal;
}

const hurt = (image: string, ...commands: readonly string[]) =>
  run("xfs_db", ["-x", ...commands.flatMap((command) => ["-c", command]), image]);

const numberIn = (text: string) => Number(/= (\d+)/.exec(text)![1]);

/** The byte at which xfs_db stands after `commands`. */
const byteOf = (image: string, ...commands: string[]) =>
  Number(/byte offset (\d+)/.exec(xfsDb(image, ...commands, "addr"))![1]);

interface Wound {
  readonly name: string;
  readonly code: string;
  readonly message: RegExp;
  /** For xfs_db. */
  readonly commands?: readonly string[];
  readonly inflict?: (image: string) => void;
}

const flipAfter =
  (offset: number, ...commands: string[]) =>
  (image: string) =>
    flip(image, byteOf(image, ...commands) + offset);

const CHECKSUMS: readonly Wound[] = (
  [
    ["superblock", /^superblock/, flipAfter(110, "sb 0")],
    ["AGF", /^AGF of AG 0/, flipAfter(100, "agf 0")],
    ["AGI", /^AGI of AG 1/, flipAfter(100, "agi 1")],
    ["AGFL", /^AGFL of AG 1/, flipAfter(100, "agfl 1")],
    ["tree of free space by block", /by block of AG 0/, flipAfter(1000, "agf 0", "addr bnoroot")],
    ["tree of free space by size", /by size of AG 0/, flipAfter(1000, "agf 0", "addr cntroot")],
    ["tree of inodes", /inodes of AG 0/, flipAfter(1000, "agi 0", "addr root")],
    ["tree of free inodes", /free inodes of AG 0/, flipAfter(1000, "agi 0", "addr free_root")],
    ["tree of shared blocks", /shared blocks of AG 0/, flipAfter(1000, "agf 0", "addr refcntroot")],
    ["tree of owners", /owners of AG 0/, flipAfter(1000, "agf 0", "addr rmaproot")],
    ["inode", /^inode \d+: checksum/, flipAfter(50, "path /plain")],
    ["tree of extents", /data, block \d+ of level/, flipAfter(1000, "path /pieces", "addr u3.bmbt.ptrs[1]")],
  ] as const
).map(([name, message, inflict]) => ({
  name: `a flipped byte: ${name}`,
  code: "checksum",
  message,
  inflict,
}));

const WOUNDS: readonly Wound[] = [
  ...CHECKSUMS,
  {
    name: "the UUID of another filesystem",
    code: "damaged",
    message: /AGF of AG 0: it bears the UUID of another/,
    commands: ["agf 0", "write -d uuid 11111111-2222-3333-4444-555555555555"],
  },
  {
    name: "an AG of another length",
    code: "damaged",
    message: /AGF of AG 0: version 1, 99 blocks found/,
    commands: ["agf 0", "write -d length 99"],
  },
  {
    name: "a root outside of the AG",
    code: "damaged",
    message: /AG 0: a tree of 1 levels with its root in block 99999/,
    commands: ["agf 0", "write -d bnoroot 99999"],
  },
  {
    name: "the free list is miscounted",
    code: "contradiction",
    message: /AGFL of AG 0: 3 blocks from slot/,
    commands: ["agf 0", "write -d flcount 3"],
  },
  {
    name: "a block of the free list is free, too",
    code: "contradiction",
    message: /block 14000 is in the AGFL and free/,
    inflict: (image) => {
      const slot = numberIn(xfsDb(image, "agf 0", "print flfirst"));
      hurt(image, "agfl 0", `write -d bno[${slot}] 14000`);
    },
  },
  {
    name: "free blocks are miscounted in the AGF",
    code: "contradiction",
    message: /AGF of AG 0: 7 free blocks found/,
    commands: ["agf 0", "write -d freeblks 7"],
  },
  {
    name: "free blocks are miscounted in the superblock",
    code: "contradiction",
    message: /superblock: 7 free blocks found/,
    commands: ["sb 0", "write -d fdblocks 7"],
  },
  {
    name: "the longest free piece is another",
    code: "contradiction",
    message: /at most 7 by the AGF/,
    commands: ["agf 0", "write -d longest 7"],
  },
  {
    name: "the trees of free space differ",
    code: "contradiction",
    message: /only in the tree by size/,
    commands: ["agf 0", "addr cntroot", "write -d recs[1].startblock 1000"],
  },
  {
    name: "a free piece behind the end of the AG",
    code: "damaged",
    message: /free space of AG 0: 99999 blocks at/,
    commands: ["agf 0", "addr bnoroot", "write -d recs[1].blockcount 99999"],
  },
  {
    name: "a tree's block of another place",
    code: "damaged",
    message: /by block of AG 0, block \d+: it says it lies at sector 77/,
    commands: ["agf 0", "addr bnoroot", "write -d bno 77"],
  },
  {
    name: "a tree's block of another AG",
    code: "damaged",
    message: /of AG 5/,
    commands: ["agf 0", "addr bnoroot", "write -d owner 5"],
  },
  {
    name: "a tree's block with a neighbour that it cannot have",
    code: "contradiction",
    message: /neighbours 4294967295 and 9 found/,
    commands: ["agf 0", "addr bnoroot", "write -d rightsib 9"],
  },
  {
    name: "a tree that comes back to itself",
    code: "damaged|contradiction",
    message: /tree of owners of AG 0/,
    inflict: (image) => {
      const root = numberIn(xfsDb(image, "agf 0", "print rmaproot"));
      hurt(image, "agf 0", "addr rmaproot", `write -d ptrs[1] ${root}`);
    },
  },
  {
    name: "an AGF of another AG",
    code: "damaged",
    message: /AGF of AG 1: magic 0x58414746 of AG 0 found/,
    commands: ["agf 1", "write -d seqno 0"],
  },
  {
    name: "free space that begins before the one before it",
    code: "damaged",
    message: /free space of AG 0: \d+ blocks at 5 found, behind \d+ expected/,
    commands: ["agf 0", "addr bnoroot", "write -d recs[2].startblock 5"],
  },
  {
    name: "a block of another level",
    code: "damaged",
    message: /by block of AG 0, block \d+: \d+ entries in level 3 found/,
    commands: ["agf 0", "addr bnoroot", "write -d level 3"],
  },
  {
    name: "a node that says another key than its child",
    code: "contradiction",
    message: /owners of AG 0, block \d+: first key/,
    commands: ["agf 0", "addr rmaproot", "write -d keys[1].startblock 1"],
  },
  {
    name: "an inode in use is called free",
    code: "contradiction|damaged",
    message: /tree of inodes of AG 0: a chunk|AGI of AG 0/,
    commands: ["agi 0", "addr root", "write -d recs[1].freecount 1"],
  },
  {
    name: "inodes are miscounted",
    code: "contradiction",
    message: /AGI of AG 0: \d+ of 7 inodes free found/,
    commands: ["agi 0", "write -d count 7"],
  },
  {
    name: "the tree of free inodes differs",
    code: "contradiction",
    message: /tree of free inodes of AG 0: it differs/,
    commands: ["agi 0", "addr free_root", "write -d recs[1].free 0xff"],
  },
  {
    name: "an inode in use has no mode",
    code: "damaged",
    message: /inode \d+: no mode found/,
    commands: ["path /plain", "write -d core.mode 0"],
  },
  {
    name: "shared blocks where none can be",
    code: "damaged",
    message: /shared blocks of AG 0: \d+ blocks at 1 /,
    commands: ["agf 0", "addr refcntroot", "write -d recs[1].startblock 1"],
  },
  {
    name: "a free inode has a mode",
    code: "contradiction",
    message: /inode \d+: it has a mode, but its chunk calls it free/,
    inflict: (image) => {
      const records = xfsDb(image, "agi 0", "addr root", "print recs");
      const [, first, mask] = /\[(\d+),0,64,[1-9]\d*,(0x[0-9a-f]+)\]/.exec(records)!;
      const inode = Number(first) + BigInt(mask!).toString(2).length - 1;
      hurt(image, `inode ${inode}`, "write -d core.mode 0100644");
    },
  },
  {
    name: "a file shares its blocks without saying so",
    code: "contradiction",
    message: /block \d+ of inode \d+ belongs to another owner too/,
    commands: ["path /clone", "write -d v3.reflink 0"],
  },
  {
    name: "a directory names a free inode",
    code: "contradiction",
    message: /inode 9999 is free, but directory inode \d+ names it/,
    commands: ["path /", "write -d u3.sfdir3.list[2].inumber.i4 9999"],
  },
  {
    name: "a block of a directory of another inode",
    code: "damaged",
    message: /of directory inode \d+: .* belongs to inode 5/,
    commands: ["path /dir", "dblock 0", "write -d dhdr.hdr.owner 5"],
  },
  {
    name: "an unused entry without a length",
    code: "damaged",
    message: /of directory inode \d+: an entry at \d+ that does not fit/,
    inflict: (image) => {
      const [, entry] = /(du\[\d+\])\.freetag/.exec(xfsDb(image, "path /dir", "dblock 0", "print"))!;
      hurt(image, "path /dir", "dblock 0", `write -d ${entry}.length 0`);
    },
  },
  {
    name: "a name without an end",
    code: "damaged",
    message: /of directory inode \d+: an entry at \d+ that does not fit/,
    commands: ["path /dir", "dblock 0", "write -d du[3].namelen 0"],
  },
  {
    name: "the root is a file",
    code: "damaged",
    message: /0x8000 found, the root expected/,
    commands: ["path /", "write -d core.mode 0100644", "write -d core.format 2"],
  },
  {
    name: "the root is free",
    code: "contradiction",
    message: /inode 7, the root, is free/,
    commands: ["sb 0", "write -d rootino 7"],
  },
  {
    name: "an inode of another number",
    code: "damaged",
    message: /inode \d+: it says it is inode 5/,
    commands: ["path /plain", "write -d v3.inumber 5"],
  },
  {
    name: "a file's blocks are miscounted",
    code: "contradiction",
    message: /inode \d+: 49 blocks found, 7 expected/,
    commands: ["path /plain", "write -d core.nblocks 7"],
  },
  {
    name: "the extents of a tree are miscounted",
    code: "contradiction",
    message: /inode \d+: \d+ extents of its data found, 7 expected/,
    commands: ["path /pieces", "write -d core.nextents 7"],
  },
  {
    name: "an extent outside of the filesystem",
    code: "damaged",
    message: /inode \d+, data: 49 blocks at address 99999999/,
    commands: ["path /plain", "write -d u3.bmx[0].startblock 99999999"],
  },
  {
    name: "an extent in free space",
    code: "contradiction",
    message: /in use, but marked free: block 15000 of \/plain/,
    commands: ["path /plain", "write -d u3.bmx[0].startblock 15000"],
  },
  {
    name: "two files claim a block, and it is not a shared one",
    code: "contradiction",
    message: /belongs to another owner too/,
    inflict: (image) => {
      const [, start] = /\[0,(\d+),/.exec(xfsDb(image, "path /plain", "print u3.bmx"))!;
      hurt(image, "path /other", `write -d u3.bmx[0].startblock ${start}`);
    },
  },
  {
    name: "a file claims a block of a tree",
    code: "contradiction",
    message: /belongs to another owner too/,
    commands: ["path /other", "write -d u3.bmx[0].startblock 2"],
  },
  {
    name: "a file claims a block of the tree of another",
    code: "contradiction",
    message: /belongs to another owner too/,
    inflict: (image) => {
      const node = numberIn(xfsDb(image, "path /pieces", "print u3.bmbt.ptrs[1]"));
      const values = [`u3.bmx[0].startblock ${node}`, "u3.bmx[0].blockcount 1", "core.nblocks 1"];
      hurt(image, "path /other", ...values.map((value) => `write -d ${value}`));
    },
  },
  {
    name: "a tree of extents of another inode",
    code: "damaged",
    message: /belongs to inode 5/,
    commands: ["path /pieces", "addr u3.bmbt.ptrs[1]", "write -d owner 5"],
  },
  {
    name: "a fork in a format that it cannot have",
    code: "damaged",
    message: /format 1 of file type 0x8000/,
    commands: ["path /plain", "write -d core.format 1", "write -d core.size 10"],
  },
  {
    name: "more inside an inode than there is room for",
    code: "damaged",
    message: /inode \d+: 4000 bytes inside it found, room for \d+/,
    commands: ["path /", "write -d core.size 4000"],
  },
  {
    name: "an owner that only the third witness knows",
    code: "contradiction",
    message: /in use, but marked free: block 15000 of /,
    inflict: (image) => {
      // The last record of the last leaf, so that no key changes.
      const pointers = xfsDb(image, "agf 0", "addr rmaproot", "addr ptrs[1]", "print ptrs");
      const last = [...pointers.matchAll(/(\d+):\d+/g)].at(-1)![1];
      const leaf = ["agf 0", "addr rmaproot", "addr ptrs[1]", `addr ptrs[${last}]`];
      const count = numberIn(xfsDb(image, ...leaf, "print numrecs"));
      hurt(image, ...leaf, `write -d recs[${count}].startblock 15000`);
    },
  },
  {
    name: "a file on a realtime device that is not there",
    code: "damaged",
    message: /it lies on a realtime device/,
    commands: ["path /plain", "write -d core.realtime 1"],
  },
  {
    name: "shared blocks of one owner",
    code: "damaged",
    message: /tree of shared blocks of AG 0: .* of 1 owners/,
    commands: ["agf 0", "addr refcntroot", "write -d recs[1].refcount 1"],
  },
  {
    name: "mkfs that was not finished",
    code: "not-clean",
    message: /was not finished/,
    commands: ["sb 0", "write -d inprogress 1"],
  },
  {
    name: "blocks on a realtime device",
    code: "feature-unsupported",
    message: /7 blocks on a realtime device/,
    commands: ["sb 0", "write -d rblocks 7"],
  },
  {
    name: "a log on another device",
    code: "journal-missing",
    message: /device of its own/,
    commands: ["sb 0", "write -d logstart 0"],
  },
  {
    name: "a log across the end of its AG",
    code: "damaged",
    message: /a log of 99999 blocks/,
    commands: ["sb 0", "write -d logblocks 99999"],
  },
  {
    name: "a version that is too old",
    code: "feature-unsupported",
    message: /version 3 found, 4 or 5 expected/,
    commands: ["sb 0", "write -d versionnum 0xb4a3"],
  },
  {
    name: "a device that was cut",
    code: "truncated",
    message: /the device only 33000000/,
    inflict: (image) => truncateSync(image, 33_000_000),
  },
];

for (const { name, code, message, commands, inflict } of WOUNDS) {
  test(`refused: ${name}`, async (t) => {
    if (!requires(t, "mkfs.xfs", "xfs_db") || !requiresRoot(t)) return;
    const image = copyOfHealthy(t);
    if (commands !== undefined) hurt(image, ...commands);
    inflict?.(image);
    const refusal = await verdict(image);
    assert.ok(refusal, "not refused");
    assert.match(refusal.message, message);
    assert.match(refusal.code, new RegExp(`^(${code})$`));
    assert.notEqual(refusal.hint, "");
  });
}

test("without a wound it is not refused", async (t) => {
  if (!requires(t, "mkfs.xfs", "xfs_db") || !requiresRoot(t)) return;
  const image = copyOfHealthy(t);
  assert.equal(await verdict(image), undefined);
  assert.match(xfsDb(image, "path /pieces", "print u3.bmbt.level"), /= [2-9]/);
});

/** The bits of each word that are not refused. */
const VOUCHED = {
  versionnum: 0xfdf0,
  features2: 0x38a,
  compat: 0,
  roCompat: 0xf,
  incompat: 0xef,
  logIncompat: 0x1,
} as const;

test("every feature bit that is not vouched for is refused by name", async (t) => {
  if (!requires(t, "mkfs.xfs", "xfs_db") || !requiresRoot(t)) return;
  const image = copyOfHealthy(t);
  const before = readFileSync(image).subarray(0, 512);
  const file = openSync(image, "r+");
  t.after(() => closeSync(file));
  for (const [word, vouched] of Object.entries(VOUCHED) as [keyof typeof VOUCHED, number][]) {
    for (let bit = word === "versionnum" ? 4 : 0; bit < (word === "versionnum" ? 16 : 32); bit++) {
      const sector = Buffer.from(before);
      const value = (SuperblockLayout.decode(sector)[word] | (1 << bit)) >>> 0;
      SuperblockLayout.encode({ [word]: value }, sector);
      SuperblockLayout.encode({ checksum: checksumOf(sector, SuperblockLayout.at.checksum) }, sector);
      writeSync(file, sector, 0, 512, 0);
      const refusal = await verdict(image);
      const isRefused = refusal !== undefined && /^(feature-|needs-repair)/.test(refusal.code);
      assert.equal(isRefused, ((vouched >>> bit) & 1) === 0, `${word} bit ${bit}: ${refusal?.message}`);
    }
  }
});
