/**
 * A metadata area: a header, then a ring of texts of which the header names the one that counts.
 *
 *   | header: CRC, magic, own place, { offset, size, CRC, flags } | … older texts | text | free … |
 *   0                                                          512
 *
 * A text that reaches the end of the area goes on behind the header. Slot 0 is the committed text, slot 1 one that
 * was being written. Source: LVM2, lib/format_text/layout.h.
 */
import type { Extent } from "../../bytes/extents.ts";
import { raw, struct, u32le, u64le } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { lvmCrc } from "./label.ts";

const HEADER_BYTES = 512;
const TEXT_BYTES_MAX = 32 * 1024 * 1024;
const MAGIC = Buffer.from("\x20LVM2\x20x[5A%r0N*>", "latin1");
const FLAG_IGNORED = 1;

export const Header = struct({
  crc: u32le,
  magic: raw(16),
  version: u32le,
  start: u64le,
  bytes: u64le,
});

export const Slot = struct({ offset: u64le, bytes: u64le, crc: u32le, flags: u32le });

/**
 * The committed text of one area; undefined where the area holds none or says that it is to be ignored.
 * @throws DiskError `corrupt` when the area is damaged, `refused` when a change was under way
 */
export async function readMetadataText(disk: BlockDevice, area: Extent): Promise<string | undefined> {
  if (area.end > disk.bytes || area.end - area.start <= HEADER_BYTES) {
    throw broken(area, `of ${area.end - area.start} bytes does not fit a device of ${disk.bytes} bytes`);
  }
  const bytes = await readBytes(disk, area.start, HEADER_BYTES);
  const header = Header.decode(bytes);
  const found = lvmCrc(bytes.subarray(Header.at.magic));
  if (found !== header.crc) throw broken(area, `has CRC ${found} in its header, expected ${header.crc}`);
  if (!MAGIC.equals(header.magic)) throw broken(area, "has no magic in its header");
  if (header.version !== 1)
    throw new DiskError("unsupported", `LVM metadata area has version ${header.version}`);
  if (header.start !== area.start || header.bytes !== area.end - area.start) {
    throw broken(
      area,
      `says it has ${header.bytes} bytes at ${header.start}, expected ${area.end - area.start}`,
    );
  }
  const committed = Slot.decode(bytes, Header.bytes);
  if ((committed.flags & FLAG_IGNORED) !== 0 || committed.offset === 0) return undefined;
  const pending = Slot.decode(bytes, Header.bytes + Slot.bytes);
  if (pending.offset !== 0) {
    throw new DiskError("refused", `LVM metadata area at ${area.start} has a change that was not committed`, {
      code: "lvm-pending",
      hint: "boot the guest, so that LVM finishes or drops it",
    });
  }
  return readRing(disk, area, committed);
}

async function readRing(
  disk: BlockDevice,
  area: Extent,
  slot: { readonly offset: number; readonly bytes: number; readonly crc: number },
): Promise<string> {
  const areaBytes = area.end - area.start;
  const ringBytes = areaBytes - HEADER_BYTES;
  const isInside = slot.offset >= HEADER_BYTES && slot.offset < areaBytes;
  if (!isInside || slot.bytes > ringBytes || slot.bytes > TEXT_BYTES_MAX) {
    throw broken(area, `has a text of ${slot.bytes} bytes at ${slot.offset} in ${areaBytes}`);
  }
  const straight = Math.min(slot.bytes, areaBytes - slot.offset);
  const text = new Uint8Array(slot.bytes);
  await disk.read(area.start + slot.offset, text.subarray(0, straight));
  if (straight < text.length) await disk.read(area.start + HEADER_BYTES, text.subarray(straight));
  const found = lvmCrc(text);
  if (found !== slot.crc) throw broken(area, `has a text with CRC ${found}, expected ${slot.crc}`);
  return Buffer.from(text).toString("utf8");
}

function broken(area: Extent, what: string): DiskError {
  return new DiskError("corrupt", `LVM metadata area at ${area.start} ${what}`);
}
