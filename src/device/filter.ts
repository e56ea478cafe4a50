/**
 * The stem of filters over a disk that is written to: everything is passed on, and a filter overrides what it cares for.
 *
 *   class Loud extends Filter {
 *     override async write(at: number, from: Uint8Array) { console.log(at); await super.write(at, from); }
 *     override locate() { return undefined; }        // writes must not pass by
 *   }
 *
 * `locate` is the way around `read` and `write`: a filter that overrides these has to override that as well.
 */
import type { Extent } from "../bytes/extents.ts";
import type { Place, Run, WritableDevice, Zeroing } from "./device.ts";

export class Filter implements WritableDevice {
  protected readonly below: WritableDevice;

  constructor(below: WritableDevice) {
    this.below = below;
  }

  get bytes(): number {
    return this.below.bytes;
  }

  read(at: number, into: Uint8Array): Promise<void> {
    return this.below.read(at, into);
  }

  map(range: Extent): AsyncIterable<readonly Run[]> {
    return this.below.map(range);
  }

  locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    return this.below.locate?.(at, bytes, access);
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.below.write(at, from);
  }

  zero(range: Extent, how?: Zeroing): Promise<void> {
    return this.below.zero(range, how);
  }

  discard(range: Extent): Promise<void> {
    return this.below.discard(range);
  }

  flush(): Promise<void> {
    return this.below.flush();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.below[Symbol.asyncDispose]();
  }
}

/** A disk that filters stand on, and that somebody else will close. */
export class Borrowed extends Filter {
  override async [Symbol.asyncDispose](): Promise<void> {}
}
