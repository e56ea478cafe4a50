import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ExtentSet } from "../../bytes/extents.ts";
import { readBytes } from "../../device/device.ts";
import { execute } from "../../reclaim/execute.ts";
import { conformance } from "../../testing/conformance.ts";
import { tally } from "../../testing/conformance/judge.ts";
import {
  CLUSTER_BYTES,
  descriptorOf,
  guid,
  makeBundle,
  NAME,
  NONE,
  type Shape,
  TOP,
  withText,
} from "../../testing/parallels-bundle.ts";
import { Random } from "../../testing/seeds.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { simulatedSource } from "../../testing/simulated-source.ts";
import { requires, run, scratch } from "../../testing/tools.ts";
import { parallelsBundle } from "../parallels.ts";

const noParent = () => Promise.reject(new Error("a bundle has its parents inside"));
const MIB = 2 ** 20;
const SHAPES: readonly (Shape & { readonly name: string })[] = [
  { name: "two storages, two snapshots", storages: [MIB / 4, MIB / 4 + 512], shots: [TOP, guid(2), guid(1)] },
  { name: "a plain file", storages: [MIB / 2], shots: [TOP], isPlain: true },
  { name: "a plain root", storages: [MIB / 4], shots: [TOP, guid(1)], isPlain: true },
];

conformance(
  parallelsBundle,
  SHAPES.map((shape) => ({
    name: shape.name,
    seeds: 1,
    canBlank: shape.shots.length === 1,
    async make(t, random) {
      if (!requires(t, "qemu-img", "qemu-io")) return undefined;
      const { files, contents } = await makeBundle(scratch(t), shape, random);
      return { files, image: NAME, content: contents[0]! };
    },
  })),
);

const open = (files: Map<string, SimulatedFile>) =>
  parallelsBundle.open(simulatedSource(files, NAME), noParent);
const openWritable = (files: Map<string, SimulatedFile>) =>
  parallelsBundle.openWritable!(simulatedSource(files, NAME), noParent);

const WISH = { blank: ExtentSet.EMPTY, pack: false, punch: true, minHoleBytes: 4096, hostBlockBytes: 4096 };

test("each snapshot reads what it was, and none but the top is written", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const shape = SHAPES[0]!;
  const { files, contents } = await makeBundle(scratch(t), shape, new Random(7));
  const before = new Map(Array.from(files, ([name, file]) => [name, Buffer.from(file.peek())]));
  {
    await using image = await openWritable(files);
    assert.equal(image.summary, "16 KiB clusters, 2 storages, 2 snapshots");
    await image.write(100, Buffer.alloc(400_000, 9));
    await image.flush();
    const free = ExtentSet.of({ start: 0, end: image.bytes });
    const plan = await image.plan({ ...WISH, free });
    assert.equal(plan.unmapBytes, 0, "nothing may show what lies below (H9)");
    assert.ok(plan.punchBytes > 0);
    await execute(plan, image.files);
    for (const [i, shot] of (await image.snapshots()).entries()) {
      assert.equal(shot.id, shape.shots[i + 1]);
      await using snapshot = await shot.open();
      assert.deepEqual(Buffer.from(await readBytes(snapshot, 0, snapshot.bytes)), contents[i + 1]);
    }
    assert.equal((await tally(image)).errors, 0);
  }
  for (const [name, bytes] of before) {
    if (!name.includes(TOP)) assert.ok(bytes.equals(files.get(name)!.peek()), name);
  }
});

test("QEMU finds the images of a bundle whole after a reclaim", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  const { files } = await makeBundle(folder, { storages: [MIB, MIB], shots: [TOP] }, new Random(4));
  {
    await using image = await openWritable(files);
    await image.write(MIB - 30_000, Buffer.alloc(60_000, 5));
    await execute(
      await image.plan({ ...WISH, free: ExtentSet.of({ start: 0, end: MIB - CLUSTER_BYTES * 4 }) }),
      image.files,
    );
  }
  await using image = await open(files);
  const path = join(folder, "saved.hds");
  for (const storage of [0, 1]) {
    await files.get(`${NAME}/${NAME}.${storage}.${TOP}.hds`)!.save(path);
    run("qemu-img", ["check", "-f", "parallels", path]);
    run("qemu-img", ["convert", "-f", "parallels", "-O", "raw", path, `${path}.raw`]);
    const content = Buffer.from(await readBytes(image, storage * MIB, MIB));
    assert.ok(readFileSync(`${path}.raw`).equals(content));
  }
});

