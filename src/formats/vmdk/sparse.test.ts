/**
 * Sparse extents: two grain directories that say the same, entries that mean zeros, and the header's word on both.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { suite, test } from "node:test";
import { ExtentSet } from "../../bytes/extents.ts";
import { readBytes } from "../../device/device.ts";
import { execute } from "../../reclaim/execute.ts";
import { Random } from "../../testing/seeds.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { simulatedSource } from "../../testing/simulated-source.ts";
import { requires, scratch } from "../../testing/tools.ts";
import { saveAll, vmdkBytes, vmdkCheck } from "../../testing/vmdk.ts";
import type { Finding, OpenParent } from "../format.ts";
import { vmdk } from "../vmdk.ts";

const MIB = 1024 * 1024;
const GRAIN_BYTES = 64 * 1024;
const GRAINS = MIB / GRAIN_BYTES;
/** Where our own disks of 1 MiB have their tables. */
const REDUNDANT_TABLE_AT = 22 * 512;
const TABLE_AT = 27 * 512;
const noParent = () => Promise.reject(new Error("no parent is asked for"));

type Made = Map<string, SimulatedFile>;

const open = (files: Made, parent: OpenParent = noParent) =>
  vmdk.open(simulatedSource(files, "disk.vmdk"), parent);
const openWritable = (files: Made, parent: OpenParent = noParent) =>
  vmdk.openWritable!(simulatedSource(files, "disk.vmdk"), parent);

/** A disk of 16 grains, all of them written. */
async function made(options: Readonly<Record<string, string>> = {}, parent?: OpenParent): Promise<Made> {
  const files: Made = new Map();
  const source = simulatedSource(files, "disk.vmdk");
  await using image = await vmdk.create!(source, { virtualBytes: MIB, options }, parent);
  await image.write(0, new Random(1).bytes(MIB));
  await image.flush();
  return files;
}

const grains = (...numbers: readonly number[]): ExtentSet =>
  ExtentSet.from(numbers.map((n) => ({ start: n * GRAIN_BYTES, end: (n + 1) * GRAIN_BYTES })));

async function reclaim(files: Made, free: ExtentSet, pack = false, parent: OpenParent = noParent) {
  await using image = await openWritable(files, parent);
  const host = { punch: !pack, minHoleBytes: 4096, hostBlockBytes: 4096 };
  const plan = await image.plan({ free, blank: ExtentSet.EMPTY, pack, ...host });
  await execute(plan, image.files);
  return plan;
}

const word = (value: number): Uint8Array => new Uint8Array(Uint32Array.of(value).buffer);
const tableIn = (files: Made, at: number): number[] => [
  ...new Uint32Array(
    files
      .get("disk.vmdk")!
      .peek(at, GRAINS * 4)
      .slice().buffer,
  ),
];

async function findings(files: Made): Promise<Finding[]> {
  await using image = await open(files);
  const found: Finding[] = [];
  for await (const finding of image.check()) found.push(finding);
  return found;
}

