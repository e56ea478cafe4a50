/**
 * A part of a device as a device of its own: a partition, a file at a known place.
 *
 *   device  |......[ slice ]........|
 */
import type { Extent } from "../bytes/extents.ts";
import { assert } from "../error.ts";
import type { BlockDevice, Place, Run } from "./device.ts";

/** Adds no layer: runs keep the places that the device below gives them. The device below stays its owner's. */
export function slice(device: BlockDevice, range: Extent): BlockDevice {
  assert(
    range.start >= 0 && range.start <= range.end && range.end <= device.bytes,
    "the slice lies in the device",
  );
  return new Slice(device, range);
}

class Slice implements BlockDevice {
  readonly bytes: number;
  readonly #device: BlockDevice;
  readonly #start: number;

  constructor(device: BlockDevice, { start, end }: Extent) {
    this.bytes = end - start;
    this.#device = device;
    this.#start = start;
  }

  read(at: number, into: Uint8Array): Promise<void> {
    assert(at >= 0 && at + into.length <= this.bytes, `${at}+${into.length} lies in ${this.bytes} bytes`);
    return this.#device.read(this.#start + at, into);
  }

  async *map({ start, end }: Extent): AsyncIterable<readonly Run[]> {
    const by = this.#start;
    for await (const runs of this.#device.map({ start: start + by, end: end + by })) {
      yield runs.map((run) => ({ ...run, start: run.start - by, end: run.end - by }));
    }
  }

  locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    return this.#device.locate?.(this.#start + at, bytes, access);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}
