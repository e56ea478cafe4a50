/**
 * Zeros and trims of a qcow2 that is being written: what becomes of entries, places and the host's blocks.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { readBytes, wholeMap } from "../../device/device.ts";
import { recording } from "../../testing/crash.ts";
import { durable } from "../../testing/conformance/writer-crash.ts";
import { parentsIn } from "../../testing/qcow2-kinds.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { simulatedSource } from "../../testing/simulated-source.ts";
import { qcow2 } from "../qcow2.ts";

const CLUSTER = 65536;
const BYTES = 16 * CLUSTER;
const PARENT = 0xcc;

/** The first eight clusters hold 1, 2, …; the parent, where there is one, holds the same byte everywhere. */
async function image(options: Record<string, string>, virtualBytes = BYTES, clusters = 8) {
  const files = new Map<string, SimulatedFile>();
  if (options["backing_file"]) {
    files.set("parent", SimulatedFile.from(new Uint8Array(BYTES).fill(PARENT), { name: "parent" }));
  }
  const writes = Array.from({ length: clusters }, (_, i) => {
    return { start: i * CLUSTER, end: (i + 1) * CLUSTER, pattern: i + 1 };
  });
  const source = simulatedSource(files, "image.qcow2");
  await using made = await qcow2.create!(source, { virtualBytes, options }, parentsIn(files));
  for (const { start, end, pattern } of writes)
    await made.write(start, new Uint8Array(end - start).fill(pattern));
  return files;
}

const ABOVE = { backing_file: "parent", backing_fmt: "raw" };

function opened(files: Map<string, SimulatedFile>) {
  return qcow2.openWritable!(simulatedSource(files, "image.qcow2"), parentsIn(files));
}

const kinds = async (device: Parameters<typeof wholeMap>[0], start: number, end: number) =>
  (await wholeMap(device, { start, end })).map(({ kind, place }) => (place ? `${kind} placed` : kind));

for (const options of [{}, ABOVE, { ...ABOVE, extended_l2: "on" }]) {
  test(`zeros keep the place, or give it up: ${JSON.stringify(options)}`, async () => {
    const files = await image(options);
    await using disk = await opened(files);
    const file = files.get("image.qcow2")!;
    const before = file.hostBytes;
    await disk.zero({ start: 1000, end: 3 * CLUSTER + 1000 }, { keep: true });
    await disk.flush();
    assert.ok(file.hostBytes >= before, "nothing went");
    assert.ok((await kinds(disk, 0, 4 * CLUSTER)).every((kind) => kind.endsWith("placed")));
    await disk.zero({ start: 1000, end: 3 * CLUSTER + 9000 }, { keep: false });
    await disk.flush();
    // Two clusters, and the host's blocks between 4096 and 65536, between 0 and 8192.
    assert.equal(before - file.hostBytes, 2 * CLUSTER + 60 * 1024 + 8192);
    const now = await readBytes(disk, 0, 4 * CLUSTER);
    const expected = Buffer.alloc(4 * CLUSTER)
      .fill(1, 0, 1000)
      .fill(4, 3 * CLUSTER + 9000);
    assert.equal(expected.compare(now), 0);
  });
}

test("H9: a trimmed piece never uncovers the parent, whatever becomes of the entry", async () => {
  for (const options of [ABOVE, { ...ABOVE, extended_l2: "on" }, { ...ABOVE, compat: "0.10" }]) {
    const files = await image(options);
    await using disk = await opened(files);
    for (let at = 0; at < CLUSTER; at += 8192) await disk.discard({ start: at, end: at + 8192 });
    await disk.flush();
    assert.deepEqual(Buffer.from(await readBytes(disk, 0, CLUSTER)), Buffer.alloc(CLUSTER));
    const hasZero = options !== undefined && !("compat" in options);
    assert.deepEqual(await kinds(disk, 0, CLUSTER), [hasZero ? "zero" : "data placed"]);
  }
});

