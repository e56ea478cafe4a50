import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { CheckpointLayout, FLAG } from "../src/filesystems/f2fs/checkpoint.ts";
import { FEATURE, SUPERBLOCK_AT, SuperblockLayout } from "../src/filesystems/f2fs/superblock.ts";
import { f2fs } from "../src/filesystems/f2fs.ts";
import { prove, type Proven } from "../src/reclaim/prove.ts";
import { makeVolume, reseal } from "../src/testing/f2fs.ts";
import { requires, run, scratch } from "../src/testing/tools.ts";
import {
  type Blocks,
  blocksDevice,
  changedBlocks,
  type Changes,
  readBlocks,
} from "../src/testing/volume-blocks.ts";

interface Base {
  readonly bytes: number;
  readonly blocks: Blocks;
  /** Block of the newer checkpoint's head, and how many blocks it has. */
  readonly head: number;
  readonly length: number;
  /** Blocks of the root inode and of a file with a node of its own, and of that node. */
  readonly root: number;
  readonly file: number;
  readonly node: number;
}

let made: Base | undefined;

/** A volume that sload.f2fs filled. */
function volume(t: TestContext): Base | undefined {
  if (!requires(t, "mkfs.f2fs", "sload.f2fs")) return undefined;
  return (made ??= make(scratch(t)));
}

function make(folder: string): Base {
  const image = makeVolume(folder, "image", ["-O", "extra_attr,inode_checksum,sb_checksum"], 100);
  mkdirSync(join(folder, "tree"));
  writeFileSync(join(folder, "tree/large"), Buffer.alloc(5_000_000, "large"));
  writeFileSync(join(folder, "tree/small"), "small");
  run("sload.f2fs", ["-f", join(folder, "tree"), image]);
  const { bytes, blocks } = readBlocks(image);
  const wordsOf = (block: number) => new DataView(blocks.get(block)!.buffer);
  const versions = [512, 1024].map((block) => wordsOf(block).getBigUint64(0, true));
  const head = versions[1]! > versions[0]! ? 1024 : 512;
  const nodes = [...blocks.keys()].filter((block) => block >= 4096);
  const isOf = (block: number, isInode: boolean) => {
    const [id, inode] = [wordsOf(block).getUint32(4072, true), wordsOf(block).getUint32(4076, true)];
    return (
      inode > 3 && inode < 20 && (id === inode) === isInode && wordsOf(block).getUint32(4080, true) >>> 3 < 3
    );
  };
  return {
    bytes,
    blocks,
    head,
    length: wordsOf(head).getUint32(CheckpointLayout.at.blocks, true),
    root: nodes.findLast((block) => wordsOf(block).getUint32(4072, true) === 3)!,
    file: nodes.find((block) => isOf(block, true) && wordsOf(block).getUint32(16, true) === 5_000_000)!,
    node: nodes.find((block) => isOf(block, false))!,
  };
}

async function judged({ blocks, bytes }: Base, changes: Changes): Promise<Proven> {
  const device = blocksDevice(changedBlocks(blocks, changes, reseal), bytes);
  const proven = await prove(await f2fs.open([device], { replay: false }), "full");
  if (proven.refusal) assert.equal(proven.free[0]!.count, 0, "what is refused gives nothing away");
  return proven;
}

type Change = (view: DataView) => void;
const set32 =
  (at: number, value: number): Change =>
  (view) =>
    view.setUint32(at, value, true);
const add32 =
  (at: number, by: number): Change =>
  (view) =>
    view.setUint32(at, view.getUint32(at, true) + by, true);
const flag =
  (bit: number): Change =>
  (view) =>
    view.setUint32(cp.flags, view.getUint32(cp.flags, true) | bit, true);

const at = Object.fromEntries(
  Object.entries(SuperblockLayout.at).map(([name, offset]) => [name, offset + SUPERBLOCK_AT]),
) as { [K in keyof typeof SuperblockLayout.at]: number };
const cp = CheckpointLayout.at;
const FOOTER = { id: 4072, inode: 4076, place: 4080 };