suite("two grain directories", () => {
  test("every change of an entry is in both", async () => {
    for (const pack of [false, true]) {
      const files = await made();
      const before = tableIn(files, TABLE_AT);
      assert.ok(before.every((entry) => entry >= 128));
      await reclaim(files, grains(1, 2, 7), pack);
      const after = tableIn(files, TABLE_AT);
      assert.deepEqual([after[1], after[2], after[7]], [0, 0, 0]);
      assert.deepEqual(tableIn(files, REDUNDANT_TABLE_AT), after);
      {
        await using image = await openWritable(files);
        await image.write(2 * GRAIN_BYTES, new Uint8Array(10).fill(1));
        await image.flush();
      }
      assert.notEqual(tableIn(files, TABLE_AT)[2], 0);
      assert.deepEqual(tableIn(files, REDUNDANT_TABLE_AT), tableIn(files, TABLE_AT));
    }
  });

  test("where a crash left them different, the copy is made anew by a reclaim, a repair and a write", async () => {
    const works: readonly ((files: Made) => Promise<unknown>)[] = [
      (files) => reclaim(files, grains(5)),
      async (files) => {
        await using image = await openWritable(files);
        await execute(await image.repairLeaks!(), image.files);
      },
      async (files) => {
        await using image = await openWritable(files);
        await image.write(0, new Uint8Array(512));
        await image.flush();
      },
    ];
    for (const work of works) {
      const files = await made();
      await files.get("disk.vmdk")!.write(REDUNDANT_TABLE_AT + 12, word(77));
      const [finding, ...others] = await findings(files);
      assert.deepEqual([finding?.kind, finding?.isMendable, others.length], ["leak", true, 0]);
      await work(files);
      assert.deepEqual(tableIn(files, REDUNDANT_TABLE_AT), tableIn(files, TABLE_AT));
      assert.deepEqual(await findings(files), []);
    }
  });

  test("a redundant directory that leads nowhere is in nobody's way, but nothing is written", async () => {
    for (const damage of [word(0xffff_fff0), word(0), word(27)]) {
      const files = await made();
      await files.get("disk.vmdk")!.write(21 * 512, damage);
      const [finding] = await findings(files);
      assert.equal(finding?.kind, "error");
      await using image = await openWritable(files);
      assert.deepEqual(await readBytes(image, 0, MIB), new Random(1).bytes(MIB));
      await assert.rejects(image.write(0, new Uint8Array(1)), { kind: "corrupt" });
    }
  });
});

suite("entries (H9)", () => {
  test("freed grains say nothing without a parent, zeros with the flag, and stay mapped above a parent without it", async () => {
    const base = await made();
    const parent = () => vmdk.open(simulatedSource(new Map(base), "disk.vmdk"), noParent);
    const cases = [
      { options: {}, parent: noParent, expected: [0, 0] },
      { options: { zeroed_grain: "on" }, parent: noParent, expected: [1, 1] },
      { options: { zeroed_grain: "on", backing_file: "base.vmdk" }, parent, expected: [1, 1] },
      { options: { backing_file: "base.vmdk" }, parent, expected: undefined },
    ];
    for (const { options, parent: below, expected } of cases) {
      const files = await made(options, below);
      const before = tableIn(files, TABLE_AT);
      const plan = await reclaim(files, grains(3, 4), false, below);
      assert.equal(plan.unmapBytes, expected === undefined ? 0 : 2 * GRAIN_BYTES);
      assert.deepEqual(tableIn(files, TABLE_AT).slice(3, 5), expected ?? before.slice(3, 5));
      assert.equal(plan.punched.get("")?.bytes, 2 * GRAIN_BYTES);
      await using image = await open(files, below);
      assert.ok((await readBytes(image, 3 * GRAIN_BYTES, 2 * GRAIN_BYTES)).every((byte) => byte === 0));
    }
  });

  test("an entry of 1 without the flag is an error: it leads into the descriptor", async () => {
    const files = await made();
    for (const at of [TABLE_AT, REDUNDANT_TABLE_AT]) await files.get("disk.vmdk")!.write(at, word(1));
    const [finding] = await findings(files);
    assert.equal(finding?.kind, "error");
    await assert.rejects(reclaim(files, grains(5)), { kind: "corrupt" });
  });

  test("a grain without a table reads as nothing, and is not written", async () => {
    const files = await made();
    const file = files.get("disk.vmdk")!;
    for (const at of [21 * 512, 26 * 512]) await file.write(at, word(0));
    await using image = await openWritable(files);
    assert.deepEqual(await readBytes(image, 0, MIB), new Uint8Array(MIB));
    await assert.rejects(image.write(0, new Uint8Array(1)), {
      kind: "unsupported",
      message: /no grain table/,
    });
    await image.zero({ start: 0, end: MIB });
    await image.discard({ start: 0, end: MIB });
  });
});

