/**
 * What a container holds at its newest checkpoint: its volumes, and what is being deleted.
 *
 *   superblock → object map of the container → superblocks of the volumes
 *              └ reaper: what is being deleted bit by bit
 */
import { skip, struct, u32le, u64le } from "../../bytes/struct.ts";
import { readEphemeral, type Container } from "./checkpoint.ts";
import { OBJECT_BYTES, readBlocks, STORAGE, TYPE, verifyObject } from "./objects.ts";
import { readObjectMap } from "./omap.ts";
import { damaged, unfinished, unknown } from "./refused.ts";
import { volumeIds } from "./superblock.ts";
import { readVolume, type VolumeSuperblock } from "./volume.ts";

export interface Volume {
  /** Its place in the container's list. */
  readonly number: number;
  readonly block: number;
  readonly sb: VolumeSuperblock;
}

export interface Contents {
  readonly container: Container;
  readonly volumes: readonly Volume[];
  /** Blocks of the container's own object map. */
  readonly mapBlocks: readonly number[];
}

const ReaperLayout = struct({
  header: skip(OBJECT_BYTES),
  next: u64le,
  completed: u64le,
  head: u64le,
  tail: u64le,
  flags: skip(16),
  volume: u64le,
  object: u64le,
});
const ReapListLayout = struct({
  header: skip(OBJECT_BYTES),
  next: u64le,
  flags: u32le,
  max: u32le,
  count: u32le,
});

/** The volumes are not vouched for yet. @throws Refused */
export async function readContents(container: Container): Promise<Contents> {
  const { transaction, objectMap } = container.sb;
  const mapBlocks: number[] = [];
  const map = await readObjectMap(container, "object map of the container", objectMap, transaction, (block) =>
    mapBlocks.push(block),
  );
  const ids = volumeIds(container.sb);
  if (map.count !== new Set(ids).size) {
    throw unknown(`object map of the container: ${map.count} objects found, ${ids.length} volumes expected`);
  }
  const volumes: Volume[] = [];
  for (const id of ids) {
    const index = map.find(id, transaction);
    if (index < 0) throw damaged(`object map of the container: no volume ${id} found`);
    const block = map.blocks[index]!;
    const bytes = await readBlocks(container, "volume superblock", block, 1);
    verifyObject(bytes, block, { type: TYPE.volumeSuperblock, id, storage: STORAGE.virtual, transaction });
    volumes.push({ number: volumes.length, block, sb: readVolume(bytes, block) });
  }
  return { container, volumes, mapBlocks };
}

/**
 * A volume, a snapshot or a large file is deleted in steps, over many checkpoints. Its blocks are in the bitmaps until
 * their turn comes, so that nothing is lost; yet what has begun is for the guest to end.
 * @throws Refused
 */
export async function checkReaper(container: Container): Promise<void> {
  const { reaper } = container.sb;
  const { bytes } = await readEphemeral(container, "reaper", reaper, TYPE.reaper);
  const { head, volume, object } = ReaperLayout.decode(bytes);
  const seen = new Set<number>();
  let waiting = volume !== 0 || object !== 0;
  for (let list = head; list !== 0 && !seen.has(list);) {
    seen.add(list);
    const found = await readEphemeral(container, "reap list", list, TYPE.reapList);
    const { next, count } = ReapListLayout.decode(found.bytes);
    waiting ||= count > 0;
    list = next;
  }
  if (waiting) throw unfinished("deleting", "the guest is deleting a volume, a snapshot or a large file");
}
