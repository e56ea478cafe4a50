/**
 * LUKS, the encryption of Linux: a header with copies of the volume key, each encrypted by a passphrase, and the
 * ciphertext of a disk.
 *
 *   | header | key slots |   | ciphertext: sectors of 512 to 4096 bytes …                     |
 *
 * With a passphrase the volume is read decrypted; without one it counts as used. Blocks of the volume and of the disk lie
 * in the same order, so that what is free in it can be given back (H34: it reads as noise afterwards). The header may
 * lie in a file of its own; then nothing tells that the disk is encrypted.
 *
 * Specifications: `luks/luks1.ts`, `luks/luks2.ts`.
 */
import { ExtentSet } from "../bytes/extents.ts";
import { type BlockDevice, readBytes } from "../device/device.ts";
import { DiskError, type Refusal } from "../error.ts";
import { SectorCipher } from "./luks/cipher.ts";
import { decrypted } from "./luks/decrypted.ts";
import type { Header } from "./luks/header.ts";
import { readLuks1 } from "./luks/luks1.ts";
import { readLuks2 } from "./luks/luks2.ts";
import { rejectCosts, volumeKey } from "./luks/unlock.ts";
import { describeOutside, tableOrRefusal, volumeOf } from "./table.ts";
import type { Keys, Volume, VolumeScheme, VolumeTable } from "./volume.ts";

const MAGIC = "LUKS\xba\xbe";
/** What the old `cryptsetup-reencrypt` of LUKS1 puts there while it works. */
const MAGIC_CHANGING = "LUKS\xde\xad";
const START_BYTES = 8;
/** LUKS1's header with its slots; shorter than any LUKS2. */
const HEADER_BYTES_MIN = 592;

export const luks: VolumeScheme = {
  name: "luks",
  detachable: true,
  async probe(disk) {
    const { magic } = await startOf(disk);
    return magic === MAGIC || magic === MAGIC_CHANGING;
  },
  open([disk], { keys, header = disk! } = {}) {
    const hint = "everything on it counts as used; trim in the guest";
    return tableOrRefusal("luks", disk!, hint, async () =>
      tableOf(disk!, header, await readHeader(header), keys),
    );
  },
};

async function startOf(device: BlockDevice): Promise<{ magic: string; version: number }> {
  if (device.bytes < HEADER_BYTES_MIN) return { magic: "", version: 0 };
  const start = Buffer.from(await readBytes(device, 0, START_BYTES));
  return { magic: start.toString("latin1", 0, MAGIC.length), version: start.readUInt16BE(MAGIC.length) };
}

async function readHeader(device: BlockDevice): Promise<Header> {
  const { magic, version } = await startOf(device);
  if (magic === MAGIC_CHANGING) {
    throw new DiskError("unsupported", "a reencryption of LUKS1 is under way", {
      code: "luks-reencryption",
      hint: "finish it in the guest with cryptsetup-reencrypt",
    });
  }
  if (magic !== MAGIC) {
    throw new DiskError("corrupt", `LUKS header at 0: magic ${JSON.stringify(magic)}`, {
      code: "luks-magic",
    });
  }
  if (version === 1) return readLuks1(device);
  if (version === 2) return readLuks2(device);
  throw new DiskError("unsupported", `LUKS version ${version}`, { code: "luks-version" });
}

async function tableOf(
  disk: BlockDevice,
  headerDevice: BlockDevice,
  header: Header,
  keys: Keys | undefined,
): Promise<VolumeTable> {
  const payload = payloadOf(disk, header, disk !== headerDevice);
  const identity = {
    name: "luks",
    label: header.label,
    type: `LUKS${header.version} ${header.cipher.name}`,
  };
  const ciphertext: Volume = { ...volumeOf(identity, disk, [payload]), encrypted: true };
  const opened = await unlock(ciphertext.device, headerDevice, header, keys);
  const regions = disk === headerDevice ? header.regions : [];
  return {
    scheme: "luks",
    volumes: [{ ...ciphertext, ...opened }],
    gaps: [ExtentSet.EMPTY],
    ...(disk === headerDevice ? {} : { header: headerDevice }),
    notes: header.notes,
    describe: (_disk, at) => describeOutside(at, regions, [payload]),
  };
}

/** Where the ciphertext lies on `disk`. */
function payloadOf(
  disk: BlockDevice,
  { payloadAt, payloadBytes, sectorBytes }: Header,
  isDetached: boolean,
): { start: number; end: number } {
  if (payloadAt === 0 && !isDetached) {
    throw new DiskError("unsupported", "the header's data lie on another device", {
      code: "luks-detached",
      hint: "name this header with --luks-header for the disk that holds the data",
    });
  }
  const room = disk.bytes - payloadAt;
  const bytes = payloadBytes ?? room - (room % sectorBytes);
  if (bytes <= 0 || bytes > room) {
    throw new DiskError(
      "corrupt",
      `the payload has ${payloadBytes ?? "all"} bytes from ${payloadAt}, the disk ${disk.bytes}`,
      { code: "luks-cut" },
    );
  }
  return { start: payloadAt, end: payloadAt + bytes };
}

/** The volume decrypted, or why it is not. */
async function unlock(
  ciphertext: BlockDevice,
  headerDevice: BlockDevice,
  header: Header,
  keys: Keys | undefined,
): Promise<{ device: BlockDevice } | { refusal: Refusal }> {
  const name = `LUKS volume ${header.uuid}`;
  if (header.slots.length === 0) return locked(`${name} has no key slot in use`, "its volume key is lost");
  if (keys === undefined) return locked(`${name} is locked, and no key is given`, GIVE_KEY);
  rejectCosts(header);
  let tried = 0;
  for await (const passphrase of keys.candidates(name)) {
    const key = await volumeKey(headerDevice, header, passphrase, keys.argon2);
    if (key !== undefined) {
      keys.fitted(name, passphrase);
      const cipher = new SectorCipher(header.cipher, key, header.sectorBytes);
      return { device: decrypted(ciphertext, cipher) };
    }
    tried++;
  }
  if (tried === 0) return locked(`${name} is locked, and no key is given`, GIVE_KEY);
  return locked(
    `${name} is locked: ${tried === 1 ? "the key does" : `the ${tried} keys do`} not fit`,
    GIVE_KEY,
  );
}

const GIVE_KEY = "it counts as used; give its passphrase with --key-file FILE, or at the terminal";

function locked(message: string, hint: string): { refusal: Refusal } {
  return { refusal: { code: "locked", message, hint } };
}
