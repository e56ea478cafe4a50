/**
 * One sample of a format under test: how to open it, what to wish for, and how to reclaim as the disk layer does.
 */
import { ExtentSet } from "../../bytes/extents.ts";
import type { Image, ImageFormat, OpenParent, WritableImage } from "../../formats/format.ts";
import { execute } from "../../reclaim/execute.ts";
import type { Plan } from "../../reclaim/plan.ts";
import type { Sample, Variant } from "../conformance.ts";
import type { Files } from "../crash.ts";
import type { Random } from "../seeds.ts";
import { simulatedSource } from "../simulated-source.ts";
import { type Expectation, someSectors } from "./judge.ts";

export type Method = "punch" | "pack";

export class Bench {
  readonly format: ImageFormat;
  readonly sample: Sample;
  readonly random: Random;
  /** For messages: what replays this. */
  readonly label: string;
  readonly #variant: Variant;

  constructor(format: ImageFormat, variant: Variant, sample: Sample, random: Random, label: string) {
    this.format = format;
    this.#variant = variant;
    this.sample = sample;
    this.random = random;
    this.label = label;
  }

  open(files: Files = this.sample.files): Promise<Image> {
    return this.format.open(simulatedSource(new Map(files), this.sample.image), this.#openParent(files));
  }

  openWritable(files: Files): Promise<WritableImage> {
    // A bundle gains files as it is written.
    const source = simulatedSource(files instanceof Map ? files : new Map(files), this.sample.image);
    return this.format.openWritable!(source, this.#openParent(files));
  }

  /** What to free, drawn from the seed. */
  wish(): Expectation {
    const { content } = this.sample;
    const free = someSectors(this.random, content.length, 2);
    const blank =
      this.#variant.canBlank === false
        ? ExtentSet.EMPTY
        : someSectors(this.random, content.length, 20).subtract(free);
    return { content, free, blank };
  }

  async plan(image: Image, { free, blank }: Omit<Expectation, "content">, method: Method): Promise<Plan> {
    const { blockBytes } = await image.files.get("")!.stat();
    return image.plan({
      free,
      blank,
      pack: method === "pack",
      punch: method === "punch",
      minHoleBytes: blockBytes,
      hostBlockBytes: blockBytes,
    });
  }

  /** Plans and executes; the image is closed whatever happens. */
  async reclaim(files: Files, wish: Omit<Expectation, "content">, method: Method): Promise<Plan> {
    await using image = await this.openWritable(files);
    const plan = await this.plan(image, wish, method);
    await execute(plan, image.files);
    return plan;
  }

  #openParent(files: Files): OpenParent {
    return (
      this.#variant.openParent?.(files) ??
      ((name) => Promise.reject(new Error(`the image refers to ${name}: the variant needs an openParent`)))
    );
  }
}

/** Copies that a test may change. */
export function copyOf(files: Files): Files {
  return new Map(Array.from(files, ([name, file]) => [name, file.fork()]));
}
