import assert from "node:assert/strict";
import { test } from "node:test";
import { ascii, struct, u32le, u64le } from "../../bytes/struct.ts";
import { ExtentSet } from "../../bytes/extents.ts";
import { type HostFile, type ReadableFile, readBytes } from "../../device/device.ts";
import type { Source } from "../../device/source.ts";
import { execute } from "../../reclaim/execute.ts";
import type { Random } from "../../testing/seeds.ts";
import { conformance, type Variant } from "../../testing/conformance.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { simulatedSource } from "../../testing/simulated-source.ts";
import { DiskError } from "../../error.ts";
import type { Image, ImageFormat, OpenParent } from "../format.ts";
import { raw } from "../raw.ts";
import { BlockImage, type ImageFacts, WritableBlockImage } from "./image.ts";
import type { BlockLayout, BlocksEnd } from "./layout.ts";
import { ABSENT, BlockTable, ZERO } from "./table.ts";

/**
 * A format with everything that formats of mapped blocks may have, each at choice: the shared code is tested alone.
 *
 *   | header | table | table again | bitmaps of what is held | head, block | head, block … | tail |
 */
const Header = struct({
  magic: ascii(4),
  blockBytes: u32le,
  bytes: u64le,
  headBytes: u32le,
  tailBytes: u32le,
  copies: u32le,
  /** 0: absent, 1: a zero state, 2: stays mapped, 3: stays mapped, absent when packing. */
  freed: u32le,
  /** Slots that the header counts, kept by packing as VDI does. */
  slots: u32le,
  parent: ascii(16),
});

const AREA = 4096;
const TAIL = 0xee;
const FREED = [ABSENT, ZERO, undefined, undefined];
const EMPTY_ENTRY = 0;
const ZERO_ENTRY = 1;

async function layoutOf<F extends ReadableFile>(file: F, parent: Image | undefined): Promise<BlockLayout<F>> {
  if (file.bytes < 4 * AREA) throw new DiskError("corrupt", "cut short");
  const header = Header.decode(await readBytes(file, 0, AREA));
  const blocks = Math.ceil(header.bytes / header.blockBytes);
  if (!(blocks * 4 <= AREA) || header.copies > 2 || header.tailBytes > 512 || header.headBytes > AREA) {
    throw new DiskError("corrupt", "unlikely numbers");
  }
  const table = new BlockTable(blocks);
  const entries = new DataView((await readBytes(file, AREA, AREA)).buffer);
  for (let block = 0; block < blocks; block++) {
    const entry = entries.getUint32(block * 4, true);
    table.set(block, entry === EMPTY_ENTRY ? ABSENT : entry === ZERO_ENTRY ? ZERO : entry - 2);
  }
  const tail = await readBytes(file, file.bytes - header.tailBytes, header.tailBytes);
  return {
    fileName: "",
    file,
    bytes: header.bytes,
    parent,
    blockBytes: header.blockBytes,
    headBytes: header.headBytes,
    baseBytes: 4 * AREA,
    unitBytes: 512,
    table,
    entries: {
      copies: header.copies,
      bytes: 4,
      at: (block, copy) => (1 + copy) * AREA + block * 4,
      write: (view, at, _block, slot) => {
        view.setUint32(at, slot === ABSENT ? EMPTY_ENTRY : slot === ZERO ? ZERO_ENTRY : slot + 2, true);
      },
    },
    freed: FREED[header.freed],
    ...(header.freed === 3 && { freedByPacking: parent ? ZERO : ABSENT }),
    blocksStartBytes: 4 * AREA,
    fixed: ExtentSet.EMPTY,
    // A writer that was cut off may have left none.
    tailBytes: tail.every((byte) => byte === TAIL) ? header.tailBytes : 0,
    endAlignBytes: 512,
    ending(end, before) {
      const bytes = (slots: number) => new Uint8Array(new Uint32Array([slots]).buffer);
      const was = before?.slots ?? header.slots;
      const step = { file: "", op: "patch", at: Header.at.slots } as const;
      return was === end.slots ? [] : [{ ...step, before: bytes(was), after: bytes(end.slots) }];
    },
    structureAt: (at) => (at < 4 * AREA ? "tables" : undefined),
  };
}

