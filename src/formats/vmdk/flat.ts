/**
 * A flat extent: the guest's bytes as they are, from some sector of a file on. To free is to punch.
 */
import type { ReadableFile } from "../../device/device.ts";
import type { Plan, Step } from "../../reclaim/plan.ts";
import { FlatImage } from "../blocks/flat.ts";
import { mustLieInside } from "./damaged.ts";
import { NO_TABLES, type Part } from "./part.ts";

export interface FlatPlace<F extends ReadableFile> {
  readonly file: F;
  readonly fileName: string;
  readonly type: string;
  /** Where the extent begins in the file. */
  readonly at: number;
  readonly bytes: number;
}

export interface FlatExtent<F extends ReadableFile> extends Part {
  readonly fileName: string;
  readonly place: FlatPlace<F>;
}

/** @throws DiskError `corrupt` where the file is too short */
export async function openFlat<F extends ReadableFile>(place: FlatPlace<F>): Promise<FlatExtent<F>> {
  const { file, fileName, type, at, bytes } = place;
  mustLieInside(file, `flat extent "${fileName}"`, at, bytes);
  const grainBytes = (await file.stat()).blockBytes;
  const facts = { format: type, summary: type, details: {}, identifiers: [], at, bytes, grainBytes };
  const device = new FlatImage(file, facts);
  return {
    ...NO_TABLES,
    type,
    fileName,
    place,
    held: { start: at, end: at + bytes },
    device,
    grainBytes,
    refusal: undefined,
    plan: async (wish) => renamed(await device.plan(wish), fileName),
  };
}

/** The plan of a file that is the whole image, for one that is an extent. */
function renamed(plan: Plan, file: string): Plan {
  return {
    ...plan,
    punched: new Map(Array.from(plan.punched, ([, set]) => [file, set])),
    async *batches() {
      for await (const batch of plan.batches()) yield batch.map((step): Step => ({ ...step, file }));
    },
  };
}
