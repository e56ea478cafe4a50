import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite, test } from "node:test";
import { createImage, qemuCheck, qemuIo } from "../../testing/qemu.ts";
import { type Kind, makeImage } from "../../testing/qcow2-kinds.ts";
import { Random, seeds } from "../../testing/seeds.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { sourceOf } from "../../testing/simulated-source.ts";
import { attempt, requires, run, scratch } from "../../testing/tools.ts";
import { qcow2 } from "../qcow2.ts";
import { countedReferences, inspect } from "./check.ts";
import { openContext } from "./context.ts";

const noParent = () => Promise.reject(new Error("no parent is needed"));

/** Errors and leaks as we count them. */
async function ourCheck(content: Uint8Array): Promise<{ errors: number; leaks: number }> {
  await using image = await qcow2.open(sourceOf(SimulatedFile.from(content, { name: "x" })), noParent);
  const found = { errors: 0, leaks: 0 };
  for await (const { kind, count } of image.check()) found[kind === "error" ? "errors" : "leaks"] += count;
  return found;
}

/** Offsets of everything in `image` worth damaging. */
function targetsOf(image: Buffer): { tables: number[]; counts: number[]; l2: number[] } {
  const offset = (at: number) => Number(image.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n);
  const clusterBytes = 2 ** image.readUInt32BE(20);
  const l1At = offset(40);
  const l1Entries = image.readUInt32BE(36);
  const refcountTableAt = offset(48);
  const tables = Array.from({ length: l1Entries }, (_, i) => l1At + i * 8);
  const l2 = tables.map(offset).filter((at) => at !== 0);
  const block = offset(refcountTableAt);
  return {
    tables: [...tables, refcountTableAt, refcountTableAt + 8],
    counts: Array.from({ length: Math.min(128, clusterBytes) }, (_, i) => block + i),
    l2: l2.flatMap((at) =>
      Array.from({ length: clusterBytes / 8 }, (_, i) => at + i * 8).filter(
        (word) => image.readBigUInt64BE(word) !== 0n,
      ),
    ),
  };
}

/** Patches one to four words or counts. */
function damage(image: Buffer, random: Random): string[] {
  const clusterBytes = 2 ** image.readUInt32BE(20);
  const { tables, counts, l2 } = targetsOf(image);
  return Array.from({ length: 1 + random.below(4) }, () => {
    if (random.oneIn(3)) {
      const at = random.pick(counts);
      image[at] = random.below(4);
      return `byte ${at} = ${image[at]}`;
    }
    const at = random.pick(random.oneIn(3) ? tables : l2);
    const old = image.readBigUInt64BE(at);
    const cluster = BigInt(random.below(image.length / clusterBytes + 2) * clusterBytes);
    const word = random.pick([old ^ (1n << BigInt(random.below(64))), 0n, cluster, cluster | (1n << 63n), image.readBigUInt64BE(random.pick(l2))]); // prettier-ignore
    image.writeBigUInt64BE(word, at);
    return `word ${at} = 0x${word.toString(16)}`;
  });
}

const DAMAGED: readonly Kind[] = [
  { name: "64 KiB, snapshots", options: {}, snapshots: 2 },
  { name: "512 B, 1-bit refcounts", options: { cluster_size: 512, refcount_bits: 1 } },
  { name: "4 KiB, compressed, bitmap", options: { cluster_size: 4096 }, compressed: true, bitmap: true },
  { name: "v2, 4 KiB, snapshot", options: { compat: "0.10", cluster_size: 4096 }, snapshots: 1 },
  {
    name: "subclusters, 2-bit refcounts",
    options: { extended_l2: "on", refcount_bits: 2 },
    compressed: true,
  },
];

for (const kind of DAMAGED) {
  test(`errors and leaks are counted as qemu-img check counts them: ${kind.name}`, async (t) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    const folder = scratch(t);
    const whole = readFileSync(makeImage(folder, kind, new Random(1)));
    const path = join(folder, "damaged.qcow2");
    for (const seed of seeds(12)) {
      const image = Buffer.from(whole);
      const what = damage(image, new Random(seed));
      writeFileSync(path, image);
      const { status, stdout } = attempt("qemu-img", ["check", "-f", "qcow2", "--output=json", path]);
      const found = stdout === "" ? {} : (JSON.parse(stdout) as Record<string, number>);
      // Where QEMU cannot go on we may, and count more.
      if (found["check-errors"] || ![0, 2, 3].includes(status)) continue;
      const expected = { errors: found["corruptions"] ?? 0, leaks: found["leaks"] ?? 0 };
      assert.deepEqual(await ourCheck(image), expected, `SEED=${seed}: ${what.join(", ")}`);
    }
  });
}

