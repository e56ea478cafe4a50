/**
 * The structures of a VHDX file, each with the damages that must be noticed: headers, region table, metadata, BAT.
 */
import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import { readBytes, wholeMap } from "../../device/device.ts";
import { execute } from "../../reclaim/execute.ts";
import { Random } from "../../testing/seeds.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { simulatedSource, sourceOf } from "../../testing/simulated-source.ts";
import { createVhdx, makeDifferencing, vhdxParents } from "../../testing/vhdx-kinds.ts";
import type { Image } from "../format.ts";
import { vhdx } from "../vhdx.ts";
import { BAT_ENTRY_BYTES, PayloadState, shapeOf, writeEntry } from "./bat.ts";
import { encodeHeader, type Header, readHeaders } from "./header.ts";
import {
  FileParameters,
  HEADERS_AT,
  HeaderStruct,
  Item,
  METADATA_TABLE_BYTES,
  MetadataTableEntry,
  MetadataTableHeader,
  MIB,
  REGION_TABLE_BYTES,
  REGION_TABLES_AT,
  RegionTableEntry,
  RegionTableHeader,
  seal,
} from "./structures.ts";

/** Where `create` puts them. */
const BAT_AT = 2 * MIB;
const METADATA_AT = 3 * MIB;
const DATA_AT = 4 * MIB;

const noParent = () => Promise.reject(new Error("there is no parent"));

/** Four blocks of 1 MiB; the first two hold data. */
async function sample(): Promise<SimulatedFile> {
  const files = new Map<string, SimulatedFile>();
  const data = new Random(1).bytes(2 * MIB);
  await createVhdx(files, "disk.vhdx", { block_size: "1M" }, (image) => image.write(0, data));
  return files.get("disk.vhdx")!.fork();
}

const open = (file: SimulatedFile): Promise<Image> => vhdx.open(sourceOf(file), noParent);

/** What is said of the sample after `damage`. */
async function rejects(
  damage: (file: SimulatedFile) => Promise<unknown>,
  message: RegExp,
  kind = "corrupt",
): Promise<void> {
  const file = await sample();
  await damage(file);
  await assert.rejects(open(file), { name: "DiskError", kind, message });
}

suite("headers", () => {
  const headerOf = async (file: SimulatedFile): Promise<Header> => (await readHeaders(file)).current;
  const write = (file: SimulatedFile, index: 0 | 1, header: Header) =>
    file.write(HEADERS_AT[index], encodeHeader(header));

  test("the one with the higher number is current, wherever it lies", async () => {
    const file = await sample();
    const header = await headerOf(file);
    for (const index of [0, 1] as const) {
      await write(file, index, { ...header, sequenceNumber: 100n });
      await write(file, index === 0 ? 1 : 0, { ...header, sequenceNumber: 99n });
      assert.deepEqual(await readHeaders(file).then((found) => [found.index, found.current.sequenceNumber]), [
        index,
        100n,
      ]);
    }
  });

  test("either alone will do; none will not", async () => {
    for (const index of [0, 1] as const) {
      const file = await sample();
      await file.write(HEADERS_AT[index] + 200, Uint8Array.of(1));
      assert.equal((await readHeaders(file)).index, index === 0 ? 1 : 0);
      await using image = await open(file);
      assert.equal(image.bytes, 4 * MIB);
    }
    const both = async (file: SimulatedFile): Promise<void> => {
      for (const at of HEADERS_AT) await file.write(at, new Uint8Array(8));
    };
    await rejects(both, /headers at 65536: found no valid one of two/);
  });

  test("a copy that is damaged is told of, and keeps nobody from giving back", async () => {
    for (const at of [...HEADERS_AT, ...REGION_TABLES_AT]) {
      const file = await sample();
      await file.write(at + 200, Uint8Array.of(1));
      await using image = await open(file);
      const found = [];
      for await (const finding of image.check()) found.push(finding);
      assert.deepEqual(
        found.map(({ kind, message }) => `${kind}: ${message.replace(/ is .*/, "")}`),
        [`leak: ${at < REGION_TABLES_AT[0] ? "header" : "region table"} at ${at}`],
      );
      await image.plan(wish(ExtentSet.EMPTY, false));
    }
  });

  test("two of one number: equal ones are Disk2vhd's, others are nobody's", async () => {
    const equal = await sample();
    const header = await headerOf(equal);
    for (const index of [0, 1] as const) await write(equal, index, header);
    assert.equal((await readHeaders(equal)).current.sequenceNumber, header.sequenceNumber);
    const differing = async (file: SimulatedFile): Promise<void> => {
      const found = await headerOf(file);
      await write(file, 0, found);
      await write(file, 1, { ...found, dataWriteGuid: found.fileWriteGuid });
    };
    await rejects(differing, /two different ones of the same SequenceNumber/);
  });

  test("versions and places", async () => {
    const change = (fields: Partial<Header>) => async (file: SimulatedFile) =>
      write(file, 0, { ...(await headerOf(file)), sequenceNumber: 100n, ...fields });
    await rejects(change({ version: 2 }), /VHDX version 2/, "unsupported");
    await rejects(change({ logLength: 5000 }), /LogLength/);
    await rejects(change({ logOffset: MIB + 4096 }), /LogOffset/);
    await rejects(change({ logOffset: 0 }), /LogOffset/);
    await rejects(change({ logOffset: 2 * MIB }), /BAT at 2097152: found log|log at 2097152: found BAT/);
    await rejects(change({ logLength: 64 * MIB }), /log at 1048576: found 67108864 bytes/);
    await rejects((file) => file.write(0, Uint8Array.of(0)), /file type identifier/);
  });

  test("a change is whole in one sector: both headers differ in nothing behind it", () => {
    assert.ok(HeaderStruct.bytes <= 512);
  });
});

