/**
 * Buffers by their address, as system calls want them. What lies outside of V8's heap does not move: a view over an
 * `ArrayBuffer` of its own, for small typed arrays may lie inside.
 */
import { nativeAddress } from "./native.ts";

/** Zeroed memory that stays where it is. */
export function fixedMemory(bytes: number): Uint8Array {
  return new Uint8Array(new ArrayBuffer(bytes));
}

const addresses = new WeakMap<ArrayBufferLike, number>();
let lastBuffer: ArrayBufferLike | undefined;
let lastAddress = 0;

/** The address of the first byte of `memory`, of an array made by `fixedMemory` or at least of some hundred bytes. */
export function addressOf(memory: Uint8Array): number {
  const { buffer, byteOffset } = memory;
  if (buffer === lastBuffer) return lastAddress + byteOffset;
  let address = addresses.get(buffer);
  if (address === undefined) {
    address = nativeAddress(new Uint8Array(buffer));
    addresses.set(buffer, address);
  }
  lastBuffer = buffer;
  lastAddress = address;
  return address + byteOffset;
}