const OF_SUPERBLOCK: readonly [name: string, change: Change, code: string, message: RegExp][] = [
  ["several devices", (view) => view.setUint8(at.devices, 47), "feature-unsupported", /several devices/],
  ["noticed errors", (view) => view.setUint8(at.errors, 1), "error-state", /errors/],
  ["other blocks", set32(at.logBlock, 13), "feature-unsupported", /2\^13/],
  ["longer than the disk", set32(at.blocks, 25601), "truncated", /25601/],
  ["an area elsewhere", add32(at.sit, 512), "damaged", /area/],
  ["an area too large", add32(at.mainSegments, 512), "damaged", /areas|area/],
  ["a SIT of one copy", add32(at.sitSegments, 1), "damaged", /area/],
  ["a checksum elsewhere", set32(at.checksumOffset, 12), "damaged", /checksum at 12/],
];

for (const [name, change, code, message] of OF_SUPERBLOCK) {
  test(`refused: ${name}`, async (t) => {
    const base = volume(t);
    if (base === undefined) return;
    const { refusal } = await judged(base, { 0: change });
    assert.equal(refusal?.code, code, refusal?.message);
    assert.match(refusal.message, message);
  });
}

const OF_CHECKPOINT: readonly [name: string, change: Change, code: string, message: RegExp][] = [
  ["an error", flag(FLAG.error), "not-clean", /checked/],
  ["wanted fsck", flag(FLAG.fsck), "not-clean", /checked/],
  ["wanted fsck of quotas", flag(FLAG.quotaFsck), "not-clean", /checked/],
  ["checkpoints switched off", flag(FLAG.disabled), "not-clean", /switched off/],
  ["a resize", flag(FLAG.resizing), "not-clean", /resized/],
  ["an unknown flag", flag(0x8000), "feature-unsupported", /0x8000/],
  [
    "a mounted volume",
    (view) => view.setUint32(cp.flags, view.getUint32(cp.flags, true) & ~1, true),
    "not-clean",
    /mounted/,
  ],
  ["a wrong sum of valid blocks", add32(cp.validBlocks, 1), "contradiction", /valid blocks/],
  ["a log outside", set32(36 + 4, 1 << 20), "contradiction", /./],
];

for (const [name, change, code, message] of OF_CHECKPOINT) {
  test(`refused: ${name}, in a checkpoint`, async (t) => {
    const base = volume(t);
    if (base === undefined) return;
    // Without an older one to go back to.
    const other = base.head === 512 ? 1024 : 512;
    const foot = base.head + base.length - 1;
    const gone = (view: DataView) => new Uint8Array(view.buffer).fill(0);
    const { refusal } = await judged(base, { [base.head]: change, [foot]: change, [other]: gone });
    if (name === "a log outside") return assert.match(refusal!.message, /neither/);
    assert.equal(refusal?.code, code, refusal?.message);
    assert.match(refusal.message, message);
  });
}

const OF_NODES: readonly [
  name: string,
  block: (base: Base) => number,
  change: Change,
  code: string,
  message: RegExp,
][] = [
  ["a node of another number", ({ node }) => node, add32(FOOTER.id, 1), "damaged", /node/],
  ["a node of another inode", ({ node }) => node, add32(FOOTER.inode, 1), "damaged", /of inode/],
  ["an inode that is none", ({ file }) => file, add32(FOOTER.place, 8), "damaged", /place/],
  ["an inode that was changed", ({ file }) => file, add32(48, 1), "checksum", /inode/],
  ["a block outside of the main area", ({ node }) => node, set32(0, 100), "damaged", /main area/],
  ["a block that is free", ({ node }) => node, set32(0, 25599), "contradiction", /./],
  [
    "a block with two owners",
    ({ node }) => node,
    (view) => view.setUint32(0, view.getUint32(4, true), true),
    "contradiction",
    /another owner/,
  ],
];

for (const [name, block, change, code, message] of OF_NODES) {
  test(`refused: ${name}`, async (t) => {
    const base = volume(t);
    if (base === undefined) return;
    const { refusal } = await judged(base, { [block(base)]: change });
    assert.equal(refusal?.code, code, refusal?.message);
    assert.match(refusal.message, message);
  });
}

