/**
 * Guards of what is believed of a guest: the double entry, its journal, its memory on disk, its other disks.
 */
import type { Mutation } from "./mutations.ts";

export const OF_GUESTS: readonly Mutation[] = [
  {
    hazard: "H1",
    guard: "a block that is reachable and marked free refuses the volume",
    file: "src/reclaim/prove.ts",
    from: "if (contradictions.length > 0)",
    to: "if (contradictions.length < 0)",
    tests: ["src/reclaim/prove.test.ts"],
  },
  {
    hazard: "H2",
    guard: "a dirty journal refuses the volume",
    file: "src/filesystems/ext.ts",
    from: "if (needsReplay(sb) && !options.replay)",
    to: "if (needsReplay(sb) && false)",
    tests: ["test/reclaim.test.ts"],
  },
  {
    hazard: "H2",
    guard: "after a virtual replay only what was free before it, too, is free",
    file: "src/filesystems/ext.ts",
    from: "return this.#spare === undefined ? claimed : claimed.intersect(this.#spare);",
    to: "return claimed;",
    tests: ["test/replay.test.ts"],
  },
  {
    hazard: "H3",
    guard: "VHD: a machine in saved state refuses writing",
    file: "src/formats/vhd/footer.ts",
    from: "if (fields.savedState !== 0)",
    to: "if (fields.savedState > 255)",
    tests: ["src/formats/vhd.test.ts"],
    only: "H3",
  },
  {
    hazard: "H3",
    guard: "swap that holds a hibernated guest refuses all filesystems of the disk",
    file: "src/disk/tally.ts",
    from: "hibernationOf(layout) ?? judgement.suspended;",
    to: "judgement.suspended;",
    tests: ["test/reclaim.test.ts"],
    only: "H3:",
  },
  {
    hazard: "H3",
    guard: "a swap file that holds a hibernated guest refuses all filesystems of the disk",
    file: "src/disk/tally.ts",
    from: "hibernationOf(layout) ?? judgement.suspended;",
    to: "hibernationOf(layout);",
    tests: ["test/worthless.test.ts"],
    only: "H3",
  },
  {
    hazard: "H2",
    guard: "nothing is worthless on a guest that was not shut down",
    file: "src/disk/tally.ts",
    from: "if (content.filesystem.isUnclean) return",
    to: "if (false) return",
    tests: ["test/worthless.test.ts"],
    only: "H2",
  },
];
