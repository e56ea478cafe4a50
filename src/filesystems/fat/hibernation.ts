/**
 * Whether Windows sleeps on this volume: up to XP it could be installed on FAT, and then goes on where it was (H3).
 *
 *   \hiberfil.sys   | hibr …       the memory of a sleeping system; zeros or "wake" once it is awake
 *
 * A file too short for its header belongs to a system whose own volume is another one, as ntfs-3g reads it.
 */
import { readBytes, type BlockDevice } from "../../device/device.ts";
import type { TreeNames } from "../cluster-tree.ts";
import { Refused } from "../refused.ts";

const HEADER_BYTES = 4096;
const SLEEPING: ReadonlySet<string> = new Set(["hibr", "HIBR"]);

/** @throws Refused */
export async function checkHibernation(device: BlockDevice, names: TreeNames): Promise<void> {
  const file = await names.find("/hiberfil.sys");
  if (file === undefined) return;
  const [first] = file.extents;
  const header =
    first === undefined ? "" : Buffer.from(await readBytes(device, first.at, 4)).toString("latin1");
  if (file.bytes >= HEADER_BYTES && !SLEEPING.has(header)) return;
  throw new Refused(
    "hibernated",
    "hiberfil.sys holds the memory of a Windows that sleeps and will go on",
    "boot the guest and shut it down instead of letting it hibernate",
  );
}