test("H9: subclusters trimmed in pieces give their cluster up, and those that show the parent go on to", async () => {
  const files = await image({ ...ABOVE, extended_l2: "on", cluster_size: String(2 ** 20) }, BYTES, 0);
  await using disk = await opened(files);
  const [start, end] = [32768, 2 * 32768];
  await disk.write(start, new Uint8Array(end - start).fill(9));
  await disk.flush();
  for (let at = start; at < end; at += 4096) await disk.discard({ start: at, end: at + 4096 });
  await disk.flush();
  assert.equal(
    Buffer.alloc(BYTES, PARENT)
      .fill(0, start, end)
      .compare(await readBytes(disk, 0, BYTES)),
    0,
  );
  assert.deepEqual(await kinds(disk, start, end), ["zero"]);
});

test("H9: subclusters that show the parent go on to when the others have gone", async () => {
  const files = await image({ ...ABOVE, extended_l2: "on" });
  await using disk = await opened(files);
  const start = 10 * CLUSTER;
  await disk.write(start + 8192, new Uint8Array(8192).fill(9));
  await disk.flush();
  await disk.discard({ start: start + 8192, end: start + 16384 });
  await disk.flush();
  const expected = Buffer.alloc(CLUSTER, PARENT).fill(0, 8192, 16384);
  assert.equal(expected.compare(await readBytes(disk, start, CLUSTER)), 0);
  assert.equal((await wholeMap(disk, { start, end: start + CLUSTER })).length, 3);
  assert.ok(!(await kinds(disk, start + 8192, start + 16384)).includes("zero placed"), "no place is left");
});

test("zeros that would be written are refused when they are to be quick, with nothing altered", async () => {
  const unreachable = await image({ ...ABOVE, compat: "0.10" });
  const slow = await image({});
  slow.get("image.qcow2")!.zeroesSlowly = true;
  for (const files of [unreachable, slow]) {
    await using disk = await opened(files);
    const before = await readBytes(disk, 0, BYTES);
    const host = await kinds(disk, 0, BYTES);
    await assert.rejects(disk.zero({ start: 100, end: 12 * CLUSTER + 5 }, { fast: true }), {
      kind: "unsupported",
    });
    assert.equal(Buffer.compare(await readBytes(disk, 0, BYTES), before), 0);
    assert.deepEqual(await kinds(disk, 0, BYTES), host);
    await disk.write(0, new Uint8Array(512).fill(7));
    assert.equal((await readBytes(disk, 0, 1))[0], 7, "the writer goes on");
  }
});

test("entries alone are quick, and so are zeros above a parent that entries can say", async () => {
  const files = await image(ABOVE);
  files.get("image.qcow2")!.zeroesSlowly = true;
  await using disk = await opened(files);
  await disk.zero({ start: 0, end: BYTES }, { fast: true });
  assert.deepEqual(Buffer.from(await readBytes(disk, 0, BYTES)), Buffer.alloc(BYTES));
});

test("a change that is committed in its midst is flushed to its end", async () => {
  const files = await image({ ...ABOVE, cluster_size: String(2 ** 21) }, 2 ** 42, 0);
  const { files: recorded, trace } = recording(files);
  const disk = await opened(recorded);
  await disk.zero({ start: 0, end: 2 ** 42 });
  await disk.flush();
  const left = await durable(files, trace);
  await using survivor = await opened(left);
  const found = await wholeMap(survivor);
  assert.deepEqual(
    found.map(({ kind, depth }) => `${kind} ${depth}`),
    ["zero 0"],
  );
});

test("a small write into a new cluster costs the host no more than its blocks", async () => {
  const files = await image({}, BYTES, 0);
  await using disk = await opened(files);
  await disk.write(0, new Uint8Array(1));
  await disk.flush();
  const file = files.get("image.qcow2")!;
  const before = file.hostBytes;
  for (let i = 1; i < 8; i++) await disk.write(i * CLUSTER + 20480, new Uint8Array(4096).fill(i));
  await disk.flush();
  assert.equal(file.hostBytes - before, 7 * 4096);
  const expected = Buffer.alloc(CLUSTER).fill(3, 20480, 24576);
  assert.equal(expected.compare(await readBytes(disk, 3 * CLUSTER, CLUSTER)), 0);
});