suite("the region table", () => {
  /** Changes both copies. */
  const change = (edit: (table: Uint8Array) => void) => async (file: SimulatedFile) => {
    const table = await readBytes(file, REGION_TABLES_AT[0], REGION_TABLE_BYTES);
    edit(table);
    seal(table);
    for (const at of REGION_TABLES_AT) await file.write(at, table);
  };
  const entryAt = (index: number): number => RegionTableHeader.bytes + index * RegionTableEntry.bytes;
  const entry = (index: number, values: Parameters<typeof RegionTableEntry.encode>[0]) =>
    change((table) => RegionTableEntry.encode(values, table, entryAt(index)));
  const stranger = { guid: "11111111-2222-3333-4444-555555555555", length: MIB };
  const add = (values: Parameters<typeof RegionTableEntry.encode>[0]) =>
    change((table) => {
      RegionTableHeader.encode({ entryCount: 3 }, table);
      RegionTableEntry.encode({ ...stranger, ...values }, table, entryAt(2));
    });

  test("the second copy stands in for the first", async () => {
    const file = await sample();
    await file.write(REGION_TABLES_AT[0] + 100, Uint8Array.of(77));
    await using image = await open(file);
    assert.equal(image.bytes, 4 * MIB);
    await rejects(async (both) => {
      for (const at of REGION_TABLES_AT) await both.write(at + 100, Uint8Array.of(77));
    }, /region tables/);
  });

  test("a region that nobody knows stays where it is; one that must be known refuses", async () => {
    const file = await sample();
    const at = file.bytes;
    await file.truncate(at + MIB);
    await file.write(at, new Uint8Array(MIB).fill(0xaa));
    await add({ fileOffset: at, required: 0 })(file);
    await using image = await vhdx.openWritable!(sourceOf(file), noParent);
    assert.match((await image.describe(at + 5))!, /region 11111111/);
    const all = ExtentSet.of({ start: 0, end: image.bytes });
    await execute(await image.plan(wish(all, true)), image.files);
    assert.equal(file.bytes, at + MIB);
    assert.ok(file.peek(at, MIB).every((byte) => byte === 0xaa));
    await rejects(add({ fileOffset: 5 * MIB, required: 1 }), /is required and not known/, "unsupported");
  });

  test("places and counts", async () => {
    await rejects(entry(0, { fileOffset: 4096 }), /whole MiB at whole MiB/);
    await rejects(entry(0, { length: 5000 }), /whole MiB at whole MiB/);
    await rejects(entry(0, { fileOffset: 0 }), /header section/);
    await rejects(entry(0, { fileOffset: 1000 * MIB }), /inside of the file/);
    await rejects(entry(0, { fileOffset: METADATA_AT }), /do not overlap/);
    await rejects(entry(1, { guid: stranger.guid }), /required and not known/, "unsupported");
    await rejects(entry(1, { guid: stranger.guid, required: 0 }), /no metadata/);
    await rejects(add({ guid: "2dc27766-f623-4200-9d64-115e9bfd4a08", fileOffset: 5 * MIB }), /BAT twice/);
    await rejects(
      change((table) => RegionTableHeader.encode({ entryCount: 2048 }, table)),
      /EntryCount/,
    );
  });
});

