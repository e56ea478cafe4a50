import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { readBytes } from "../../device/device.ts";
import { qemuCheck } from "../../testing/qemu.ts";
import { loadFolder, openIn, parentsIn } from "../../testing/qcow2-kinds.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { simulatedSource } from "../../testing/simulated-source.ts";
import { requires, run, scratch } from "../../testing/tools.ts";
import { qcow2 } from "../qcow2.ts";
import { parseOptions } from "./create.ts";

const MIB = 2 ** 20;

/** What `qemu-img info` says about the format itself. */
interface Info {
  readonly "virtual-size": number;
  readonly "cluster-size": number;
  readonly "backing-filename-format"?: string;
  readonly "format-specific": { readonly data: Readonly<Record<string, unknown>> };
}

async function create(
  virtualBytes: number,
  options: Record<string, string>,
  files = new Map<string, SimulatedFile>(),
) {
  await using image = await qcow2.create!(
    simulatedSource(files, "image.qcow2"),
    { virtualBytes, options },
    parentsIn(files),
  );
  assert.equal(image.bytes, Math.ceil(virtualBytes / 512) * 512);
  return files;
}

const CASES: readonly [virtualBytes: number, options: Record<string, string>, ours?: Record<string, unknown>][] = [
  [8 * MIB, {}, { compat: "1.1", "refcount-bits": 16, "compression-type": "zlib", "lazy-refcounts": false }],
  [0, {}],
  [8 * MIB + 1, { compat: "0.10" }, { compat: "0.10" }],
  [10 * MIB, { cluster_size: "512", refcount_bits: "64" }, { "refcount-bits": 64 }],
  [2 ** 42, { cluster_size: "2M", refcount_bits: "1" }, { "refcount-bits": 1 }],
  [2 ** 36, { cluster_size: "4k", compat: "v3" }],
  [MIB, { lazy_refcounts: "on", compression_type: "zstd" }, { "lazy-refcounts": true, "compression-type": "zstd" }],
  [MIB, { extended_l2: "on", cluster_size: "16384" }, { "extended-l2": true }],
  [9 * MIB, { preallocation: "metadata", cluster_size: "4k", refcount_bits: "8" }],
  [9 * MIB, { preallocation: "metadata", extended_l2: "on" }],
]; // prettier-ignore

for (const [virtualBytes, options, expected] of CASES) {
  test(`QEMU opens and clears ${virtualBytes} bytes with ${JSON.stringify(options)}`, async (t) => {
    if (!requires(t, "qemu-img")) return;
    const folder = scratch(t);
    const path = join(folder, "image.qcow2");
    await (await create(virtualBytes, options)).get("image.qcow2")!.save(path);
    assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 });
    const info = JSON.parse(run("qemu-img", ["info", "--output=json", path])) as Info;
    assert.equal(info["virtual-size"], Math.ceil(virtualBytes / 512) * 512);
    const data = info["format-specific"].data;
    for (const [name, value] of Object.entries(expected ?? {})) assert.equal(data[name], value, name);
    if (virtualBytes > 16 * MIB) return;
    const twin = join(folder, "twin.qcow2");
    run("qemu-img", ["create", "-q", "-f", "qcow2", twin, String(virtualBytes)]);
    run("qemu-img", ["compare", "-q", path, twin]);
    if (virtualBytes === 0) return;
    run("qemu-io", ["-f", "qcow2", "-c", "write -P 5 100k 300k", path]);
    run("qemu-io", ["-f", "qcow2", "-c", "write -P 5 100k 300k", twin]);
    run("qemu-img", ["compare", "-q", path, twin]);
    assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 }, "after QEMU wrote to it");
  });
}

