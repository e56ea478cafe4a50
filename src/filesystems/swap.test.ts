import assert from "node:assert/strict";
import { test } from "node:test";
import { ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import { readBytes } from "../device/device.ts";
import { corpus, corpusFiles, unpack } from "../testing/corpus.ts";
import { blankDisk } from "../testing/partitions.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { attempt, requires, run } from "../testing/tools.ts";
import type { FileSystem } from "./filesystem.ts";
import { HeaderBE, HeaderLE, swap } from "./swap.ts";

const KiB = 1024;

const open = (device: BlockDevice): Promise<FileSystem> => swap.open([device], { replay: false });

/** The extents that a walk visits, by owner. */
async function walked(area: FileSystem): Promise<Record<number, [number, number]>> {
  const found: Record<number, [number, number]> = {};
  await area.walk((member, start, end, owner) => {
    assert.equal(member, 0);
    found[owner] = [start, end];
  });
  return found;
}

/** What blkid says of a file: `TYPE`, `VERSION`, `LABEL`, `UUID`, … */
function blkid(path: string): Record<string, string> {
  const lines = attempt("blkid", ["-p", "-o", "export", path]).stdout.split("\n");
  return Object.fromEntries(lines.filter((line) => line.includes("=")).map((line) => line.split("=", 2)));
}

test("areas of every length of a page: kept is the header, worthless is the rest", async (t) => {
  if (!requires(t, "mkswap", "blkid")) return;
  for (const pageKiB of [4, 8, 16, 32, 64]) {
    const path = blankDisk(t, 1536 * KiB + 512);
    run("mkswap", ["--pagesize", `${pageKiB * KiB}`, "--label", `page ${pageKiB}`, path]);
    const device = await SimulatedFile.load(path);
    assert.equal(await swap.probe(device), true);
    const area = await open(device);
    assert.equal(area.refusal, undefined);
    const said = blkid(path);
    assert.equal(area.label, said["LABEL"]!.replaceAll("\\ ", " "));
    assert.equal(area.label, `page ${pageKiB}`);
    assert.equal(area.uuid, said["UUID"]);
    assert.equal(area.blockBytes, pageKiB * KiB);
    assert.equal(area.bytes, 1536 * KiB);
    assert.deepEqual([...area.scratch!], [{ start: 64 * KiB, end: 1536 * KiB }]);
    assert.equal((await area.free())[0]!.count, 0);
    assert.deepEqual(await walked(area), { "-1": [0, 64 * KiB], "1": [64 * KiB, 1536 * KiB] });
    assert.equal((await area.describe(-1)).name, "swap header");
    assert.equal((await area.describe(1)).kind, "special");
    assert.equal(await area.find("/"), undefined);
    assert.equal(await area.list("/"), undefined);
  }
});

test("what is worthless may go: the area is the same to swaplabel and to the kernel", async (t) => {
  if (!requires(t, "mkswap", "swaplabel")) return;
  const path = blankDisk(t, 256 * KiB);
  run("mkswap", ["--label", "before", path]);
  const device = await SimulatedFile.load(path);
  await device.write(64 * KiB, new Random(1).bytes(192 * KiB));
  const before = run("swaplabel", [path]);
  for (const extent of (await open(device)).scratch!) await device.punch(extent);
  await device.save(path);
  assert.equal(run("swaplabel", [path]), before);
  assert.equal((await open(device)).label, "before");
});

test("bad pages are left alone, and too many are none", async (t) => {
  if (!requires(t, "mkswap")) return;
  const path = blankDisk(t, 256 * KiB);
  run("mkswap", [path]);
  const device = await SimulatedFile.load(path);
  const page = await readBytes(device, 0, 4096);
  const view = new DataView(page.buffer);
  const withBad = async (...pages: number[]): Promise<FileSystem> => {
    HeaderLE.encode({ badPages: pages.length }, page, 1024);
    pages.slice(0, 600).forEach((number, i) => view.setUint32(1536 + i * 4, number, true));
    await device.write(0, page);
    return open(device);
  };
  assert.deepEqual(
    [...(await withBad(20, 63)).scratch!],
    [
      { start: 64 * KiB, end: 80 * KiB },
      { start: 84 * KiB, end: 252 * KiB },
    ],
  );
  assert.match((await withBad(64)).refusal!.message, /bad page 64, expected 1 to 63/);
  assert.match((await withBad(0)).refusal!.message, /bad page 0/);
  assert.match((await withBad(...Array<number>(638).fill(1))).refusal!.message, /638 bad pages/);
  assert.equal((await withBad()).refusal, undefined);
});

test("headers that do not add up", async (t) => {
  if (!requires(t, "mkswap")) return;
  const path = blankDisk(t, 256 * KiB);
  run("mkswap", [path]);
  for (const [values, code] of [
    [{ lastPage: 64 }, "damaged"],
    [{ lastPage: 0 }, "damaged"],
    [{ lastPage: 2 ** 32 - 1 }, "damaged"],
    [{ version: 2 }, "features"],
  ] as const) {
    const device = await SimulatedFile.load(path);
    const page = await readBytes(device, 0, 4096);
    HeaderLE.encode(values, page, 1024);
    await device.write(0, page);
    const area = await open(device);
    assert.equal(area.refusal?.code, code);
    assert.equal(area.scratch?.count, 0);
    assert.equal((await area.free())[0]!.count, 0);
  }
  const device = await SimulatedFile.load(path);
  await device.write(8192 - 10, Buffer.from("SWAPSPACE2"));
  assert.equal((await open(device)).refusal?.code, "contradiction");
});

test("a guest that sleeps is noticed by every signature, at every page", async (t) => {
  if (!requires(t, "mkswap", "blkid")) return;
  for (const pageBytes of [4096, 8192, 16384, 32768, 65536]) {
    for (const text of ["S1SUSPEND\0", "S2SUSPEND\0", "ULSUSPEND\0", "LINHIB0001"]) {
      const path = blankDisk(t, 1024 * KiB);
      run("mkswap", ["--pagesize", `${pageBytes}`, path]);
      const device = await SimulatedFile.load(path);
      await device.write(pageBytes - 10, Buffer.from(text));
      await device.save(path);
      assert.equal(blkid(path)["TYPE"], "swsuspend");
      const area = await open(device);
      assert.equal(area.refusal?.code, "hibernated", text);
      assert.equal(area.scratch?.count, 0);
    }
  }
  const path = blankDisk(t, 256 * KiB);
  run("mkswap", [path]);
  const device = await SimulatedFile.load(path);
  // An older swap area, below which a guest with larger pages sleeps.
  await device.write(65536 - 10, Buffer.from("S1SUSPEND\0"));
  assert.equal((await open(device)).refusal?.code, "hibernated");
});

test("areas that other people made, in either order of bytes", async (t) => {
  if (corpus(t) === undefined || !requires(t, "blkid")) return;
  const names = corpusFiles(/util-linux.*(mkswap\/.*|images-fs\/(swap|tuxonice).*)\.img\.xz$/);
  assert.equal(names.length, 9);
  const codes: Record<string, string | undefined> = {};
  for (const name of names) {
    const path = unpack(t, name);
    const device = await SimulatedFile.load(path);
    assert.equal(await swap.probe(device), true, name);
    const area = await open(device);
    const short = /([^/]+)\.img/.exec(name)![1]!;
    codes[short] = area.refusal?.code;
    const said = blkid(path);
    if (said["TYPE"] === "swap" && said["VERSION"] === "1" && area.refusal === undefined) {
      assert.equal(area.uuid, said["UUID"] ?? "", name);
      assert.equal(area.label, said["LABEL"] ?? "", name);
    }
    const header = await readBytes(device, 1024, HeaderBE.bytes);
    if (short.startsWith("BE")) {
      assert.equal(area.bytes, (HeaderBE.decode(header).lastPage + 1) * area.blockBytes);
      assert.equal(area.blockBytes, Number(short.slice(3)));
    }
    assert.ok(area.scratch!.within({ start: 0, end: 64 * KiB }).equals(ExtentSet.EMPTY), name);
  }
  assert.deepEqual(codes, {
    "BE-4096": undefined,
    "BE-8192": undefined,
    "LE-4096": undefined,
    "LE-8192": undefined,
    "swap-luks": "contradiction",
    swap0: undefined,
    "swap1-big": undefined,
    swap1: undefined,
    tuxonice: "hibernated",
  });
});

test("any bytes: nothing is thrown, nothing of the header is worthless", async () => {
  for (const seed of seeds(300)) {
    const random = new Random(seed);
    const bytes = random.bytes(random.pick([0, 10, 4096, 40_960, 131_072]));
    const at = random.pick([4086, 8182, 65526]);
    if (at + 10 <= bytes.length) {
      bytes.set(Buffer.from(random.pick(["SWAPSPACE2", "SWAP-SPACE"])), at);
      HeaderLE.encode({ version: random.below(3), badPages: random.below(3) }, bytes, 1024);
      HeaderLE.encode({ lastPage: random.below(40) }, bytes, 1024);
    }
    const device = SimulatedFile.from(bytes);
    await swap.probe(device);
    const area = await open(device);
    const scratch = area.scratch!;
    assert.ok(scratch.within({ start: 64 * KiB, end: bytes.length }).equals(scratch), `SEED=${seed}`);
    await area.walk((_, start, end) => assert.ok(start >= 0 && start < end && end <= bytes.length));
  }
});
