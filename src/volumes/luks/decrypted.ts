/**
 * What is encrypted, read decrypted.
 *
 *   ciphertext   |  sector 0  |  sector 1  |  sector 2  |
 *   read                  |.. wanted ..|                      whole sectors are read, decrypted, and cut
 */
import type { Extent } from "../../bytes/extents.ts";
import { assert } from "../../error.ts";
import type { BlockDevice, Run } from "../../device/device.ts";
import { IV_UNIT_BYTES, type SectorCipher } from "./cipher.ts";

/** @param ciphertext whole sectors, counted from 0; it stays its owner's */
export function decrypted(ciphertext: BlockDevice, cipher: SectorCipher): BlockDevice {
  assert(ciphertext.bytes % cipher.sectorBytes === 0, "whole sectors");
  return new Decrypted(ciphertext, cipher);
}

class Decrypted implements BlockDevice {
  readonly bytes: number;
  readonly #ciphertext: BlockDevice;
  readonly #cipher: SectorCipher;

  constructor(ciphertext: BlockDevice, cipher: SectorCipher) {
    this.bytes = ciphertext.bytes;
    this.#ciphertext = ciphertext;
    this.#cipher = cipher;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    const { sectorBytes } = this.#cipher;
    const start = at - (at % sectorBytes);
    const end = Math.ceil((at + into.length) / sectorBytes) * sectorBytes;
    const isWhole = start === at && end === at + into.length;
    const sectors = isWhole ? into : new Uint8Array(end - start);
    await this.#ciphertext.read(start, sectors);
    this.#cipher.decrypt(sectors, start / IV_UNIT_BYTES);
    if (!isWhole) into.set(sectors.subarray(at - start, at - start + into.length));
  }

  /** Nothing lies below as it is read here, and a hole reads as noise. */
  async *map(range: Extent): AsyncIterable<readonly Run[]> {
    for await (const runs of this.#ciphertext.map(range)) {
      yield runs.map(({ start, end, shared, depth }) => ({ start, end, shared, depth, kind: "data" }));
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}
