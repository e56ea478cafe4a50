import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { ExtentSet } from "../bytes/extents.ts";
import { readBytes, wholeMap } from "../device/device.ts";
import { execute } from "../reclaim/execute.ts";
import { conformance } from "../testing/conformance.ts";
import { tally } from "../testing/conformance/judge.ts";
import { corpusFiles } from "../testing/corpus.ts";
import { Random } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { simulatedSource } from "../testing/simulated-source.ts";
import { sparsebundle } from "./sparsebundle.ts";

const noParent = () => Promise.reject(new Error("it has no parent"));
const MIB = 2 ** 20;
const NAME = "disk.sparsebundle";

async function fresh(virtualBytes: number, bandBytes: number): Promise<Map<string, SimulatedFile>> {
  const files = new Map<string, SimulatedFile>();
  const request = { virtualBytes, options: { "band-size": String(bandBytes) } };
  await (await sparsebundle.create!(simulatedSource(files, NAME), request))[Symbol.asyncDispose]();
  return files;
}

/** Bands that are missing, short, whole and with holes, as other tools leave them. */
function someBands(
  files: Map<string, SimulatedFile>,
  content: Uint8Array,
  bandBytes: number,
  random: Random,
): void {
  for (let number = 0; number * bandBytes < content.length; number++) {
    const band = content.subarray(number * bandBytes, (number + 1) * bandBytes);
    const bytes = random.pick([0, random.below(band.length), band.length, band.length]);
    band.fill(0, bytes);
    if (bytes === 0 && random.oneIn(2)) continue;
    const name = `${NAME}/bands/${number.toString(16)}`;
    files.set(name, SimulatedFile.from(band.slice(0, bytes), { name }));
  }
}

conformance(
  sparsebundle,
  [65_536, 200 * 512].map((bandBytes) => ({
    name: `bands of ${bandBytes} bytes`,
    async make(_, random) {
      const content = random.bytes(MIB + random.below(5) * 512);
      const files = await fresh(content.length, bandBytes);
      someBands(files, content, bandBytes, random);
      return { files, image: NAME, content };
    },
  })),
);

const open = (files: Map<string, SimulatedFile>) => sparsebundle.open(simulatedSource(files, NAME), noParent);
const openWritable = (files: Map<string, SimulatedFile>) =>
  sparsebundle.openWritable!(simulatedSource(files, NAME), noParent);
