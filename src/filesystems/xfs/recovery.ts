/**
 * From a device to a volume that can be believed: state, the log, and a log that is not empty replayed in memory.
 *
 *   clean    superblock → log → headers                         free = free(volume)
 *   dirty    superblock → log → overlay → superblock, headers   free = free(before) ∩ free(after) − all that the log names (H2)
 */
import type { ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice } from "../../device/device.ts";
import { Refused } from "../refused.ts";
import { checkFeatures } from "./features.ts";
import { freeBefore } from "./free-space.ts";
import { readHeaders, type Volume } from "./headers.ts";
import { checkLog } from "./log.ts";
import { replayLog } from "./replay.ts";
import { readSuperblock, type Superblock } from "./superblock.ts";

export interface Recovered {
  readonly volume: Volume;
  /** What was free before a replay and is not named by the log; undefined when there was nothing to replay. */
  readonly spare: ExtentSet | undefined;
  readonly notes: readonly string[];
}

/** Opens a filesystem whose superblock is good. @throws Refused */
export async function openVolume(
  device: BlockDevice,
  sb: Superblock,
  mayReplay: boolean,
): Promise<Recovered> {
  try {
    await checkLog(device, sb);
  } catch (error) {
    if (!mayReplay || !(error instanceof Refused) || error.refusal.code !== "journal-dirty") throw error;
    return openReplayed(device, sb);
  }
  return { volume: { device, sb, ags: await readHeaders(device, sb) }, spare: undefined, notes: [] };
}

async function openReplayed(device: BlockDevice, before: Superblock): Promise<Recovered> {
  const replay = await replayLog(device, before);
  const spare = (await freeBefore(device, before)).subtract(replay.touched.alignOutward(before.blockBytes));
  const sb = await readSuperblock(replay.device);
  checkFeatures(sb);
  checkState(replay.device, sb);
  const ags = await readHeaders(replay.device, sb);
  const count = `${replay.transactions} transactions`;
  const left = replay.intents === 0 ? "" : `, ${replay.intents} of their intents are left to the guest`;
  return {
    volume: { device: replay.device, sb, ags },
    spare,
    notes: [`log: ${count} replayed in memory${left}`],
  };
}

/** @throws Refused */
export function checkState(device: BlockDevice, sb: Superblock): void {
  if (sb.bytes > device.bytes) {
    throw new Refused(
      "truncated",
      `the filesystem has ${sb.bytes} bytes, the device only ${device.bytes}`,
      "the image or the partition was cut: restore its size",
    );
  }
  if (sb.realtimeBlocks > 0) {
    throw new Refused(
      "feature-unsupported",
      `superblock: ${sb.realtimeBlocks} blocks on a realtime device found, which is not supported`,
      "all of this filesystem counts as used",
    );
  }
  if (sb.isInProgress) {
    throw new Refused(
      "not-clean",
      "superblock: mkfs.xfs or a copy of the filesystem was not finished",
      "make the filesystem again, or copy it again",
    );
  }
}
