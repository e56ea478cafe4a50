/**
 * The blocks of an image that are not all zero, in memory, to be changed one by one: large and mostly empty volumes as
 * a few hundred kibibytes.
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { viewOf } from "../bytes/struct.ts";
import { checked } from "../device/checked.ts";
import type { BlockDevice } from "../device/device.ts";

const BLOCK_BYTES = 4096;

export type Blocks = ReadonlyMap<number, Uint8Array>;
export type Changes = Readonly<Record<number, (view: DataView) => void>>;

/** @param bytesMax how far the image is read */
export function readBlocks(
  image: string,
  bytesMax = Infinity,
): { readonly bytes: number; readonly blocks: Blocks } {
  const file = openSync(image, "r");
  const { size } = fstatSync(file);
  const blocks = new Map<number, Uint8Array>();
  const zeros = Buffer.alloc(BLOCK_BYTES);
  const piece = Buffer.alloc(256 * BLOCK_BYTES);
  for (let at = 0; at < Math.min(size, bytesMax); at += piece.length) {
    const length = readSync(file, piece, 0, piece.length, at);
    for (let from = 0; from + BLOCK_BYTES <= length; from += BLOCK_BYTES) {
      const block = piece.subarray(from, from + BLOCK_BYTES);
      if (!zeros.equals(block)) blocks.set((at + from) / BLOCK_BYTES, new Uint8Array(block));
    }
  }
  closeSync(file);
  return { bytes: size, blocks };
}

/** @param seal sets checksums anew, in place */
export function changedBlocks(blocks: Blocks, changes: Changes, seal: (bytes: Uint8Array) => void): Blocks {
  const changed = new Map(blocks);
  for (const [block, change] of Object.entries(changes)) {
    const bytes = (blocks.get(Number(block)) ?? new Uint8Array(BLOCK_BYTES)).slice();
    change(viewOf(bytes));
    seal(bytes);
    changed.set(Number(block), bytes);
  }
  return changed;
}

/** A device of blocks; those that are missing are zeros. */
export function blocksDevice(blocks: Blocks, bytes: number): BlockDevice {
  return checked({
    bytes,
    read(at, into) {
      into.fill(0);
      for (let block = Math.floor(at / BLOCK_BYTES); block * BLOCK_BYTES < at + into.length; block++) {
        const content = blocks.get(block);
        const start = Math.max(at, block * BLOCK_BYTES);
        const end = Math.min(at + into.length, (block + 1) * BLOCK_BYTES);
        if (content)
          into.set(content.subarray(start - block * BLOCK_BYTES, end - block * BLOCK_BYTES), start - at);
      }
      return Promise.resolve();
    },
    async *map(range) {
      yield [{ ...range, kind: "data", shared: false, depth: 0 }];
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  });
}

/** Blocks one after the other, as a sample of the fuzzer, and back. */
export function packBlocks(blocks: Blocks): {
  readonly order: readonly number[];
  readonly bytes: Uint8Array;
} {
  const order = [...blocks.keys()].sort((a, b) => a - b);
  const bytes = new Uint8Array(order.length * BLOCK_BYTES);
  order.forEach((block, index) => bytes.set(blocks.get(block)!, index * BLOCK_BYTES));
  return { order, bytes };
}

export function unpackBlocks(order: readonly number[], bytes: Uint8Array): Blocks {
  const whole = order.slice(0, Math.floor(bytes.length / BLOCK_BYTES));
  return new Map(
    whole.map((block, index) => [block, bytes.subarray(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES)]),
  );
}
