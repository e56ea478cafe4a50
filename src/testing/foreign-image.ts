/**
 * Images of formats that `qemu-img` makes and reads, of any kind: `qemu.ts` has what qcow2 alone needs.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { readBytes } from "../device/device.ts";
import type { ImageFormat, OpenParent } from "../formats/format.ts";
import { type PatternWrite, writeCommand } from "./qemu.ts";
import type { SimulatedFile } from "./simulated-file.ts";
import { simulatedSource } from "./simulated-source.ts";
import type { Files } from "./crash.ts";
import { attempt, run, scratch } from "./tools.ts";

export interface ForeignImage {
  readonly folder: string;
  readonly name: string;
  /** As QEMU calls it. */
  readonly format: string;
  readonly virtualBytes: number;
  /** For `qemu-img create -o`. */
  readonly options?: string;
  readonly writes?: readonly PatternWrite[];
}

/** Makes an image and writes to it; returns its path. */
export function foreignImage({
  folder,
  name,
  format,
  virtualBytes,
  options,
  writes = [],
}: ForeignImage): string {
  const path = join(folder, name);
  const settings = options === undefined ? [] : ["-o", options];
  run("qemu-img", ["create", "-q", "-f", format, ...settings, path, String(virtualBytes)]);
  if (writes.length > 0) {
    run("qemu-io", [
      "-t",
      "unsafe",
      "-f",
      format,
      ...writes.flatMap((one) => ["-c", writeCommand(one)]),
      path,
    ]);
  }
  return path;
}

/** The guest's bytes, as QEMU reads them. */
export function foreignBytes(path: string, format: string): Buffer {
  const raw = `${path}.raw`;
  run("qemu-img", ["convert", "-t", "unsafe", "-f", format, "-O", "raw", path, raw]);
  return readFileSync(raw);
}

const CHECK_UNKNOWN = 63;

/** QEMU's word on an image that lies in simulated files: neither errors nor leaks, and this content. */
export function judgedByQemu(t: TestContext, format: string, image: string) {
  return async (files: Files, content: Uint8Array): Promise<void> => {
    const folder = scratch(t);
    for (const [name, file] of files) await file.save(join(folder, name));
    const path = join(folder, image);
    const { status, stdout, stderr } = attempt("qemu-img", ["check", "-f", format, path]);
    assert.ok(status === 0 || status === CHECK_UNKNOWN, `qemu-img check: ${stdout}${stderr}`);
    assert.equal(foreignBytes(path, format).compare(content), 0, "QEMU reads the same");
  };
}

/** The folder that an image of our own lies in. */
export type Folder = Map<string, SimulatedFile>;

export interface OwnImage {
  readonly folder: Folder;
  readonly name: string;
  readonly virtualBytes: number;
  /** For `create`. */
  readonly options?: Readonly<Record<string, string>>;
  readonly writes?: readonly PatternWrite[];
}

/** Makes an image and writes to it; returns what its guest reads. */
export async function ownImage(format: ImageFormat, asked: OwnImage): Promise<Buffer> {
  const { folder, name, virtualBytes, options = {}, writes = [] } = asked;
  const source = simulatedSource(folder, name);
  await using image = await format.create!(source, { virtualBytes, options }, parentsBeside(format, folder));
  for (const { start, end, pattern } of writes) {
    await image.write(start, new Uint8Array(end - start).fill(pattern));
  }
  await image.flush();
  return Buffer.from(await readBytes(image, 0, image.bytes));
}

/** Opens parents of the same format in the same folder. */
export function parentsBeside(format: ImageFormat, folder: ReadonlyMap<string, SimulatedFile>): OpenParent {
  const opener: OpenParent = (name) => format.open(simulatedSource(new Map(folder), name), opener);
  return opener;
}
