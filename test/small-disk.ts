/**
 * A small disk for tests of the whole product: one ext4 "root" with a kept file and a deleted one, made by real tools.
 */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { run } from "../src/testing/tools.ts";

const MiB = 2 ** 20;

/** What `makeDisk` needs. */
export const DISK_TOOLS = ["mke2fs", "debugfs", "qemu-img"];
export const DISK_BYTES = 64 * MiB;
export const DELETED_BYTES = 20 * MiB;

/** Makes `name`, a qcow2, in `directory`. `/kept.bin` is 3 MiB long. */
export function makeDisk(directory: string, name: string): string {
  const image = path.join(directory, name);
  const raw = `${image}.raw`;
  const content = `${image}.content`;
  mkdirSync(content);
  writeFileSync(path.join(content, "kept.bin"), Buffer.alloc(3 * MiB, "kept"));
  writeFileSync(path.join(content, "gone.bin"), Buffer.alloc(DELETED_BYTES, "gone"));
  run("mke2fs", ["-q", "-t", "ext4", "-L", "root", "-d", content, raw, `${DISK_BYTES / MiB}M`]);
  run("debugfs", ["-w", "-R", "rm /gone.bin", raw]);
  run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, image]);
  rmSync(raw);
  rmSync(content, { recursive: true });
  return image;
}
