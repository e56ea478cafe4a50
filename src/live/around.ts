/**
 * The stem of filters that care for every request alike: what is asked for is described, and the filter decides when
 * and whether it is carried out.
 *
 *   client ── read 4096+512 ──> around({ operation: "read", at: 4096, bytes: 512 }, carryOut) ──> below
 *
 * The words for operations are nbdkit's: `trim` is a discard, `extents` is a map (NBD's BLOCK_STATUS).
 */
import type { Extent } from "../bytes/extents.ts";
import type { Place, Run, Zeroing } from "../device/device.ts";
import { Filter } from "../device/filter.ts";
import { DiskError } from "../error.ts";

export const OPERATIONS = ["read", "write", "trim", "zero", "flush", "extents"] as const;
export type Operation = (typeof OPERATIONS)[number];

/** What a client asks a disk for. */
export interface Request {
  readonly operation: Operation;
  readonly at: number;
  readonly bytes: number;
}

export abstract class Around extends Filter {
  /** @param carryOut to be called once, or not at all */
  protected abstract around<T>(request: Request, carryOut: () => Promise<T>): Promise<T>;

  /** Whether requests of this kind must come by: no way around them is given out then. */
  protected abstract concerns(operation: Operation): boolean;

  override locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    return this.concerns(access) ? undefined : super.locate(at, bytes, access);
  }

  override read(at: number, into: Uint8Array): Promise<void> {
    return this.around({ operation: "read", at, bytes: into.length }, () => super.read(at, into));
  }

  override async *map(range: Extent): AsyncIterable<readonly Run[]> {
    const batches = super.map(range)[Symbol.asyncIterator]();
    const first = await this.around(of("extents", range), () => batches.next());
    if (first.done === true) return;
    yield first.value;
    yield* { [Symbol.asyncIterator]: () => batches };
  }

  override write(at: number, from: Uint8Array): Promise<void> {
    return this.around({ operation: "write", at, bytes: from.length }, () => super.write(at, from));
  }

  override zero(range: Extent, how?: Zeroing): Promise<void> {
    return this.around(of("zero", range), () => super.zero(range, how));
  }

  override discard(range: Extent): Promise<void> {
    return this.around(of("trim", range), () => super.discard(range));
  }

  override flush(): Promise<void> {
    return this.around({ operation: "flush", at: 0, bytes: 0 }, () => super.flush());
  }
}

const of = (operation: Operation, { start, end }: Extent): Request => ({
  operation,
  at: start,
  bytes: end - start,
});

/**
 * `read=A,trim=B`, or `A` for all operations: what stands behind `=`, by operation. Later words win.
 * @throws DiskError `usage`
 */
export function byOperation(words: string): Map<Operation, string> {
  const found = new Map<Operation, string>();
  for (const word of words.split(",")) {
    const [, name, value] = /^(?:([^=]*)=)?(.*)$/s.exec(word)!;
    const named = OPERATIONS.find((operation) => operation === name);
    if (name !== undefined && named === undefined)
      throw new DiskError("usage", `"${name}" is not one of ${OPERATIONS.join(", ")}`);
    for (const operation of named === undefined ? OPERATIONS : [named]) found.set(operation, value!);
  }
  return found;
}
