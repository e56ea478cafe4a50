/**
 * HFS, the predecessor, and the wrapper that it makes around an HFS+ volume for systems that know only HFS.
 *
 *   0      1024  1536                first block      embedded extent
 *   | boot | MDB | HFS volume bitmap | HFS's own files | HFS+ volume     |     | copy of the MDB |
 *
 * Technical Note TN1150, "HFS Wrapper"; Inside Macintosh: Files, chapter 2.
 */
import type { Extent } from "../../bytes/extents.ts";
import { skip, struct, u16be, u32be } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { Refused } from "../refused.ts";
import { damaged } from "./refused.ts";
import { HEADER_AT, SIGNATURE } from "./volume-header.ts";

const HFS_SIGNATURE = 0x4244;
const SECTOR_BYTES = 512;

export const MasterDirectoryBlock = struct({
  signature: u16be,
  datesAndAttributes: skip(12),
  bitmapSector: u16be,
  allocationHint: skip(2),
  blocks: u16be,
  blockBytes: u32be,
  clumpBytes: skip(4),
  firstBlockSector: u16be,
  rest: skip(94),
  embeddedSignature: u16be,
  embeddedStart: u16be,
  embeddedBlocks: u16be,
});

type Fields = ReturnType<typeof MasterDirectoryBlock.decode>;

/** The block when this looks like HFS; two letters alone would be met by chance. */
export async function readMasterDirectoryBlock(device: BlockDevice): Promise<Fields | undefined> {
  if (device.bytes < HEADER_AT + SECTOR_BYTES) return undefined;
  const block = MasterDirectoryBlock.decode(await readBytes(device, HEADER_AT, SECTOR_BYTES));
  const isHfs =
    block.signature === HFS_SIGNATURE &&
    block.bitmapSector >= 3 &&
    block.firstBlockSector > block.bitmapSector &&
    block.blocks > 0 &&
    block.blockBytes > 0 &&
    block.blockBytes % SECTOR_BYTES === 0;
  return isHfs ? block : undefined;
}

/** Where the HFS+ volume lies in its wrapper. @throws Refused when there is none, or not on the device */
export function embeddedIn(block: Fields, deviceBytes: number): Extent {
  if (block.embeddedSignature !== SIGNATURE.plus) {
    throw new Refused(
      "hfs-classic",
      "this is HFS, the predecessor of HFS+, which is not read",
      "all of this volume counts as used",
    );
  }
  const start = block.firstBlockSector * SECTOR_BYTES + block.embeddedStart * block.blockBytes;
  const end = start + block.embeddedBlocks * block.blockBytes;
  if (end > deviceBytes || end - start < 4 * SECTOR_BYTES) {
    throw damaged(`HFS wrapper: an embedded volume at ${start}-${end} found in ${deviceBytes} bytes`);
  }
  return { start, end };
}