function wish(free: ExtentSet, pack: boolean): Parameters<Image["plan"]>[0] {
  return { free, blank: ExtentSet.EMPTY, pack, punch: !pack, minHoleBytes: 4096, hostBlockBytes: 4096 };
}

suite("metadata", () => {
  const entryAt = (index: number): number =>
    METADATA_AT + MetadataTableHeader.bytes + index * MetadataTableEntry.bytes;
  /** Changes the table's entry of that number; `create` writes them in the order of `Item`. */
  const entry =
    (index: number, values: Parameters<typeof MetadataTableEntry.encode>[0]) =>
    async (file: SimulatedFile) => {
      const bytes = await readBytes(file, entryAt(index), MetadataTableEntry.bytes);
      MetadataTableEntry.encode(values, bytes);
      await file.write(entryAt(index), bytes);
    };
  const u32 = (offset: number, value: number) => (file: SimulatedFile) => {
    const bytes = new Uint8Array(4);
    viewOf(bytes).setUint32(0, value, true);
    return file.write(METADATA_AT + METADATA_TABLE_BYTES + offset, bytes);
  };
  const stranger = "11111111-2222-3333-4444-555555555555";

  test("values", async () => {
    await rejects(u32(0, 3 * MIB), /BlockSize/);
    await rejects(u32(0, MIB / 2), /BlockSize/);
    await rejects(u32(0, 512 * MIB), /BlockSize/);
    await rejects(u32(4, 2), /no such item, expected one: HasParent/);
    await rejects(u32(FileParameters.bytes, 100), /Virtual Disk Size/);
    await rejects(u32(FileParameters.bytes + 4, 2 ** 20), /Virtual Disk Size/);
    await rejects(u32(FileParameters.bytes + 4, 2 ** 31), /past 8 PiB/, "unsupported");
    await rejects(u32(FileParameters.bytes + 4, 4096), /expected \d+ entries of 8 bytes/);
    await rejects(u32(FileParameters.bytes + 8 + 16, 520), /Logical Sector Size/);
    await rejects(u32(FileParameters.bytes + 8 + 16 + 4, 1), /Physical Sector Size/);
  });

  test("the table", async () => {
    await rejects(entry(0, { length: 4 }), /File Parameters/);
    await rejects(entry(0, { offset: 100 }), /a place in its region/);
    await rejects(entry(0, { offset: MIB }), /a place in its region/);
    await rejects(entry(0, { length: 2 * MIB }), /a place in its region/);
    await rejects(entry(1, { itemId: Item.fileParameters }), /twice/);
    await rejects(entry(1, { itemId: stranger }), /required and not known/, "unsupported");
    await rejects(entry(1, { itemId: stranger, flags: 0 }), /Virtual Disk Size .* no such item/);
    await rejects(entry(1, { flags: 5 }), /required and not known/, "unsupported");
    await rejects((file) => file.write(METADATA_AT, new Uint8Array(8)), /another signature/);
    await rejects((file) => file.write(METADATA_AT + 10, Uint8Array.of(0, 8)), /EntryCount/);
  });

  test("items that nobody knows and nobody must are left alone", async () => {
    const file = await sample();
    await file.write(METADATA_AT + 10, Uint8Array.of(6));
    await entry(5, { itemId: stranger, offset: 2 ** 31, length: 1, flags: 1 })(file);
    await using image = await open(file);
    assert.equal(image.bytes, 4 * MIB);
  });
});

