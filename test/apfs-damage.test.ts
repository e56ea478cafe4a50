import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { prove, type Proven } from "../src/reclaim/prove.ts";
import type { BlockDevice } from "../src/device/device.ts";
import { ContainerBlocks, CONTAINER_BYTES, makeContainer } from "../src/testing/apfs.ts";
import { blocksDevice } from "../src/testing/volume-blocks.ts";
import { requires, scratch } from "../src/testing/tools.ts";
import { apfs } from "../src/filesystems/apfs.ts";
import { TYPE } from "../src/filesystems/apfs/objects.ts";
import { SuperblockLayout } from "../src/filesystems/apfs/superblock.ts";
import { VolumeLayout } from "../src/filesystems/apfs/volume.ts";

let made: ContainerBlocks | undefined;

/** An empty container of mkapfs. */
function container(t: TestContext): ContainerBlocks | undefined {
  if (!requires(t, "mkapfs")) return undefined;
  return (made ??= new ContainerBlocks(makeContainer(scratch(t))));
}

async function judged(device: BlockDevice): Promise<Proven> {
  const proven = await prove(await apfs.open([device], { replay: false }), "full");
  if (proven.refusal) assert.equal(proven.free[0]!.count, 0, "what is refused gives nothing away");
  return proven;
}

type Change = (view: DataView) => void;
const set32 =
  (at: number, value: number): Change =>
  (view) =>
    view.setUint32(at, value, true);
const set64 =
  (at: number, value: number | bigint): Change =>
  (view) =>
    view.setBigUint64(at, BigInt(value), true);
const add32 =
  (at: number, by: number): Change =>
  (view) =>
    view.setUint32(at, view.getUint32(at, true) + by, true);

const NODE = { flags: 32, level: 34, records: 36, tableOffset: 40, tableLength: 42 };
const MAP = { flags: 32, snapshotTree: 56, revertMin: 72 };
const SPACE = {
  flags: 144,
  chunksPerInfo: 40,
  freeBlocks: 72,
  tier2Blocks: 96,
  addressesAt: 80,
  poolBlocks: 152,
};
const CHUNK = { start: 48, blocks: 56, free: 60, bitmap: 64 };
const at = SuperblockLayout.at;
const volumeAt = VolumeLayout.at;

