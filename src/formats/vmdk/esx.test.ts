/**
 * What is only read: COWD and seSparse, which are made here as ESX lays them out, and streams that QEMU packed. QEMU reads
 * them all, and judges.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { suite, test, type TestContext } from "node:test";
import { ExtentSet } from "../../bytes/extents.ts";
import { readBytes } from "../../device/device.ts";
import { conformance } from "../../testing/conformance.ts";
import { Random } from "../../testing/seeds.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { simulatedSource } from "../../testing/simulated-source.ts";
import { requires, scratch } from "../../testing/tools.ts";
import { filesIn, makeVmdk, saveAll, vmdkBytes } from "../../testing/vmdk.ts";
import type { ImageFormat } from "../format.ts";
import { vmdk } from "../vmdk.ts";
import { CowdHeader, SESPARSE_MAGIC, SeSparseHeader, SeSparseVolatileHeader } from "./esx.ts";

const MIB = 1024 * 1024;
const SECTORS = MIB / 512;

/** The reading half of the suite: there is no other. */
const readOnly: ImageFormat = {
  name: "vmdk, only read",
  about: vmdk.about,
  probe: (source) => vmdk.probe(source),
  references: (source) => vmdk.references(source),
  open: (source, openParent) => vmdk.open(source, openParent),
};

function descriptor(type: string, createType: string): SimulatedFile {
  const lines = ["# Disk DescriptorFile", "version=1", "CID=8f67ca74", "parentCID=ffffffff"];
  const text = [...lines, `createType="${createType}"`, `RW ${SECTORS} ${type} "delta.vmdk"`, ""].join("\n");
  return SimulatedFile.from(Buffer.from(text), { name: "disk.vmdk" });
}

/** Every third grain of 512 bytes, in random order. */
function cowd(random: Random): Uint8Array {
  const tableAt = 8;
  const grains = Array.from({ length: SECTORS }, (_, i) => i).filter(() => random.oneIn(3));
  const first = tableAt + 32;
  const file = Buffer.alloc((first + grains.length) * 512);
  CowdHeader.encode(
    {
      magicNumber: "COWD",
      version: 1,
      flags: 3,
      numSectors: SECTORS,
      grainSize: 1,
      gdOffset: 4,
      numGDEntries: 1,
      freeSector: first + grains.length,
    },
    file,
  );
  file.writeUInt32LE(tableAt, 4 * 512);
  grains.forEach((grain, i) => {
    const slot = first + grains.length - 1 - i;
    file.writeUInt32LE(slot, tableAt * 512 + grain * 4);
    file.set(random.bytes(512), slot * 512);
  });
  return file;
}

/** Grains of 4 KiB: some allocated, some that say they are zeros. */
function seSparse(random: Random): Uint8Array {
  const at = { volatile: 1, directory: 128, tables: 136, grains: 208 };
  const file = Buffer.alloc((at.grains + SECTORS) * 512);
  SeSparseHeader.encode(
    {
      magic: BigInt(SESPARSE_MAGIC),
      version: 0x2_0000_0001n,
      capacity: SECTORS,
      grainSize: 8,
      grainTableSize: 64,
      flags: 0n,
      reserved: new Uint8Array(32),
      volatileHeaderOffset: at.volatile,
      volatileHeaderSize: 1,
      grainDirectoryOffset: at.directory,
      grainDirectorySize: 8,
      grainTablesOffset: at.tables,
      grainTablesSize: 64,
      grainsOffset: at.grains,
      grainsSize: SECTORS,
    },
    file,
  );
  const header = { magic: 0xcafe_cafen, freeTableNumber: 1n, nextTransaction: 1n, replayJournal: 0n };
  SeSparseVolatileHeader.encode(header, file, 512);
  file.writeBigUInt64LE(0x1000_0000_0000_0000n, at.directory * 512);
  for (let grain = 0; grain < SECTORS / 8; grain++) {
    const entry = at.tables * 512 + grain * 8;
    // The low 12 bits of a grain's number lie above the high ones.
    const slot = (grain * 5) % (SECTORS / 8);
    const kind = random.below(4);
    if (kind === 1) file.writeBigUInt64LE(0x1000_0000_0000_0000n, entry);
    if (kind === 2) file.writeBigUInt64LE(0x2000_0000_0000_0000n, entry);
    if (kind !== 3) continue;
    file.writeBigUInt64LE((3n << 60n) | (BigInt(slot) << 48n), entry);
    file.set(random.bytes(4096), (at.grains + slot * 8) * 512);
  }
  return file;
}

const KINDS = [
  { name: "COWD", type: "VMFSSPARSE", createType: "vmfsSparse", make: cowd },
  { name: "seSparse", type: "SESPARSE", createType: "seSparse", make: seSparse },
];

function filesOf({ type, createType, make }: (typeof KINDS)[number], random: Random) {
  const delta = SimulatedFile.from(make(random), { name: "delta.vmdk" });
  return new Map([
    ["disk.vmdk", descriptor(type, createType)],
    ["delta.vmdk", delta],
  ]);
}

