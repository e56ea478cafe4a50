/**
 * What the tests of FAT and exFAT ask of a volume.
 */
import { createHash } from "node:crypto";
import type { TestContext } from "node:test";
import { type Extent, ExtentBuilder, type ExtentSet } from "../bytes/extents.ts";
import { checked } from "../device/checked.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { assert } from "../error.ts";
import type { FileSystem, FileSystemReader } from "../filesystems/filesystem.ts";
import { prove } from "../reclaim/prove.ts";
import { fileDevice } from "./file-device.ts";
import { fuzzDevice } from "./fuzz.ts";
import { run } from "./tools.ts";

export interface OpenedVolume {
  readonly device: BlockDevice;
  readonly filesystem: FileSystem;
}

export async function openedVolume(
  t: TestContext,
  reader: FileSystemReader,
  path: string,
): Promise<OpenedVolume> {
  const device = checked(await fileDevice(path));
  t.after(() => device[Symbol.asyncDispose]());
  assert(await reader.probe(device), `${reader.name} knows ${path}`);
  return { device, filesystem: await reader.open([device], { replay: false }) };
}

/** What both entries prove. @throws Error when the filesystem is refused */
export async function balanceOf(filesystem: FileSystem): Promise<{ free: ExtentSet; leakedBytes: number }> {
  const { free, refusal, leakedBytes } = await prove(filesystem, "full");
  assert(refusal === undefined, refusal?.message);
  return { free: free[0]!, leakedBytes };
}

/** `code: message` of what refuses these bytes; "" when nothing does. */
export async function refusalOf(reader: FileSystemReader, bytes: Uint8Array): Promise<string> {
  const device = fuzzDevice(bytes, bytes.length);
  if (!(await reader.probe(device))) return "not recognised";
  const { refusal } = await prove(await reader.open([device], { replay: false }), "full");
  return refusal === undefined ? "" : `${refusal.code}: ${refusal.message}`;
}

/** A file's content by its extents; what was never written is zeros. */
export async function contentOf({ device, filesystem }: OpenedVolume, path: string): Promise<Buffer> {
  const found = await filesystem.find(path);
  assert(found !== undefined, path);
  const content = Buffer.alloc(found.bytes);
  for (const { at, fileOffset, bytes, unwritten } of found.extents) {
    const length = Math.min(bytes, found.bytes - fileOffset);
    if (!unwritten) content.set(await readBytes(device, at, length), fileOffset);
  }
  return content;
}

/** What blkls calls unallocated in `range`: it counts sectors in that belong to no cluster. */
export function blklsFree(image: string, sectorBytes: number, range: Extent): ExtentSet {
  const free = new ExtentBuilder();
  for (const [, sector] of run("blkls", ["-l", "-A", image]).matchAll(/^(\d+)\|f$/gm)) {
    free.add(Number(sector) * sectorBytes, (Number(sector) + 1) * sectorBytes);
  }
  return free.build().within(range);
}

export const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
