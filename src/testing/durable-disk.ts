/**
 * What each sector of a disk may hold after a crash: what it held when a FLUSH or a write with FUA was answered last, and
 * everything that it was to hold since.
 *
 *   write A   write B   FLUSH answered   write C   crash:      B or C, never A
 *   write A   TRIM      FLUSH answered             crash:      A or zeros
 */
import type { Extent } from "../bytes/extents.ts";

export const SECTOR_BYTES = 512;

export class DurableDisk {
  readonly #contents: Buffer[][];
  /** For each sector the content whose writing was answered last: it, or a later one, is there. */
  readonly #answered: Int32Array;
  #durable: Int32Array;
  /** What was durable from which operation of the trace on. */
  readonly #promises: { readonly operations: number; readonly durable: Int32Array }[];

  constructor(content: Uint8Array) {
    const sectors = Math.ceil(content.length / SECTOR_BYTES);
    this.#contents = Array.from({ length: sectors }, (_, i) => [
      Buffer.from(content.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES)),
    ]);
    this.#answered = new Int32Array(sectors);
    this.#durable = new Int32Array(sectors);
    this.#promises = [{ operations: 0, durable: this.#durable }];
  }

  /** The sectors may come to hold this. @returns for each of them its number among the contents */
  begin({ start }: Extent, data: Uint8Array): Int32Array {
    const first = start / SECTOR_BYTES;
    const numbers = new Int32Array(Math.ceil(data.length / SECTOR_BYTES));
    for (let i = 0; i < numbers.length; i++) {
      const content = Buffer.from(data.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES));
      numbers[i] = this.#contents[first + i]!.push(content) - 1;
    }
    return numbers;
  }

  /** What was begun there was answered: nothing older is there any more, for who reads. */
  answered({ start }: Extent, numbers: Int32Array): void {
    this.#answered.set(numbers, start / SECTOR_BYTES);
  }

  /** What a FLUSH that is sent now will have to cover. */
  flushing(): Int32Array {
    return this.#answered.slice();
  }

  /** @param covered by `flushing` when it was sent. @param operations of the trace when the answer came */
  flushed(covered: Int32Array, operations: number): void {
    this.#durable = this.#durable.map((number, i) => Math.max(number, covered[i]!));
    this.#promises.push({ operations, durable: this.#durable });
  }

  /** A write with FUA was answered. */
  forced({ start }: Extent, numbers: Int32Array, operations: number): void {
    const covered = this.#durable.slice();
    covered.set(numbers, start / SECTOR_BYTES);
    this.flushed(covered, operations);
  }

  /** @returns the offset of a sector that cannot be what is found after so many operations; -1: there is none */
  wrongSector(found: Buffer, operations: number): number {
    const { durable } = this.#promises.findLast((promise) => promise.operations <= operations)!;
    for (const [i, contents] of this.#contents.entries()) {
      const at = i * SECTOR_BYTES;
      const end = Math.min(found.length, at + SECTOR_BYTES);
      let number = contents.length - 1;
      while (number >= durable[i]! && contents[number]!.compare(found, at, end) !== 0) number--;
      if (number < durable[i]!) return at;
    }
    return -1;
  }
}
