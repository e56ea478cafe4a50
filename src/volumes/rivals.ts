/**
 * Owners of a whole disk that leave its first sector to others: a partition table that once stood there may still be
 * whole, in its backup at the end at least, and what it names is stale.
 *
 *   | old MBR | new swap space, physical volume or filesystem …          | old backup GPT |
 *             '- before the first partition: a signature here tells -'
 */
import type { Extent } from "../bytes/extents.ts";
import { type BlockDevice, readBytes } from "../device/device.ts";
import { DiskError } from "../error.ts";

const LABEL_SECTORS = [0, 512, 1024, 1536];
/** Ends the first page; pages have 4 to 64 KiB. */
const SWAP_PAGES = [4096, 8192, 16_384, 32_768, 65_536];

const RIVALS: readonly { readonly name: string; readonly at: number; readonly magic: string }[] = [
  { name: "LUKS", at: 0, magic: "LUKS\xba\xbe" },
  { name: "ext2, ext3 or ext4", at: 1080, magic: "\x53\xef" },
  { name: "F2FS", at: 1024, magic: "\x10\x20\xf5\xf2" },
  { name: "Btrfs", at: 65_600, magic: "_BHRfS_M" },
  { name: "a BSD disklabel", at: 512, magic: "\x57\x45\x56\x82" },
  ...LABEL_SECTORS.map((at) => ({ name: "LVM2", at, magic: "LABELONE" })),
  ...SWAP_PAGES.flatMap((page) =>
    ["SWAPSPACE2", "S1SUSPEND\0"].map((magic) => ({ name: "Linux swap", at: page - magic.length, magic })),
  ),
];

/** @throws DiskError `refused` when both a table and the signature of an unpartitioned disk are there */
export async function rejectRivals(
  scheme: "apm" | "gpt" | "mbr",
  disk: BlockDevice,
  partitions: readonly Extent[],
): Promise<void> {
  const first = Math.min(disk.bytes, ...partitions.map(({ start }) => start));
  for (const { name, at, magic } of RIVALS) {
    if (at + magic.length > first) continue;
    const found = Buffer.from(await readBytes(disk, at, magic.length)).toString("latin1");
    if (found !== magic) continue;
    throw new DiskError(
      "refused",
      `the disk has a partition table (${scheme}) and, at ${at}, the signature of ${name} on the whole disk`,
      { code: `${scheme}-ambiguous`, hint: "wipe the stale one of the two: see `wipefs`" },
    );
  }
}
