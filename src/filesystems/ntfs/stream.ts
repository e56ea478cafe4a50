/**
 * The content of one attribute, wherever its pieces lie: in the record, or in clusters.
 *
 *   | initialised | reads as zeros | slack up to the cluster |      of the allocated bytes
 *   0         initialised        bytes               allocated
 */
import type { BlockDevice } from "../../device/device.ts";
import { ATTRIBUTE_FLAG, attributeName, type Attribute, type Runs } from "./attributes.ts";
import type { Geometry } from "./boot.ts";
import { damaged } from "./refused.ts";
import { RunList } from "./runs.ts";

export interface Stream {
  /** The piece that states the sizes. */
  readonly attribute: Attribute;
  readonly bytes: number;
  /** What lies behind these bytes reads as zeros. */
  readonly initialised: number;
  /** Undefined when the value is resident. */
  readonly runs: RunList | undefined;
}

/**
 * The stream that pieces of one attribute make, in any order; undefined when there are none.
 * @throws Refused when they do not join, or do not fill what is allocated
 */
export function joinPieces(geometry: Geometry, pieces: readonly Attribute[]): Stream | undefined {
  const sorted = pieces.toSorted((a, b) => firstVcn(a) - firstVcn(b));
  const [first] = sorted;
  if (first === undefined) return undefined;
  if (first.content.kind === "resident") {
    if (sorted.length > 1) throw damaged(`${attributeName(first)}: is there twice`);
    return {
      attribute: first,
      bytes: first.content.bytes,
      initialised: first.content.bytes,
      runs: undefined,
    };
  }
  const { sizes } = first.content;
  if (sizes === undefined)
    throw damaged(`${attributeName(first)}: begins with VCN ${first.content.firstVcn}`);
  const runs = new RunList(geometry);
  for (const attribute of sorted) {
    runs.append(attribute, attribute.content as Runs);
  }
  checkAllocated(first, sizes.allocated, runs.clusters * geometry.clusterBytes);
  return { attribute: first, bytes: sizes.data, initialised: sizes.initialised, runs };
}

/** @throws Refused when the runs are more or fewer than what is allocated */
export function checkAllocated(attribute: Attribute, allocated: number, mapped: number): void {
  if (mapped !== allocated) {
    throw damaged(`${attributeName(attribute)}: runs of ${mapped} bytes found, ${allocated} allocated`);
  }
}

function firstVcn({ content }: Attribute): number {
  return content.kind === "resident" ? 0 : content.firstVcn;
}

/** Fills `into` from byte `at` of a stream that is neither compressed nor encrypted; zeros follow its end. */
export async function readStream(
  device: BlockDevice,
  { attribute, initialised, runs }: Stream,
  at: number,
  into: Uint8Array,
): Promise<void> {
  const written = Math.max(0, Math.min(into.length, initialised - at));
  into.fill(0, written);
  if (written === 0) return;
  const part = into.subarray(0, written);
  const { content, record, flags } = attribute;
  if (content.kind === "resident") {
    const { buffer, byteOffset } = record.view;
    part.set(new Uint8Array(buffer, byteOffset + content.at + at, written));
    return;
  }
  if ((flags & (ATTRIBUTE_FLAG.compressed | ATTRIBUTE_FLAG.encrypted)) !== 0) {
    throw damaged(`${attributeName(attribute)}: is compressed or encrypted`);
  }
  await runs!.read(device, at, part);
}
