/**
 * What a reader says of a filesystem, put together for a test: the space that its walk does not come across, the bytes
 * of a file where `find` says that they lie.
 */
import { ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { assert } from "../error.ts";
import type { FileSystem, FoundFile } from "../filesystems/filesystem.ts";

export async function unreachedOf(filesystem: FileSystem): Promise<ExtentSet> {
  const used = new ExtentBuilder();
  await filesystem.walk((_member, start, end) => used.add(start, end));
  assert(filesystem.refusal === undefined, filesystem.refusal?.message);
  return ExtentSet.of({ start: 0, end: filesystem.bytes }).subtract(used.build());
}

export async function contentOf(device: BlockDevice, found: FoundFile): Promise<Buffer> {
  const content = Buffer.alloc(found.bytes);
  for (const { fileOffset, at, bytes } of found.extents) {
    content.set(await readBytes(device, at, Math.min(bytes, found.bytes - fileOffset)), fileOffset);
  }
  return content;
}