test("untouched, it is proven", async (t) => {
  const base = volume(t);
  if (base === undefined) return;
  const { refusal, leakedBytes, free } = await judged(base, {});
  assert.equal(refusal, undefined);
  assert.equal(leakedBytes, 0);
  assert.ok(free[0]!.bytes > 30_000_000);
});

test("every unknown feature refuses, and no known one but that of zoned devices", async (t) => {
  const base = volume(t);
  if (base === undefined) return;
  const known: number = Object.values(FEATURE).reduce((all: number, bit) => all | bit, 0) & ~FEATURE.zoned;
  for (let bit = 0; bit < 32; bit++) {
    const change: Change = (view) =>
      view.setUint32(at.features, view.getUint32(at.features, true) | (1 << bit), true);
    const device = blocksDevice(changedBlocks(base.blocks, { 0: change }, reseal), base.bytes);
    const { refusal } = await f2fs.open([device], { replay: false });
    assert.equal(refusal === undefined, ((known >>> bit) & 1) === 1, `bit ${bit}: ${refusal?.message}`);
  }
});

test("the segment table: a bit more or less, and the count tells", async (t) => {
  const base = volume(t);
  if (base === undefined) return;
  const tables = [...base.blocks.keys()].filter((block) => block >= 1536 && block < 2560);
  const told: string[] = [];
  for (const block of tables) {
    const { refusal } = await judged(base, {
      [block]: (view) => view.setUint8(2 + 20, view.getUint8(2 + 20) ^ 1),
    });
    if (refusal !== undefined) told.push(refusal.message);
  }
  assert.match(told.join(), /segment \d+: \d+ valid blocks found/);
});

test("nodes behind a clean checkpoint would be recovered by a mount", async (t) => {
  const base = volume(t);
  if (base === undefined) return;
  const view = new DataView(base.blocks.get(base.head)!.buffer);
  const segment = view.getUint32(36 + 4, true);
  const next = 4096 + segment * 512 + view.getUint16(68 + 2, true);
  const version = view.getBigUint64(0, true);
  const { refusal } = await judged(base, { [next]: (node) => node.setBigUint64(4084, version, true) });
  assert.match(refusal!.message, /behind the checkpoint/);
});

test("what the earlier checkpoint calls valid is kept", async (t) => {
  if (!requires(t, "mkfs.f2fs")) return;
  const { bytes, blocks } = readBlocks(makeVolume(scratch(t), "empty", [], 100));
  const proven = async (changes: Changes) => {
    const device = blocksDevice(changedBlocks(blocks, changes, reseal), bytes);
    return prove(await f2fs.open([device], { replay: false }), "full");
  };
  const [newest, other] = [512, 1024];
  const view = new DataView(blocks.get(newest)!.buffer);
  const length = view.getUint32(cp.blocks, true);
  assert.ok(view.getBigUint64(0, true) > new DataView(blocks.get(other)!.buffer).getBigUint64(0, true));
  assert.ok((view.getUint32(cp.flags, true) & FLAG.compact) !== 0);

  const earlier: Record<number, Change> = {};
  for (let index = 0; index < length; index++) {
    earlier[other + index] = (words) => {
      new Uint8Array(words.buffer).set(blocks.get(newest + index) ?? new Uint8Array(4096));
      if (index > 0 && index < length - 1) return;
      words.setBigUint64(0, words.getBigUint64(0, true) - 1n, true);
      words.setUint32(cp.validBlocks, words.getUint32(cp.validBlocks, true) + 1, true);
    };
  }
  const summaries = other + view.getUint32(cp.summaries, true);
  const copy = earlier[summaries]!;
  let segment = -1;
  earlier[summaries] = (words) => {
    copy(words);
    for (let entry = 507 + 2; segment < 0; entry += 78) {
      if ((words.getUint16(entry + 4, true) & 0x3ff) !== 0) continue;
      segment = words.getUint32(entry, true);
      words.setUint16(entry + 4, words.getUint16(entry + 4, true) + 1, true);
      words.setUint8(entry + 6, 0x80);
    }
  };
  const { refusal, free } = await proven(earlier);
  assert.equal(refusal, undefined);
  const kept = (4096 + segment * 512) * 4096;
  const before = await proven({});
  assert.deepEqual([...before.free[0]!.subtract(free[0]!)], [{ start: kept, end: kept + 4096 }]);
});