const none: OpenParent = (name) => Promise.reject(new Error(name));

const facts = (parent: Image | undefined): ImageFacts => ({
  format: "toy",
  summary: "a toy",
  details: { toy: true },
  references: [],
  identifiers: [],
  parent,
});

async function parentOf(file: ReadableFile, openParent: OpenParent): Promise<Image | undefined> {
  if (file.bytes < AREA) return undefined;
  const { parent } = Header.decode(await readBytes(file, 0, AREA));
  return parent === "" ? undefined : openParent(parent, "raw");
}

const toy: ImageFormat = {
  name: "toy",
  about: { kinds: "toys", packs: true, checks: "errors, leaks", layers: "chain" },
  probe: async () => true,
  references: async () => [],
  async open(source, openParent) {
    const file = await source.open();
    const parent = await parentOf(file, openParent);
    return new BlockImage(await layoutOf(file, parent), facts(parent));
  },
  async openWritable(source, openParent) {
    const file = await source.openWritable!();
    const parent = await parentOf(file, openParent);
    return writable(file, parent);
  },
};

async function writable(file: HostFile, parent: Image | undefined): Promise<WritableBlockImage> {
  const layout = await layoutOf(file, parent);
  const header = await readBytes(file, 0, Header.bytes);
  const { tailBytes } = Header.decode(header);
  return new WritableBlockImage(layout, facts(parent), {
    newHead: new Uint8Array(layout.headBytes).fill(0xff),
    async settle(end: BlocksEnd) {
      Header.encode({ slots: end.slots }, header);
      await file.write(0, header);
      if (tailBytes > 0) await file.write(end.bytes, new Uint8Array(tailBytes).fill(TAIL));
    },
  });
}

interface Shape {
  readonly name: string;
  readonly blockBytes: number;
  readonly headBytes?: number;
  readonly tailBytes?: number;
  readonly copies?: number;
  readonly freed?: number;
  readonly parent?: boolean;
}

const DISK_BYTES = 512 * 1024 + 1536;

function variant(shape: Shape): Variant {
  return {
    name: shape.name,
    canBlank: !shape.parent,
    ...(shape.parent && {
      openParent: (files) => (name) => raw.open(sourceIn(files, name), none),
    }),
    make: (_t, random) => make(shape, random),
  };
}

function sourceIn(files: ReadonlyMap<string, SimulatedFile>, name: string): Source {
  return simulatedSource(new Map(files), name);
}

async function make(shape: Shape, random: Random) {
  const file = new SimulatedFile(4 * AREA + (shape.tailBytes ?? 0), { name: "toy" });
  const header = new Uint8Array(Header.bytes);
  Header.encode(
    {
      magic: "TOY!",
      blockBytes: shape.blockBytes,
      bytes: DISK_BYTES,
      headBytes: shape.headBytes ?? 0,
      tailBytes: shape.tailBytes ?? 0,
      copies: shape.copies ?? 1,
      freed: shape.freed ?? 0,
      parent: shape.parent ? "parent" : "",
    },
    header,
  );
  await file.write(0, header);
  await file.write(4 * AREA, new Uint8Array(shape.tailBytes ?? 0).fill(TAIL));
  const files = new Map([["toy", file]]);
  const content = new Uint8Array(DISK_BYTES);
  if (shape.parent) {
    const below = random.bytes(DISK_BYTES);
    files.set("parent", SimulatedFile.from(below, { name: "parent" }));
    content.set(below);
  }
  {
    const parent = shape.parent ? await raw.open(sourceIn(files, "parent"), none) : undefined;
    await using image = await writable(file, parent);
    for (let i = 0; i < 30; i++) {
      const at = random.below(DISK_BYTES / 512) * 512;
      const bytes = random.bytes(Math.min(DISK_BYTES - at, 512 * random.between(1, 80)));
      await image.write(at, bytes);
      content.set(bytes, at);
      if (random.oneIn(5)) await image.flush();
    }
  }
  return { files, image: "toy", content };
}

