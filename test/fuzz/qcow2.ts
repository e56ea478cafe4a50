/**
 * Fuzzing of qcow2, over samples with clusters of all sizes, snapshots and compressed clusters.
 */
import { readFileSync } from "node:fs";
import { HeaderV2, HeaderV3 } from "../../src/formats/qcow2/header.ts";
import { qcow2 as format } from "../../src/formats/qcow2.ts";
import { chunksOf, type FuzzTarget, type Sample, spotOf } from "../../src/testing/fuzz.ts";
import { createImage, qemuIo } from "../../src/testing/qemu.ts";
import { SimulatedFile } from "../../src/testing/simulated-file.ts";
import { run } from "../../src/testing/tools.ts";
import { fuzzImage } from "./image.ts";

const VIRTUAL_BYTES = 1024 * 1024;

const VARIANTS: Readonly<Record<string, Readonly<Record<string, string | number>>>> = {
  "4 KiB clusters": { cluster_size: 4096 },
  "64 KiB clusters": { cluster_size: 65536 },
  "512 B clusters, version 2": { cluster_size: 512, compat: "0.10" },
  subclusters: { cluster_size: 16384, extended_l2: "on" },
  "refcounts of a bit, lazy": { cluster_size: 4096, refcount_bits: 1, lazy_refcounts: "on" },
  "zstd, 64-bit refcounts": { cluster_size: 8192, refcount_bits: 64, compression_type: "zstd" },
};

export const qcow2: FuzzTarget = {
  name: "qcow2",
  needs: ["qemu-img", "qemu-io"],

  async samples(folder) {
    return Object.entries(VARIANTS).map(([name, options]) => makeSample(folder, name, options));
  },

  run(bytes, random) {
    const mutant = { format, file: SimulatedFile.from(bytes), virtualBytes: VIRTUAL_BYTES };
    return fuzzImage(mutant, random);
  },
};

function makeSample(
  folder: string,
  name: string,
  options: Readonly<Record<string, string | number>>,
): Sample {
  const image = "image.qcow2";
  const path = createImage({ folder, name: image, virtualBytes: VIRTUAL_BYTES, options });
  const cluster = Number(options["cluster_size"]);
  const compressed = [0, 1, 2].map((i) => `write -c -P ${19 + i} ${640 * 1024 + i * cluster} ${cluster}`);
  qemuIo(path, ["write -P 17 0 200k", "write -P 18 400k 60k", "write -z 440k 100k", ...compressed]);
  if (options["refcount_bits"] !== 1) {
    run("qemu-img", ["snapshot", "-c", "first", path]);
    qemuIo(path, ["write -P 20 100k 50k", "discard 0 64k"]);
  }
  if (options["compat"] !== "0.10") run("qemu-img", ["bitmap", "--add", path, "dirty"]);
  const bytes = new Uint8Array(readFileSync(path));
  run("rm", [path]);
  const chunks = chunksOf(bytes, (chunk) => chunk.every((byte) => byte === chunk[0]));
  const headers = [spotOf(HeaderV2, 0), spotOf(HeaderV3, HeaderV2.bytes)];
  const often = Array.from({ length: Math.ceil(chunks.length / 2) }, (_, i) => headers[i % 2]!);
  return { name, bytes, spots: [...often, ...chunks] };
}
