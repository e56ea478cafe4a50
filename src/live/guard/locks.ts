/**
 * What of the disk is being changed right now. Who wants to change a range that overlaps waits for those who came
 * before, and whoever wants several ranges takes them at once: so nobody waits for one who waits for him.
 */
import type { Extent } from "../../bytes/extents.ts";

interface Held {
  readonly ranges: readonly Extent[];
  readonly released: Promise<void>;
}

export class RangeLocks {
  readonly #held = new Set<Held>();

  touches(range: Extent): boolean {
    for (const { ranges } of this.#held) if (ranges.some((each) => overlap(each, range))) return true;
    return false;
  }

  /** Takes all of them; who waits stands in line already. @returns gives them back */
  async take(...ranges: readonly Extent[]): Promise<() => void> {
    const { promise: released, resolve } = Promise.withResolvers<void>();
    const before = [...this.#held].filter((held) =>
      held.ranges.some((each) => ranges.some((range) => overlap(each, range))),
    );
    const own = { ranges, released };
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
