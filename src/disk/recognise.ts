/**
 * Names for what we do not read yet: recognised by its magic, counted as used entirely, and told to the user by name
 * instead of as "unknown".
 */
import type { BlockDevice } from "../device/device.ts";
import { recognise, type Stranger } from "./strangers.ts";

interface Signature {
  readonly name: string;
  /** In bytes from the start, or from the end when negative. */
  readonly at: number;
  readonly magic: string;
}

/** Image formats that must not be taken for raw. */
const IMAGES: readonly Signature[] = [
  { name: "QED", at: 0, magic: "QED\0" },
  { name: "qcow version 1", at: 0, magic: "QFI\xfb\0\0\0\x01" },
  { name: "Bochs", at: 0, magic: "Bochs Virtual HD Image" },
  { name: "cloop", at: 0, magic: "#!/bin/sh\n#V2.0 Format\n" },
  { name: "Proxmox VMA", at: 0, magic: "VMA\0" },
  { name: "EWF", at: 0, magic: "EVF\x09\x0d\x0a\xff\0" },
];

/** Filesystems, volume managers and encryption that are only named. */
const CONTENTS: readonly Signature[] = [
  { name: "Btrfs", at: 0x10040, magic: "_BHRfS_M" },
  { name: "LVM2", at: 512, magic: "LABELONE" },
];

async function firstMatch(
  device: BlockDevice,
  signatures: readonly Signature[],
): Promise<string | undefined> {
  for (const { name, at, magic } of signatures) {
    const start = at < 0 ? device.bytes + at : at;
    if (start < 0 || start + magic.length > device.bytes) continue;
    const found = Buffer.alloc(magic.length);
    await device.read(start, found);
    if (found.toString("latin1") === magic) return name;
  }
  return undefined;
}

/** The name of an image format that is known but not supported. */
export const foreignImage = (file: BlockDevice): Promise<string | undefined> => firstMatch(file, IMAGES);

/** What the device holds, as far as it is known and not read. */
export async function strangerIn(device: BlockDevice): Promise<Stranger | undefined> {
  const name = await firstMatch(device, CONTENTS);
  return name === undefined
    ? recognise(device)
    : { name, hint: "trim inside the guest, or use --also zeros" };
}
