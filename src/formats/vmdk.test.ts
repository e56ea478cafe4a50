/**
 * The suite of all image formats, over every kind of VMDK that QEMU makes.
 */
import { conformance } from "../testing/conformance.ts";
import { simulatedSource } from "../testing/simulated-source.ts";
import { requires, scratch } from "../testing/tools.ts";
import { filesIn, makeVmdk, vmdkBytes, type VmdkKind } from "../testing/vmdk.ts";
import { vmdk } from "./vmdk.ts";

const MIB = 1024 * 1024;

const KINDS: readonly (VmdkKind & { readonly canBlank?: boolean })[] = [
  { name: "monolithicSparse", virtualBytes: 3 * MIB, options: {} },
  {
    name: "zeroed grains, a last grain cut short",
    virtualBytes: 2 * MIB + 1536,
    options: { zeroed_grain: "on" },
  },
  { name: "monolithicFlat", virtualBytes: 2 * MIB, options: { subformat: "monolithicFlat" } },
  { name: "twoGbMaxExtentSparse", virtualBytes: 2 * MIB, options: { subformat: "twoGbMaxExtentSparse" } },
  { name: "twoGbMaxExtentFlat", virtualBytes: 2 * MIB, options: { subformat: "twoGbMaxExtentFlat" } },
  { name: "above a parent", virtualBytes: 2 * MIB, options: {}, hasParent: true, canBlank: false },
  {
    name: "above a parent, zeroed grains",
    virtualBytes: 2 * MIB,
    options: { zeroed_grain: "on" },
    hasParent: true,
    canBlank: false,
  },
];

conformance(
  vmdk,
  KINDS.map((kind) => ({
    name: kind.name,
    seeds: 1,
    ...(kind.canBlank === undefined ? {} : { canBlank: kind.canBlank }),
    async make(t, random) {
      if (!requires(t, "qemu-img", "qemu-io")) return undefined;
      const folder = scratch(t);
      const path = makeVmdk(folder, kind, random);
      return { files: await filesIn(folder), image: "disk.vmdk", content: vmdkBytes(path) };
    },
    openParent: (files) => (name) =>
      vmdk.open(simulatedSource(new Map(files), name), () => Promise.reject(new Error("one parent"))),
  })),
);
