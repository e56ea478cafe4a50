/**
 * Image formats that are known and not read: named, so that none of them passes as a raw disk.
 */
import type { BlockDevice } from "../device/device.ts";

/** By what stands at the very beginning. */
const IMAGES: readonly { readonly name: string; readonly magic: string }[] = [
  { name: "QED", magic: "QED\0" },
  { name: "qcow version 1", magic: "QFI\xfb\0\0\0\x01" },
  { name: "Bochs", magic: "Bochs Virtual HD Image" },
  { name: "cloop", magic: "#!/bin/sh\n#V2.0 Format\n" },
  { name: "Proxmox VMA", magic: "VMA\0" },
  { name: "EWF", magic: "EVF\x09\x0d\x0a\xff\0" },
];

/** The name of an image format that is known but not supported. */
export async function foreignImage(file: BlockDevice): Promise<string | undefined> {
  for (const { name, magic } of IMAGES) {
    if (magic.length > file.bytes) continue;
    const found = Buffer.alloc(magic.length);
    await file.read(0, found);
    if (found.toString("latin1") === magic) return name;
  }
  return undefined;
}
