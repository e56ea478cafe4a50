/**
 * `ullage:usage`: the classes of the survey as a context of NBD's BLOCK_STATUS. A descriptor's flags are the number of its
 * class in `CLASSES`.
 *
 * The guest runs: what its filesystems say is read when it is first asked for, and again when it is old, and is never
 * exact.
 */
import { type Extent, ExtentSet } from "../bytes/extents.ts";
import { CLASSES } from "../disk/results.ts";
import type { MetaContext, StatusDescriptor } from "../nbd/export.ts";
import type { Regions, RunningGuest } from "./guest.ts";

/** What was read stands so long. */
const FRESH_MS = 10_000;

export class UsageContext implements MetaContext {
  readonly name = "ullage:usage";
  readonly #guest: RunningGuest;
  readonly #guarded: () => ExtentSet;
  #regions: Promise<Regions> | undefined;
  #readAt = -Infinity;

  constructor(guest: RunningGuest, guarded: () => ExtentSet) {
    this.#guest = guest;
    this.#guarded = guarded;
  }

  async status(range: Extent, max: number): Promise<readonly StatusDescriptor[]> {
    if (performance.now() - this.#readAt > FRESH_MS) {
      this.#regions = this.#read();
      this.#readAt = performance.now();
    }
    const regions = await this.#regions!;
    const guarded = this.#guarded();
    const parts: { start: number; end: number; flags: number }[] = [];
    for (const [flags, name] of CLASSES.entries()) {
      const set = name === "guarded" ? guarded : (regions.get(name) ?? ExtentSet.EMPTY).subtract(guarded);
      for (const { start, end } of set.within(range)) parts.push({ start, end, flags });
    }
    parts.sort((a, b) => a.start - b.start);
    return gapless(parts, range, max);
  }

  /** A filesystem that changes while it is read may look damaged: then nothing is known. */
  #read(): Promise<Regions> {
    return this.#guest.regions().catch(() => new Map());
  }
}

/** Neighbours of one class as one; what no class claims is unknown. */
function gapless(
  parts: readonly { readonly start: number; readonly end: number; readonly flags: number }[],
  range: Extent,
  max: number,
): StatusDescriptor[] {
  const unknown = CLASSES.indexOf("unknown");
  const found: { bytes: number; flags: number }[] = [];
  let at = range.start;
  const add = (end: number, flags: number): void => {
    const last = found.at(-1);
    if (last?.flags === flags) last.bytes += end - at;
    else found.push({ bytes: end - at, flags });
    at = end;
  };
  for (const { start, end, flags } of parts) {
    if (start > at) add(start, unknown);
    if (found.length > max) break;
    if (end > at) add(end, flags);
  }
  if (at < range.end) add(range.end, unknown);
  return found.slice(0, max);
}