/** The newest superblock, its twin in block 0, or another object of a type. */
const GUARDS: readonly [
  name: string,
  object: readonly [type: number, subtype?: number],
  change: Change,
  code: string,
  message: RegExp,
][] = [
  ["a Fusion drive", [TYPE.containerSuperblock], set64(at.incompat, 0x102), "feature-unsupported", /Fusion/],
  ["version 1", [TYPE.containerSuperblock], set64(at.incompat, 0x1), "feature-unsupported", /version 1/],
  ["no version", [TYPE.containerSuperblock], set64(at.incompat, 0), "damaged", /version/],
  ["longer than the disk", [TYPE.containerSuperblock], set64(at.blocks, 163841), "truncated", /163841/],
  ["being made smaller", [TYPE.containerSuperblock], set64(at.evictMappingTree, 9), "resizing", /smaller/],
  ["too many volumes", [TYPE.containerSuperblock], set32(at.volumesMax, 101), "damaged", /101/],
  ["a test object", [TYPE.containerSuperblock], set64(at.testObject, 9), "feature-unsupported", /test/],
  [
    "a checkpoint without maps",
    [TYPE.containerSuperblock],
    set32(at.descriptorLength, 1),
    "damaged",
    /checkpoint/,
  ],
  ["a reaper that is missing", [TYPE.containerSuperblock], set64(at.reaper, 4711), "damaged", /4711/],
  ["a map that is not the last", [TYPE.checkpointMap], set32(32, 0), "damaged", /flags 0 found/],
  ["a map of another transaction", [TYPE.checkpointMap], set64(16, 77), "damaged", /transaction/],
  ["more entries than a map holds", [TYPE.checkpointMap], set32(36, 102), "damaged", /102 entries/],
  ["an object outside the data area", [TYPE.checkpointMap], set64(40 + 32, 9), "damaged", /data area/],
  ["an object of another checkpoint", [TYPE.spaceManager], set64(16, 0), "damaged", /transaction/],
  [
    "unknown flags of the space manager",
    [TYPE.spaceManager],
    set32(SPACE.flags, 3),
    "feature-unsupported",
    /flags 3/,
  ],
  [
    "another layout of chunks",
    [TYPE.spaceManager],
    add32(SPACE.chunksPerInfo, 1),
    "damaged",
    /chunksPerInfo/,
  ],
  ["a second tier", [TYPE.spaceManager], set64(SPACE.tier2Blocks, 1), "feature-unsupported", /Fusion/],
  [
    "a wrong sum of free blocks",
    [TYPE.spaceManager],
    add32(SPACE.freeBlocks, 1),
    "contradiction",
    /free blocks/,
  ],
  ["addresses behind the end", [TYPE.spaceManager], set32(SPACE.addressesAt, 4096), "damaged", /addresses/],
  ["bitmaps outside a small pool", [TYPE.spaceManager], set64(SPACE.poolBlocks, 1), "damaged", /outside/],
  ["a chunk elsewhere", [TYPE.chunkInfo], set64(CHUNK.start, 1), "damaged", /chunk 0/],
  ["a chunk of other length", [TYPE.chunkInfo], add32(CHUNK.blocks, -1), "damaged", /chunk 0/],
  ["a bitmap outside of the pool", [TYPE.chunkInfo], set64(CHUNK.bitmap, 30000), "damaged", /outside/],
  ["no bitmap where blocks are used", [TYPE.chunkInfo], set64(CHUNK.bitmap, 0), "contradiction", /chunk 0/],
  ["something that is being deleted", [TYPE.reaper], set64(88, 1030), "deleting", /deleting/],
  ["a volume being encrypted", [TYPE.objectMap], set32(MAP.flags, 2), "encrypting", /encrypted/],
  ["a volume being reverted", [TYPE.objectMap], set64(MAP.revertMin, 3), "reverting", /reverted/],
  ["an unknown object map", [TYPE.objectMap], set32(MAP.flags, 0x20), "feature-unsupported", /0x20/],
  ["a root that is no root", [TYPE.treeRoot, TYPE.objectMap], set32(NODE.flags, 2), "damaged", /root/],
  [
    "an unknown kind of node",
    [TYPE.treeRoot, TYPE.objectMap],
    set32(NODE.flags, 0x27),
    "feature-unsupported",
    /0x27/,
  ],
  [
    "a leaf above the leaves",
    [TYPE.treeRoot, TYPE.objectMap],
    set32(NODE.flags, 0x10007),
    "damaged",
    /level/,
  ],
  [
    "more records than the table",
    [TYPE.treeRoot, TYPE.objectMap],
    set32(NODE.records, 900),
    "damaged",
    /900/,
  ],
  [
    "a table behind the end",
    [TYPE.treeRoot, TYPE.objectMap],
    set32(NODE.tableOffset, 5000),
    "damaged",
    /table/,
  ],
  ["records that nobody counted", [TYPE.treeRoot, TYPE.objectMap], set64(4096 - 16, 7), "damaged", /7 in 1/],
  [
    "keys outside of their node",
    [TYPE.treeRoot, TYPE.objectMap],
    (view) => view.setUint16(56, 0xfffe, true),
    "damaged",
    /record 0/,
  ],
  [
    "nodes of other length",
    [TYPE.treeRoot, TYPE.extentTree],
    set32(4096 - 36, 8192),
    "feature-unsupported",
    /8192/,
  ],
  ["a volume of other kind", [TYPE.volumeSuperblock], set32(volumeAt.magic, 1), "damaged", /APSB/],
  ["a volume to be reverted", [TYPE.volumeSuperblock], set64(volumeAt.revertTo, 3), "reverting", /reverted/],
  [
    "a volume in encryption",
    [TYPE.volumeSuperblock],
    set64(volumeAt.encryptionState, 3),
    "encrypting",
    /being/,
  ],
  ["an unfinished restore", [TYPE.volumeSuperblock], set64(volumeAt.incompat, 0x11), "restoring", /restore/],
  [
    "a structure with no name",
    [TYPE.volumeSuperblock],
    set64(volumeAt.reservedObject, 5),
    "feature-unsupported",
    /structure/,
  ],
  [
    "a snapshot that is missing",
    [TYPE.volumeSuperblock],
    set64(volumeAt.snapshots, 1),
    "contradiction",
    /snapshots/,
  ],
  ["a tree that is missing", [TYPE.volumeSuperblock], set64(volumeAt.tree, 999999), "damaged", /999999/],
  [
    "extent records of a virtual tree",
    [TYPE.volumeSuperblock],
    set32(volumeAt.extentTreeType, 2),
    "feature-unsupported",
    /0x2/,
  ],
  [
    "extent records in block 9",
    [TYPE.volumeSuperblock],
    set64(volumeAt.extentTree, 9),
    "checksum",
    /block 9/,
  ],
];

for (const [name, [type, subtype], change, code, message] of GUARDS) {
  test(`refused: ${name}`, async (t) => {
    const base = container(t);
    if (base === undefined) return;
    const { refusal } = await judged(base.changed({ [base.youngest(type, subtype)]: change }));
    assert.equal(refusal?.code, code, refusal?.message);
    assert.match(refusal.message, message);
  });
}

