/**
 * The write-intent bitmap of Linux md, which dm-raid uses too: a bit for each chunk that is being written, so that
 * the copies may differ there after a crash.
 *
 *   | "bitm", version, UUID, events, events cleared, sync size | state, chunk, delay, … | 256: bits … |
 *
 * Little-endian. Source: Linux, drivers/md/md-bitmap.h.
 */
import type { Extent } from "../bytes/extents.ts";
import { bits64le, skip, struct, u32le, u64le } from "../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../device/device.ts";

export const BITMAP_HEADER_BYTES = 256;
const MAGIC = 0x6d_74_69_62;
const VERSION = 4;
const SECTOR_BYTES = 512;
/** md's own chunks are at least so large that no bitmap is longer. */
const BITMAP_BYTES_MAX = 1 << 24;
const READ_BYTES = 1 << 18;

export const BitmapHeader = struct({
  magic: u32le,
  version: u32le,
  uuid: skip(16),
  events: bits64le,
  eventsCleared: skip(8),
  syncSectors: u64le,
  state: u32le,
  chunkBytes: u32le,
});

/**
 * Why the copies may differ by what the bitmap at the start of `area` says; undefined when it is clear.
 * @param events what the superblock counts: a bitmap that counts less did not see the last of them
 * @throws DiskError `io`, `corrupt`
 */
export async function bitmapObstacle(
  disk: BlockDevice,
  area: Extent,
  arraySectors: number,
  events: bigint,
): Promise<string | undefined> {
  if (area.end - area.start < BITMAP_HEADER_BYTES) return "there is no room for its write-intent bitmap";
  const header = BitmapHeader.decode(await readBytes(disk, area.start, BITMAP_HEADER_BYTES));
  if (header.magic !== MAGIC || header.version !== VERSION)
    return `its write-intent bitmap at ${area.start} has version ${header.version}, expected ${VERSION}`;
  if (header.state !== 0) return `its write-intent bitmap is in state 0x${header.state.toString(16)}`;
  if (header.events < events)
    return `its write-intent bitmap counts ${header.events} events, its superblock ${events}: the bitmap is stale`;
  const { chunkBytes, syncSectors } = header;
  if (chunkBytes < SECTOR_BYTES || syncSectors < arraySectors)
    return `its write-intent bitmap is of ${syncSectors} sectors in chunks of ${chunkBytes} bytes, the set of ${arraySectors}`;
  const bits = Math.ceil((syncSectors * SECTOR_BYTES) / chunkBytes);
  const bytes = Math.ceil(bits / 8);
  const start = area.start + BITMAP_HEADER_BYTES;
  if (bytes > BITMAP_BYTES_MAX || start + bytes > area.end)
    return `its write-intent bitmap of ${bytes} bytes does not fit where it lies`;
  for (let done = 0; done < bytes; done += READ_BYTES) {
    const part = Buffer.from(await readBytes(disk, start + done, Math.min(READ_BYTES, bytes - done)));
    // What mdadm made of ones and no chunk belongs to stays so.
    if (done + part.length === bytes && bits % 8 !== 0) part[part.length - 1]! &= (1 << (bits % 8)) - 1;
    if (part.some((byte) => byte !== 0))
      return "its write-intent bitmap has bits set: it was not stopped cleanly";
  }
  return undefined;
}
