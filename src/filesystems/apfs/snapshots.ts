/**
 * The snapshots of a volume: each has a copy of the volume's superblock, and the extent records that were the live ones
 * when it was taken. Its tree is in the volume's object map, as of its transaction.
 *
 *   key: transaction, kind 1     value: | extent tree | superblock | times … | inode | type | flags | name |
 *
 * "Snapshot Metadata" of the Apple File System Reference.
 */
import { skip, struct, u32le, u64le } from "../../bytes/struct.ts";
import type { Contents, Volume } from "./contents.ts";
import { readPhysical, TYPE } from "./objects.ts";
import { idOf, KIND, kindOf } from "./records.ts";
import { contradiction, damaged, unfinished } from "./refused.ts";
import { mustBePhysical, walkTree } from "./tree.ts";
import { nameOf, VolumeLayout, type VolumeSuperblock } from "./volume.ts";

const SNAPSHOTS_MAX = 1 << 16;
const SnapshotLayout = struct({
  extentTree: u64le,
  superblock: u64le,
  times: skip(16),
  inode: skip(8),
  extentTreeType: u32le,
  flags: u32le,
});

export interface Snapshot {
  readonly transaction: number;
  readonly extentTree: number;
  /** As it was when the snapshot was taken. */
  readonly sb: VolumeSuperblock;
}

/** @param node told every block that only snapshots need. @throws Refused */
export async function readSnapshots(
  container: Contents["container"],
  { sb }: Volume,
  node: (block: number) => void,
): Promise<Snapshot[]> {
  const name = `snapshots of volume ${nameOf(sb)}`;
  const { transaction } = container.sb;
  const found: (ReturnType<typeof SnapshotLayout.decode> & { readonly transaction: number })[] = [];
  mustBePhysical(name, sb.snapshotTreeType);
  const tree = { name, root: sb.snapshotTree, subtype: TYPE.snapshotTree, transaction };
  await walkTree(container, tree, {
    node,
    record(view, key, keyBytes, value, valueBytes) {
      if (keyBytes < 8) throw damaged(`${name}: key of ${keyBytes} bytes found`);
      const kind = kindOf(view, key);
      if (kind === KIND.snapshotName) return;
      if (kind !== KIND.snapshot || valueBytes < SnapshotLayout.bytes || found.length === SNAPSHOTS_MAX) {
        throw damaged(`${name}: record of kind ${kind} with ${valueBytes} bytes found`);
      }
      const fields = SnapshotLayout.decode(new Uint8Array(view.buffer, view.byteOffset + value, valueBytes));
      found.push({ ...fields, transaction: idOf(view, key) });
    },
  });
  if (found.length !== sb.snapshots)
    throw contradiction(`${name}: ${found.length} found, ${sb.snapshots} expected`);
  const snapshots: Snapshot[] = [];
  for (const { extentTree, extentTreeType, superblock, flags, ...snapshot } of found) {
    if (flags !== 0) throw unfinished("deleting", `${name}: one is being merged or emptied`);
    mustBePhysical(name, extentTreeType);
    const bytes = await readPhysical(container, name, superblock, {
      type: TYPE.volumeSuperblock,
      transaction: snapshot.transaction,
    });
    node(superblock);
    snapshots.push({ transaction: snapshot.transaction, extentTree, sb: VolumeLayout.decode(bytes) });
  }
  return snapshots;
}
