/**
 * VHDX images for tests: made by QEMU, made by ourselves, and differencing disks, which QEMU cannot make: their sector
 * bitmaps are written by hand.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { viewOf } from "../bytes/struct.ts";
import { readBytes } from "../device/device.ts";
import type { OpenParent, WritableImage } from "../formats/format.ts";
import { vhdx } from "../formats/vhdx.ts";
import { openMetadata } from "../formats/vhdx/image.ts";
import { BAT_ENTRY_BYTES, entryOf, PayloadState, shapeOf, writeEntry } from "../formats/vhdx/bat.ts";
import { MIB } from "../formats/vhdx/structures.ts";
import type { Files } from "./crash.ts";
import { randomWrites, writeCommand } from "./qemu.ts";
import type { Random } from "./seeds.ts";
import { SimulatedFile } from "./simulated-file.ts";
import { simulatedSource } from "./simulated-source.ts";
import { run } from "./tools.ts";

/** Makes an image with QEMU and writes to it; returns its path. */
export function makeVhdx(
  folder: string,
  options: Readonly<Record<string, string>>,
  random: Random,
  virtualBytes = 4 * MIB,
): string {
  const path = join(folder, "image.vhdx");
  const words = Object.entries(options).map(([key, value]) => `${key}=${value}`);
  run("qemu-img", ["create", "-q", "-f", "vhdx", "-o", words.join(","), path, String(virtualBytes)]);
  const writes = randomWrites(random, { count: 6, virtualBytes, grainBytes: 64 * 1024 });
  const commands = writes.flatMap((write) => ["-c", writeCommand(write)]);
  run("qemu-io", ["-t", "unsafe", "-f", "vhdx", ...commands, path]);
  return path;
}

/** The guest's bytes, as QEMU reads them. */
export function vhdxContent(path: string): Buffer {
  run("qemu-img", ["convert", "-t", "unsafe", "-f", "vhdx", "-O", "raw", path, `${path}.raw`]);
  const content = readFileSync(`${path}.raw`);
  run("rm", [`${path}.raw`]);
  return content;
}

/** Parents among the files of a test. */
export function vhdxParents(files: Files): OpenParent {
  return (name) => vhdx.open(simulatedSource(new Map(files), name), vhdxParents(files));
}

/** Makes an image with our own `create`, fills it in, and closes it. */
export async function createVhdx(
  files: Map<string, SimulatedFile>,
  name: string,
  options: Readonly<Record<string, string>>,
  fill: (image: WritableImage) => Promise<void>,
  virtualBytes = 4 * MIB,
): Promise<void> {
  const source = simulatedSource(files, name);
  await using image = await vhdx.create!(source, { virtualBytes, options }, vhdxParents(files));
  await fill(image);
  await image.flush();
}

/**
 * A child of 4 MiB and its parent: block 0 is the parent's, block 1 the child's, block 2 is divided by sectors at
 * random, block 3 is zeros above what the parent has there. In 4 KiB sectors where `sector` says so.
 */
export async function makeDifferencing(
  random: Random,
  sector: 512 | 4096,
): Promise<{ readonly files: Map<string, SimulatedFile>; readonly content: Uint8Array }> {
  const files = new Map<string, SimulatedFile>();
  const below = random.bytes(4 * MIB);
  const options = { block_size: "1M", logical_sector_size: String(sector) };
  await createVhdx(files, "parent.vhdx", options, (image) => image.write(0, below));
  const content = below.slice();
  const above = { ...options, backing_file: "parent.vhdx", backing_fmt: "vhdx" };
  await createVhdx(files, "child.vhdx", above, async (image) => {
    const whole = random.bytes(MIB);
    content.set(whole, MIB);
    await image.write(MIB, whole);
    content.fill(0, 3 * MIB);
    await image.zero({ start: 3 * MIB, end: 4 * MIB });
  });
  await divide(files.get("child.vhdx")!, 2, sector, content, random);
  return { files, content };
}

/** Gives some sectors of a block to the child, in runs. */
async function divide(
  file: SimulatedFile,
  block: number,
  sector: number,
  content: Uint8Array,
  random: Random,
): Promise<void> {
  const { regions, metadata } = await openMetadata(file);
  const shape = shapeOf({ ...metadata, hasParent: true });
  const bitmapAt = file.bytes;
  const dataAt = bitmapAt + MIB;
  await file.truncate(dataAt + MIB);
  const sectors = MIB / sector;
  const bits = new Uint8Array(sectors / 8);
  let isOurs = true;
  for (let i = 0, left = 0; i < sectors; i++, left--) {
    if (left === 0) {
      isOurs = !isOurs;
      left = random.between(1, 40);
    }
    const data = random.bytes(sector);
    // What is not the child's lies there too, as rubbish that nobody may read.
    await file.write(dataAt + i * sector, data);
    if (!isOurs) continue;
    bits[i >>> 3]! |= 1 << (i & 7);
    content.set(data, block * MIB + i * sector);
  }
  await file.write(bitmapAt + block * bits.length, bits);
  const entry = async (index: number, state: number, at: number): Promise<void> => {
    const bytes = await readBytes(file, regions.bat.start + index * BAT_ENTRY_BYTES, BAT_ENTRY_BYTES);
    writeEntry(viewOf(bytes), 0, state, at / MIB);
    await file.write(regions.bat.start + index * BAT_ENTRY_BYTES, bytes);
  };
  await entry(shape.chunkRatio, PayloadState.fullyPresent, bitmapAt);
  await entry(entryOf(shape, block), PayloadState.partiallyPresent, dataAt);
}
