/**
 * Small images of every format that is written to, on simulated files, for servers that are held against a model.
 */
import { FORMATS } from "../formats/all.ts";
import type { Image, OpenParent, WritableImage } from "../formats/format.ts";
import type { Files } from "./crash.ts";
import type { Random } from "./seeds.ts";
import { SimulatedFile } from "./simulated-file.ts";
import { simulatedSource } from "./simulated-source.ts";

export interface ImageKind {
  readonly name: string;
  readonly format: string;
  readonly options?: Readonly<Record<string, string>>;
  readonly virtualBytes: number;
  /** The image lies above a raw one that is so long, and full. */
  readonly parentBytes?: number;
  /** Bytes that the table maps at once. */
  readonly grain: number;
  readonly blockBytes?: number;
}

const KIB = 1024;
const ODD = 700 * KIB + 5 * 512;

export const IMAGE_KINDS: readonly ImageKind[] = [
  { name: "raw", format: "raw", virtualBytes: ODD, grain: 4096 },
  { name: "raw, holes of 512 bytes", format: "raw", virtualBytes: ODD, grain: 512, blockBytes: 512 },
  qcow2("v3, 64 KiB", {}, 65536),
  qcow2("v3, 4 KiB", { cluster_size: "4096" }, 4096),
  qcow2("v2, 512 B", { cluster_size: "512", compat: "0.10" }, 512),
  qcow2("v3, subclusters", { cluster_size: "16384", extended_l2: "on" }, 512),
  qcow2("v3 above a parent", { cluster_size: "4096" }, 4096, 300 * KIB + 512),
  qcow2("v2 above a parent", { cluster_size: "4096", compat: "0.10" }, 4096, 300 * KIB + 512),
  qcow2("subclusters above a parent", { cluster_size: "16384", extended_l2: "on" }, 512, ODD - 1024),
  qcow2("1-bit refcounts", { cluster_size: "1024", refcount_bits: "1" }, 1024),
  qcow2("data file", { cluster_size: "4096", data_file: "data" }, 4096),
  { name: "vhdx", format: "vhdx", options: { block_size: "1M" }, virtualBytes: 3 * 1024 * KIB, grain: 65536 },
  { name: "vhd", format: "vhd", options: { block_size: "65536" }, virtualBytes: 1024 * KIB, grain: 65536 },
  { name: "fixed vhd", format: "vhd", options: { subformat: "fixed" }, virtualBytes: 512 * KIB, grain: 4096 },
  { name: "vdi", format: "vdi", options: { block_size: "65536" }, virtualBytes: 1024 * KIB, grain: 65536 },
  { name: "vmdk", format: "vmdk", virtualBytes: 1024 * KIB, grain: 65536 },
  { name: "vmdk, zeroed grains", format: "vmdk", options: { zeroed_grain: "on" }, virtualBytes: 1024 * KIB, grain: 65536 },
  { name: "vmdk, flat", format: "vmdk", options: { subformat: "monolithicFlat" }, virtualBytes: 512 * KIB, grain: 4096 },
  { name: "parallels", format: "parallels", options: { cluster_size: "64k" }, virtualBytes: 1024 * KIB, grain: 65536 },
  { name: "sparseimage", format: "sparseimage", virtualBytes: 3 * 1024 * KIB, grain: 65536 },
  { name: "sparsebundle", format: "sparsebundle", virtualBytes: 3 * 1024 * KIB, grain: 65536 },
]; // prettier-ignore

function qcow2(
  name: string,
  options: Readonly<Record<string, string>>,
  grain: number,
  parentBytes = 0,
): ImageKind {
  const kind = { name: `qcow2, ${name}`, format: "qcow2", virtualBytes: ODD, grain };
  if (parentBytes === 0) return { ...kind, options };
  return { ...kind, options: { ...options, backing_file: "parent", backing_fmt: "raw" }, parentBytes };
}

export interface Made {
  readonly files: Map<string, SimulatedFile>;
  /** What the guest reads. */
  readonly content: Uint8Array;
}

const IMAGE = "disk";

const formatOf = (name: string) => FORMATS.find((format) => format.name === name)!;

const parentsIn =
  (files: Files): OpenParent =>
  (name, format) =>
    formatOf(format ?? "raw").open(simulatedSource(new Map(files), name), parentsIn(files));

/** A new image, with nothing of its own. */
export async function makeKind(kind: ImageKind, random: Random): Promise<Made> {
  const files = new Map<string, SimulatedFile>();
  const content = new Uint8Array(kind.virtualBytes);
  if (kind.parentBytes !== undefined) {
    const parent = random.bytes(kind.parentBytes);
    content.set(parent);
    files.set("parent", SimulatedFile.from(parent, { name: "parent" }));
  }
  const { virtualBytes, options = {} } = kind;
  if (options["data_file"]) files.set("data", new SimulatedFile(0, { name: "data" }));
  const source = simulatedSource(files, IMAGE);
  const image = await formatOf(kind.format).create!(source, { virtualBytes, options }, parentsIn(files));
  await image.flush();
  await image[Symbol.asyncDispose]();
  if (kind.blockBytes !== undefined) {
    files.set(IMAGE, new SimulatedFile(virtualBytes, { name: IMAGE, blockBytes: kind.blockBytes }));
  }
  for (const file of files.values()) file.locked = false;
  return { files, content };
}

export function openKind(kind: ImageKind, files: Map<string, SimulatedFile>): Promise<WritableImage> {
  return formatOf(kind.format).openWritable!(simulatedSource(files, IMAGE), parentsIn(files));
}

export function readKind(kind: ImageKind, files: Map<string, SimulatedFile>): Promise<Image> {
  return formatOf(kind.format).open(simulatedSource(files, IMAGE), parentsIn(files));
}
