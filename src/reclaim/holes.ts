/**
 * Which parts of the image's files go back to the host.
 *
 *   garbage   ####......##....     whole clusters that nobody refers to
 *   inside    ......#.#.......     unwanted bytes of clusters that stay
 *   joined    ####..#.####....     cut inward to host blocks, small ones left out
 *   host      ####++....##++++     allocated (#), shared by reflinks (+): only the first comes back (H35)
 *   punched   ####......##....
 */
import { ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import type { ReadableFile } from "../device/device.ts";
import type { Step, Wish } from "./plan.ts";

export interface Candidates {
  /** Clusters without an owner. */
  readonly garbage: ExtentSet;
  /** Part of `garbage` that had an owner until now. */
  readonly freed: ExtentSet;
  /** Bytes inside clusters that stay. */
  readonly inside: ExtentSet;
  /** Part of `inside` that must be zeros afterwards. */
  readonly blank: ExtentSet;
}

export interface Holes {
  readonly punched: ExtentSet;
  /** What has to be overwritten with zeros, for it cannot be punched. */
  readonly zeroed: ExtentSet;
  /** How many bytes of `punched` were not freed now: inside clusters that stay, and garbage of earlier times. */
  readonly otherBytes: number;
}

/** Nothing to give back. */
export const NO_HOLES: Holes = { punched: ExtentSet.EMPTY, zeroed: ExtentSet.EMPTY, otherBytes: 0 };

type HoleWish = Pick<Wish, "punch" | "minHoleBytes" | "hostBlockBytes">;

/** Holds the candidates against what the host has allocated. */
export async function holesIn(file: ReadableFile, candidates: Candidates, wish: HoleWish): Promise<Holes> {
  const { garbage, freed, inside, blank } = candidates;
  const joined = garbage.union(inside).alignInward(wish.hostBlockBytes);
  const wanted = joined.atLeast(wish.minHoleBytes).union(garbage.alignInward(wish.hostBlockBytes));
  const { allocated, alone } = await allocationOf(file, wanted.union(blank));
  const punched = wish.punch ? wanted.intersect(alone) : ExtentSet.EMPTY;
  return {
    punched,
    zeroed: blank.intersect(allocated).subtract(punched),
    otherBytes: punched.subtract(freed).bytes,
  };
}

/** What the host has allocated, and what of it for this file alone, from the first to the last of `ranges`. */
async function allocationOf(file: ReadableFile, ranges: ExtentSet) {
  const allocated = new ExtentBuilder();
  const alone = new ExtentBuilder();
  const inFile = ranges.within({ start: 0, end: file.bytes });
  if (inFile.count > 0) {
    const range = { start: inFile.start(0), end: inFile.end(inFile.count - 1) };
    for await (const batch of file.map(range)) {
      for (const { start, end, kind, shared } of batch) {
        if (kind === "hole") continue;
        allocated.add(start, end);
        if (!shared) alone.add(start, end);
      }
    }
  }
  return { allocated: allocated.build(), alone: alone.build() };
}

/** The steps that make the holes, in any order. */
export function* holeSteps(file: string, { punched, zeroed }: Holes): Generator<Step> {
  for (const range of punched) yield { file, op: "punch", range };
  for (const range of zeroed) yield { file, op: "zero", range };
}
