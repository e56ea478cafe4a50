/**
 * LUKS1: a header of 592 bytes with eight key slots, the slots' areas, the ciphertext. Numbers are big-endian.
 *
 *   | header, slots | area of slot 0 | … | area of slot 7 |    | ciphertext …                  |
 *     592 bytes       stripes × key bytes                        to the end of the device
 *
 * An area is encrypted like the payload, its sectors counted from 0. Specification: "LUKS On-Disk Format
 * Specification", version 1.2.3.
 */
import { ascii, raw, struct, u16be, u32be } from "../../bytes/struct.ts";
import { printable } from "../../bytes/text.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { rejectOverlaps } from "../table.ts";
import { cipherNamed } from "./cipher.ts";
import { hashNamed } from "./hash.ts";
import { areaBytes, type Header, type Slot, STRIPES } from "./header.ts";

const SECTOR_BYTES = 512;
const SLOTS = 8;
const ENABLED = 0x00ac71f3;
const DISABLED = 0x0000dead;
const DIGEST_BYTES = 20;

export const Luks1Layout = struct({
  magic: raw(6),
  version: u16be,
  cipherName: ascii(32),
  cipherMode: ascii(32),
  hash: ascii(32),
  payloadSector: u32be,
  keyBytes: u32be,
  digest: raw(DIGEST_BYTES),
  digestSalt: raw(32),
  digestIterations: u32be,
  uuid: ascii(40),
});

export const SlotLayout = struct({
  state: u32be,
  iterations: u32be,
  salt: raw(32),
  areaSector: u32be,
  stripes: u32be,
});

/** @throws DiskError what is damaged or not known */
export async function readLuks1(device: BlockDevice): Promise<Header> {
  const bytes = await readBytes(device, 0, Luks1Layout.bytes + SLOTS * SlotLayout.bytes);
  const header = Luks1Layout.decode(bytes);
  const { keyBytes } = header;
  const cipher = cipherNamed(`${header.cipherName}-${header.cipherMode}`, keyBytes);
  const hash = hashNamed(header.hash);
  if (header.digestIterations === 0) throw new DiskError("corrupt", "the digest has no iterations");
  const payloadAt = header.payloadSector * SECTOR_BYTES;
  const regions = [{ start: 0, end: bytes.length, name: "LUKS header" }];
  const slots: Slot[] = [];
  for (let i = 0; i < SLOTS; i++) {
    const slot = SlotLayout.decode(bytes, Luks1Layout.bytes + i * SlotLayout.bytes);
    rejectSlot(i, slot);
    const start = slot.areaSector * SECTOR_BYTES;
    const area = { start, end: start + areaBytes(keyBytes), name: `LUKS key slot ${i}` };
    regions.push(area);
    if (slot.state === DISABLED) continue;
    if (area.end > device.bytes) {
      throw new DiskError("corrupt", `key slot ${i} ends at ${area.end}, the device at ${device.bytes}`);
    }
    slots.push({
      name: String(i),
      area,
      cipher,
      areaKeyBytes: keyBytes,
      stripesHash: hash,
      kdf: { type: "pbkdf2", hash, iterations: slot.iterations, salt: slot.salt },
    });
  }
  rejectOverlaps(regions, "luks-damaged");
  const behind = regions.find(({ end }) => payloadAt !== 0 && end > payloadAt);
  if (behind) {
    throw new DiskError(
      "corrupt",
      `${behind.name} ends at ${behind.end}, behind the payload at ${payloadAt}`,
    );
  }
  return {
    version: 1,
    uuid: printable(header.uuid),
    label: "",
    cipher,
    keyBytes,
    sectorBytes: SECTOR_BYTES,
    payloadAt,
    payloadBytes: undefined,
    slots,
    digest: {
      hash,
      iterations: header.digestIterations,
      salt: header.digestSalt,
      value: header.digest,
    },
    regions,
    notes: [],
  };
}

function rejectSlot(i: number, { state, stripes, iterations }: ReturnType<typeof SlotLayout.decode>): void {
  if (state !== ENABLED && state !== DISABLED) {
    throw new DiskError("corrupt", `key slot ${i} has the state 0x${state.toString(16)}`);
  }
  if (stripes !== STRIPES) {
    throw new DiskError("corrupt", `key slot ${i} has ${stripes} stripes, not ${STRIPES}`);
  }
  if (state === ENABLED && iterations === 0)
    throw new DiskError("corrupt", `key slot ${i} has no iterations`);
}
