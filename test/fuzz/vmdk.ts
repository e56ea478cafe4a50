/**
 * Fuzzing of VMDK: sparse disks, streams and a child above its parent, as QEMU makes them: each is one file, with the
 * descriptor inside.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { vmdk as format } from "../../src/formats/vmdk.ts";
import { SparseExtentHeader } from "../../src/formats/vmdk/sparse-header.ts";
import { chunksOf, type FuzzTarget, type Sample, type Spot, spotOf } from "../../src/testing/fuzz.ts";
import { Random } from "../../src/testing/seeds.ts";
import { SimulatedFile } from "../../src/testing/simulated-file.ts";
import { simulatedSource } from "../../src/testing/simulated-source.ts";
import { makeVmdk } from "../../src/testing/vmdk.ts";
import { run } from "../../src/testing/tools.ts";
import { fuzzImage } from "./image.ts";

const VIRTUAL_BYTES = 1024 * 1024;

/** The parent of the child among the samples. */
let parent: SimulatedFile | undefined;

const VARIANTS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  sparse: {},
  "zeroed grains": { zeroed_grain: "on" },
  stream: { subformat: "streamOptimized" },
};

export const vmdk: FuzzTarget = {
  name: "vmdk",
  needs: ["qemu-img", "qemu-io"],

  async samples(folder) {
    const samples = Object.entries(VARIANTS).map(([name, options]) => {
      return sampleOf(name, bytesOf(folder, options, false));
    });
    const child = bytesOf(folder, {}, true);
    return [...samples, sampleOf("child", child)];
  },

  run(bytes, random) {
    const none = () => Promise.reject(new Error("one parent"));
    const openParent = () =>
      format.open(simulatedSource(new Map([["base.vmdk", parent!.fork()]]), "base.vmdk"), none);
    const file = SimulatedFile.from(bytes, { name: "disk.vmdk" });
    return fuzzImage({ format, file, virtualBytes: VIRTUAL_BYTES, openParent }, random);
  },
};

function bytesOf(folder: string, options: Readonly<Record<string, string>>, hasParent: boolean): Uint8Array {
  const kind = { name: "", virtualBytes: VIRTUAL_BYTES, options, hasParent };
  const path = makeVmdk(folder, kind, new Random(1));
  const bytes = new Uint8Array(readFileSync(path));
  if (hasParent) {
    parent = SimulatedFile.from(new Uint8Array(readFileSync(join(folder, "base.vmdk"))));
  }
  run("rm", [path]);
  return bytes;
}

function sampleOf(name: string, bytes: Uint8Array): Sample {
  const header = spotOf(SparseExtentHeader, 0);
  const descriptor: Spot = { at: 512, bytes: 400 };
  const footer = spotOf(SparseExtentHeader, Math.max(0, bytes.length - 1024));
  const chunks = chunksOf(bytes, (chunk) => chunk.every((byte) => byte === chunk[0]));
  const tables = chunks.filter(({ at }) => at >= 21 * 512 && at < 128 * 512);
  const heads = name === "stream" ? [header, descriptor, footer] : [header, descriptor];
  const often = Array.from({ length: 4 }, () => heads).flat();
  return { name, bytes, spots: [...often, ...tables, ...tables, ...chunks.slice(0, 60)] };
}