test("untouched, it is proven", async (t) => {
  const base = container(t);
  if (base === undefined) return;
  const { refusal, free, leakedBytes } = await judged(base.changed({}));
  assert.equal(refusal, undefined);
  assert.ok(free[0]!.bytes > CONTAINER_BYTES * 0.9);
  assert.equal(leakedBytes, 0);
});

test("a superblock that does not match its checksum is none; block 0 alone does not count", async (t) => {
  const base = container(t);
  if (base === undefined) return;
  const blocks = new Map(base.blocks);
  const newest = base.youngest(TYPE.containerSuperblock);
  const torn = blocks.get(newest)!.slice();
  torn[3000]! ^= 1;
  blocks.set(newest, torn);
  assert.match((await judged(blocksDevice(blocks, base.bytes))).refusal!.message, /no valid superblock/);
});

test("what block 0 says of the descriptor area: a tree, nothing, too much, outside", async (t) => {
  const base = container(t);
  if (base === undefined) return;
  const cases: readonly [Change, RegExp][] = [
    [set32(at.descriptorBlocks, 0x80000040), /fragmented/],
    [set64(at.descriptorBase, 2n ** 63n + 5n), /fragmented/],
    [set32(at.descriptorBlocks, 0), /0 blocks/],
    [set32(at.descriptorBlocks, 20000), /at most/],
    [set64(at.descriptorBase, 163840), /checkpoint descriptor area/],
    [set32(at.blockBytes, 12288), /power of two/],
    [set64(16, 99), /transaction 99/],
  ];
  for (const [change, message] of cases) {
    assert.match((await judged(base.changed({ 0: change }))).refusal!.message, message);
  }
});

test("every unknown bit of a feature refuses, and no known one", async (t) => {
  const base = container(t);
  if (base === undefined) return;
  const words: readonly [type: number, at: number, known: bigint][] = [
    [TYPE.containerSuperblock, at.features, 0x3n],
    [TYPE.containerSuperblock, at.roCompat, 0n],
    [TYPE.containerSuperblock, at.incompat, 0x2n],
    [TYPE.containerSuperblock, at.flags, 0x7n],
    [TYPE.volumeSuperblock, volumeAt.features, 0x1fn],
    [TYPE.volumeSuperblock, volumeAt.roCompat, 0n],
    [TYPE.volumeSuperblock, volumeAt.incompat, 0x2fn],
    [TYPE.volumeSuperblock, volumeAt.flags, 0x4fn],
  ];
  for (const [type, word, known] of words) {
    const block = base.youngest(type);
    for (let bit = 0n; bit < 64n; bit++) {
      const change: Change = (view) =>
        view.setBigUint64(word, view.getBigUint64(word, true) | (1n << bit), true);
      const opened = await apfs.open([base.changed({ [block]: change })], { replay: false });
      const isKnown = ((known >> bit) & 1n) === 1n;
      assert.equal(opened.refusal === undefined, isKnown, `word at ${word} of type ${type}, bit ${bit}`);
    }
  }
});

test("a bitmap has no checksum: one bit more or less, and the count tells", async (t) => {
  const base = container(t);
  if (base === undefined) return;
  const bitmap = Number(
    new DataView(base.blocks.get(base.youngest(TYPE.chunkInfo))!.buffer).getBigUint64(CHUNK.bitmap, true),
  );
  for (const byte of [0, 3000]) {
    const blocks: Map<number, Uint8Array> = new Map(base.blocks);
    const flipped = blocks.get(bitmap)!.slice();
    flipped[byte]! ^= 1;
    blocks.set(bitmap, flipped);
    assert.equal((await judged(blocksDevice(blocks, base.bytes))).refusal?.code, "contradiction");
  }
});

test("a block that is reached and marked free refuses, even where the counts agree", async (t) => {
  const base = container(t);
  if (base === undefined) return;
  const info = new DataView(base.blocks.get(base.youngest(TYPE.chunkInfo))!.buffer);
  const bitmap = Number(info.getBigUint64(CHUNK.bitmap, true));
  const tree = base.youngest(TYPE.treeRoot, TYPE.fileTree);
  const blocks = new Map(base.blocks);
  const swapped = blocks.get(bitmap)!.slice();
  swapped[tree >> 3]! &= ~(1 << (tree & 7));
  swapped[30000 >> 3]! |= 1 << (30000 & 7);
  blocks.set(bitmap, swapped);
  const { refusal } = await judged(blocksDevice(blocks, base.bytes));
  assert.equal(refusal?.code, "contradiction");
  assert.match(refusal.message, /file-system tree/);
});
