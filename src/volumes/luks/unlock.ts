/**
 * From a passphrase to the volume key.
 *
 *   slot key  = KDF(passphrase, salt)
 *   stripes   = the slot's area, decrypted with it             s1 | s2 | … | s4000
 *   volume key: d = 0; for each stripe but the last d = H(d ⊕ stripe); key = d ⊕ last stripe
 *   right     when PBKDF2(key) is the header's digest
 *
 * H hashes a key block by block, each with its number before it. What a KDF may cost is bounded: a hostile header must
 * neither hang us nor take all memory (H24). Specification: LUKS On-Disk Format Specification, "AF splitter".
 */
import { pbkdf2, timingSafeEqual } from "node:crypto";
import { promisify } from "node:util";
import { viewOf } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { Argon2 } from "../volume.ts";
import { IV_UNIT_BYTES, SectorCipher } from "./cipher.ts";
import { digest } from "./hash.ts";
import { areaBytes, type Digest, type Header, type Kdf, STRIPES } from "./header.ts";

const derive = promisify(pbkdf2);

/** For all slots and the digest together: some minutes of work. cryptsetup takes two seconds for a slot. */
const ITERATIONS_MAX = 500_000_000;
/** What cryptsetup itself allows for Argon2. */
const MEMORY_KIB_MAX = 4 * 1024 * 1024;
const LANES_MAX = 4;
/** KiB written by all slots together: 256 GiB, some minutes as well. */
const FILLED_KIB_MAX = 256 * 1024 * 1024;
/** RFC 9106 wants so much salt at least. */
const ARGON2_SALT_BYTES_MIN = 8;

/** @throws DiskError `refused` for a header that asks for more work or memory than is reasonable */
export function rejectCosts({ slots, digest: { iterations } }: Header): void {
  let totalIterations = iterations * slots.length;
  let filledKiB = 0;
  const tooMuch = (message: string): DiskError => new DiskError("refused", message, { code: "luks-costs" });
  for (const { name, kdf } of slots) {
    if (kdf.type === "pbkdf2") {
      totalIterations += kdf.iterations;
      continue;
    }
    filledKiB += kdf.memoryKiB * kdf.passes;
    if (kdf.memoryKiB > MEMORY_KIB_MAX || kdf.lanes > LANES_MAX) {
      throw tooMuch(`key slot ${name} asks for ${kdf.memoryKiB} KiB and ${kdf.lanes} lanes`);
    }
    if (kdf.memoryKiB < 8 * kdf.lanes || kdf.salt.length < ARGON2_SALT_BYTES_MIN) {
      throw tooMuch(`key slot ${name}: ${kdf.memoryKiB} KiB, ${kdf.salt.length} bytes of salt: too little`);
    }
  }
  if (totalIterations > ITERATIONS_MAX) throw tooMuch(`the key slots ask for ${totalIterations} iterations`);
  if (filledKiB > FILLED_KIB_MAX) throw tooMuch(`the key slots ask for ${filledKiB} KiB of work`);
}

/**
 * The volume key, when one of the slots takes the passphrase.
 * @throws DiskError `unsupported` when a slot needs Argon2, which is not at hand
 */
export async function volumeKey(
  device: BlockDevice,
  header: Header,
  passphrase: Uint8Array,
  argon2: Argon2,
): Promise<Uint8Array | undefined> {
  for (const slot of header.slots) {
    const slotKey = await slotKeyOf(slot.kdf, slot.areaKeyBytes, passphrase, argon2);
    const area = await readBytes(device, slot.area.start, areaBytes(header.keyBytes));
    new SectorCipher(slot.cipher, slotKey, IV_UNIT_BYTES).decrypt(area, 0);
    const key = merge(area, header.keyBytes, slot.stripesHash);
    if (await fits(key, header.digest)) return key;
  }
  return undefined;
}

function slotKeyOf(kdf: Kdf, bytes: number, passphrase: Uint8Array, argon2: Argon2): Promise<Uint8Array> {
  return kdf.type === "pbkdf2"
    ? derive(passphrase, kdf.salt, kdf.iterations, bytes, kdf.hash)
    : argon2(passphrase, kdf, bytes);
}

function merge(area: Uint8Array, keyBytes: number, hash: string): Uint8Array {
  let key: Uint8Array = new Uint8Array(keyBytes);
  for (let stripe = 0; stripe < STRIPES; stripe++) {
    const at = stripe * keyBytes;
    for (let i = 0; i < keyBytes; i++) key[i]! ^= area[at + i]!;
    if (stripe < STRIPES - 1) key = diffused(key, hash);
  }
  return key;
}

/** Each block of the length of a hash becomes the hash of its number and itself. */
function diffused(key: Uint8Array, hash: string): Uint8Array {
  const out = new Uint8Array(key.length);
  const number = new Uint8Array(4);
  for (let at = 0, i = 0, length = digest(hash).length; at < key.length; at += length, i++) {
    viewOf(number).setUint32(0, i);
    const block = key.subarray(at, at + length);
    out.set(digest(hash, number, block).subarray(0, block.length), at);
  }
  return out;
}

async function fits(key: Uint8Array, { hash, iterations, salt, value }: Digest): Promise<boolean> {
  return timingSafeEqual(await derive(key, salt, iterations, value.length, hash), value);
}
