/**
 * BitLocker, the encryption of Windows: recognised, and counted as used entirely.
 *
 *   | boot sector: where the metadata lie | … | metadata 1 | … | metadata 2 | … | metadata 3 | … |
 *
 * The boot sector of a whole volume says `-FVE-FS-` where NTFS has its name. That of BitLocker To Go is one of a FAT32
 * that holds the files for older Windows: read as such, most of the ciphertext would seem free. In Windows 7 and later a
 * GUID says where the three offsets of the metadata stand; another one says that the volume is encrypted where it is
 * written to, and lies there in the clear elsewhere. Vista stores a cluster's number.
 *
 * Specification: "BitLocker Drive Encryption (BDE) format" of libbde.
 */
import { ascii, skip, struct, u16le, u32le } from "../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { tableOrRefusal } from "./table.ts";
import type { VolumeScheme } from "./volume.ts";

const SECTOR_BYTES = 512;
const SIGNATURE = "-FVE-FS-";
const SIGNATURE_AT = 3;
const BOOT_OF_VISTA = "\xeb\x52\x90";
/** 4967d63b-2e29-4ad8-8399-f6a339e3d001, and 92a84d3b-dd80-4d0e-9e4e-b1e3284eaed8. */
const ENCRYPTED = "3bd66749292ed84a8399f6a339e3d001";
const ENCRYPTED_ON_WRITE = "3b4da89280dd0e4d9e4eb1e3284eaed8";
const GUID_BYTES = 16;
const GUID_AT = 160;
const GUID_AT_TO_GO = 424;

const Metadata = struct({
  signature: ascii(8),
  size: skip(2),
  version: skip(2),
  state: u16le,
  nextState: skip(2),
  encryptedBytes: skip(8),
  places: skip(40),
  metadata: skip(36),
  method: u32le,
});

const METHODS: Readonly<Record<number, string>> = {
  0x8000: "AES-CBC 128 with diffuser",
  0x8001: "AES-CBC 256 with diffuser",
  0x8002: "AES-CBC 128",
  0x8003: "AES-CBC 256",
  0x8004: "AES-XTS 128",
  0x8005: "AES-XTS 256",
};
const STATE_ENCRYPTED = 4;

export const bitlocker: VolumeScheme = {
  name: "bitlocker",
  hidesContent: true,
  async probe(disk) {
    return (await findBoot(disk)) !== undefined;
  },
  open([disk]) {
    const hint =
      "everything on it counts as used; trim in Windows (Optimize-Volume -ReTrim), or decrypt it there: manage-bde -off";
    return tableOrRefusal("bitlocker", disk!, hint, async () => {
      throw new DiskError("unsupported", await describe(disk!), { code: "locked" });
    });
  },
};

interface Boot {
  readonly name: string;
  /** Undefined: Vista's, which is not looked for. */
  readonly metadataAt: bigint | undefined;
  readonly onWrite: boolean;
}

async function findBoot(disk: BlockDevice): Promise<Boot | undefined> {
  if (disk.bytes < SECTOR_BYTES) return undefined;
  const sector = Buffer.from(await readBytes(disk, 0, SECTOR_BYTES));
  const isWhole = sector.toString("latin1", SIGNATURE_AT, SIGNATURE_AT + SIGNATURE.length) === SIGNATURE;
  const guidAt = isWhole ? GUID_AT : GUID_AT_TO_GO;
  const guid = sector.toString("hex", guidAt, guidAt + GUID_BYTES);
  const isKnown = guid === ENCRYPTED || guid === ENCRYPTED_ON_WRITE;
  if (!isWhole && !isKnown) return undefined;
  if (isWhole && sector.toString("latin1", 0, SIGNATURE_AT) === BOOT_OF_VISTA) {
    return { name: "BitLocker of Windows Vista", metadataAt: undefined, onWrite: false };
  }
  return {
    name: isWhole ? "BitLocker" : "BitLocker To Go",
    metadataAt: isKnown ? sector.readBigUInt64LE(guidAt + GUID_BYTES) : undefined,
    onWrite: guid === ENCRYPTED_ON_WRITE,
  };
}

/** As much about the volume as its metadata tell. */
async function describe(disk: BlockDevice): Promise<string> {
  const { name, metadataAt, onWrite } = (await findBoot(disk)) ?? { name: "BitLocker", onWrite: false };
  const words = [name];
  if (metadataAt !== undefined && metadataAt <= BigInt(disk.bytes - Metadata.bytes)) {
    const { signature, method, state } = Metadata.decode(
      await readBytes(disk, Number(metadataAt), Metadata.bytes),
    );
    if (signature === SIGNATURE) {
      words.push(METHODS[method & 0xffff] ?? `method 0x${(method & 0xffff).toString(16)}`);
      if (state !== STATE_ENCRYPTED) words.push(`in transition (state ${state})`);
    }
  }
  if (onWrite) words.push("encrypted only where it was written to");
  return `${words.join(", ")}: it is not decrypted`;
}
