/**
 * Devices one behind the other, read as one.
 *
 *   | part 0      | part 1 | part 2        |
 *   0             ^ starts[1]               ^ bytes
 */
import type { Extent } from "../bytes/extents.ts";
import type { BlockDevice, Place, Run } from "./device.ts";

export function concat(parts: readonly BlockDevice[]): BlockDevice {
  return new Concatenation(parts);
}

class Concatenation implements BlockDevice {
  readonly bytes: number;
  readonly #parts: readonly BlockDevice[];
  readonly #starts: readonly number[];

  constructor(parts: readonly BlockDevice[]) {
    const starts: number[] = [];
    let bytes = 0;
    for (const part of parts) {
      starts.push(bytes);
      bytes += part.bytes;
    }
    this.#parts = parts;
    this.#starts = starts;
    this.bytes = bytes;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    for (const { part, base, start, end } of this.#touched({ start: at, end: at + into.length })) {
      await part.read(start - base, into.subarray(start - at, end - at));
    }
  }

  async *map(range: Extent): AsyncIterable<readonly Run[]> {
    for (const { part, base, start, end } of this.#touched(range)) {
      for await (const runs of part.map({ start: start - base, end: end - base })) {
        yield runs.map((run) => ({ ...run, start: run.start + base, end: run.end + base }));
      }
    }
  }

  /** Of the first part alone. */
  locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    let i = this.#parts.length - 1;
    while (i > 0 && this.#starts[i]! > at) i--;
    const part = this.#parts[i];
    if (part?.locate === undefined) return undefined;
    const inside = at - this.#starts[i]!;
    return part.locate(inside, Math.min(bytes, part.bytes - inside), access);
  }

  *#touched({ start, end }: Extent) {
    for (const [i, part] of this.#parts.entries()) {
      const base = this.#starts[i]!;
      const from = Math.max(start, base);
      const to = Math.min(end, base + part.bytes);
      if (from < to) yield { part, base, start: from, end: to };
    }
  }

  /** The parts belong to whoever made them. */
  async [Symbol.asyncDispose](): Promise<void> {}
}
