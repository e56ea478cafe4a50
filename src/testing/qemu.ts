/**
 * Images made by `qemu-img` and `qemu-io`, and judged by them.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Extent } from "../bytes/extents.ts";
import type { Random } from "./seeds.ts";
import { attempt, run } from "./tools.ts";

/** One write of a pattern byte. */
export interface PatternWrite extends Extent {
  readonly pattern: number;
}

export interface QemuImage {
  readonly folder: string;
  /** File name inside `folder`. */
  readonly name: string;
  readonly virtualBytes: number;
  /** For `qemu-img create -o`. */
  readonly options?: Readonly<Record<string, string | number>>;
}

/** Creates a qcow2 image; returns its path. */
export function createImage({ folder, name, virtualBytes, options = {} }: QemuImage): string {
  const path = join(folder, name);
  const words = Object.entries(options).map(([key, value]) => `${key}=${value}`);
  const settings = words.length === 0 ? [] : ["-o", words.join(",")];
  run("qemu-img", ["create", "-q", "-f", "qcow2", ...settings, path, String(virtualBytes)]);
  return path;
}

/** Runs `qemu-io` commands on an image. */
export function qemuIo(path: string, commands: readonly string[]): void {
  if (commands.length === 0) return;
  run("qemu-io", ["-t", "unsafe", "-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), path]);
}

export function writeCommand({ start, end, pattern }: PatternWrite): string {
  return `write -P ${pattern} ${start} ${end - start}`;
}

/** Random writes of random patterns, on multiples of `grainBytes`. */
export function randomWrites(
  random: Random,
  { count, virtualBytes, grainBytes }: { count: number; virtualBytes: number; grainBytes: number },
): PatternWrite[] {
  const grains = Math.ceil(virtualBytes / grainBytes);
  return Array.from({ length: count }, () => {
    const start = random.below(grains);
    const end = Math.min(grains, start + 1 + random.below(12));
    return {
      start: start * grainBytes,
      end: Math.min(end * grainBytes, virtualBytes),
      pattern: 1 + random.below(255),
    };
  });
}

/** The guest's bytes, as QEMU reads them. @param snapshot of an internal snapshot */
export function guestBytes(path: string, snapshot?: string): Buffer {
  const raw = `${path}.${snapshot ?? "active"}.raw`;
  const source = snapshot === undefined ? [] : ["-l", `snapshot.name=${snapshot}`];
  run("qemu-img", ["convert", "-t", "unsafe", "-f", "qcow2", ...source, "-O", "raw", path, raw]);
  return readFileSync(raw);
}

export interface Verdict {
  readonly errors: number;
  readonly leaks: number;
}

/** What `qemu-img check` says. */
export function qemuCheck(path: string): Verdict {
  const { stdout, stderr, status } = attempt("qemu-img", ["check", "-f", "qcow2", "--output=json", path]);
  if (status !== 0 && status !== 2 && status !== 3) throw new Error(`qemu-img check: ${stderr}`);
  const found = JSON.parse(stdout) as { corruptions?: number; leaks?: number; "check-errors": number };
  return { errors: (found.corruptions ?? 0) + found["check-errors"], leaks: found.leaks ?? 0 };
}
