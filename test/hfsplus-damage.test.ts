/**
 * Each guard of the HFS+ reader, with a damage that it must notice.
 */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { viewOf } from "../src/bytes/struct.ts";
import { hfsplus } from "../src/filesystems/hfsplus.ts";
import { TreeHeader } from "../src/filesystems/hfsplus/tree.ts";
import { VolumeHeader } from "../src/filesystems/hfsplus/volume-header.ts";
import { prove } from "../src/reclaim/prove.ts";
import { fuzzDevice } from "../src/testing/fuzz.ts";
import { makeHfsPlus, type HfsPlusOptions } from "../src/testing/hfsplus.ts";

const BLOCK_BYTES = 1024;
const NODE_BYTES = 1024;
const HEADER_AT = 1024;

const FILES = Array.from({ length: 30 }, (_, i) => ({
  name: `file${i}`,
  data: 1 + (i % 12),
  attribute: i === 3 ? 20 : 0,
}));

const OPTIONS: HfsPlusOptions = {
  bytes: 2 ** 21,
  blockBytes: BLOCK_BYTES,
  nodeBytes: NODE_BYTES,
  hasAttributes: true,
  badBlocks: 3,
  journal: "empty",
  files: FILES,
};

function made(options: HfsPlusOptions): Uint8Array {
  const folder = mkdtempSync(join(tmpdir(), "ullage-"));
  try {
    const path = join(folder, "volume.img");
    makeHfsPlus(path, options);
    return new Uint8Array(readFileSync(path));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const SOUND = made(OPTIONS);

/** The volume, with the places in it that are damaged. */
class Damaged {
  readonly bytes: Uint8Array;
  readonly view: DataView;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes.slice();
    this.view = viewOf(this.bytes);
  }

  header(field: keyof typeof VolumeHeader.at): number {
    return HEADER_AT + VolumeHeader.at[field];
  }

  /** Where a special file lies. */
  file(field: "allocation" | "extents" | "catalog" | "attributesFile"): number {
    return this.view.getUint32(this.header(field) + 16) * BLOCK_BYTES;
  }

  tree(field: "extents" | "catalog" | "attributesFile", name: keyof typeof TreeHeader.at): number {
    return this.file(field) + TreeHeader.at[name];
  }

  node(field: "extents" | "catalog" | "attributesFile", number: number): number {
    return this.file(field) + number * NODE_BYTES;
  }

  journal(): number {
    return this.view.getUint32(this.header("journalInfoBlock")) * BLOCK_BYTES;
  }

  /** Where the data of the first record is whose name is `name`. */
  record(name: string): number {
    const key = Buffer.alloc(2 + 2 * name.length);
    key.writeUInt16BE(name.length);
    for (let i = 0; i < name.length; i++) key.writeUInt16BE(name.charCodeAt(i), 2 + 2 * i);
    return Buffer.from(this.bytes.buffer).indexOf(key, this.file("catalog")) + key.length;
  }

  /** Where the data of the first attribute of a type is, but for the very first, which is a short one. */
  attribute(type: number): number {
    const data = Buffer.from([0, 0, 0, type, 0, 0, 0, 0]);
    return Buffer.from(this.bytes.buffer).indexOf(data, this.node("attributesFile", 1) + 48);
  }

  add(at: number, by: number): void {
    this.view.setUint32(at, this.view.getUint32(at) + by);
  }
}

const DATA_FORK = 88;
const FORK = { blocks: 12, firstStart: 16, firstCount: 20 };

interface Damage {
  readonly name: string;
  readonly damage: (volume: Damaged) => void;
  readonly code: string;
  readonly message: RegExp;
}

const VOLUME: readonly Damage[] = [
  {
    name: "another version",
    damage: ({ view }) => view.setUint16(HEADER_AT + 2, 5),
    code: "feature-unknown",
    message: /version 5 found, 4 expected/,
  },
  {
    name: "fsck_hfs gave up",
    damage: (volume) => volume.bytes.set(Buffer.from("FSK!"), volume.header("lastMountedVersion")),
    code: "error-state",
    message: /inconsistent/,
  },
  {
    name: "a startup file that is not whole",
    damage: (volume) => volume.view.setUint32(volume.header("startup") + FORK.blocks, 5),
    code: "contradiction",
    message: /startup file: its extents are not 5 blocks/,
  },
  {
    name: "not unmounted",
    damage: (volume) => volume.view.setUint32(volume.header("attributes"), 0x2000),
    code: "not-clean",
    message: /not unmounted/,
  },
  {
    name: "blocks that are no power of two",
    damage: (volume) => volume.view.setUint32(volume.header("blockBytes"), 1536),
    code: "damaged",
    message: /block size 1536/,
  },
  {
    name: "more blocks than the device has",
    damage: (volume) => volume.view.setUint32(volume.header("blocks"), 0x10000000),
    code: "truncated",
    message: /but the device has 2097152/,
  },
  {
    name: "no copy of the header",
    damage: ({ bytes }) => bytes.fill(0, bytes.length - 1024),
    code: "damaged",
    message: /no copy of the volume header/,
  },
  {
    name: "a copy that differs",
    damage: ({ bytes, view }) => view.setUint32(bytes.length - 1024 + VolumeHeader.at.blocks, 2000),
    code: "contradiction",
    message: /blocks 2048 found, but 2000 in its copy/,
  },
  {
    name: "another count of free blocks",
    damage: (volume) => volume.add(volume.header("freeBlocks"), 1),
    code: "contradiction",
    message: /free blocks found/,
  },
  {
    name: "a short allocation file",
    damage: (volume) => volume.view.setUint32(volume.header("allocation") + 4, 255),
    code: "damaged",
    message: /allocation file: 255 bytes found, 256 expected/,
  },
  {
    name: "a special file with fewer blocks than bytes",
    damage: (volume) => volume.view.setUint32(volume.header("catalog") + 4, 0x7fffffff),
    code: "damaged",
    message: /catalog file: 2147483647 bytes/,
  },
  {
    name: "a special file that lacks extents",
    damage: (volume) => volume.add(volume.header("catalog") + FORK.blocks, 1),
    code: "contradiction",
    message: /catalog file: extents of 64 blocks found, 65 expected/,
  },
  {
    name: "a reachable block that is marked free",
    damage: (volume) => {
      volume.view.setUint8(volume.file("allocation"), volume.view.getUint8(volume.file("allocation")) & 0x7f);
      volume.add(volume.header("freeBlocks"), 1);
    },
    code: "contradiction",
    message: /in use, but marked free: block 0 of volume header/,
  },
];

const JOURNAL: readonly Damage[] = [
  {
    name: "a journal info block outside",
    damage: (volume) => volume.view.setUint32(volume.header("journalInfoBlock"), 5000),
    code: "damaged",
    message: /journal info block 5000/,
  },
  {
    name: "a journal with unknown flags",
    damage: (volume) => volume.view.setUint32(volume.journal(), 9),
    code: "feature-unknown",
    message: /flags 0x9/,
  },
  {
    name: "a journal that ends outside",
    damage: (volume) => volume.view.setUint32(volume.journal() + 48, 0x10000000),
    code: "damaged",
    message: /a journal at/,
  },
  {
    name: "a journal header with another magic",
    damage: (volume) => volume.view.setUint8(volume.journal() + BLOCK_BYTES, 0),
    code: "damaged",
    message: /journal header at \d+: magic/,
  },
  {
    name: "a journal header with a wrong checksum",
    damage: (volume) => volume.view.setUint8(volume.journal() + BLOCK_BYTES + 8, 1),
    code: "checksum",
    message: /checksum 0x/,
  },
];

const TREES: readonly Damage[] = [
  {
    name: "a tree that was not closed",
    damage: (volume) => volume.view.setUint32(volume.tree("catalog", "attributes"), 7),
    code: "damaged",
    message: /catalog file: attributes 0x7/,
  },
  {
    name: "names in an unknown order",
    damage: (volume) => volume.view.setUint8(volume.tree("catalog", "keyCompare"), 0xbd),
    code: "feature-unknown",
    message: /key comparison 0xbd/,
  },
  {
    name: "another count of free nodes",
    damage: (volume) => volume.add(volume.tree("catalog", "freeNodes"), 1),
    code: "contradiction",
    message: /nodes are free/,
  },
  {
    name: "another count of records",
    damage: (volume) => volume.add(volume.tree("catalog", "leafRecords"), 1),
    code: "contradiction",
    message: /records found/,
  },
  {
    name: "another first leaf",
    damage: (volume) => volume.add(volume.tree("catalog", "firstLeaf"), 1),
    code: "contradiction",
    message: /leaves from 2/,
  },
  {
    name: "a chain of leaves that skips one",
    damage: (volume) => volume.add(volume.node("catalog", 1), 1),
    code: "contradiction",
    message: /node 1: its neighbours 0 and 3/,
  },
  {
    name: "a leaf that says it is none",
    damage: (volume) => volume.view.setInt8(volume.node("catalog", 2) + 8, 0),
    code: "damaged",
    message: /node 2: kind 0 of height 1/,
  },
  {
    name: "a leaf that is free in the map of its tree",
    damage: (volume) => {
      volume.view.setUint8(volume.file("catalog") + 248, 0xbf);
      volume.add(volume.tree("catalog", "freeNodes"), 1);
    },
    code: "damaged",
    message: /node 1 is free, met twice/,
  },
  {
    name: "records out of order in their node",
    damage: (volume) => volume.view.setUint16(volume.node("catalog", 2) + NODE_BYTES - 4, 14),
    code: "damaged",
    message: /node 2: record 1 of \d+ at 14/,
  },
  {
    name: "a key longer than any",
    damage: (volume) => volume.view.setUint16(volume.node("catalog", 2) + 14, 600),
    code: "damaged",
    message: /a key of 600 bytes/,
  },
];

const FILES_DAMAGED: readonly Damage[] = [
  {
    name: "a record of an unknown type",
    damage: (volume) => volume.view.setUint16(volume.record("file5"), 5),
    code: "damaged",
    message: /a record of type 5/,
  },
  {
    name: "a fork that lacks extents",
    damage: (volume) => volume.add(volume.record("file5") + DATA_FORK + FORK.blocks, 1),
    code: "contradiction",
    message: /file 37: 12 blocks/,
  },
  {
    name: "a fork whose overflow is missing in part",
    damage: (volume) => volume.add(volume.record("file11") + DATA_FORK + FORK.blocks, 2),
    code: "contradiction",
    message: /file 43: 16 blocks/,
  },
  {
    name: "an extent outside of the volume",
    damage: (volume) => volume.add(volume.record("file5") + DATA_FORK + FORK.firstStart, 5000),
    code: "damaged",
    message: /an extent of 2 blocks at/,
  },
  {
    name: "a block of two files",
    damage: (volume) => volume.add(volume.record("file5") + DATA_FORK + FORK.firstStart, 3),
    code: "contradiction",
    message: /belongs to another owner too/,
  },
  {
    name: "overflow extents of an unknown fork",
    damage: (volume) => volume.view.setUint8(volume.node("extents", 1) + 14 + 2, 1),
    code: "damaged",
    message: /fork type 1/,
  },
  {
    name: "bad blocks that others have",
    damage: (volume) => volume.view.setUint32(volume.node("extents", 1) + 14 + 12, 1),
    code: "contradiction",
    message: /belongs to another owner too/,
  },
  {
    name: "an attribute that is not whole",
    damage: (volume) => volume.add(volume.attribute(0x20) + 8 + FORK.blocks, 1),
    code: "contradiction",
    message: /an attribute of file 35: 40 blocks of 41 found/,
  },
  {
    name: "extents of another file's attribute",
    damage: (volume) => volume.add(volume.attribute(0x30) - 2 * "org.ullage.long".length - 10, 1),
    code: "contradiction",
    message: /extents of file 36 that follow none/,
  },
  {
    name: "an attribute of an unknown type",
    damage: (volume) => volume.view.setUint32(volume.node("attributesFile", 1) + 14 + 34, 0x40),
    code: "feature-unknown",
    message: /type 0x40/,
  },
];

const ALL = [...VOLUME, ...JOURNAL, ...TREES, ...FILES_DAMAGED];

for (const { name, damage, code, message } of ALL) {
  test(`refused: ${name}`, async () => {
    const volume = new Damaged(SOUND);
    damage(volume);
    const filesystem = await hfsplus.open([fuzzDevice(volume.bytes)], { replay: false });
    const { free, refusal } = await prove(filesystem, "full");
    assert.deepEqual([...free[0]!], []);
    assert.match(refusal?.message ?? "nothing", message);
    assert.equal(refusal?.code, code);
  });
}

test("the same volume without a damage is not refused", async () => {
  const filesystem = await hfsplus.open([fuzzDevice(SOUND)], { replay: false });
  const { refusal, leakedBytes } = await prove(filesystem, "full");
  assert.equal(refusal, undefined);
  assert.equal(leakedBytes, 0);
});

test("a chain of leaves that comes back to itself ends", async () => {
  const volume = new Damaged(SOUND);
  volume.view.setUint32(volume.node("catalog", 3), 2);
  const filesystem = await hfsplus.open([fuzzDevice(volume.bytes)], { replay: false });
  const listed = await filesystem.list("/");
  assert.ok(listed!.length < FILES.length);
  assert.equal(await filesystem.find("/none"), undefined);
});

for (const [journal, code] of [
  ["dirty", "journal-dirty"],
  ["elsewhere", "journal-missing"],
  ["uninitialised", undefined],
] as const) {
  test(`a journal that is ${journal}`, async () => {
    const bytes = made({ bytes: 2 ** 21, journal });
    const filesystem = await hfsplus.open([fuzzDevice(bytes)], { replay: true });
    assert.equal(filesystem.refusal?.code, code);
    // What is refused can still be explained.
    assert.ok(await filesystem.find("/.journal"));
  });
}
