/**
 * Delay: requests wait before they are carried out, each for itself: others go on meanwhile.
 *
 *   --delay 10ms                        every request
 *   --delay read=10ms,write=0.5s        these alone: read, write, trim, zero, flush, extents
 *
 * `10ms` is milliseconds, `0.5s` and a bare `0.5` are seconds. Later words win.
 */
import { setTimeout } from "node:timers/promises";
import type { WritableDevice } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { Around, byOperation, type Operation, type Request } from "./around.ts";

/** Milliseconds by operation. */
export type Delays = ReadonlyMap<Operation, number>;

const DELAY_MS_MAX = 3_600_000;

export class Delayed extends Around {
  readonly #delays: Delays;
  readonly #wait: (ms: number) => Promise<unknown>;

  constructor(below: WritableDevice, delays: Delays, wait: (ms: number) => Promise<unknown> = setTimeout) {
    super(below);
    this.#delays = delays;
    this.#wait = wait;
  }

  protected concerns(operation: Operation): boolean {
    return (this.#delays.get(operation) ?? 0) > 0;
  }

  protected async around<T>({ operation }: Request, carryOut: () => Promise<T>): Promise<T> {
    const delayMs = this.#delays.get(operation) ?? 0;
    if (delayMs > 0) await this.#wait(delayMs);
    return await carryOut();
  }
}

/** @throws DiskError `usage` */
export function parseDelays(words: string): Delays {
  return new Map(Array.from(byOperation(words), ([operation, word]) => [operation, millisecondsOf(word)]));
}

function millisecondsOf(word: string): number {
  const [, figure, unit] = /^(\d+(?:\.\d+)?)(ms|s)?$/.exec(word) ?? [];
  const delayMs = Number(figure) * (unit === "ms" ? 1 : 1000);
  if (!(delayMs <= DELAY_MS_MAX))
    throw new DiskError("usage", `"${word}" is no delay: write 10ms or 0.5s, an hour at most`);
  return delayMs;
}