/** A disk of four blocks of 16 KiB, each with a place. */
async function four(entries: readonly number[]): Promise<Map<string, SimulatedFile>> {
  const file = new SimulatedFile(4 * AREA, { name: "toy" });
  const header = new Uint8Array(Header.bytes);
  const shape = { magic: "TOY!", blockBytes: 16384, bytes: 4 * 16384, copies: 1 };
  Header.encode(shape, header);
  await file.write(0, header);
  await file.write(AREA, new Uint8Array(new Uint32Array(entries).buffer));
  await file.write(4 * AREA, new Uint8Array(4 * 16384).fill(1));
  return new Map([["toy", file]]);
}

const place = (slot: number) => 2 + slot;
const EVERYTHING = {
  free: ExtentSet.of({ start: 0, end: 16384 }),
  blank: ExtentSet.EMPTY,
  pack: false,
  punch: true,
  minHoleBytes: 0,
  hostBlockBytes: 4096,
};

for (const [what, entries, message] of [
  ["over another block", [place(0), place(16), place(32), place(96)], /two blocks/],
  ["in the middle of another block", [place(0), place(64), place(32), place(80)], /two blocks/],
  ["behind the end", [place(0), place(32), place(64), place(128)], /the blocks end at/],
] as const) {
  test(`H17: nothing is given back of an image with a block ${what}`, async () => {
    const files = await four(entries);
    await using image = await toy.open(simulatedSource(files, "toy"), none);
    await assert.rejects(image.plan(EVERYTHING), { kind: "corrupt", message });
    const kinds = new Set<string>();
    for await (const { kind } of image.check()) kinds.add(kind);
    assert.deepEqual([...kinds], ["error"]);
  });
}

test("H17: a block that reaches into the tail is an error, and the tail is not punched", async () => {
  const files = await four([place(0), place(32), place(64), place(96)]);
  const file = files.get("toy")!;
  await file.write(Header.at.tailBytes, Uint8Array.of(0, 2));
  await file.write(file.bytes - 512, new Uint8Array(512).fill(TAIL));
  await using image = await toy.open(simulatedSource(files, "toy"), none);
  await assert.rejects(image.plan(EVERYTHING), { kind: "corrupt", message: /block 3 .* the blocks end at/ });
});

test("on a block device nothing is packed, and nothing unmapped that only packing unmaps", async () => {
  const files = await four([place(0), place(32), place(64), place(96)]);
  const file = files.get("toy")!;
  await file.write(Header.at.freed, Uint8Array.of(3));
  const device: ReadableFile = {
    bytes: file.bytes,
    read: (at, into) => file.read(at, into),
    map: (range) => file.map(range),
    stat: async () => ({ ...(await file.stat()), hostBytes: null }),
    [Symbol.asyncDispose]: async () => {},
  };
  await using image = new BlockImage(await layoutOf(device, undefined), facts(undefined));
  const plan = await image.plan({ ...EVERYTHING, pack: true });
  assert.equal(plan.unmapBytes, 0);
  assert.equal(plan.packBytes, 0);
});

test("nobody's bytes between the blocks are leaks, and a repair gives them back alone", async () => {
  const files = await four([place(0), EMPTY_ENTRY, EMPTY_ENTRY, place(96)]);
  await using image = await toy.openWritable!(simulatedSource(files, "toy"), none);
  const leaks = async () => {
    let count = 0;
    for await (const finding of image.check()) count += finding.count;
    return count;
  };
  assert.equal(await leaks(), 2);
  const file = files.get("toy")!;
  const before = file.hostBytes;
  await execute(await image.repairLeaks!(), image.files);
  assert.equal(before - file.hostBytes, 2 * 16384);
  assert.equal(await leaks(), 0);
});

conformance(toy, [
  variant({ name: "absent blocks, two copies of the table", blockBytes: 16384, copies: 2 }),
  variant({ name: "heads and a tail", blockBytes: 8192, headBytes: 512, tailBytes: 512 }),
  variant({ name: "blocks smaller than the host's", blockBytes: 2048, headBytes: 512 }),
  variant({ name: "zero state above a parent", blockBytes: 16384, freed: 1, parent: true }),
  variant({ name: "no zero state above a parent", blockBytes: 16384, freed: 2, parent: true }),
  variant({ name: "no gaps but when packing", blockBytes: 16384, freed: 3 }),
  variant({ name: "no gaps, above a parent", blockBytes: 4096, freed: 3, parent: true }),
]);