async function contentOf(t: TestContext, files: Map<string, SimulatedFile>): Promise<Buffer> {
  const folder = scratch(t);
  await saveAll(files, folder);
  return vmdkBytes(join(folder, "disk.vmdk"));
}

conformance(readOnly, [
  ...KINDS.map((kind) => ({
    name: kind.name,
    async make(t: TestContext, random: Random) {
      if (!requires(t, "qemu-img")) return undefined;
      const files = filesOf(kind, random);
      return { files, image: "disk.vmdk", content: await contentOf(t, files) };
    },
  })),
  {
    name: "streamOptimized",
    async make(t: TestContext, random: Random) {
      if (!requires(t, "qemu-img", "qemu-io")) return undefined;
      const folder = scratch(t);
      const options = { subformat: "streamOptimized" };
      const path = makeVmdk(folder, { name: "stream", virtualBytes: 2 * MIB, options }, random);
      return { files: await filesIn(folder), image: "disk.vmdk", content: vmdkBytes(path) };
    },
  },
]);

suite("extents of ESX", () => {
  const open = (files: Map<string, SimulatedFile>) =>
    vmdk.openWritable!(simulatedSource(files, "disk.vmdk"), () => Promise.reject(new Error("no parent")));

  for (const kind of KINDS) {
    test(`${kind.name} is never written`, async () => {
      await using image = await open(filesOf(kind, new Random(1)));
      const wish = { free: ExtentSet.of({ start: 0, end: MIB }), blank: ExtentSet.EMPTY, pack: false };
      const host = { punch: true, minHoleBytes: 4096, hostBlockBytes: 4096 };
      const expected = { kind: "unsupported", code: "read-only-format" };
      await assert.rejects(image.plan({ ...wish, ...host }), expected);
      await assert.rejects(image.write(0, new Uint8Array(1)), expected);
    });

    test(`${kind.name}: headers that promise what we do not know are refused`, async () => {
      const cases: readonly [at: number, word: number, message: RegExp][] =
        kind.name === "COWD"
          ? [
              [4, 2, /version 2/],
              [12, 0, /sectors/],
              [16, 0, /grains of 0/],
              [16, 4096, /grains of 4096/],
              [20, 0xffff_fff0, /grain directory/],
              [24, 0, /grain tables/],
              [4 * 512, 0xffff_fff0, /grain table 0/],
              [8 * 512, 0xffff_fffe, /grain table entry/],
            ]
          : [
              [8, 9, /version/],
              [24, 16, /grains of 16/],
              [32, 1, /tables of 1/],
              [40, 1, /flags/],
              [48, 1, /seSparse header/],
              [80, 0x7fff_ffff, /volatile header/],
              [512, 1, /volatile header/],
              [512 + 24, 1, /journal/],
              [128 * 512 + 4, 0x2000_0000, /grain directory/],
              [128 * 512, 0x0fff_ffff, /grain table 0/],
              [136 * 512 + 4, 0x4000_0000, /grain table entry/],
            ];
      for (const [at, word, message] of cases) {
        const files = filesOf(kind, new Random(1));
        const bytes = Buffer.alloc(4);
        bytes.writeUInt32LE(word);
        await files.get("delta.vmdk")!.write(at, bytes);
        await assert.rejects(open(files), { name: "DiskError", message }, `${at}: ${message.source}`);
      }
    });
  }

  test("an extent that reads above a parent shows it where it has nothing", async () => {
    const base = new Map<string, SimulatedFile>();
    const content = new Random(3).bytes(MIB);
    {
      const source = simulatedSource(base, "disk.vmdk");
      await using image = await vmdk.create!(source, { virtualBytes: MIB, options: {} });
      await image.write(0, content);
      await image.flush();
    }
    const parent = () =>
      vmdk.open(simulatedSource(new Map(base), "disk.vmdk"), () => Promise.reject(new Error("no parent")));
    const files = filesOf(KINDS[0]!, new Random(1));
    const alone = await readAll(
      await open(new Map(Array.from(files, ([name, file]) => [name, file.fork()]))),
    );
    const [cid] = (await parent()).identifiers ?? [];
    const text = Buffer.from(files.get("disk.vmdk")!.peek()).toString().replace("ffffffff", cid!);
    files.set("disk.vmdk", SimulatedFile.from(Buffer.from(`${text}parentFileNameHint="base.vmdk"\n`)));
    const above = await readAll(await vmdk.open(simulatedSource(files, "disk.vmdk"), parent));
    for (let at = 0; at < MIB; at += 512) {
      const own = alone.subarray(at, at + 512);
      const expected = own.every((byte) => byte === 0) ? content.subarray(at, at + 512) : own;
      assert.equal(Buffer.compare(above.subarray(at, at + 512), expected), 0, `${at}`);
    }
  });
});

async function readAll(image: Awaited<ReturnType<ImageFormat["open"]>>): Promise<Uint8Array> {
  await using held = image;
  return await readBytes(held, 0, held.bytes);
}