test("a snapshot that is based on the one that is written forbids writing (H33)", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const shape = { storages: [MIB / 4], shots: [guid(2), guid(1)] };
  const { files } = await makeBundle(scratch(t), shape, new Random(1));
  const text = descriptorOf(shape);
  files.set(
    `${NAME}/DiskDescriptor.xml`,
    withText(text.replace("<Snapshots>", `<Snapshots><TopGUID>${guid(1)}</TopGUID>`)),
  );
  await using image = await open(files);
  await assert.rejects(image.plan({ ...WISH, free: ExtentSet.EMPTY }), {
    kind: "refused",
    code: "has-children",
  });
});

test("what a descriptor must not say", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const shape = { storages: [MIB / 4], shots: [TOP, guid(1)] };
  const { files } = await makeBundle(scratch(t), shape, new Random(1));
  const text = descriptorOf(shape);
  assert.equal(await parallelsBundle.probe(simulatedSource(files, NAME)), true);
  for (const [from, to, message] of [
    ['Version="1.0">', 'Version="1.1">', /Version 1.1/],
    ["<Padding>0", "<Padding>1", /Padding 1/],
    ["<Start>0", "<Start>1", /Storage: found 512-/],
    ["<Disk_size>512", "<Disk_size>513", /Disk_size/],
    ["<End>512", "<End>x", /a number of sectors/],
    ["<Blocksize>32", "<Blocksize>64", /clusters' length/],
    [`<Shot><GUID>${guid(1)}`, `<Shot><GUID>${TOP}`, /again/],
    [`<ParentGUID>${NONE}`, `<ParentGUID>${TOP}`, /a snapshot below/],
    [`<ParentGUID>${guid(1)}`, `<ParentGUID>${guid(3)}`, /a snapshot below/],
    [`<Image><GUID>${guid(1)}`, `<Image><GUID>${guid(3)}`, /no Image/],
    [`<GUID>${guid(1)}`, "<GUID>x", /a GUID in braces/],
    ["<Type>Compressed", "<Type>Other", /Image of Type/],
    ["<Type>Compressed", "<Type>Plain", /plain image that has a parent/],
    [`<File>${NAME}.0.${TOP}`, `<File>../${NAME}.0.${TOP}`, /./],
    [`<File>${NAME}.0.${TOP}`, `<File>${NAME}.0.${guid(1)}`, /each file once/],
    ["<Storage>", "<Storage><Start>0</Start>", /more of them/],
  ] as const) {
    const broken = new Map(files).set(`${NAME}/DiskDescriptor.xml`, withText(text.replace(from, to)));
    assert.notEqual(text.replace(from, to), text, from);
    await assert.rejects(open(broken), { name: "DiskError", message });
  }
  files.set(`${NAME}/DiskDescriptor.xml`, withText("<plist/>"));
  assert.equal(await parallelsBundle.probe(simulatedSource(files, NAME)), false);
});

test("a disk without storages, or of clusters without length, is damaged", async () => {
  const whole = descriptorOf({ storages: [MIB], shots: [TOP], isPlain: true });
  const empty = whole.replace(/<Storage>.*<\/Storage>/, "").replace(/<Disk_size>\d+/, "<Disk_size>0");
  for (const [text, message] of [
    [whole.replace(/<Blocksize>\d+/, "<Blocksize>0"), /Blocksize/],
    [empty, /no Storage/],
  ] as const) {
    const file = SimulatedFile.from(new Uint8Array(MIB), { name: `${NAME}/${NAME}.0.${TOP}.hds` });
    const files = new Map([[file.name, file]]).set(`${NAME}/DiskDescriptor.xml`, withText(text));
    await assert.rejects(open(files), { kind: "corrupt", message });
  }
});

test("however many snapshots lie above each other, their description is read once (H24)", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const shape = { storages: [MIB / 4], shots: [TOP, ...[1, 2, 3, 4, 5].map(guid)] };
  const { files } = await makeBundle(scratch(t), shape, new Random(1));
  const file = files.get(`${NAME}/DiskDescriptor.xml`)!;
  const readable = file.readable.bind(file);
  let reads = 0;
  file.readable = () => {
    const opened = readable();
    const read = opened.read.bind(opened);
    return Object.assign(opened, {
      read(at: number, into: Uint8Array) {
        reads++;
        return read(at, into);
      },
    });
  };
  await using image = await open(files);
  assert.equal(image.details["snapshots"], 5);
  assert.equal(reads, 1);
});
