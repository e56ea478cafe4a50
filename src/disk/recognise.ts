/**
 * Names for what we do not read yet: recognised by its magic, counted as used entirely, and told to the user by name
 * instead of as "unknown".
 */
import type { BlockDevice } from "../device/device.ts";

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

/** Swap that holds the memory of a guest that will be resumed (H3). */
export const HIBERNATED = "hibernated Linux swap";

/** The last ten bytes of the first page, whose length is the guest's. */
function swapSignatures(name: string, magics: readonly string[]): Signature[] {
  const pages = [4096, 8192, 16384, 32768, 65536];
  return pages.flatMap((page) => magics.map((magic) => ({ name, at: page - 10, magic })));
}

/** Filesystems, volume managers and encryption that are only named. */
const CONTENTS: readonly Signature[] = [
  { name: "XFS", at: 0, magic: "XFSB" },
  { name: "Btrfs", at: 0x10040, magic: "_BHRfS_M" },
  ...swapSignatures(HIBERNATED, ["S1SUSPEND", "S2SUSPEND", "ULSUSPEND", "LINHIB0001"]),
  ...swapSignatures("Linux swap", ["SWAPSPACE2", "SWAP-SPACE"]),
  { name: "HFS+", at: 0x400, magic: "H+" },
  { name: "HFSX", at: 0x400, magic: "HX" },
  { name: "ReFS", at: 3, magic: "ReFS\0" },
  { name: "squashfs", at: 0, magic: "hsqs" },
  { name: "ISO 9660", at: 0x8001, magic: "CD001" },
  { name: "Linux RAID", at: 4096, magic: "\xfc\x4e\x2b\xa9" },
  { name: "Linux RAID", at: 0, magic: "\xfc\x4e\x2b\xa9" },
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

/** The name of a filesystem or other content that is known but not understood. */
export const foreignContent = (device: BlockDevice): Promise<string | undefined> =>
  firstMatch(device, CONTENTS);
