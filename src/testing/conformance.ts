/**
 * What every image format must pass, on simulated files:
 *
 *   conformance(qcow2, [{ name: "64 KiB clusters", make: async (t, random) => ({ files, image, content }) }, …]);
 *
 * 1. Reads equal the oracle. 2. The map is gapless and true. 3. Writes, zeros and discards behave like an array of
 * bytes, crashes included. 4. A reclaim keeps every byte that is not free, and a second one finds nothing. 5. So does every crash, a
 * second run that crashes too, and whoever writes to the image afterwards (H12). 6. So does every failure of the
 * host (H13, H19, H20). 7. Damaged files cause nothing but `DiskError`s.
 *
 * `SEED=n` replays one seed; `STATES=n` draws so many crash states at each flush.
 */
import { suite, test, type TestContext } from "node:test";
import type { ImageFormat, OpenParent } from "../formats/format.ts";
import { Bench } from "./conformance/bench.ts";
import { writesBesideChanges } from "./conformance/beside.ts";
import { damageIsReported, mapIsTrue, readsEqual } from "./conformance/reading.ts";
import { crashesAreSafe, failuresAreSafe, reclaimKeeps } from "./conformance/reclaiming.ts";
import { lyingHostLosesNothing, piecesGoLikeTheWhole } from "./conformance/trimming.ts";
import { behavesLikeBytes, writerCrashes } from "./conformance/writing.ts";
import type { Files } from "./crash.ts";
import { Random, seeds } from "./seeds.ts";

/** One kind of image of the format. */
export interface Variant {
  readonly name: string;
  /**
   * Makes an image, by a foreign tool or by hand; undefined after `t.skip`. Called once a test and seed; some MiB at
   * most.
   */
  make(t: TestContext, random: Random): Promise<Sample | undefined>;
  /** Opens the parents that the image names, among its files. Default: it has none. */
  openParent?(files: Files): OpenParent;
  /** Whether any range can be made to read as zeros in place; not where a snapshot or a parent holds it. Default true. */
  readonly canBlank?: boolean;
  /** How many seeds each test runs with. Default 2. */
  readonly seeds?: number;
}

export interface Sample {
  /** All files of the image by their names: itself and those that it refers to. */
  readonly files: Files;
  /** The name of the image file. */
  readonly image: string;
  /** What the guest reads, as the foreign tool says. */
  readonly content: Uint8Array;
  /** The foreign tool's word on the image after all of it was written to: whole, and reads `content`. */
  judge?(files: Files, content: Uint8Array): Promise<void>;
}

type Check = (bench: Bench) => Promise<void>;

const READING: Readonly<Record<string, Check>> = {
  "reads equal the oracle": readsEqual,
  "the map is gapless and true": mapIsTrue,
  "damaged files cause nothing but DiskErrors": damageIsReported,
};

const WRITING: Readonly<Record<string, Check>> = {
  "writes, zeros and discards behave like an array of bytes": behavesLikeBytes,
  "writes in place and other changes do not undo each other": writesBesideChanges,
  "a block trimmed in pieces goes like one trimmed as a whole": piecesGoLikeTheWhole,
  "a host that lies about holes loses nothing": lyingHostLosesNothing,
  "every crash of a writer leaves old or new sectors": writerCrashes,
  "a punching run keeps what is used": (bench) => reclaimKeeps(bench, "punch"),
  "a packing run keeps what is used": (bench) => reclaimKeeps(bench, "pack"),
  "every crash of a punching run leaves a whole image": (bench) => crashesAreSafe(bench, "punch"),
  "every crash of a packing run leaves a whole image": (bench) => crashesAreSafe(bench, "pack"),
  "every failure of the host leaves a whole image": failuresAreSafe,
};

/** Declares the tests; those that write only where the format can. */
export function conformance(format: ImageFormat, variants: readonly Variant[]): void {
  const checks = { ...READING, ...(format.openWritable && WRITING) };
  for (const variant of variants) {
    suite(`${format.name}, ${variant.name}`, () => {
      for (const [what, check] of Object.entries(checks)) {
        test(what, async (t) => {
          for (const seed of seeds(variant.seeds ?? 2)) {
            const random = new Random(seed);
            const sample = await variant.make(t, random);
            if (!sample) return;
            await check(new Bench(format, variant, sample, random, `SEED=${seed}`));
          }
        });
      }
    });
  }
}
