/**
 * VMDK images that QEMU made, with their extents, and what QEMU reads in them.
 */
import { readdirSync, readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import type { Files } from "./crash.ts";
import { randomWrites, type Verdict, writeCommand } from "./qemu.ts";
import type { Random } from "./seeds.ts";
import { SimulatedFile } from "./simulated-file.ts";
import { attempt, run } from "./tools.ts";

export interface VmdkKind {
  readonly name: string;
  readonly virtualBytes: number;
  /** For `qemu-img create -o`. */
  readonly options: Readonly<Record<string, string>>;
  /** The disk is built on another one. */
  readonly hasParent?: boolean;
}

/** The grains of every image that QEMU makes. */
export const GRAIN_BYTES = 64 * 1024;

const wordsOf = (options: Readonly<Record<string, string>>): string[] =>
  Object.entries(options).flatMap(([key, value]) => ["-o", `${key}=${value}`]);

/** Makes `disk.vmdk` in an empty folder, with random writes; `streamOptimized` is converted, as nobody writes to it. */
export function makeVmdk(folder: string, kind: VmdkKind, random: Random): string {
  const path = join(folder, "disk.vmdk");
  const { options, virtualBytes } = kind;
  if (kind.hasParent) {
    const parent = join(folder, "base.vmdk");
    run("qemu-img", ["create", "-q", "-f", "vmdk", parent, String(virtualBytes)]);
    write(parent, virtualBytes, random);
    // A relative name: it is taken from the folder of the image.
    run("qemu-img", [
      "create",
      "-q",
      "-f",
      "vmdk",
      ...wordsOf(options),
      "-b",
      "base.vmdk",
      "-F",
      "vmdk",
      path,
    ]);
    write(path, virtualBytes, random);
    return path;
  }
  if (options["subformat"] !== "streamOptimized") {
    run("qemu-img", ["create", "-q", "-f", "vmdk", ...wordsOf(options), path, String(virtualBytes)]);
    write(path, virtualBytes, random);
    return path;
  }
  const plain = makeVmdk(folder, { ...kind, options: {} }, random);
  const packed = join(folder, "packed.vmdk");
  run("qemu-img", ["convert", "-f", "vmdk", "-O", "vmdk", ...wordsOf(options), plain, packed]);
  run("mv", [packed, path]);
  return path;
}

function write(path: string, virtualBytes: number, random: Random): void {
  const writes = [
    ...randomWrites(random, { count: 6, virtualBytes, grainBytes: GRAIN_BYTES }),
    ...randomWrites(random, { count: 4, virtualBytes, grainBytes: 4096 }),
  ];
  // First: QEMU forgets the grain that it makes a zeroed one.
  const commands = [
    `write -z ${2 * GRAIN_BYTES} ${3 * GRAIN_BYTES}`,
    ...writes.map((each) => writeCommand(each)),
  ];
  run("qemu-io", ["-t", "unsafe", "-f", "vmdk", ...commands.flatMap((command) => ["-c", command]), path]);
}

/** All files of a folder, by name. */
export async function filesIn(folder: string): Promise<Map<string, SimulatedFile>> {
  const files = new Map<string, SimulatedFile>();
  for (const name of readdirSync(folder)) {
    if (!name.endsWith(".vmdk")) continue;
    files.set(name, await SimulatedFile.load(join(folder, name), { name }));
  }
  return files;
}

/** Writes simulated files into a folder, for QEMU. */
export async function saveAll(files: Files, folder: string): Promise<void> {
  for (const [name, file] of files) await file.save(join(folder, name));
}

/** The guest's bytes, as QEMU reads them. */
export function vmdkBytes(path: string): Buffer {
  const out = join(dirname(path), `${basename(path)}.raw`);
  run("qemu-img", ["convert", "-t", "unsafe", "-f", "vmdk", "-O", "raw", path, out]);
  const bytes = readFileSync(out);
  run("rm", [out]);
  return bytes;
}

/** What `qemu-img check` says. */
export function vmdkCheck(path: string): Verdict {
  const { stdout, stderr, status } = attempt("qemu-img", ["check", "-f", "vmdk", "--output=json", path]);
  if (status !== 0 && status !== 2 && status !== 3) throw new Error(`qemu-img check: ${stderr}`);
  const found = JSON.parse(stdout) as { corruptions?: number; leaks?: number; "check-errors": number };
  return { errors: (found.corruptions ?? 0) + found["check-errors"], leaks: found.leaks ?? 0 };
}