test("a new image above another one reads it", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  run("qemu-img", ["create", "-q", "-f", "qcow2", join(folder, "base"), "1M"]);
  run("qemu-io", ["-f", "qcow2", "-c", "write -P 9 0 1M", join(folder, "base")]);
  const files = new Map(await loadFolder(folder));
  await create(2 * MIB, { backing_file: "base", backing_fmt: "qcow2" }, files);
  await using image = await openIn(files);
  assert.deepEqual(await readBytes(image, MIB - 2, 4), new Uint8Array([9, 9, 0, 0]));
  await files.get("image.qcow2")!.save(join(folder, "image.qcow2"));
  const info = JSON.parse(run("qemu-img", ["info", "--output=json", join(folder, "image.qcow2")])) as Info;
  assert.equal(info["backing-filename-format"], "qcow2");
  run("qemu-io", [
    "-f",
    "qcow2",
    "-c",
    "read -P 9 0 1M",
    "-c",
    "read -P 0 1M 1M",
    join(folder, "image.qcow2"),
  ]);
});

test("a raw data file becomes the disk of the image that describes it", async () => {
  const content = new Uint8Array(MIB).fill(7);
  const files = new Map([["disk", SimulatedFile.from(content, { name: "disk" })]]);
  await create(2 * MIB, { data_file: "disk", data_file_raw: "on" }, files);
  await using image = await openIn(files);
  assert.deepEqual(await readBytes(image, MIB - 1, 2), new Uint8Array([7, 0]));
  assert.equal(files.get("disk")!.bytes, 2 * MIB);
});

test("nothing is made where a file cannot be opened", async () => {
  const files = new Map<string, SimulatedFile>();
  const missing = { kind: "io" };
  await assert.rejects(create(MIB, { backing_file: "none", backing_fmt: "raw" }, files), missing);
  await assert.rejects(create(MIB, { data_file: "none" }, files), missing);
  assert.equal(files.size, 0);
  files.set("data", new SimulatedFile(2 * MIB, { name: "data" }));
  await assert.rejects(create(MIB, { data_file: "data" }, files), { kind: "usage" });
  assert.equal(files.has("image.qcow2"), false);
  assert.equal(files.get("data")!.bytes, 2 * MIB);
});

test("options that contradict each other are refused by name", () => {
  const refuses = (options: Record<string, string>, message: RegExp, virtualBytes = MIB) =>
    assert.throws(() => parseOptions({ virtualBytes, options }), { kind: "usage", message });
  refuses({ cluster: "1" }, /no option "cluster"/);
  refuses({ cluster_size: "256" }, /cluster_size 256/);
  refuses({ cluster_size: "4M" }, /cluster_size 4194304/);
  refuses({ cluster_size: "3000" }, /power of two/);
  refuses({ cluster_size: "lots" }, /cluster_size "lots"/);
  refuses({ refcount_bits: "128" }, /refcount_bits 128/);
  refuses({ refcount_bits: "x" }, /refcount_bits NaN/);
  refuses({ compat: "2.0" }, /compat "2.0"/);
  refuses({ compat: "0.10", refcount_bits: "8" }, /refcount_bits needs compat=1.1/);
  refuses({ compat: "0.10", compression_type: "zstd" }, /compression_type needs compat=1.1/);
  refuses({ compat: "0.10", data_file: "x" }, /data_file needs compat=1.1/);
  refuses({ extended_l2: "on", cluster_size: "8k" }, /16k/);
  refuses({ backing_file: "x" }, /without backing_fmt/);
  refuses({ backing_fmt: "raw" }, /without backing_file/);
  refuses({ data_file_raw: "on" }, /without data_file/);
  refuses({ preallocation: "full" }, /preallocation "full"/);
  refuses({ preallocation: "metadata", backing_file: "x", backing_fmt: "raw" }, /needs extended_l2/);
});

test("a disk that one L1 table cannot reach is refused before anything is made", async () => {
  const files = new Map<string, SimulatedFile>();
  await assert.rejects(create(2 ** 40, { cluster_size: "512" }, files), {
    kind: "usage",
    message: /larger cluster/,
  });
  assert.equal(files.size, 0);
});
