/**
 * Shadow copies (VSS): snapshots that read most of their blocks from the living volume.
 *
 *   volume header at 0x1e00, inside $Boot:   identifier | version, type | … | catalog offset at 48 | …
 *
 * A cluster that was freed since a snapshot was taken is still read in place by it.
 *
 * libyal/libvshadow documentation/.
 */
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { viewOf } from "../../bytes/struct.ts";
import { Refused } from "../refused.ts";

const HEADER_AT = 0x1e00;
const HEADER_BYTES = 100;
/** {3808876b-c176-4e48-b7ae-04046e6cc752}, as it lies on disk. */
const IDENTIFIER = Buffer.from("6b87083876c1484eb7ae04046e6cc752", "hex");
const CATALOG_AT = 48;

/** @throws Refused when shadow copies are stored */
export async function checkShadows(device: BlockDevice): Promise<void> {
  const header = await readBytes(device, HEADER_AT, HEADER_BYTES);
  if (!IDENTIFIER.equals(header.subarray(0, 16))) return;
  if (viewOf(header).getBigUint64(CATALOG_AT, true) === 0n) return;
  throw new Refused(
    "shadow-copies",
    "the volume holds shadow copies, which still read clusters that were freed since",
    "delete them in the guest (vssadmin delete shadows /all), or give them up: --allow shadow-loss",
  );
}
