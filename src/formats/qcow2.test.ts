import assert from "node:assert/strict";
import { join } from "node:path";
import { suite, test } from "node:test";
import { type BlockDevice, readBytes, type Run, wholeMap } from "../device/device.ts";
import { corpusFiles, unpack } from "../testing/corpus.ts";
import { fileDevice } from "../testing/file-device.ts";
import { guestBytes, qemuCheck } from "../testing/qemu.ts";
import { KINDS, loadFolder, makeImage, openIn, sourceIn } from "../testing/qcow2-kinds.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { sourceOf } from "../testing/simulated-source.ts";
import { requires, run, scratch } from "../testing/tools.ts";
import type { Image } from "./format.ts";
import { qcow2 } from "./qcow2.ts";

/** A line of `qemu-img map`, or of ours: what it says about a range. */
interface Line {
  readonly start: number;
  readonly end: number;
  readonly depth: number;
  readonly kind: "data" | "zero" | "absent";
  /** -1: none. */
  readonly offset: number;
}

function joined(lines: readonly Line[]): Line[] {
  const out: Line[] = [];
  for (const line of lines) {
    const last = out.at(-1);
    const follows = last && (last.offset < 0 ? -1 : last.offset + last.end - last.start);
    if (last && last.depth === line.depth && last.kind === line.kind && follows === line.offset) {
      out[out.length - 1] = { ...last, end: line.end };
    } else out.push(line);
  }
  return out;
}

function qemuMap(path: string): Line[] {
  const lines = JSON.parse(run("qemu-img", ["map", "-f", "qcow2", "--output=json", path])) as {
    start: number;
    length: number;
    depth: number;
    present: boolean;
    zero: boolean;
    data: boolean;
    offset?: number;
  }[];
  return joined(
    lines.map(({ start, length, depth, present, zero, data, offset }) => {
      const kind = !present ? "absent" : data ? "data" : zero ? "zero" : "absent";
      return {
        start,
        end: start + length,
        depth: present ? depth : 0,
        kind,
        offset: kind === "data" ? (offset ?? -1) : -1,
      };
    }),
  );
}

function ourMap(runs: readonly Run[]): Line[] {
  return joined(
    runs.map(({ start, end, kind, place, depth }) => {
      const said = kind === "hole" ? "absent" : kind === "compressed" ? "data" : kind;
      return {
        start,
        end,
        depth: said === "absent" ? 0 : depth,
        kind: said,
        offset: said === "data" ? (place?.at ?? -1) : -1,
      };
    }),
  );
}

async function contentOf(device: BlockDevice): Promise<Buffer> {
  return Buffer.from(await readBytes(device, 0, device.bytes));
}

async function foundBy(image: Image): Promise<{ errors: number; leaks: number }> {
  const found = { errors: 0, leaks: 0 };
  for await (const { kind, count } of image.check()) found[kind === "error" ? "errors" : "leaks"] += count;
  return found;
}

for (const kind of KINDS) {
  suite(`qcow2, ${kind.name}`, () => {
    for (const seed of seeds(1)) {
      test(`reads, map, snapshots and check as QEMU's, SEED=${seed}`, async (t) => {
        if (!requires(t, "qemu-img", "qemu-io")) return;
        const folder = scratch(t);
        const path = makeImage(folder, kind, new Random(seed));
        const files = await loadFolder(folder);
        await using image = await openIn(files);
        assert.ok((await contentOf(image)).equals(guestBytes(path)), "content");
        assert.deepEqual(ourMap(await wholeMap(image)), qemuMap(path), "map");
        const snapshots = await image.snapshots();
        assert.equal(snapshots.length, kind.snapshots ?? 0);
        for (const snapshot of snapshots) {
          await using device = await snapshot.open();
          assert.equal(device.bytes, snapshot.bytes);
          assert.ok((await contentOf(device)).equals(guestBytes(path, snapshot.name)), snapshot.name);
        }
        assert.deepEqual(await foundBy(image), qemuCheck(path), "check");
      });
    }
  });
}

test("images of the corpus read and map as QEMU reads them", async (t) => {
  const names = corpusFiles(/\.qcow2(\.gz|\.bz2|\.xz)?$/);
  if (names.length === 0) return t.skip("needs the corpus");
  if (!requires(t, "qemu-img")) return;
  for (const name of names) {
    const folder = scratch(t);
    run("cp", [unpack(t, name), join(folder, "image.qcow2")]);
    await using image = await openIn(await loadFolder(folder));
    const path = join(folder, "image.qcow2");
    const runs = await wholeMap(image);
    assert.deepEqual(ourMap(runs), qemuMap(path), name);
    run("qemu-img", ["convert", "-t", "unsafe", "-f", "qcow2", "-O", "raw", path, `${path}.raw`]);
    await using oracle = await fileDevice(`${path}.raw`);
    for (const { start, end, kind } of runs) {
      if (kind === "hole") continue;
      const expected = await readBytes(oracle, start, end - start);
      assert.equal(
        Buffer.compare(await readBytes(image, start, end - start), expected),
        0,
        `${name} at ${start}`,
      );
    }
    assert.deepEqual(await foundBy(image), qemuCheck(path), name);
  }
});

