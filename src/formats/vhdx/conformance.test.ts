/**
 * The suite of all image formats, over images that QEMU made, and over differencing disks, which it cannot make.
 */
import { conformance, type Variant } from "../../testing/conformance.ts";
import { judgedByQemu } from "../../testing/foreign-image.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { requires, scratch } from "../../testing/tools.ts";
import { makeDifferencing, makeVhdx, vhdxContent, vhdxParents } from "../../testing/vhdx-kinds.ts";
import { vhdx } from "../vhdx.ts";

/** QEMU's own default is to write the ZERO state into every entry of a new fixed disk, and none into a dynamic one. */
const MADE_BY_QEMU: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  "dynamic, 1 MiB blocks": { subformat: "dynamic", block_size: "1M" },
  "dynamic, 2 MiB blocks, zero states": { subformat: "dynamic", block_size: "2M", block_state_zero: "on" },
  fixed: { subformat: "fixed", block_size: "1M", block_state_zero: "off" },
};

const differencing = (sector: 512 | 4096): Variant => ({
  name: `differencing, sectors of ${sector}`,
  seeds: 1,
  canBlank: false,
  async make(_, random) {
    const { files, content } = await makeDifferencing(random, sector);
    return { files, image: "child.vhdx", content };
  },
  openParent: vhdxParents,
});

conformance(vhdx, [
  ...Object.entries(MADE_BY_QEMU).map(([name, options]): Variant => ({
    name,
    seeds: 1,
    async make(t, random) {
      if (!requires(t, "qemu-img", "qemu-io")) return undefined;
      const path = makeVhdx(scratch(t), options, random);
      const file = await SimulatedFile.load(path);
      const judge = judgedByQemu(t, "vhdx", "image.vhdx");
      const content = vhdxContent(path);
      return { files: new Map([["image.vhdx", file]]), image: "image.vhdx", content, judge };
    },
  })),
  differencing(512),
  differencing(4096),
]);
