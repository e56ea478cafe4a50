/**
 * Where the clusters of an attribute lie: mapping pairs, and the list that is made of them.
 *
 *   | lengths: 1 byte, 2 nibbles | length of the run | LCN, as a signed step from the run before | … | 0 |
 *
 * A run without a step is a hole: sparse, or what compression saved.
 *
 * libyal/libfsntfs documentation, "Data runs".
 */
import type { BlockDevice } from "../../device/device.ts";
import { attributeName, type Attribute, type Runs } from "./attributes.ts";
import type { Geometry } from "./boot.ts";
import { damaged } from "./refused.ts";

export const HOLE = -1;

/** Takes one run: clusters of the attribute from `vcn`, clusters of the volume from `lcn`, or a hole. */
type RunSink = (vcn: number, lcn: number, clusters: number) => void;

/**
 * Calls `run` for every run of one piece of an attribute.
 * @throws Refused when a run leaves the volume, or the runs are more or fewer than the piece says
 */
export function eachRun(geometry: Geometry, attribute: Attribute, piece: Runs, run: RunSink): void {
  const { view } = attribute.record;
  let vcn = piece.firstVcn;
  let lcn = 0;
  for (let at = piece.at; at < piece.end;) {
    const lengths = view.getUint8(at++);
    if (lengths === 0) break;
    const lengthBytes = lengths & 15;
    const stepBytes = lengths >> 4;
    if (lengthBytes === 0 || lengthBytes > 8 || stepBytes > 8 || at + lengthBytes + stepBytes > piece.end) {
      throw damaged(`${attributeName(attribute)}: run with lengths 0x${lengths.toString(16)} found`);
    }
    const clusters = signedAt(view, at, lengthBytes);
    at += lengthBytes;
    const isHole = stepBytes === 0;
    if (!isHole) lcn += signedAt(view, at, stepBytes);
    at += stepBytes;
    if (clusters <= 0 || vcn + clusters > piece.endVcn) {
      throw damaged(
        `${attributeName(attribute)}: run of ${clusters} clusters at VCN ${vcn} of ${piece.endVcn} found`,
      );
    }
    if (!isHole && (lcn < 0 || lcn + clusters > geometry.clusters)) {
      throw damaged(`${attributeName(attribute)}: clusters ${lcn}+${clusters} found in ${geometry.clusters}`);
    }
    run(vcn, isHole ? HOLE : lcn, clusters);
    vcn += clusters;
  }
  if (vcn !== piece.endVcn) {
    throw damaged(`${attributeName(attribute)}: runs up to VCN ${vcn} found, ${piece.endVcn} expected`);
  }
}

/** A little-endian signed number; inexact only far outside any volume. */
function signedAt(view: DataView, at: number, bytes: number): number {
  let value = view.getInt8(at + bytes - 1);
  for (let i = bytes - 2; i >= 0; i--) value = value * 256 + view.getUint8(at + i);
  return value;
}

/** Runs of a whole attribute, ascending and without a gap. */
export class RunList {
  readonly #geometry: Geometry;
  readonly #vcns: number[] = [];
  readonly #lcns: number[] = [];
  #end = 0;
  /** Clusters that are in no hole. */
  #stored = 0;

  constructor(geometry: Geometry) {
    this.#geometry = geometry;
  }

  /** How many clusters it maps. */
  get clusters(): number {
    return this.#end;
  }

  get count(): number {
    return this.#vcns.length;
  }

  /**
   * Adds the next piece.
   * @throws Refused when it does not begin where the one before ended, or the runs must share clusters (H24)
   */
  append(attribute: Attribute, piece: Runs): void {
    if (piece.firstVcn !== this.#end) {
      throw damaged(`${attributeName(attribute)}: goes on with VCN ${piece.firstVcn}, ${this.#end} expected`);
    }
    eachRun(this.#geometry, attribute, piece, (vcn, lcn, clusters) => {
      this.#vcns.push(vcn);
      this.#lcns.push(lcn);
      this.#end = vcn + clusters;
      if (lcn !== HOLE) this.#stored += clusters;
    });
    if (this.#stored > this.#geometry.clusters) {
      const { clusters } = this.#geometry;
      throw damaged(`${attributeName(attribute)}: more than the ${clusters} clusters of the volume`);
    }
  }

  run(index: number): { readonly vcn: number; readonly lcn: number; readonly clusters: number } {
    const vcn = this.#vcns[index]!;
    return { vcn, lcn: this.#lcns[index]!, clusters: (this.#vcns[index + 1] ?? this.#end) - vcn };
  }

  hasHole(): boolean {
    return this.#lcns.includes(HOLE);
  }

  /** Where byte `at` lies on the device; it is mapped, and in no hole. */
  position(at: number): number {
    const { clusterBytes } = this.#geometry;
    const { vcn, lcn } = this.run(this.#indexOf(Math.floor(at / clusterBytes)));
    return lcn * clusterBytes + at - vcn * clusterBytes;
  }

  /** Fills `into` from byte `at`; holes read as zeros. All of it is mapped. */
  async read(device: BlockDevice, at: number, into: Uint8Array): Promise<void> {
    const { clusterBytes } = this.#geometry;
    for (let done = 0, index = this.#indexOf(Math.floor(at / clusterBytes)); done < into.length; index++) {
      const { vcn, lcn, clusters } = this.run(index);
      const inside = at + done - vcn * clusterBytes;
      const part = into.subarray(done, done + Math.min(into.length - done, clusters * clusterBytes - inside));
      if (lcn === HOLE) part.fill(0);
      else await device.read(lcn * clusterBytes + inside, part);
      done += part.length;
    }
  }

  #indexOf(vcn: number): number {
    let low = 0;
    let high = this.#vcns.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (this.#vcns[middle]! <= vcn) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}