test("tables are found where they lie", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  makeImage(folder, { name: "", options: { cluster_size: 4096 }, snapshots: 1, bitmap: true }, new Random(1));
  const files = await loadFolder(folder);
  await using image = await openIn(files);
  assert.equal(await image.describe(0), "header");
  assert.equal(await image.describe(4096), "refcount table");
  assert.equal(await image.describe(2 * 4096 + 7), "refcount block 0");
  const [data] = (await wholeMap(image)).filter(({ place }) => place);
  assert.equal(await image.describe(data!.place!.at), undefined);
  const named = new Map<string, number>();
  for (let at = 0; at < files.get("image.qcow2")!.bytes; at += 4096) {
    const name = await image.describe(at);
    if (name !== undefined) named.set(name, (named.get(name) ?? 0) + 4096);
  }
  assert.ok(named.has("L2 table 0") && named.has('bitmap "b0" table') && named.has("snapshot table"));
  assert.ok(
    [...named.keys()].some((name) => name.endsWith('of snapshot "snapshot 0"')),
    "tables of the snapshot",
  );
  assert.equal(
    [...named.values()].reduce((sum, bytes) => sum + bytes, 0),
    await image.tableBytes(),
  );
});

test("shared clusters are those that a snapshot holds too", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  const path = join(folder, "image.qcow2");
  run("qemu-img", ["create", "-q", "-f", "qcow2", path, "1M"]);
  run("qemu-io", ["-c", "write -P 1 0 256k", path]);
  run("qemu-img", ["snapshot", "-c", "one", path]);
  run("qemu-io", ["-c", "write -P 2 64k 64k", "-c", "write -P 3 512k 64k", path]);
  await using image = await openIn(await loadFolder(folder));
  const shared = (runs: readonly Run[]) =>
    runs.filter(({ place }) => place).map((r) => [r.start / 1024, r.end / 1024, r.shared]);
  assert.deepEqual(shared(await wholeMap(image)), [[0, 64, true], [64, 128, false], [128, 256, true], [512, 576, false]]);
  const [one] = await image.snapshots();
  assert.deepEqual(shared(await wholeMap(await one!.open())), [[0, 64, true], [64, 128, false], [128, 256, true]]);
}); // prettier-ignore

test("an encrypted image shows its map, and nothing of its content", async (t) => {
  if (!requires(t, "qemu-img")) return;
  const folder = scratch(t);
  const path = join(folder, "image.qcow2");
  const secret = ["--object", "secret,id=s,data=geheim"];
  const options = "encrypt.format=aes,encrypt.key-secret=s,preallocation=metadata";
  run("qemu-img", ["create", "-q", ...secret, "-f", "qcow2", "-o", options, path, "1M"]);
  await using image = await openIn(await loadFolder(folder));
  assert.equal(image.encrypted, true);
  assert.deepEqual(
    (await wholeMap(image)).map(({ kind }) => kind),
    ["data"],
  );
  await assert.rejects(readBytes(image, 0, 512), { kind: "unsupported", code: "encrypted" });
  assert.deepEqual(await foundBy(image), { errors: 0, leaks: 0 });
});

test("probe tells qcow2 by its magic, and throws at nothing", async () => {
  const probe = (content: Uint8Array) => qcow2.probe(sourceOf(SimulatedFile.from(content, { name: "x" })));
  assert.equal(await probe(new Uint8Array(0)), false);
  assert.equal(await probe(new Uint8Array(100_000)), false);
  const header = new Uint8Array(72);
  header.set([0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]);
  assert.equal(await probe(header), true);
  header[7] = 1;
  assert.equal(await probe(header), false, "version 1 is another format");
});

test("what the header refers to is known without opening it", async (t) => {
  if (!requires(t, "qemu-img")) return;
  const folder = scratch(t);
  run("qemu-img", ["create", "-q", "-f", "raw", join(folder, "base"), "1M"]);
  const path = join(folder, "image.qcow2");
  run("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", path]);
  run("rm", [join(folder, "base")]);
  const files = await loadFolder(folder);

  assert.deepEqual(await qcow2.references(sourceIn(files, "image.qcow2")), [
    { role: "backing", name: "base", format: "raw" },
  ]);
});