test("QEMU finds a reclaimed disk clean, and reads zeros or what was there", async (t) => {
  if (!requires(t, "qemu-img")) return;
  for (const options of [{}, { zeroed_grain: "on" }, { subformat: "twoGbMaxExtentSparse" }]) {
    for (const pack of [false, true]) {
      const files = await made(options);
      await reclaim(files, grains(0, 3, 4, 11, 15), pack);
      const folder = scratch(t);
      await saveAll(files, folder);
      const path = join(folder, "disk.vmdk");
      assert.deepEqual(vmdkCheck(path), { errors: 0, leaks: 0 });
      const content = new Random(1).bytes(MIB);
      for (const { start, end } of grains(0, 3, 4, 11, 15)) content.fill(0, start, end);
      assert.deepEqual(vmdkBytes(path), Buffer.from(content));
    }
  }
});

suite("headers", () => {
  const damaged = async (at: number, bytes: Uint8Array): Promise<Made> => {
    const files = await made();
    await files.get("disk.vmdk")!.write(at, bytes);
    return files;
  };

  test("what the header says is believed only as far as the format goes (H23, H24)", async () => {
    const cases: readonly [at: number, bytes: Uint8Array, message: RegExp][] = [
      [4, word(4), /version 4/],
      [4, word(0), /version 0/],
      [12, word(0), /capacity/],
      [16, word(0x100), /capacity/],
      [18, word(0x4000), /past 8 PiB/],
      [20, word(0), /grain size/],
      [20, word(3), /grain size/],
      [20, word(4096), /grainSize/],
      [36, word(129), /descriptorSize/],
      [44, word(511), /entries in a grain table/],
      [48, word(0), /redundant grain directory/],
      [56, word(0), /grain directory/],
      [56, word(0xffff_fff0), /grain directory/],
      [64, word(0x0fff_ffff), /overHead/],
      [73, Uint8Array.of(10), /line ends/],
      [77, Uint8Array.of(2), /compression 2/],
      [77, Uint8Array.of(1), /flags/],
      [26 * 512, word(0x0fff_ffff), /grain table 0/],
      [26 * 512, word(26), /overlap/],
      [TABLE_AT, word(0xffff_fffe), /grain table entry/],
      [12, word(MIB / 512 + 1), /capacity of extent/],
    ];
    for (const [at, bytes, message] of cases) {
      if (at === 73) bytes[0] = 13;
      await assert.rejects(
        open(await damaged(at, bytes)),
        { name: "DiskError", message },
        `${at}: ${message.source}`,
      );
    }
  });

  test("who may have something else in mind is read, and not written (H17)", async () => {
    const cases: readonly [at: number, bytes: Uint8Array, kind: string, message: RegExp][] = [
      [8, word(3 | 0x100), "unsupported", /unknown flags 0x100/],
      [4, word(3), "unsupported", /version 3/],
      [72, Uint8Array.of(1), "refused", /not closed/],
    ];
    for (const [at, bytes, kind, message] of cases) {
      await using image = await openWritable(await damaged(at, bytes));
      assert.deepEqual(await readBytes(image, 0, MIB), new Random(1).bytes(MIB));
      for (const work of [
        image.plan({
          free: grains(1),
          blank: ExtentSet.EMPTY,
          pack: false,
          punch: true,
          minHoleBytes: 0,
          hostBlockBytes: 4096,
        }),
        image.write(0, new Uint8Array(1)),
        image.zero({ start: 0, end: 1 }),
        image.discard({ start: 0, end: 1 }),
      ]) {
        await assert.rejects(work, { kind, message });
      }
    }
  });

  test("structures are told by their names", async () => {
    await using image = await open(await made());
    const names: (string | undefined)[] = [];
    for (const at of [0, 512, 21 * 512, REDUNDANT_TABLE_AT, 26 * 512, TABLE_AT, 128 * 512]) {
      names.push(await image.describe(at));
    }
    assert.deepEqual(names, [
      "header",
      "descriptor",
      "redundant grain directory",
      "grain table 0, redundant",
      "grain directory",
      "grain table 0",
      undefined,
    ]);
  });
});
