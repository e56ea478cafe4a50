/**
 * The suite of all image formats, over every kind of VMDK that QEMU makes.
 */
import type { TestContext } from "node:test";
import { judgedByQemu } from "../testing/foreign-image.ts";
import { conformance, type Variant } from "../testing/conformance.ts";
import type { Files } from "../testing/crash.ts";
import type { Random } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
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

/** Sparse and flat extents in one disk, the flat ones in one file. */
const CUSTOM: Variant = {
  name: "custom",
  seeds: 1,
  async make(t, random) {
    if (!requires(t, "qemu-img", "qemu-io")) return undefined;
    const files = new Map<string, SimulatedFile>();
    const sparse: Buffer[] = [];
    for (const name of ["a", "b"]) {
      const folder = scratch(t);
      const options = { subformat: "twoGbMaxExtentSparse", zeroed_grain: name === "a" ? "on" : "off" };
      sparse.push(vmdkBytes(makeVmdk(folder, { name, virtualBytes: MIB, options }, random)));
      const extent = (await filesIn(folder)).get("disk-s001.vmdk")!;
      files.set(`${name}.vmdk`, extent.fork({ name: `${name}.vmdk` }));
    }
    const flat = random.bytes(300 * 512);
    files.set("flat.vmdk", SimulatedFile.from(flat, { name: "flat.vmdk" }));
    const lines = [
      "# Disk DescriptorFile",
      "version=1",
      "CID=0badcafe",
      "parentCID=ffffffff",
      'createType="custom"',
      'RW 100 FLAT "flat.vmdk" 200',
      'RW 2048 SPARSE "a.vmdk"',
      'RW 199 FLAT "flat.vmdk" 1',
      'RW 2048 SPARSE "b.vmdk"',
      "",
    ];
    const text = Buffer.from(lines.join("\n"));
    files.set("disk.vmdk", SimulatedFile.from(text, { name: "disk.vmdk" }));
    const [a, b] = sparse;
    const content = Buffer.concat([flat.subarray(200 * 512), a!, flat.subarray(512, 200 * 512), b!]);
    return { files, image: "disk.vmdk", content };
  },
};

conformance(vmdk, [
  CUSTOM,
  ...KINDS.map((kind) => ({
    name: kind.name,
    seeds: 1,
    ...(kind.canBlank === undefined ? {} : { canBlank: kind.canBlank }),
    async make(t: TestContext, random: Random) {
      if (!requires(t, "qemu-img", "qemu-io")) return undefined;
      const folder = scratch(t);
      const path = makeVmdk(folder, kind, random);
      const judge = judgedByQemu(t, "vmdk", "disk.vmdk");
      return { files: await filesIn(folder), image: "disk.vmdk", content: vmdkBytes(path), judge };
    },
    openParent: (files: Files) => (name: string) =>
      vmdk.open(simulatedSource(new Map(files), name), () => Promise.reject(new Error("one parent"))),
  })),
]);