suite("each kind of damage", () => {
  const CLUSTER = 4096;

  /** A small image: header, refcount table, block, L1, then L2 and data as written. */
  function small(folder: string): Buffer {
    const path = createImage({
      folder,
      name: "small.qcow2",
      virtualBytes: 2 ** 20,
      options: { cluster_size: CLUSTER },
    });
    qemuIo(path, ["write -P 1 0 64k"]);
    return readFileSync(path);
  }

  const cases: readonly [string, (image: Buffer, at: { l1: number; l2: number; block: number }) => void, { errors: number; leaks: number }][] = [
    ["nothing", () => {}, { errors: 0, leaks: 0 }],
    ["a refcount too low", (image, { block }) => image.writeUInt16BE(0, block + 2 * 6), { errors: 2, leaks: 0 }],
    ["a refcount too high", (image, { block }) => image.writeUInt16BE(2, block + 2 * 6), { errors: 1, leaks: 1 }],
    ["an entry dropped", (image, { l2 }) => image.writeBigUInt64BE(0n, l2), { errors: 0, leaks: 1 }],
    ["a cluster twice", (image, { l2 }) => image.copy(image, l2 + 8, l2, l2 + 8), { errors: 1, leaks: 1 }],
    ["a copied flag dropped", (image, { l2 }) => (image[l2] = 0), { errors: 1, leaks: 0 }],
    ["an L2 table dropped", (image, { l1 }) => image.writeBigUInt64BE(0n, l1), { errors: 0, leaks: 17 }],
    ["an entry past the end", (image, { l2 }) => image.writeBigUInt64BE((1n << 63n) | 0x10_0000n, l2), { errors: 2, leaks: 1 }],
    ["a reserved bit", (image, { l2 }) => image.writeUInt8(0x81, l2), { errors: 1, leaks: 0 }],
  ]; // prettier-ignore
  for (const [name, change, expected] of cases) {
    test(name, async (t) => {
      if (!requires(t, "qemu-img", "qemu-io")) return;
      const folder = scratch(t);
      const image = small(folder);
      const l1 = Number(image.readBigUInt64BE(40));
      const l2 = Number(image.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n);
      change(image, { l1, l2, block: Number(image.readBigUInt64BE(Number(image.readBigUInt64BE(48)))) });
      writeFileSync(join(folder, "damaged.qcow2"), image);
      assert.deepEqual(qemuCheck(join(folder, "damaged.qcow2")), expected, "QEMU");
      assert.deepEqual(await ourCheck(image), expected);
    });
  }
});

test("many errors are told in part and counted in full", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  const path = createImage({ folder, name: "x", virtualBytes: 2 ** 20, options: { cluster_size: 512 } });
  qemuIo(path, ["write -P 1 0 1M"]);
  const image = readFileSync(path);
  const l1At = Number(image.readBigUInt64BE(40));
  for (let i = 0; i < image.readUInt32BE(36); i++) {
    const l2At = Number(image.readBigUInt64BE(l1At + i * 8) & 0x00ff_ffff_ffff_fe00n);
    for (let entry = 0; entry < 64; entry++) image[l2At + entry * 8] = 0;
  }
  const context = await openContext(SimulatedFile.from(image), noParent);
  const { findings } = await inspect(context);
  assert.equal(findings.length, 1001);
  assert.equal(findings.reduce((sum, { count }) => sum + count, 0), 2048); // prettier-ignore
});

test("tables that pretend to hold far more than the file cost no time", { timeout: 20_000 }, async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  const path = createImage({ folder, name: "x", virtualBytes: 2 ** 43, options: { cluster_size: 65536 } });
  qemuIo(path, ["write -P 1 0 1M"]);
  run("qemu-img", ["snapshot", "-c", "one", path]);
  const file = await SimulatedFile.load(path);
  const l1At = Number(Buffer.from(file.peek(40, 8)).readBigUInt64BE());
  const entry = file.peek(l1At, 8);
  for (let i = 1; i < 16384; i++) await file.write(l1At + i * 8, entry);
  const context = await openContext(file, noParent);
  const { references, findings } = await inspect(context);
  const l2At = Number(Buffer.from(entry).readBigUInt64BE() & 0x00ff_ffff_ffff_fe00n);
  assert.equal(references.get(l2At / 65536), 16385, "all entries and the snapshot's");
  assert.ok(findings.some(({ kind }) => kind === "error"));
});

test("a plan is refused where the check finds errors (H17)", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const path = createImage({ folder: scratch(t), name: "x", virtualBytes: 2 ** 20 });
  qemuIo(path, ["write -P 1 0 64k"]);
  const file = await SimulatedFile.load(path, { name: "x" });
  await countedReferences(await openContext(file, noParent));
  await file.write(131072, new Uint8Array(20));
  await assert.rejects(countedReferences(await openContext(file, noParent)), { kind: "corrupt" });
});