suite("the BAT", () => {
  const entry =
    (block: number, state: number, offsetMb: number, reserved = 0) =>
    (file: SimulatedFile) => {
      const bytes = new Uint8Array(BAT_ENTRY_BYTES);
      writeEntry(viewOf(bytes), 0, state, offsetMb);
      bytes[0]! |= reserved;
      return file.write(BAT_AT + block * BAT_ENTRY_BYTES, bytes);
    };

  test("entries are where the specification has them", () => {
    const geometry = { blockBytes: 256 * MIB, logicalSectorBytes: 512, hasParent: false };
    const entries = (blocks: number, hasParent: boolean) =>
      shapeOf({ ...geometry, hasParent, virtualBytes: blocks * 256 * MIB }).entries;
    assert.equal(shapeOf({ ...geometry, virtualBytes: MIB }).chunkRatio, 16);
    assert.deepEqual(
      [0, 1, 16, 17, 32, 33].map((blocks) => entries(blocks, false)),
      [0, 1, 16, 18, 33, 35],
    );
    assert.deepEqual(
      [0, 1, 16, 17, 32, 33].map((blocks) => entries(blocks, true)),
      [0, 17, 17, 34, 34, 51],
    );
  });

  test("states that nobody defined, places that are none", async () => {
    await rejects(entry(2, 4, 0), /BAT entry 2 at 2097168: found state 4/);
    await rejects(entry(2, 5, 7), /state 5/);
    await rejects(entry(2, PayloadState.partiallyPresent, 7), /there is no parent/);
    await rejects(entry(2, PayloadState.fullyPresent, 0), /FileOffsetMB 0/);
    await rejects(entry(2, PayloadState.fullyPresent, 7, 8), /reserved bits/);
    await rejects(entry(2, PayloadState.fullyPresent, 2 ** 33), /past 4 PiB/, "unsupported");
  });

  test("blocks outside the file, over a structure and over each other are errors, and nothing is planned (H17)", async () => {
    const cases: readonly (readonly [number, RegExp])[] = [
      [1000, /the blocks end at/],
      [DATA_AT / MIB, /two blocks/],
      [METADATA_AT / MIB, /lies over metadata/],
      [1, /lies over log/],
    ];
    for (const [offsetMb, message] of cases) {
      const file = await sample();
      await entry(2, PayloadState.fullyPresent, offsetMb)(file);
      await using image = await open(file);
      const found: string[] = [];
      for await (const finding of image.check()) found.push(finding.message);
      assert.match(found[0]!, message);
      await assert.rejects(image.plan(wish(ExtentSet.EMPTY, false)), { kind: "corrupt" });
    }
  });

  test("undefined, unmapped and zero read as zeros; a place that they name is given back, and forgotten", async () => {
    for (const state of [PayloadState.undefined, PayloadState.unmapped, PayloadState.zero]) {
      const file = await sample();
      const second = await readBytes(await open(file), MIB, MIB);
      await entry(0, state, DATA_AT / MIB)(file);
      await using image = await vhdx.openWritable!(sourceOf(file), noParent);
      assert.ok((await readBytes(image, 0, MIB)).every((byte) => byte === 0));
      const before = file.bytes;
      // Packing moves block 1 to where block 0 was: its entry must not name that place any longer.
      await execute(await image.plan(wish(ExtentSet.EMPTY, true)), image.files);
      assert.equal(file.bytes, before - MIB);
      const bat = viewOf(file.peek(BAT_AT, 16));
      assert.equal(bat.getBigUint64(0, true), BigInt(state));
      assert.equal(bat.getBigUint64(8, true), BigInt(DATA_AT) | BigInt(PayloadState.fullyPresent));
      await using again = await open(file);
      assert.deepEqual(await readBytes(again, MIB, MIB), second);
    }
  });

  test("a new block may get such a place, and then has it alone", async () => {
    const file = await sample();
    await entry(0, PayloadState.unmapped, DATA_AT / MIB)(file);
    const data = new Random(2).bytes(MIB);
    {
      await using image = await vhdx.openWritable!(sourceOf(file), noParent);
      await image.write(3 * MIB, data);
    }
    const bat = viewOf(file.peek(BAT_AT, 32));
    assert.equal(bat.getBigUint64(24, true), BigInt(DATA_AT) | BigInt(PayloadState.fullyPresent));
    assert.equal(bat.getBigUint64(0, true), BigInt(PayloadState.unmapped));
    await using image = await open(file);
    assert.deepEqual(await readBytes(image, 3 * MIB, MIB), data);
  });

  test("in a fixed disk they keep it", async () => {
    const files = new Map<string, SimulatedFile>();
    const options = { subformat: "fixed", block_size: "1M" };
    await createVhdx(files, "disk.vhdx", options, (image) => image.write(0, new Uint8Array(4 * MIB).fill(1)));
    const file = files.get("disk.vhdx")!.fork();
    await entry(0, PayloadState.unmapped, DATA_AT / MIB)(file);
    await using image = await vhdx.openWritable!(sourceOf(file), noParent);
    assert.equal(await image.describe(DATA_AT), "room of a fixed disk");
    const before = file.bytes;
    await execute(await image.plan(wish(ExtentSet.of({ start: MIB, end: 4 * MIB }), false)), image.files);
    assert.equal(file.bytes, before);
    const kept = viewOf(file.peek(BAT_AT, 8)).getBigUint64(0, true);
    assert.equal(kept, BigInt(DATA_AT) | BigInt(PayloadState.unmapped));
  });

  test("sector bitmaps: needed where a block is held in part, and at a place of their own", async () => {
    const make = () => makeDifferencing(new Random(1), 512);
    const bitmapEntry = BAT_AT + 4096 * BAT_ENTRY_BYTES;
    const cases: readonly (readonly [number, number, RegExp])[] = [
      [0, 0, /no sector bitmap 0/],
      [3, 0, /state 3 of a sector bitmap/],
      [PayloadState.fullyPresent, 0, /FileOffsetMB 0/],
      [PayloadState.fullyPresent, 1000, /sector bitmap at/],
      [PayloadState.fullyPresent, 2, /sector bitmap at 2097152/],
    ];
    for (const [state, offsetMb, message] of cases) {
      const { files } = await make();
      const child = files.get("child.vhdx")!;
      const bytes = new Uint8Array(BAT_ENTRY_BYTES);
      writeEntry(viewOf(bytes), 0, state, offsetMb);
      await child.write(bitmapEntry, bytes);
      const opened = vhdx.open(simulatedSource(files, "child.vhdx"), vhdxParents(files));
      await assert.rejects(opened, { kind: "corrupt", message });
    }
    const { files } = await make();
    await using image = await vhdx.open(simulatedSource(files, "child.vhdx"), vhdxParents(files));
    const at = viewOf(files.get("child.vhdx")!.peek(bitmapEntry, 8)).getBigUint64(0, true) >> 20n;
    assert.equal(await image.describe(Number(at) * MIB), "sector bitmap 0");
  });

  test("a disk of 64 TiB", async () => {
    const files = new Map<string, SimulatedFile>();
    const fill = (image: { write(at: number, from: Uint8Array): Promise<void> }) =>
      image.write(2 ** 46 - 512, new Uint8Array(512).fill(5));
    await createVhdx(files, "disk.vhdx", { block_size: "64M" }, fill, 2 ** 46);
    await using image = await open(files.get("disk.vhdx")!);
    const kinds = (await wholeMap(image)).map(({ kind }) => kind);
    assert.deepEqual(kinds, ["hole", "data"]);
    assert.ok((await readBytes(image, 2 ** 46 - 512, 512)).every((byte) => byte === 5));
  });
});
