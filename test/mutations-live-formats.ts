/**
 * The guards of images that a live server writes to; see mutations.ts.
 */
import type { Mutation } from "./mutations.ts";

const EMPTY = ["src/formats/qcow2/empty.test.ts"];
const QCOW2 = ["src/formats/qcow2/conformance.test.ts"];
const BLOCKS = ["src/formats/blocks/blocks.test.ts"];
const BESIDE = "writes in place and other changes";
const LIAR = "a host that lies about holes";

export const OF_LIVE_FORMATS: readonly Mutation[] = [
  {
    hazard: "H8",
    guard: "a cluster that the host calls a hole is read before its entry goes",
    file: "src/formats/qcow2/empty.ts",
    from: "|| !(await readsZeros(data, host))",
    to: "",
    tests: QCOW2,
    only: LIAR,
  },
  {
    hazard: "H8",
    guard: "a block that the host calls a hole is read before its entry goes",
    file: "src/formats/blocks/write.ts",
    from: "if (await readsZeros(file, place)) this.#drop(block);",
    to: "this.#drop(block);",
    tests: BLOCKS,
    only: LIAR,
  },
  {
    hazard: "H8",
    guard: "a band that the host calls a hole is read before it is cut",
    file: "src/formats/sparsebundle/band.ts",
    from: "if (await readsZeros(file, all)) await",
    to: "await",
    tests: ["src/formats/sparsebundle.test.ts"],
    only: LIAR,
  },
  {
    hazard: "H9",
    guard: "subclusters that show the parent go on to when the others have gone",
    file: "src/formats/qcow2/empty.ts",
    from: "if (extendedL2 && backing !== undefined) {",
    to: "if (extendedL2 && backing === undefined) {",
    tests: EMPTY,
    only: "H9",
  },
  {
    hazard: "H14",
    guard: "nobody writes in place in a cluster that a change is about",
    file: "src/formats/qcow2/write.ts",
    from: "(at < this.#busyEnd && at + bytes > this.#busyStart)",
    to: "at < 0",
    tests: QCOW2,
    only: BESIDE,
  },
  {
    hazard: "H14",
    guard: "nobody writes in place in a block that a change is about",
    file: "src/formats/blocks/write.ts",
    from: "if (at < this.#busyEnd && at + bytes > this.#busyStart) return undefined;",
    to: "",
    tests: BLOCKS,
    only: BESIDE,
  },
  {
    hazard: "H11",
    guard: "a cluster that a snapshot reads is not written in place",
    file: "src/formats/qcow2/place.ts",
    from: "if (isWritten && !isCopied) return -1;",
    to: "",
    tests: QCOW2,
    only: BESIDE,
  },
  {
    hazard: "H27",
    guard: "a flush of a qcow2 covers what was written while the one before ran",
    file: "src/formats/qcow2/write.ts",
    from: "      this.#compressed.forget();\n    });\n  }",
    to: "      this.#compressed.forget();\n    });\n    this.#isUnflushed = false;\n  }",
    tests: QCOW2,
    only: BESIDE,
  },
  {
    hazard: "H27",
    guard: "a flush of blocks covers what was written while the one before ran",
    file: "src/formats/blocks/write.ts",
    from: "      await this.#commit();\n    } catch",
    to: "      await this.#commit();\n      this.#dirty = false;\n    } catch",
    tests: BLOCKS,
    only: BESIDE,
  },
  {
    hazard: "H27",
    guard: "what is left of a change after a commit in its midst waits for the next flush",
    file: "src/formats/qcow2/write.ts",
    from: "    // A change is under way.\n    this.#isUnflushed = true;",
    to: "",
    tests: EMPTY,
    only: "committed in its midst",
  },
  {
    hazard: "H12",
    guard: "refcounts of new clusters are written before the entries that refer to them",
    file: "src/formats/qcow2/changes.ts",
    from: "    await this.#allocator.write();\n    await file.flush();\n    if",
    to: "    await file.flush();\n    if",
    tests: QCOW2,
    only: "every crash of a writer",
  },
  {
    hazard: "H26",
    guard: "the edges of zeros are zeros where the host zeroes whole blocks",
    file: "src/host/file.ts",
    from: "    await this.#writeEdges(within, inner);\n    if (range.end",
    to: "    if (range.end",
    tests: ["src/host/zero.test.ts"],
    only: "the edges are written",
  },
  {
    hazard: "H26",
    guard: "quick zeros that would be written are refused before anything is altered",
    file: "src/formats/qcow2/empty.ts",
    from: "if (unreachableBytes > 0) {",
    to: "if (unreachableBytes < 0) {",
    tests: EMPTY,
    only: "refused when they are to be quick",
  },
  {
    hazard: "H19",
    guard: "what is to stay allocated is not punched",
    file: "src/host/file.ts",
    from: 'keep: ["zeroRange"],',
    to: 'keep: ["zeroRange", "punch"],',
    tests: ["src/host/zero.test.ts"],
  },
];
