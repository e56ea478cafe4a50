/**
 * From a device to a volume that can be believed: state, group descriptors, and a dirty journal replayed in memory.
 *
 *   clean    superblock → groups                                      free = free(volume)
 *   dirty    superblock → groups → journal → overlay → groups again   free = free(before) ∩ free(after) − written (H2)
 *
 * Before the replay a group with a torn descriptor or bitmap is no surprise: it counts as used. Afterwards it is one.
 */
import type { ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice } from "../../device/device.ts";
import { freeExtents } from "./bitmaps.ts";
import { blockRuns } from "./block-map.ts";
import { readGroups, type Volume } from "./groups.ts";
import { readInode } from "./inode.ts";
import { Refused } from "../refused.ts";
import { damaged } from "./refused.ts";
import { isJournalEmpty, isRefusal, replayJournal, type JournalledFileSystem } from "./replay.ts";
import { checkState, needsReplay } from "./state.ts";
import { hasCompat, readSuperblock, readSuperblockUuid, type Superblock } from "./superblock.ts";

const SHUT_DOWN = "boot the guest and shut it down cleanly, or run e2fsck";

export interface Recovered {
  readonly volume: Volume;
  /** What was free before a replay and is not written by it; undefined when there was nothing to replay. */
  readonly spare: ExtentSet | undefined;
  readonly notes: readonly string[];
}

/** Opens a filesystem that was left clean. @throws Refused */
export async function openClean(members: readonly BlockDevice[], sb: Superblock): Promise<Recovered> {
  const device = members[0]!;
  const volume = { device, sb, groups: await readGroups(device, sb, "refuse") };
  const journal = hasCompat(sb, "has_journal") ? await journalOf(volume, members) : undefined;
  const isEmpty = journal === undefined ? true : await isJournalEmpty(journal);
  if (isEmpty !== true) {
    if (isEmpty !== false) throw new Refused(isEmpty.code, isEmpty.message, isEmpty.hint);
    throw new Refused("journal-dirty", "the superblock calls the journal empty, but it is not", SHUT_DOWN);
  }
  return { volume, spare: undefined, notes: [] };
}

/** Opens a filesystem as it will be after the replay of its journal. @throws Refused */
export async function openReplayed(members: readonly BlockDevice[], sb: Superblock): Promise<Recovered> {
  const before = { device: members[0]!, sb, groups: await readGroups(members[0]!, sb, "count as used") };
  if (!hasCompat(sb, "has_journal")) throw damaged("superblock: needs_recovery found, but no journal");
  const journal = await journalOf(before, members);
  if (journal === undefined) {
    throw new Refused(
      "journal-missing",
      "the journal is dirty, and it lies on another device",
      "boot the guest, or run e2fsck with the journal device",
    );
  }
  const replay = await replayJournal(journal);
  if (isRefusal(replay)) throw new Refused(replay.code, replay.message, replay.hint);
  const spare = (await freeExtents(before, "count as used")).subtract(replay.writes);
  const after = await readSuperblock(replay.overlay);
  await checkState(replay.overlay, after);
  if (needsReplay(after)) throw damaged("superblock: needs_recovery is still set after the replay");
  const groups = await readGroups(replay.overlay, after, "refuse");
  return { volume: { device: replay.overlay, sb: after, groups }, spare, notes: replay.notes };
}

/** Where the journal is; undefined when it is on a device that is not among the members. @throws Refused */
async function journalOf(
  volume: Volume,
  members: readonly BlockDevice[],
): Promise<JournalledFileSystem | undefined> {
  const { device, sb } = volume;
  const common = { device, blockBytes: sb.blockBytes, uuid: sb.uuidBytes };
  if (sb.journalInode !== 0) {
    const extents = await blockRuns(volume, await readInode(volume, sb.journalInode));
    return { ...common, journal: { kind: "inode", extents } };
  }
  if (sb.journalUuid.every((byte) => byte === 0))
    throw damaged("superblock: has_journal found, but no journal");
  for (const member of members.slice(1)) {
    const uuid = await readSuperblockUuid(member);
    if (uuid === undefined || Buffer.compare(uuid, sb.journalUuid) !== 0) continue;
    return { ...common, journal: { kind: "device", device: member, journalUuid: sb.journalUuid } };
  }
  return undefined;
}
