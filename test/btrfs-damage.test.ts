/**
 * Every guard of the Btrfs reader, each with a damage that it must notice: bytes changed in a volume that mkfs.btrfs
 * made, with its checksums set right again.
 */
import assert from "node:assert/strict";
import { mkdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { viewOf } from "../src/bytes/struct.ts";
import { btrfs } from "../src/filesystems/btrfs.ts";
import { Node } from "../src/filesystems/btrfs/node.ts";
import { SUPERBLOCK_AT, SuperblockLayout } from "../src/filesystems/btrfs/superblock.ts";
import { prove, type Proven } from "../src/reclaim/prove.ts";
import { fuzzDevice } from "../src/testing/fuzz.ts";
import { requires, run, scratch } from "../src/testing/tools.ts";
import { fixChecksums, nodesOf, usedLength } from "./fuzz/btrfs-checksums.ts";

const MiB = 2 ** 20;
const DEVICE_BYTES = 24 * MiB;
const NODE_BYTES = 4096;

let made: Uint8Array | undefined;

/** A small volume with some files, whose data have extents of their own. */
function pristine(t: TestContext): Uint8Array {
  if (made !== undefined) return made.slice();
  const folder = scratch(t);
  const [image, tree] = [join(folder, "image"), join(folder, "tree")];
  writeFileSync(image, "");
  truncateSync(image, DEVICE_BYTES);
  mkdirSync(tree);
  for (let i = 0; i < 40; i++) writeFileSync(join(tree, `file${i}`), Buffer.alloc(i * 500, i));
  run("mkfs.btrfs", ["-q", "--mixed", "-r", tree, image]);
  const whole = readFileSync(image);
  made = new Uint8Array(whole.subarray(0, usedLength(whole)));
  return made.slice();
}

const judged = async (bytes: Uint8Array): Promise<Proven> =>
  prove(await btrfs.open([fuzzDevice(bytes, DEVICE_BYTES)], { replay: false }), "full");

interface Place {
  readonly view: DataView;
  readonly node: Node;
  readonly index: number;
  /** Of the item. */
  readonly at: number;
}

/** The first item of such a type in the current tree `owner`. */
function itemOf(bytes: Uint8Array, owner: bigint, type: number, accepts?: (place: Place) => boolean): Place {
  let newest: Place | undefined;
  let generation = -1n;
  for (const at of nodesOf(bytes)) {
    const node = new Node(at, bytes.subarray(at, at + NODE_BYTES));
    if (node.level !== 0 || node.view.getBigUint64(88, true) !== owner) continue;
    if (node.view.getBigUint64(80, true) <= generation) continue;
    for (let index = 0; index < node.count; index++) {
      const place = { view: node.view, node, index, at: node.itemPlace(index) };
      if (node.type(index) !== type || accepts?.(place) === false) continue;
      newest = place;
      generation = node.view.getBigUint64(80, true);
      break;
    }
  }
  assert.ok(newest, `an item of type ${type} in tree ${owner}`);
  return newest;
}

const isLast = ({ node, index }: Place): boolean => index === node.count - 1;

const [ROOT, EXTENT, CHUNK, DEVICE, FILES, FREE_SPACE] = [1n, 2n, 3n, 4n, 5n, 10n];
const superblock = (bytes: Uint8Array) => viewOf(bytes.subarray(SUPERBLOCK_AT));
const setField = (field: keyof typeof SuperblockLayout.at, value: bigint) => (bytes: Uint8Array) =>
  superblock(bytes).setBigUint64(SuperblockLayout.at[field], value, true);

/** What is changed, the code of the refusal, and a word of its message. */
const DAMAGES: Readonly<Record<string, readonly [(bytes: Uint8Array) => void, string, RegExp]>> = {
  "a log tree waits": [setField("logRoot", 5_242_880n), "journal-dirty", /log tree/],
  "another device is missing": [setField("devices", 2n), "members-missing", /2 devices/],
  "too many devices": [setField("devices", 1n << 40n), "damaged", /devices/],
  "the device is longer than the image": [setField("deviceBytes", BigInt(25 * MiB)), "truncated", /25165824/],
  "the device has another length in the chunk tree": [
    setField("deviceBytes", BigInt(23 * MiB)),
    "damaged",
    /in the chunk tree/,
  ],
  "used bytes do not add up": [setField("usedBytes", 4096n), "contradiction", /4096 used bytes/],
  "the root is of another generation": [setField("generation", 5000n), "damaged", /generation/],
  "a number past 2^53": [setField("totalBytes", 1n << 60n), "unsupported", /8 PiB/],
  "an unknown checksum": [
    (bytes) => superblock(bytes).setUint16(SuperblockLayout.at.checksumType, 9, true),
    "feature-unsupported",
    /checksums of type 9/,
  ],
  "sectors of odd length": [
    (bytes) => superblock(bytes).setUint32(SuperblockLayout.at.sectorBytes, 5000, true),
    "damaged",
    /5000/,
  ],
  "the superblock lies elsewhere": [setField("at", 4096n), "damaged", /4096/],
  "the fsid of the device": [
    (bytes) => bytes.fill(7, SUPERBLOCK_AT + SuperblockLayout.at.deviceFsid).subarray(0),
    "checksum",
    /superblock/,
  ],
  "a stripe on another device": [
    (bytes) => {
      const { view, at } = itemOf(bytes, CHUNK, 228);
      view.setBigUint64(at + 48, 9n, true);
    },
    "members-missing",
    /device 9/,
  ],
  "a stripe behind the end": [
    (bytes) => {
      const { view, at } = itemOf(bytes, CHUNK, 228);
      view.setBigUint64(at + 56, BigInt(24 * MiB), true);
    },
    "damaged",
    /stripe at 25165824/,
  ],
  RAID6: [
    (bytes) => {
      const { view, at } = itemOf(bytes, CHUNK, 228);
      view.setBigUint64(at + 24, 1n | (1n << 8n), true);
    },
    "feature-unsupported",
    /RAID6/,
  ],
  "a chunk of an unknown kind": [
    (bytes) => {
      const { view, at } = itemOf(bytes, CHUNK, 228);
      view.setBigUint64(at + 24, 1n | (1n << 30n), true);
    },
    "feature-unsupported",
    /type/,
  ],
  "a chunk with too many stripes": [
    (bytes) => {
      const { view, at } = itemOf(bytes, CHUNK, 228);
      view.setUint16(at + 44, 2, true);
    },
    "damaged",
    /2 stripes/,
  ],
  "a device extent of no chunk": [
    (bytes) => {
      const { view, node, index } = itemOf(bytes, DEVICE, 204);
      view.setBigUint64(node.keyPlace(index) + 9, BigInt(node.offset(index) + 4096), true);
    },
    "damaged",
    /no such stripe/,
  ],
  "a stripe without a device extent": [
    (bytes) => {
      const { view, node, index } = itemOf(bytes, DEVICE, 204, isLast);
      view.setUint8(node.keyPlace(index) + 8, 249);
    },
    "damaged",
    /no extent for/,
  ],
  "a device that is being replaced": [
    (bytes) => {
      const { view, node, index } = itemOf(bytes, DEVICE, 204, isLast);
      view.setUint8(node.keyPlace(index) + 8, 250);
    },
    "device-replace",
    /replaced/,
  ],
  "a chunk without a block group": [
    (bytes) => {
      const { view, node, index } = itemOf(bytes, EXTENT, 192);
      view.setUint8(node.keyPlace(index) + 8, 184);
    },
    "damaged",
    /no block group/,
  ],
  "a block group that counts wrongly": [
    (bytes) => {
      const { view, at } = itemOf(bytes, EXTENT, 192);
      view.setBigUint64(at, view.getBigUint64(at, true) + 4096n, true);
    },
    "contradiction",
    /block group/,
  ],
  "an extent that is not listed": [
    (bytes) => {
      const { view, node, index } = itemOf(bytes, EXTENT, 168);
      view.setUint8(node.keyPlace(index) + 8, 172);
    },
    "contradiction",
    /used bytes found/,
  ],
  "an extent without references": [
    (bytes) => {
      const { view, at } = itemOf(bytes, EXTENT, 168);
      view.setBigUint64(at, 0n, true);
    },
    "damaged",
    /no references/,
  ],
  "two extents on one place": [
    (bytes) => {
      const { view, node, index } = itemOf(bytes, EXTENT, 168);
      view.setBigUint64(node.keyPlace(index) + 9, BigInt(node.offset(index) + 4096), true);
    },
    "contradiction",
    /another extent/,
  ],
  "a free space tree that disagrees": [
    (bytes) => {
      const isLong = ({ node, index }: Place) => node.offset(index) > 4096;
      const { view, node, index } = itemOf(bytes, FREE_SPACE, 199, isLong);
      view.setBigUint64(node.keyPlace(index) + 9, 4096n, true);
    },
    "contradiction",
    /free space tree/,
  ],
  "data in free space": [
    (bytes) => {
      const { view, at } = itemOf(bytes, FILES, 108, (place) => place.view.getUint8(place.at + 20) === 1);
      const chunk = itemOf(bytes, CHUNK, 228, isLast);
      const end = chunk.node.offset(chunk.index) + Number(chunk.view.getBigUint64(chunk.at, true));
      view.setBigUint64(at + 21, BigInt(end - 65_536), true);
    },
    "contradiction",
    /in use, but marked free/,
  ],
  "data on a node": [
    (bytes) => {
      const { view, at } = itemOf(bytes, FILES, 108, (place) => place.view.getUint8(place.at + 20) === 1);
      view.setBigUint64(at + 21, superblock(bytes).getBigUint64(SuperblockLayout.at.root, true), true);
    },
    "contradiction",
    /a node lies there|another owner/,
  ],
  "data in no chunk": [
    (bytes) => {
      const { view, at } = itemOf(bytes, FILES, 108, (place) => place.view.getUint8(place.at + 20) === 1);
      view.setBigUint64(at + 21, 1n << 40n, true);
    },
    "damaged",
    /one chunk/,
  ],
  "an unknown kind of data": [
    (bytes) => {
      const { view, at } = itemOf(bytes, FILES, 108);
      view.setUint8(at + 20, 3);
    },
    "damaged",
    /kind 3/,
  ],
  "encrypted data": [
    (bytes) => {
      const { view, at } = itemOf(bytes, FILES, 108);
      view.setUint8(at + 17, 1);
    },
    "feature-unsupported",
    /encryption/,
  ],
  "an item of an unknown type": [
    (bytes) => {
      const { view, node, index } = itemOf(bytes, FILES, 1);
      view.setUint8(node.keyPlace(index) + 8, 9);
    },
    "damaged",
    /unknown type 9/,
  ],
  "an item behind the end of its node": [
    (bytes) => {
      const { view, node, index } = itemOf(bytes, FILES, 1);
      view.setUint32(node.keyPlace(index) + 17, 4096, true);
    },
    "damaged",
    /lies at/,
  ],
  "keys out of order": [
    (bytes) => {
      const { view, node, index } = itemOf(bytes, FILES, 84);
      view.setBigUint64(node.keyPlace(index), 1n << 40n, true);
    },
    "damaged",
    /does not follow/,
  ],
  "a node of another tree": [
    (bytes) => itemOf(bytes, DEVICE, 204).view.setBigUint64(88, 7n, true),
    "damaged",
    /tree 7 found, 4 expected/,
  ],
  "a root at an impossible level": [
    (bytes) => {
      const root = superblock(bytes).getBigUint64(SuperblockLayout.at.root, true);
      const isCurrent = ({ view }: Place) => view.getBigUint64(48, true) === root;
      const { view, at } = itemOf(bytes, ROOT, 132, isCurrent);
      view.setUint8(at + 238, 8);
    },
    "damaged",
    /level 8/,
  ],
};

for (const [name, [damage, code, message]] of Object.entries(DAMAGES)) {
  test(`refused: ${name}`, async (t) => {
    if (!requires(t, "mkfs.btrfs")) return;
    const bytes = pristine(t);
    damage(bytes);
    if (code !== "checksum") fixChecksums(bytes);
    const { refusal, free } = await judged(bytes);
    assert.equal(refusal?.code, code, refusal?.message);
    assert.match(refusal.message, message);
    assert.equal(free[0]!.bytes, 0);
  });
}

test("every node and superblock is read under its checksum", async (t) => {
  if (!requires(t, "mkfs.btrfs")) return;
  const whole = pristine(t);
  assert.equal((await judged(whole)).refusal, undefined);
  let found = 0;
  for (const at of [SUPERBLOCK_AT, ...nodesOf(whole)]) {
    const bytes = pristine(t);
    bytes[at + 3000]! ^= 1;
    const { refusal } = await judged(bytes);
    if (refusal !== undefined) assert.equal(refusal.code, "checksum", `byte at ${at}: ${refusal.message}`);
    if (refusal !== undefined) found++;
  }
  assert.ok(found > 8, `${found} nodes of the current trees`);
});

/** The bits that are vouched for, set or not. */
const VOUCHED: Readonly<Record<string, readonly number[]>> = {
  incompat: [0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 16],
  compatRo: [0, 1, 2, 3],
  compat: [],
  flags: [0, 1, 33, 34],
};

for (const [field, vouched] of Object.entries(VOUCHED)) {
  test(`each bit of ${field} is known, or refused by its name or number`, async (t) => {
    if (!requires(t, "mkfs.btrfs")) return;
    for (let bit = 0; bit < 64; bit++) {
      const bytes = pristine(t);
      const view = superblock(bytes);
      const at = SuperblockLayout.at[field as "incompat"];
      view.setBigUint64(at, view.getBigUint64(at, true) | (1n << BigInt(bit)), true);
      fixChecksums(bytes);
      const { refusal } = await judged(bytes);
      if (!vouched.includes(bit)) assert.ok(refusal !== undefined, `bit ${bit}`);
      // Without a tree of free space or of block groups, or another UUID for nodes, the bit is a lie.
      else if (field !== "compatRo" || bit === 2) assert.equal(refusal, undefined, `bit ${bit}`);
    }
  });
}
