/**
 * qcow2 images that `qemu-img` and `qemu-io` made, of every kind, loaded into simulated files.
 */
import { readdirSync } from "node:fs";
import { basename, join } from "node:path";
import type { Image, OpenParent } from "../formats/format.ts";
import { qcow2 } from "../formats/qcow2.ts";
import { raw } from "../formats/raw.ts";
import type { Source } from "../device/source.ts";
import type { Files } from "./crash.ts";
import { createImage, qemuIo, randomWrites, writeCommand } from "./qemu.ts";
import type { Random } from "./seeds.ts";
import { SimulatedFile } from "./simulated-file.ts";
import { simulatedSource } from "./simulated-source.ts";
import { run } from "./tools.ts";

/** One kind of image. */
export interface Kind {
  readonly name: string;
  /** For `qemu-img create -o`. */
  readonly options: Readonly<Record<string, string | number>>;
  /** The format of a backing image, shorter than the disk. */
  readonly backing?: "qcow2" | "raw";
  readonly snapshots?: number;
  /** Some clusters are written compressed. */
  readonly compressed?: boolean;
  readonly dataFile?: "plain" | "raw";
  readonly bitmap?: boolean;
}

const MIB = 2 ** 20;

export const KINDS: readonly Kind[] = [
  { name: "v2", options: { compat: "0.10" } },
  { name: "v2, 512 B, parent", options: { compat: "0.10", cluster_size: 512 }, backing: "qcow2" },
  { name: "v2, zlib, snapshots", options: { compat: "0.10", cluster_size: 4096 }, compressed: true, snapshots: 2 },
  { name: "512 B, 1-bit refcounts", options: { cluster_size: 512, refcount_bits: 1 } },
  { name: "1 KiB, 2-bit, zlib", options: { cluster_size: 1024, refcount_bits: 2 }, compressed: true },
  { name: "4 KiB, 4-bit, snapshot", options: { cluster_size: 4096, refcount_bits: 4 }, snapshots: 1 },
  { name: "8 KiB, 8-bit, raw parent", options: { cluster_size: 8192, refcount_bits: 8 }, backing: "raw" },
  { name: "32 KiB, 32-bit, lazy", options: { cluster_size: 32768, refcount_bits: 32, lazy_refcounts: "on" } },
  { name: "64 KiB, 64-bit, zstd", options: { refcount_bits: 64, compression_type: "zstd" }, compressed: true },
  { name: "64 KiB, parent, snapshots, zlib", options: {}, backing: "qcow2", snapshots: 3, compressed: true },
  { name: "2 MiB", options: { cluster_size: 2 * MIB }, snapshots: 1, compressed: true },
  { name: "subclusters, 16 KiB", options: { extended_l2: "on", cluster_size: 16384 }, snapshots: 1 },
  { name: "subclusters, parent", options: { extended_l2: "on" }, backing: "qcow2", compressed: true },
  { name: "subclusters, preallocated, parent", options: { extended_l2: "on", preallocation: "metadata" }, backing: "raw" },
  { name: "preallocated", options: { preallocation: "falloc", cluster_size: 16384 } },
  { name: "data file", options: { cluster_size: 16384 }, dataFile: "plain" },
  { name: "raw data file", options: {}, dataFile: "raw" },
  { name: "data file, subclusters", options: { extended_l2: "on" }, dataFile: "plain" },
  { name: "bitmap, snapshot", options: { cluster_size: 4096 }, bitmap: true, snapshots: 1 },
]; // prettier-ignore

/** An odd number of sectors: the last cluster is cut short. */
export const VIRTUAL_BYTES = 3 * MIB + 5 * 512;
const PARENT_BYTES = 2 * MIB + 3 * 512;

/** Makes an image that was written, zeroed and discarded at random; returns its path. */
export function makeImage(folder: string, kind: Kind, random: Random): string {
  const clusterBytes = Number(kind.options["cluster_size"] ?? 65536);
  const shape = { count: 10, virtualBytes: VIRTUAL_BYTES, grainBytes: clusterBytes <= 1024 ? 512 : 2048 };
  const options: Record<string, string | number> = { ...kind.options };
  if (kind.backing !== undefined) {
    const parent = join(folder, "parent");
    run("qemu-img", ["create", "-q", "-f", kind.backing, parent, String(PARENT_BYTES)]);
    run("qemu-io", ["-f", kind.backing, "-c", `write -P 238 0 ${PARENT_BYTES}`, parent]);
    Object.assign(options, { backing_file: "parent", backing_fmt: kind.backing });
  }
  if (kind.dataFile) options["data_file"] = join(folder, "image.data");
  if (kind.dataFile === "raw") options["data_file_raw"] = "on";
  const path = createImage({ folder, name: "image.qcow2", virtualBytes: VIRTUAL_BYTES, options });
  if (kind.bitmap) run("qemu-img", ["bitmap", "--add", "-g", "65536", path, "b0"]);
  if (kind.compressed) {
    const clusters = Array.from({ length: 12 }, () => random.below(Math.floor(VIRTUAL_BYTES / clusterBytes)));
    qemuIo(
      path,
      [...new Set(clusters)].map((n) => `write -c -P ${1 + (n % 255)} ${n * clusterBytes} ${clusterBytes}`),
    );
  }
  change(path, random, shape);
  for (let i = 0; i < (kind.snapshots ?? 0); i++) {
    run("qemu-img", ["snapshot", "-c", `snapshot ${i}`, path]);
    change(path, random, { ...shape, count: 4 });
  }
  return path;
}

function change(path: string, random: Random, shape: Parameters<typeof randomWrites>[1]): void {
  const [zeroed, unmapped, dropped] = randomWrites(random, { ...shape, count: 3 });
  qemuIo(path, [
    ...randomWrites(random, shape).map(writeCommand),
    `write -z ${zeroed!.start} ${zeroed!.end - zeroed!.start}`,
    `write -z -u ${unmapped!.start} ${unmapped!.end - unmapped!.start}`,
    `discard ${dropped!.start} ${dropped!.end - dropped!.start}`,
  ]);
}

/** All files of a folder. */
export async function loadFolder(folder: string): Promise<Files> {
  const files = new Map<string, SimulatedFile>();
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (entry.isFile())
      files.set(entry.name, await SimulatedFile.load(join(folder, entry.name), { name: entry.name }));
  }
  return files;
}

/** A source whose references lead to files of the same name, wherever QEMU was told that they lie. */
export function sourceIn(files: Files, name: string): Source {
  const source = simulatedSource(new Map(files), name);
  return { ...source, refer: (other) => Promise.resolve(sourceIn(files, basename(other))) };
}

export function parentsIn(files: Files): OpenParent {
  return (name, format) =>
    (format === "raw" ? raw : qcow2).open(sourceIn(files, basename(name)), parentsIn(files));
}

export function openIn(files: Files, name = "image.qcow2"): Promise<Image> {
  return qcow2.open(sourceIn(files, name), parentsIn(files));
}
