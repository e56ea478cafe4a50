/**
 * The guards of SAFETY that tests must defend: where each stands, what takes it out, and which tests must notice.
 * A guard that moves takes its line here with it; the mutation check fails until it does.
 */

export interface Mutation {
  readonly hazard: string;
  readonly guard: string;
  readonly file: string;
  /** Found exactly once in the file. */
  readonly from: string;
  readonly to: string;
  /** Test files, of which at least one must fail. */
  readonly tests: readonly string[];
  /** Only the tests with such a name are run. */
  readonly only?: string;
}

export const MUTATIONS: readonly Mutation[] = [
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
    hazard: "H8",
    guard: "what the map calls zeros is read before it is believed",
    file: "src/reclaim/copy.ts",
    from: 'const isEmpty = kind !== "data" && chunk.equals(zeros.subarray(0, chunk.length));',
    to: 'const isEmpty = kind !== "data";',
    tests: ["src/reclaim/execute.test.ts"],
  },
  {
    hazard: "H9",
    guard: "above a parent an unmapped cluster gets the zero flag",
    file: "src/formats/qcow2/unmap.ts",
    from: "this.#hasParent && !isExtended ? ZERO_LOW : 0",
    to: "0",
    tests: ["src/formats/qcow2/plan.test.ts"],
  },
  {
    hazard: "H9",
    guard: "version 2 above a parent keeps its entries",
    file: "src/formats/qcow2/unmap.ts",
    from: "this.#canSayZero = !this.#hasParent || context.header.version === 3;",
    to: "this.#canSayZero = true;",
    tests: ["src/formats/qcow2/plan.test.ts"],
  },
  {
    hazard: "H10",
    guard: "holes are cut inward to host blocks",
    file: "src/formats/raw.ts",
    from: "const aligned = free.within({ start: 0, end: this.bytes }).alignInward(hostBlockBytes);",
    to: "const aligned = free.within({ start: 0, end: this.bytes }).alignOutward(hostBlockBytes);",
    tests: ["src/formats/raw.test.ts"],
  },
  {
    hazard: "H10",
    guard: "holes inside clusters are cut inward to host blocks",
    file: "src/formats/qcow2/holes.ts",
    from: "const joined = garbage.union(inside).alignInward(wish.hostBlockBytes);",
    to: "const joined = garbage.union(inside).alignOutward(wish.hostBlockBytes);",
    tests: ["src/formats/qcow2/plan.test.ts"],
  },
  {
    hazard: "H11",
    guard: "a cluster that a snapshot refers to is left alone",
    file: "src/formats/qcow2/unmap.ts",
    from: "const isAlone = (at: number) => references.get(Math.floor(at / header.clusterBytes)) === 1;",
    to: "const isAlone = (_at: number) => true;",
    tests: ["src/formats/qcow2/plan.test.ts"],
  },
  {
    hazard: "H12",
    guard: "entries are unmapped before clusters are punched",
    file: "src/formats/qcow2/plan.ts",
    from: `      yield* batched(entryPatches(unmapping.tables(UNHEARD)));
      yield* batched(holeSteps("", inImage));`,
    to: `      yield* batched(holeSteps("", inImage));
      yield* batched(entryPatches(unmapping.tables(UNHEARD)));`,
    tests: ["src/formats/qcow2/release.test.ts"],
  },
  {
    hazard: "H12",
    guard: "clusters are released after they were punched",
    file: "src/formats/qcow2/plan.ts",
    from: `      yield* batched(holeSteps("", inImage));
      yield* batched(release.patches());`,
    to: `      yield* batched(release.patches());
      yield* batched(holeSteps("", inImage));`,
    tests: ["test/order.test.ts"],
  },
  {
    hazard: "H16",
    guard: "a lock of somebody else stops the writer",
    file: "src/host/lock.ts",
    from: "if (locks.heldByOthers(fd, range)) throw busy(fd, path, range);",
    to: "",
    tests: ["src/host/lock.test.ts"],
  },
  {
    hazard: "H22",
    guard: "a name that leads out of the image's directory is refused",
    file: "src/host/policy.ts",
    from: "if (![home, ...outside].some((root) => isWithin(directory, root))) {",
    to: "if (directory === undefined) {",
    tests: ["src/host/source.test.ts"],
  },
  {
    hazard: "H33",
    guard: "an image with a child is refused",
    file: "src/disk/children.ts",
    from: "if (references.some(({ name }) => leadsTo(sibling, name, identity))) throw hasChild(sibling.name);",
    to: "",
    tests: ["test/reclaim.test.ts"],
  },
  {
    hazard: "H33",
    guard: "a neighbour that cannot be understood may be a child",
    file: "src/disk/children.ts",
    from: 'if (!(error instanceof DiskError) || error.kind === "io") return [];',
    to: "if (error !== undefined) return [];",
    tests: ["test/reclaim.test.ts"],
    only: "H33",
  },
  {
    hazard: "H3",
    guard: "swap that holds a hibernated guest refuses all filesystems of the disk",
    file: "src/disk/usage.ts",
    from: "refusal: suspended && hibernated(suspended),",
    to: "refusal: undefined,",
    tests: ["test/reclaim.test.ts"],
    only: "H3:",
  },
  {
    hazard: "H21",
    guard: "a format that was only guessed does not reach into another file",
    file: "src/disk/open.ts",
    from: "if (data === undefined || options.format !== undefined) return;",
    to: "if (data !== null) return;",
    tests: ["test/reclaim.test.ts"],
    only: "H21",
  },
  {
    hazard: "H9",
    guard: "a block that cannot say zeros above a parent stays mapped",
    file: "src/formats/blocks/plan.ts",
    from: "return pack ? (freedByPacking ?? freed) : freed;",
    to: "return pack ? (freedByPacking ?? freed) : (freed ?? 0xffff_ffff);",
    tests: ["src/formats/blocks/blocks.test.ts"],
  },
  {
    hazard: "H15",
    guard: "a block is copied and flushed before its entry is repointed",
    file: "src/formats/blocks/pack.ts",
    from: "  yield copies;\n  changes.sort((a, b) => a.block - b.block);\n  yield* batched(entryPatches(layout, () => changes));",
    to: "  changes.sort((a, b) => a.block - b.block);\n  yield* batched(entryPatches(layout, () => changes));\n  yield copies;",
    tests: ["src/formats/blocks/blocks.test.ts"],
  },
  {
    hazard: "H17",
    guard: "a table with errors is not planned for",
    file: "src/formats/blocks/plan.ts",
    from: "if (told[0] === undefined) return;",
    to: "if (told.length >= 0) return;",
    tests: ["src/formats/blocks/blocks.test.ts"],
  },
  {
    hazard: "H12",
    guard: "a writer's entries become durable after what they refer to",
    file: "src/formats/blocks/write.ts",
    from: "    if (!this.#dirty) return;\n    await file.flush();",
    to: "    if (!this.#dirty) return;",
    tests: ["src/formats/blocks/blocks.test.ts"],
  },
  {
    hazard: "H12",
    guard: "a writer uses a freed place again only after its entry is gone",
    file: "src/formats/blocks/write.ts",
    from: "    this.#dropped.push(this.#layout.table.get(block));",
    to: "    this.#spare.push(this.#layout.table.get(block));",
    tests: ["src/formats/blocks/blocks.test.ts"],
  },
  {
    hazard: "H21",
    guard: "a content that is two formats at once is refused",
    file: "src/disk/open.ts",
    from: "if (found.length > 1) throw ambiguous(found);",
    to: "",
    tests: ["test/window.test.ts"],
    only: "H21",
  },
  {
    hazard: "H10",
    guard: "a part of a file reaches nothing around it",
    file: "src/device/window.ts",
    from: "return { start: start + this.#start, end: end + this.#start };",
    to: "return { start, end };",
    tests: ["test/window.test.ts"],
    only: "a disk at 1048576",
  },
  {
    hazard: "H16",
    guard: "a source that somebody writes to is not copied",
    file: "src/disk/convert.ts",
    from: "if (!isInUse) return;",
    to: "if (isInUse !== undefined) return;",
    tests: ["test/convert.test.ts"],
    only: "a source that is in use",
  },
  {
    hazard: "H9",
    guard: "what a child dropped does not read its parent's bytes in a copy above the same parent",
    file: "src/disk/convert/selection.ts",
    from: "blank.build().union(stored.subtract(used))",
    to: "blank.build()",
    tests: ["test/convert.test.ts"],
    only: "a chain is flattened",
  },
];
