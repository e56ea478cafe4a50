/**
 * Fuzzing of the descriptor of a Parallels bundle, as text: lengths, snapshots and file names change places; the images
 * stay what they were.
 */
import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { DiskError } from "../../src/error.ts";
import { parallelsBundle as format } from "../../src/formats/parallels.ts";
import type { FuzzTarget, Sample, Spot } from "../../src/testing/fuzz.ts";
import { guid, makeBundle, NAME, type Shape, TOP } from "../../src/testing/parallels-bundle.ts";
import { Random } from "../../src/testing/seeds.ts";
import { SimulatedFile } from "../../src/testing/simulated-file.ts";
import { fuzzImage } from "./image.ts";

const DESCRIPTOR = `${NAME}/DiskDescriptor.xml`;
const STORAGE_BYTES = 128 * 1024;
const VIRTUAL_BYTES = 2 * STORAGE_BYTES;

const SHAPES: Readonly<Record<string, Shape>> = {
  "two storages": { storages: [STORAGE_BYTES, STORAGE_BYTES], shots: [TOP] },
  "three snapshots": { storages: [STORAGE_BYTES, STORAGE_BYTES], shots: [TOP, guid(2), guid(1)] },
  "a plain root": { storages: [VIRTUAL_BYTES], shots: [TOP, guid(1)], isPlain: true },
};

/** The images around the descriptor, by sample. */
const images = new Map<string, readonly SimulatedFile[]>();

export const parallelsBundle: FuzzTarget = {
  name: "parallels-bundle",
  needs: ["qemu-img", "qemu-io"],

  async samples(folder) {
    const samples: Sample[] = [];
    for (const [name, shape] of Object.entries(SHAPES)) {
      const { files } = await makeBundle(mkdtempSync(join(folder, "bundle-")), shape, new Random(1));
      const bytes = files.get(DESCRIPTOR)!.peek().slice();
      files.delete(DESCRIPTOR);
      images.set(name, [...files.values()]);
      samples.push({ name, bytes, spots: spotsOf(Buffer.from(bytes).toString("latin1")) });
    }
    return samples;
  },

  async run(bytes, random, { name }) {
    const files = images.get(name)!.map((file) => file.fork());
    const file = SimulatedFile.from(bytes, { name: DESCRIPTOR });
    const bundle = { name: NAME, files };
    const mutant = { format, file, bundle, virtualBytes: VIRTUAL_BYTES, freeSectorsMax: 100 };
    try {
      return await fuzzImage(mutant, random);
    } catch (error) {
      if (error instanceof DiskError && error.code === "not-found") return "names a file that is not there";
      throw error;
    }
  },
};

/** The text of every element that has no others in it, and once the whole. */
function spotsOf(text: string): Spot[] {
  const values = text.matchAll(/(?<=>)[^<>\n]+(?=<\/)/g);
  const spots = Array.from(values, ({ index, 0: value }) => ({ at: index, bytes: value.length }));
  return [...spots, { at: 0, bytes: text.length }];
}
