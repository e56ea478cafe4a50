import assert from "node:assert/strict";
import { test } from "node:test";
import { ExtentSet } from "../bytes/extents.ts";
import { readBytes } from "../device/device.ts";
import { execute } from "../reclaim/execute.ts";
import { conformance } from "../testing/conformance.ts";
import { tally } from "../testing/conformance/judge.ts";
import { Random } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { simulatedSource, sourceOf } from "../testing/simulated-source.ts";
import { sparseimage } from "./sparseimage.ts";

const noParent = () => Promise.reject(new Error("it has no parent"));
const NAME = "disk.sparseimage";

interface Made {
  readonly file: SimulatedFile;
  readonly content: Buffer;
}

/** As libmodi and fsdump describe it: bands in any order, the places of a node filled one after the other. */
function make(random: Random, bands: number, bandBytes: number, oneIn: number): Made {
  const content = Buffer.alloc(bands * bandBytes - 512);
  const order = Array.from({ length: bands }, (_, band) => band)
    .filter(() => oneIn === 1 || !random.oneIn(oneIn))
    .map((band) => ({ band, key: random.below(1e9) }))
    .sort((a, b) => a.key - b.key);
  const parts: Buffer[] = [];
  let at = 0;
  for (let first = 0, node = 0; first === 0 || first < order.length; node++) {
    const [head, entries] = node === 0 ? [64, 1008] : [56, 1010];
    const table = Buffer.alloc(4096);
    const here = order.slice(first, first + entries);
    const next = first + entries < order.length ? at + 4096 + entries * bandBytes : 0;
    table.write("sprs");
    if (node === 0) {
      table.writeUInt32BE(3, 4);
      table.writeUInt32BE(bandBytes / 512, 8);
      table.writeUInt32BE(content.length / 512, 16);
      table.writeBigUInt64BE(BigInt(next), 20);
      table.writeBigUInt64BE(BigInt(content.length / 512), 28);
    } else {
      table.writeUInt32BE(node - 1, 4);
      table.writeBigUInt64BE(BigInt(next), 12);
    }
    table.writeUInt32BE(1, node === 0 ? 12 : 8);
    parts.push(table);
    for (const [i, { band }] of here.entries()) {
      table.writeUInt32BE(band + 1, head + i * 4);
      const bytes = Buffer.from(random.bytes(bandBytes));
      bytes.copy(content, band * bandBytes);
      parts.push(bytes);
    }
    first += entries;
    at = next;
  }
  return { file: SimulatedFile.from(Buffer.concat(parts), { name: NAME }), content };
}

conformance(
  sparseimage,
  [8192, 65_536].map((bandBytes) => ({
    name: `bands of ${bandBytes} bytes`,
    seeds: 1,
    async make(_, random) {
      const { file, content } = make(random, Math.ceil(800_000 / bandBytes), bandBytes, 3);
      return { files: new Map([[NAME, file]]), image: NAME, content };
    },
  })),
);

const WISH = { blank: ExtentSet.EMPTY, pack: false, punch: true, minHoleBytes: 4096, hostBlockBytes: 4096 };

test("further index nodes", async () => {
  const { file, content } = make(new Random(1), 2300, 4096, 1);
  await using image = await sparseimage.openWritable!(sourceOf(file), noParent);
  assert.equal(image.details["indexNodes"], 3);
  assert.ok(content.equals(await readBytes(image, 0, image.bytes)));
  assert.equal(await image.describe(4096 + 1008 * 4096), "index node");
  assert.deepEqual(await tally(image), { errors: 0, leaks: 0, first: undefined });
  const free = ExtentSet.of({ start: 0, end: 2_000_000 });
  await execute(await image.plan({ ...WISH, free }), image.files);
  const now = Buffer.from(await readBytes(image, 0, image.bytes));
  assert.ok(now.subarray(2_000_000).equals(content.subarray(2_000_000)));
  assert.ok(file.hostBytes < content.length - 1_900_000);
  await image.write(100, Buffer.alloc(9000, 1));
  assert.equal((await tally(image)).errors, 0);
});

