/**
 * Guards against images that were made to mislead; the form is that of `mutations.ts`.
 */
import type { Mutation } from "./mutations.ts";

export const OF_IMAGES: readonly Mutation[] = [
  {
    hazard: "H33",
    guard: "a child is found below another format's signature",
    file: "src/disk/children.ts",
    from: "throw hasChild(sibling.name);",
    to: "throw hasChild(sibling.name);\n      break;",
    tests: ["test/hostile-neighbours.test.ts"],
    only: "H33",
  },
  {
    hazard: "H24",
    guard: "several names for each parent of a chain do not multiply",
    file: "src/disk/open.ts",
    from: "if (tries.left-- <= 0)",
    to: "if (tries.left-- < -2000)",
    tests: ["test/hostile-neighbours.test.ts"],
    only: "H24: the names",
  },
  {
    hazard: "H17",
    guard: "no block reaches into the tail of its file",
    file: "src/formats/blocks/check.ts",
    from: " || (tailBytes > 0 && at + stride > end)",
    to: "",
    tests: ["src/formats/blocks/blocks.test.ts"],
    only: "H17",
  },
  {
    hazard: "H12",
    guard: "on a block device nothing is unmapped that only packing unmaps",
    file: "src/formats/blocks/plan.ts",
    from: "pack: asked.pack && isFile }",
    to: "pack: asked.pack }",
    tests: ["src/formats/blocks/blocks.test.ts"],
    only: "block device",
  },
  {
    hazard: "H24",
    guard: "VHDX: a row of log entries without its tail is looked at once",
    file: "src/formats/vhdx/log.ts",
    from: "const next = head ? log.behind",
    to: "const next = head && first >= 0 ? log.behind",
    tests: ["src/formats/vhdx/log.test.ts"],
    only: "H24: a long row",
  },
  {
    hazard: "H24",
    guard: "VHDX: as many blocks as there are may be held in part",
    file: "src/formats/vhdx/bat.ts",
    from: "readonly #partial = new BlockSet();",
    to: "readonly #partial = new Set<number>();",
    tests: ["src/formats/vhdx/bat.test.ts"],
  },
];
