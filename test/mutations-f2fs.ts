/** The guards of the F2FS reader. */
import type { Mutation } from "./mutations.ts";

const DAMAGE = ["test/f2fs-damage.test.ts"];

export const OF_F2FS: readonly Mutation[] = [
  {
    hazard: "H1",
    guard: "F2FS: an unknown feature refuses",
    file: "src/filesystems/f2fs/superblock.ts",
    from: "if (left !== 0) throw unknown(`superblock: features",
    to: "if (left > 2 ** 33) throw unknown(`superblock: features",
    tests: DAMAGE,
    only: "unknown feature",
  },
  {
    hazard: "H1",
    guard: "F2FS: a segment has as many valid bits as it says",
    file: "src/filesystems/f2fs/segments.ts",
    from: "if (found !== expected) {",
    to: "if (found < 0) {",
    tests: DAMAGE,
    only: "segment table",
  },
  {
    hazard: "H1",
    guard: "F2FS: the segments have as many valid blocks as the checkpoint says",
    file: "src/filesystems/f2fs/segments.ts",
    from: "if (total !== checkpoint.fields.validBlocks) {",
    to: "if (total < 0) {",
    tests: DAMAGE,
    only: "wrong sum",
  },
  {
    hazard: "H1",
    guard: "F2FS: a block has one owner",
    file: "src/filesystems/f2fs/walk.ts",
    from: "if (taken < end) throw",
    to: "if (taken < start) throw",
    tests: DAMAGE,
    only: "two owners",
  },
  {
    hazard: "H1",
    guard: "F2FS: an inode matches its checksum",
    file: "src/filesystems/f2fs/node.ts",
    from: "if (found !== expected) throw badChecksum",
    to: "if (found < 0) throw badChecksum",
    tests: DAMAGE,
    only: "inode that was changed",
  },
  {
    hazard: "H2",
    guard: "F2FS: what was not unmounted refuses",
    file: "src/filesystems/f2fs/checkpoint.ts",
    from: 'if (!has("unmounted"))',
    to: 'if (!has("unmounted") && has("error"))',
    tests: DAMAGE,
    only: "mounted volume",
  },
  {
    hazard: "H2",
    guard: "F2FS: nodes behind the checkpoint refuse",
    file: "src/filesystems/f2fs.ts",
    from: "if (versionOf(next) === fields.version % 2 ** 32) {",
    to: "if (versionOf(next) < 0) {",
    tests: DAMAGE,
    only: "nodes behind",
  },
  {
    hazard: "H4",
    guard: "F2FS: what the earlier checkpoint calls valid is kept",
    file: "src/filesystems/f2fs/segments.ts",
    from: "if (before !== undefined) {",
    to: "if (before?.length === 0) {",
    tests: DAMAGE,
    only: "earlier checkpoint",
  },
];