test("bands that would need an index node are not made", async () => {
  const { file } = make(new Random(1), 1100, 4096, 8);
  await using image = await sparseimage.openWritable!(sourceOf(file), noParent);
  await assert.rejects(image.write(0, new Uint8Array(image.bytes)), {
    kind: "unsupported",
    message: /index nodes/,
  });
});

/** The entries of the header node up to the first that is 0, as other readers take them. */
function entriesOf(file: SimulatedFile): number[] {
  const view = Buffer.from(file.peek(64, 4032));
  const entries = Array.from({ length: 1008 }, (_, i) => view.readUInt32BE(i * 4));
  return entries.slice(0, entries.indexOf(0));
}

test("no entry becomes 0, and new bands follow the last one, whatever lies behind it", async () => {
  const files = new Map<string, SimulatedFile>();
  const source = simulatedSource(files, NAME);
  {
    await using image = await sparseimage.create!(source, { virtualBytes: 9 * 2 ** 20, options: {} });
    for (const band of [5, 2]) await image.write(band * 2 ** 20, Uint8Array.of(band));
    await image.flush();
  }
  const file = files.get(NAME)!;
  assert.deepEqual(entriesOf(file), [6, 3]);
  await file.truncate(file.bytes + 5 * 2 ** 20 + 7);
  {
    await using image = await sparseimage.openWritable!(source, noParent);
    await execute(
      await image.plan({ ...WISH, free: ExtentSet.of({ start: 0, end: image.bytes }) }),
      image.files,
    );
    assert.deepEqual(entriesOf(file), [6, 3]);
    await image.write(0, Uint8Array.of(9));
  }
  assert.deepEqual(entriesOf(file), [6, 3, 1]);
  await using image = await sparseimage.open(source, noParent);
  assert.deepEqual(await readBytes(image, 0, 2), Uint8Array.of(9, 0));
});

test("what a header must not say", async () => {
  const word = (number: number) => new Uint8Array([number >>> 24, number >>> 16, number >>> 8, number]);
  for (const [at, bytes, message] of [
    [0, word(1), /magic/],
    [4, word(4), /version 4/],
    [8, word(0), /sectors in a band at 8: found 0/],
    [8, word(0x0100_0001), /sectors in a band/],
    [16, word(1), /sectors at 28/],
    [20, word(1), /next index node/],
    [24, word(4096), /next index node at 0: found 4096/],
    [28, word(0x7fff_ffff), /past 8 PiB|sectors/],
    [64, word(0xffff_ffff), /entry at 64: found 4294967295/],
  ] as const) {
    const { file } = make(new Random(1), 10, 8192, 1);
    await file.write(at, bytes);
    await assert.rejects(sparseimage.open(sourceOf(file), noParent), { name: "DiskError", message });
  }
  const { file } = make(new Random(1), 10, 8192, 1);
  await file.write(64, file.peek(68, 4));
  await assert.rejects(sparseimage.open(sourceOf(file), noParent), { kind: "corrupt", message: /again/ });
});

test("options that are none, and disks that are too large", async () => {
  for (const request of [
    { virtualBytes: 512, options: { x: "1" } },
    { virtualBytes: 513, options: {} },
    { virtualBytes: 2 ** 43, options: {} },
  ] as { virtualBytes: number; options: Record<string, string> }[]) {
    await assert.rejects(sparseimage.create!(simulatedSource(new Map(), NAME), request), { kind: "usage" });
  }
});

test("a band that lies too far for the table is refused, not taken for a near one", async () => {
  const bandBytes = 8 * 2 ** 30;
  const second = 4096 + 1008 * bandBytes;
  const file = new SimulatedFile(second + 4096 + bandBytes, { name: NAME });
  const header = Buffer.alloc(4096);
  header.write("sprs");
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(bandBytes / 512, 8);
  header.writeUInt32BE(bandBytes / 512, 16);
  header.writeBigUInt64BE(BigInt(second), 20);
  header.writeBigUInt64BE(BigInt(bandBytes / 512), 28);
  await file.write(0, header);
  const node = Buffer.alloc(4096);
  node.write("sprs");
  node.writeUInt32BE(1, 56);
  await file.write(second, node);
  await assert.rejects(sparseimage.open(sourceOf(file), noParent), {
    kind: "unsupported",
    message: /too far/,
  });
});
