/**
 * What of the disk is being changed right now. Who wants to change a range that overlaps waits for those who came
 * before; nobody holds one range while he waits for another.
 */
import type { Extent } from "../../bytes/extents.ts";

interface Held extends Extent {
  readonly released: Promise<void>;
}

export class RangeLocks {
  readonly #held = new Set<Held>();

  touches(range: Extent): boolean {
    for (const held of this.#held) if (overlap(held, range)) return true;
    return false;
  }

  /** @returns gives the range back */
  async take(range: Extent): Promise<() => void> {
    const { promise: released, resolve } = Promise.withResolvers<void>();
    const before = [...this.#held].filter((held) => overlap(held, range));
    const own = { ...range, released };
    this.#held.add(own);
    for (const held of before) await held.released;
    return () => {
      this.#held.delete(own);
      resolve();
    };
  }
}

function overlap(first: Extent, second: Extent): boolean {
  return first.start < second.end && second.start < first.end;
}

/** One after the other, in the order of their coming. */
export class Turns {
  #last: Promise<unknown> = Promise.resolve();

  take<T>(work: () => Promise<T>): Promise<T> {
    const own = this.#last.then(work);
    this.#last = own.catch(() => {});
    return own;
  }
}
