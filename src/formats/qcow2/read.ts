/**
 * One disk of an image, read-only: the active one, or an internal snapshot's. A guest offset goes through the mapping
 * to a host offset; what the mapping does not know is the parent's, or zeros.
 *
 *   read ─→ segments ─→ data: the file, in one piece while clusters follow each other
 *                       zero: fill          compressed: inflate
 *                       unallocated: the parent as far as it reaches, then zeros
 */
import type { Extent } from "../../bytes/extents.ts";
import type { BlockDevice, Place, Run } from "../../device/device.ts";
import { readBeyond, readPadded } from "../../device/padded.ts";
import { joined, parentRuns } from "../../device/runs.ts";
import { DiskError } from "../../error.ts";
import type { CompressedClusters } from "./compressed.ts";
import type { Qcow2Context } from "./context.ts";
import { placeOf } from "./place.ts";
import { segments, type L1Table, type Segment } from "./tables.ts";

export class Qcow2Disk implements BlockDevice {
  readonly bytes: number;
  readonly #context: Qcow2Context;
  readonly #l1: L1Table;
  readonly #parent: BlockDevice | undefined;
  readonly #compressed: CompressedClusters;

  constructor(
    context: Qcow2Context,
    l1: L1Table,
    bytes: number,
    parent: BlockDevice | undefined,
    compressed: CompressedClusters,
  ) {
    this.#context = context;
    this.#l1 = l1;
    this.bytes = bytes;
    this.#parent = parent;
    this.#compressed = compressed;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    refuseEncrypted(this.#context);
    for await (const batch of segments(this.#context, this.#l1, { start: at, end: at + into.length })) {
      for (const segment of batch) {
        await this.#readSegment(segment, into.subarray(segment.start - at, segment.end - at));
      }
    }
  }

  async #readSegment(segment: Segment, into: Uint8Array): Promise<void> {
    switch (segment.kind) {
      case "data":
        return readPadded(this.#context.data, segment.host, into);
      case "zero":
        into.fill(0);
        return;
      case "compressed": {
        const cluster = await this.#compressed.read(segment.host, segment.hostBytes);
        const offset = segment.start % cluster.length;
        into.set(cluster.subarray(offset, offset + into.length));
        return;
      }
      case "unallocated":
        return readBeyond(this.#parent, segment.start, into);
    }
  }

  map(range: Extent): AsyncGenerator<readonly Run[]> {
    return joined(this.#runs(range));
  }

  async *#runs(range: Extent): AsyncGenerator<readonly Run[]> {
    for await (const batch of segments(this.#context, this.#l1, range)) {
      const runs: Run[] = [];
      for (const segment of batch) {
        if (segment.kind === "unallocated" && this.#parent !== undefined) {
          if (runs.length > 0) yield runs.splice(0);
          yield* parentRuns(this.#parent, segment);
        } else if (segment.host < 0) {
          const kind = segment.kind === "zero" ? "zero" : "hole";
          runs.push({ start: segment.start, end: segment.end, kind, shared: false, depth: 0 });
        } else {
          await this.#mappedRuns(segment, runs);
        }
      }
      if (runs.length > 0) yield runs;
    }
  }

  /** Splits a segment with a place at the borders between shared and unshared clusters. */
  async #mappedRuns(segment: Segment, into: Run[]): Promise<void> {
    const { data, header, refcounts } = this.#context;
    const { clusterBytes } = header;
    const kind = segment.kind === "unallocated" ? "hole" : segment.kind;
    const add = (start: number, end: number, shared: boolean) => {
      if (kind === "compressed") {
        into.push({ start, end, kind, shared, depth: 0 });
        return;
      }
      // The last cluster of a file may be cut short; the rest of it reads as zeros and lies nowhere.
      const at = segment.host + start - segment.start;
      const inside = Math.min(end, start + Math.max(0, data.bytes - at));
      const place = { file: data, at, bytes: inside - start };
      if (inside > start) into.push({ start, end: inside, kind, place, shared, depth: 0 });
      if (inside < end) {
        into.push({ start: inside, end, kind: kind === "hole" ? "hole" : "zero", shared, depth: 0 });
      }
    };
    // "copied" vouches for a refcount of 1, but only as long as the active table says so.
    const isAlone = (segment.copied && this.#l1 === this.#context.l1) || header.externalData;
    if (isAlone || kind === "compressed") {
      const isShared = !isAlone && (await refcounts.get(Math.floor(segment.host / clusterBytes))) > 1;
      return add(segment.start, segment.end, isShared);
    }
    for (let start = segment.start; start < segment.end;) {
      const host = segment.host + start - segment.start;
      const cluster = Math.floor(host / clusterBytes);
      const end = Math.min(segment.end, start + clusterBytes - (host % clusterBytes));
      add(start, end, (await refcounts.get(cluster)) > 1);
      start = end;
    }
  }

  locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    if (this.#context.header.encryption !== "none") return undefined;
    return placeOf(this.#context, this.#l1, at, bytes, access);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

/** Nothing of the guest can be read without the key; the place of its bytes can. */
export function refuseEncrypted(context: Qcow2Context): void {
  const { encryption } = context.header;
  if (encryption === "none") return;
  throw new DiskError("unsupported", `the image is encrypted (${encryption})`, {
    code: "encrypted",
    hint: "convert it to an image without encryption to have its content judged",
  });
}
