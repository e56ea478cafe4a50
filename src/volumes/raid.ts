/**
 * Devices that are only a part of something: a RAID set, a mirror over the network, a pool, a cached disk.
 *
 *   | filesystem, as if it were alone … | superblock of the set |
 *
 * A mirror's half shows a whole filesystem from its first byte on, and only a superblock near the end tells that
 * there is a second half. Nothing is read here but that superblock's magic; the device counts as used entirely (H5).
 */
import { type BlockDevice, readBytes } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { tableOrRefusal } from "./table.ts";
import type { VolumeScheme } from "./volume.ts";

const KiB = 1024;
const ZFS_UBERBLOCK = "\x0c\xb1\xba\0\0\0\0\0";

interface Signature {
  readonly set: string;
  readonly magic: string;
  /** Where the magic lies on a device of so many bytes. */
  at(bytes: number): number;
}

const fromStart = (at: number) => () => at;
const fromEnd = (at: number) => (bytes: number) => bytes - at;

const SIGNATURES: readonly Signature[] = [
  { set: "an Intel RAID set", magic: "Intel Raid ISM Cfg Sig. ", at: fromEnd(2 * 512) },
  { set: "an Intel RAID set", magic: "Intel Raid ISM Cfg Sig. ", at: fromEnd(2 * 4096) },
  { set: "a DDF RAID set", magic: "\xde\x11\xde\x11", at: fromEnd(512) },
  { set: "a DRBD mirror", magic: "\x83\x74\x02\x6b", at: fromEnd(4 * KiB - 60) },
  { set: "a DRBD mirror", magic: "\x83\x74\x02\x6c", at: fromEnd(4 * KiB - 60) },
  { set: "a DRBD mirror", magic: "\x83\x74\x02\x6d", at: fromEnd(4 * KiB - 60) },
  {
    set: "a bcache set",
    magic: "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    at: fromStart(4 * KiB + 24),
  },
  // ZFS leaves the first 8 KiB alone, where an older superblock may have survived; its labels stand behind.
  { set: "a ZFS pool", magic: ZFS_UBERBLOCK, at: fromStart(128 * KiB) },
  { set: "a ZFS pool", magic: ZFS_UBERBLOCK, at: fromStart(132 * KiB) },
  { set: "a ZFS pool", magic: ZFS_UBERBLOCK, at: fromStart(136 * KiB) },
];

export const raid: VolumeScheme = {
  name: "raid",
  hidesContent: true,
  async probe(disk) {
    return (await findSignature(disk)) !== undefined;
  },
  open([disk]) {
    const hint = "everything on it counts as used; trim in the guest";
    return tableOrRefusal("raid", disk!, hint, async () => {
      const found = await findSignature(disk!);
      const where = found === undefined ? "" : `: its superblock lies at ${found.at(disk!.bytes)}`;
      throw new DiskError("unsupported", `the device is a part of ${found?.set ?? "a set"}${where}`, {
        code: "multi-disk-member",
      });
    });
  },
};

async function findSignature(disk: BlockDevice): Promise<Signature | undefined> {
  for (const signature of SIGNATURES) {
    const at = signature.at(disk.bytes);
    const { length } = signature.magic;
    if (at < 0 || at + length > disk.bytes) continue;
    const found = Buffer.from(await readBytes(disk, at, length)).toString("latin1");
    if (found === signature.magic) return signature;
  }
  return undefined;
}