const bandsOf = (files: Map<string, SimulatedFile>) =>
  [...files.keys()].filter((name) => name.includes("/bands/")).map((name) => name.replace(/.*\//, ""));

/** The folder of the corpus, its files loaded under their own names. */
async function corpusBundle(name: string): Promise<Map<string, SimulatedFile>> {
  const root = process.env["ULLAGE_CORPUS"] ?? join(import.meta.dirname, "../../../shared/corpus");
  const files = new Map<string, SimulatedFile>();
  for (const path of corpusFiles(RegExp(`/${name}\\.sparsebundle/.`))) {
    if (path.endsWith("/bands")) continue;
    const own = path.replace(/.*\.sparsebundle/, NAME);
    files.set(own, await SimulatedFile.load(join(root, path), { name: own }));
  }
  return files;
}

test("bundles that hdiutil made", async (t) => {
  const files = await corpusBundle("FAT10");
  if (files.size === 0) return t.skip("needs the corpus");
  assert.equal(await sparsebundle.probe(simulatedSource(files, NAME)), true);
  await using image = await open(files);
  assert.deepEqual([image.bytes, image.grainBytes], [10_020_864, 8 * MIB]);
  const map = (await wholeMap(image)).map(({ start, end, kind }) => [start, end, kind]);
  assert.deepEqual(map, [
    [0, 8 * MIB, "hole"],
    [8 * MIB, 10_020_864, "data"],
  ]);
  const tail = files.get(`${NAME}/bands/1`)!;
  assert.deepEqual(await readBytes(image, 8 * MIB, tail.bytes), tail.peek());
  await using empty = await open(await corpusBundle("empty"));
  assert.deepEqual(await wholeMap(empty), [
    { start: 0, end: empty.bytes, kind: "hole", shared: false, depth: 0 },
  ]);
});

test("an encrypted bundle is named so", async (t) => {
  const files = await corpusBundle("test");
  if (files.size === 0) return t.skip("needs the corpus");
  await assert.rejects(open(files), { kind: "unsupported", code: "encrypted" });
});

test("bands are made when they are written, and those that packing empties are removed", async () => {
  const files = await fresh(MIB, 65_536);
  assert.deepEqual(bandsOf(files), []);
  {
    await using image = await openWritable(files);
    await image.write(65_536 * 3 - 10, new Uint8Array(20).fill(7));
    await image.zero({ start: 0, end: MIB / 8 });
    await image.flush();
  }
  assert.deepEqual(bandsOf(files), ["2", "3"]);
  assert.equal(files.get(`${NAME}/bands/3`)!.bytes, 10, "no longer than what was written");
  {
    await using image = await openWritable(files);
    const wish = { blank: ExtentSet.EMPTY, punch: false, minHoleBytes: 0, hostBlockBytes: 4096 };
    const free = ExtentSet.of({ start: 65_536 * 3, end: MIB });
    const plan = await image.plan({ ...wish, free, pack: true });
    assert.equal(plan.packBytes, 10);
    await execute(plan, image.files);
  }
  assert.deepEqual(bandsOf(files), ["2"]);
});

test("few of many bands are open at a time", async () => {
  const bands = 300;
  const files = await fresh(bands * 4096, 4096);
  const source = simulatedSource(files, NAME);
  let openNow = 0;
  let most = 0;
  const { folder } = source;
  const counted = {
    ...source,
    folder: {
      ...folder!,
      file: (name: string) => {
        const file = folder!.file(name);
        return {
          ...file,
          async openWritable() {
            const held = await file.openWritable!();
            most = Math.max(most, ++openNow);
            const close = held[Symbol.asyncDispose].bind(held);
            held[Symbol.asyncDispose] = async () => {
              openNow--;
              await close();
            };
            return held;
          },
        };
      },
    },
  };
  await using image = await sparsebundle.openWritable!(counted, noParent);
  const random = new Random(1);
  const content = random.bytes(image.bytes);
  for (let at = 0; at < image.bytes; at += 40_960) await image.write(at, content.subarray(at, at + 40_960));
  await image.flush();
  assert.deepEqual(await readBytes(image, 0, image.bytes), content);
  assert.ok(most <= 70, `${most} files were open at once`);
});

test("what is no band of the disk is told, and so is a band that is too long", async () => {
  const files = await fresh(MIB, 65_536);
  for (const name of ["10", "0A", "01", "x"]) files.set(`${NAME}/bands/${name}`, new SimulatedFile(512));
  files.set(`${NAME}/bands/2`, new SimulatedFile(65_537));
  await using image = await open(files);
  const { errors, leaks } = await tally(image);
  assert.deepEqual([errors, leaks], [1, 4]);
  await readBytes(image, 0, MIB);
});

test("what a property list must not say", async () => {
  const files = await fresh(MIB, 65_536);
  const info = files.get(`${NAME}/Info.plist`)!;
  const text = Buffer.from(info.peek()).toString();
  for (const [from, to, message] of [
    ["<integer>65536<", "<integer>0<", /band-size is 0/],
    ["<integer>65536<", "<integer>513<", /band-size is 513/],
    ["<integer>65536<", "<integer>8589935104<", /band-size/],
    ["<integer>65536<", "<string>65536<", /<\/integer> closes nothing/],
    ["<integer>1<", "<integer>2<", /backingstore-version 2/],
    ["<integer>1048576<", "<integer>-1<", /size is -1/],
    ["<integer>1048576<", "<integer>9007199254740992<", /size is/],
    ["disk.sparse", "disk.other", /diskimage-bundle-type|closes/],
    ["image.sparsebundle", "image.other", /diskimage-bundle-type is com.apple.diskimage.other/],
  ] as const) {
    const broken = new Map(files);
    const bytes = Buffer.from(text.replace(from, to));
    broken.set(`${NAME}/Info.plist`, SimulatedFile.from(bytes, { name: "Info.plist" }));
    if (text.replace(from, to) === text) continue;
    await assert.rejects(open(broken), { message });
  }
});

test("only one writes to a bundle", async () => {
  const files = await fresh(MIB, 65_536);
  await using _first = await openWritable(files);
  await assert.rejects(openWritable(files), { kind: "busy" });
});

test("options that are none", async () => {
  for (const options of [{ "band-size": "0" }, { "band-size": "513" }, { x: "1" }] as Record<
    string,
    string
  >[]) {
    const request = { virtualBytes: MIB, options };
    await assert.rejects(sparsebundle.create!(simulatedSource(new Map(), NAME), request), { kind: "usage" });
  }
});

test("a disk of more bands than anybody could count is mapped at once (H24)", async () => {
  const files = await fresh(2 ** 31, 512);
  const far = 2 ** 21;
  for (const number of [3, 4, far]) {
    const name = `${NAME}/bands/${number.toString(16)}`;
    files.set(name, SimulatedFile.from(new Uint8Array(number === 4 ? 100 : 512), { name }));
  }
  await using image = await open(files);
  const before = performance.now();
  const map = (await wholeMap(image)).map(({ start, end, kind }) => [start, end, kind]);
  assert.deepEqual(map, [
    [0, 1536, "hole"],
    [1536, 2048, "data"],
    [2048, 2148, "data"],
    [2148, far * 512, "hole"],
    [far * 512, far * 512 + 512, "data"],
    [far * 512 + 512, image.bytes, "hole"],
  ]);
  assert.ok(performance.now() - before < 500, "one by one, these bands take seconds");
  const inside = await wholeMap(image, { start: 1600, end: 2 ** 30 });
  assert.deepEqual(
    inside.map(({ start, end }) => [start, end]),
    [
      [1600, 2048],
      [2048, 2148],
      [2148, 2 ** 30],
    ],
  );
});
