/**
 * The guards of SAFETY that tests must defend: where each stands, what takes it out, and which tests must notice.
 * A guard that moves takes its line here with it; the mutation check fails until it does.
 */
import { OF_BTRFS } from "./mutations-btrfs.ts";
import { OF_CLIENTS } from "./mutations-live-clients.ts";
import { OF_FAT } from "./mutations-fat.ts";
import { OF_APFS } from "./mutations-apfs.ts";
import { OF_F2FS } from "./mutations-f2fs.ts";
import { OF_ERASE } from "./mutations-live-erase.ts";
import { OF_FILES } from "./mutations-files.ts";
import { OF_GUESTS } from "./mutations-guests.ts";
import { OF_HFSPLUS } from "./mutations-hfsplus.ts";
import { OF_IMAGES } from "./mutations-images.ts";
import { OF_LIVE_GUARD } from "./mutations-live-guard.ts";
import { OF_LIVE_FORMATS } from "./mutations-live-formats.ts";
import { OF_LIVE_NBD } from "./mutations-live-nbd.ts";
import { OF_LIVE_REVIEW } from "./mutations-live-review.ts";
import { OF_LUKS } from "./mutations-luks.ts";
import { OF_XFS } from "./mutations-xfs.ts";
import { OF_XFS_REPLAY } from "./mutations-xfs-replay.ts";
import { OF_NBD } from "./mutations-live-handshake.ts";
import { OF_NTFS } from "./mutations-ntfs.ts";
import { OF_VOLUMES } from "./mutations-volumes.ts";

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
    only: "reclaim keeps what is used",
  },
  {
    hazard: "H9",
    guard: "version 2 above a parent keeps its entries",
    file: "src/formats/qcow2/unmap.ts",
    from: "this.#canSayZero = !this.#hasParent || context.header.version === 3;",
    to: "this.#canSayZero = true;",
    tests: ["src/formats/qcow2/plan.test.ts"],
    only: "reclaim keeps what is used",
  },
  {
    hazard: "H10",
    guard: "holes are cut inward to host blocks",
    file: "src/formats/blocks/flat.ts",
    from: "const aligned = this.#placesOf(free).alignInward(hostBlockBytes);",
    to: "const aligned = this.#placesOf(free).alignOutward(hostBlockBytes);",
    tests: ["src/formats/raw.test.ts"],
  },
  {
    hazard: "H10",
    guard: "holes inside clusters are cut inward to host blocks",
    file: "src/reclaim/holes.ts",
    from: "const joined = garbage.union(inside).alignInward(wish.hostBlockBytes);",
    to: "const joined = garbage.union(inside).alignOutward(wish.hostBlockBytes);",
    tests: ["src/formats/qcow2/plan.test.ts"],
    only: "reclaim keeps what is used",
  },
  {
    hazard: "H11",
    guard: "a cluster that a snapshot refers to is left alone",
    file: "src/formats/qcow2/unmap.ts",
    from: "const isAlone = (at: number) => references.get(Math.floor(at / header.clusterBytes)) === 1;",
    to: "const isAlone = (_at: number) => true;",
    tests: ["src/formats/qcow2/plan.test.ts"],
    only: "reclaim keeps what is used",
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
    from: "if (references.some(isParent)) throw hasChild(sibling.name);",
    to: "",
    tests: ["test/reclaim.test.ts"],
    only: "H33",
  },
  {
    hazard: "H33",
    guard: "a child that knows its parent by an identifier alone is found",
    file: "src/disk/children.ts",
    from: "(id !== undefined && identifiers.includes(id)) ||",
    to: "",
    tests: ["test/reclaim.test.ts"],
    only: "H33",
  },
  {
    hazard: "H9",
    guard: "VHD: above a parent a block without content stays mapped",
    file: "src/formats/vhd/layout.ts",
    from: "freed: isDifferencing ? undefined : ABSENT,",
    to: "freed: ABSENT,",
    tests: ["src/formats/vhd.test.ts"],
    only: "H9",
  },
  {
    hazard: "H9",
    guard: "VDI: packing says zeros, not absent, of a block above a parent",
    file: "src/formats/vdi/layout.ts",
    from: "freedByPacking: ZERO",
    to: "freedByPacking: 0xffff_ffff",
    tests: ["src/formats/vdi.test.ts"],
    only: "H9",
  },
  {
    hazard: "H17",
    guard: "VHD: footers that differ refuse writing",
    file: "src/formats/vhd/footer.ts",
    from: "Buffer.compare(first.bytes, last.bytes) !== 0",
    to: "Buffer.compare(first.bytes, last.bytes) > 1",
    tests: ["src/formats/vhd.test.ts"],
    only: "differs is reported",
  },
  {
    hazard: "H17",
    guard: "VDI: a count that is too low refuses writing",
    file: "src/formats/vdi/image.ts",
    from: "if (allocated >= slots) return [];",
    to: "if (allocated >= 0) return [];",
    tests: ["src/formats/vdi.test.ts"],
    only: "a count that is too low",
  },
  {
    hazard: "H17",
    guard: "nothing is written to blocks whose table has errors",
    file: "src/formats/blocks/write.ts",
    from: "if (!this.#begun) requireWhole(this.#layout);",
    to: "",
    tests: ["src/formats/vdi.test.ts"],
    only: "H17",
  },
  {
    hazard: "H12",
    guard: "VDI: the count is durable before an entry names a new block",
    file: "src/formats/vdi/image.ts",
    from: "await file.flush();\n      layout.allocated = slots;",
    to: "layout.allocated = slots;",
    tests: ["src/formats/vdi.test.ts"],
    only: "every crash of a writer",
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
    hazard: "H21",
    guard: "a format that was only guessed does not reach into another file",
    file: "src/disk/open.ts",
    from: "if (data === undefined || options.format !== undefined || source.folder !== undefined) return;",
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
    only: "no zero state above a parent a punching run",
  },
  {
    hazard: "H15",
    guard: "a block is copied and flushed before its entry is repointed",
    file: "src/formats/blocks/pack.ts",
    from: "  yield copies;\n  changes.sort((a, b) => a.block - b.block);\n  yield* batched(entryPatches(layout, () => changes));",
    to: "  changes.sort((a, b) => a.block - b.block);\n  yield* batched(entryPatches(layout, () => changes));\n  yield copies;",
    tests: ["src/formats/blocks/blocks.test.ts"],
    only: "every crash of a packing run",
  },
  {
    hazard: "H17",
    guard: "a table with errors is not planned for",
    file: "src/formats/blocks/check.ts",
    from: "if (told[0] === undefined) return;",
    to: "if (told.length >= 0) return;",
    tests: ["src/formats/blocks/blocks.test.ts"],
    only: "H17",
  },
  {
    hazard: "H12",
    guard: "a writer's entries become durable after what they refer to",
    file: "src/formats/blocks/write.ts",
    from: "    await file.flush();\n    if (this.#changed.size === 0) return;",
    to: "    if (this.#changed.size === 0) return;",
    tests: ["src/formats/blocks/blocks.test.ts"],
    only: "every crash of a writer",
  },
  {
    hazard: "H12",
    guard: "a writer uses a freed place again only after its entry is gone",
    file: "src/formats/blocks/slots.ts",
    from: "    this.#dropped.push(slot);",
    to: "    this.#spare.push(slot);",
    tests: ["src/formats/blocks/blocks.test.ts"],
    only: "every crash of a writer",
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
  {
    hazard: "H35",
    guard: "what is shared with the source is not overwritten with zeros",
    file: "src/disk/convert/copy.ts",
    from: "hasParent ? undefined : copying.data",
    to: "hasParent ? undefined : data",
    tests: ["test/convert.test.ts"],
    only: "blocks that are shared",
  },
  {
    hazard: "H9",
    guard: "above a parent a VMDK grain without the flag for zeros stays mapped",
    file: "src/formats/vmdk/sparse.ts",
    from: "freed: hasZeroedGrains ? ZERO : parent === undefined ? ABSENT : undefined,",
    to: "freed: hasZeroedGrains ? ZERO : ABSENT,",
    tests: ["src/formats/vmdk/sparse.test.ts"],
  },
  {
    hazard: "H9",
    guard: "an entry of 1 means zeros only with the flag",
    file: "src/formats/vmdk/sparse.ts",
    from: "entry === ZEROED && hasZeroedGrains ? ZERO : entry",
    to: "entry === ZEROED ? ZERO : entry",
    tests: ["src/formats/vmdk/sparse.test.ts"],
  },
  {
    hazard: "H12",
    guard: "both grain directories are written",
    file: "src/formats/vmdk/sparse.ts",
    from: "copies: directories.length,",
    to: "copies: 1,",
    tests: ["src/formats/vmdk/sparse.test.ts"],
  },
  {
    hazard: "H17",
    guard: "an extent that was not closed is not written",
    file: "src/formats/vmdk/sparse.ts",
    from: "if (header.isUnclean) {",
    to: "if (header.isUnclean && layout.bytes < 0) {",
    tests: ["src/formats/vmdk/sparse.test.ts"],
  },
  {
    hazard: "H22",
    guard: "a descriptor with an unknown line is not written",
    file: "src/formats/vmdk/image.ts",
    from: "const [line] = descriptor.unknown;",
    to: "const [line] = descriptor.unknown.slice(0, 0);",
    tests: ["src/formats/vmdk/open.test.ts"],
  },
  {
    hazard: "H24",
    guard: "a compressed grain inflates to a grain at most",
    file: "src/formats/vmdk/compressed.ts",
    from: "inflateSync(data, { maxOutputLength: grainBytes })",
    to: "inflateSync(data)",
    tests: ["src/formats/vmdk/compressed.test.ts"],
  },
  {
    hazard: "H33",
    guard: "a parent has the CID that the child states",
    file: "src/formats/vmdk/open.ts",
    from: "if (parent.identifiers?.includes(parentCid)) return parent;",
    to: "if (parent.identifiers) return parent;",
    tests: ["src/formats/vmdk/open.test.ts"],
  },
  {
    hazard: "H22",
    guard: "no two extents of a VMDK lie in the same place of a file",
    file: "src/formats/vmdk/open.ts",
    from: "if (before.touches(held)) {",
    to: "if (before.touches(held) && held.start < 0) {",
    tests: ["src/formats/vmdk/open.test.ts"],
  },
  ...OF_GUESTS,
  ...OF_IMAGES,
  ...OF_BTRFS,
  ...OF_CLIENTS,
  ...OF_FILES,
  ...OF_ERASE,
  ...OF_LIVE_FORMATS,
  ...OF_LIVE_GUARD,
  ...OF_LUKS,
  ...OF_LIVE_NBD,
  ...OF_LIVE_REVIEW,
  ...OF_HFSPLUS,
  ...OF_XFS,
  ...OF_XFS_REPLAY,
  ...OF_NBD,
  ...OF_NTFS,
  ...OF_FAT,
  ...OF_VOLUMES,
  ...OF_APFS,
  ...OF_F2FS,
];
