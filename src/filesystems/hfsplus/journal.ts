/**
 * The journal: whether something in it still waits to be written to its place.
 *
 *   volume header → journal info block → | journal header | ring of transactions |
 *                                           start = end: nothing waits
 *
 * The header is in the byte order of the machine that made it. Technical Note TN1150, "HFS Plus Journal"; its checksum
 * stands there as well.
 */
import type { Extent } from "../../bytes/extents.ts";
import { u64be, u64le, viewOf } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { Refused } from "../refused.ts";
import { badChecksum, damaged, unknown } from "./refused.ts";
import type { Header } from "./volume-header.ts";

/** Flags, device signature, offset and size, UUID, serial number, reserved. */
const INFO_BYTES = 180;
const INFO = { offsetAt: 36, bytesAt: 44 };
const IN_FILESYSTEM = 1;
const ON_OTHER_DEVICE = 2;
const NEEDS_INIT = 4;

const HEADER_BYTES = 44;
const FIELD = { endian: 4, start: 8, end: 16, bytes: 24, checksum: 36, headerBytes: 40 };
const MAGIC = 0x4a4e4c78;
const ENDIAN = 0x12345678;

export interface Journal {
  readonly info: Extent;
  readonly ring: Extent;
}

/** Where the empty journal lies, in bytes. @throws Refused when it is not empty, or cannot be judged */
export async function checkJournal(device: BlockDevice, header: Header): Promise<Journal | undefined> {
  if (!header.isJournaled) return undefined;
  const { blockBytes, blocks, journalInfoBlock } = header;
  if (journalInfoBlock === 0 || journalInfoBlock >= blocks) {
    throw damaged(`volume header: journal info block ${journalInfoBlock} found, ${blocks} blocks expected`);
  }
  const infoAt = journalInfoBlock * blockBytes;
  const info = viewOf(await readBytes(device, infoAt, INFO_BYTES));
  const flags = info.getUint32(0);
  if ((flags & ~(IN_FILESYSTEM | ON_OTHER_DEVICE | NEEDS_INIT)) !== 0) {
    throw unknown(`journal info block: flags 0x${flags.toString(16)} found`);
  }
  if ((flags & ON_OTHER_DEVICE) !== 0 || (flags & IN_FILESYSTEM) === 0) {
    throw new Refused(
      "journal-missing",
      `journal info block: flags 0x${flags.toString(16)} say that the journal lies on another device`,
      "let the guest put its journal on the volume itself",
    );
  }
  const start = u64be.read(info, INFO.offsetAt);
  const ring = { start, end: start + u64be.read(info, INFO.bytesAt) };
  if (ring.end > header.bytes || ring.end - ring.start < HEADER_BYTES) {
    throw damaged(`journal info block: a journal at ${ring.start}-${ring.end} found`);
  }
  if ((flags & NEEDS_INIT) === 0) checkEmpty(await readBytes(device, start, HEADER_BYTES), ring);
  return { info: { start: infoAt, end: infoAt + INFO_BYTES }, ring };
}

function checkEmpty(bytes: Uint8Array, ring: Extent): void {
  const view = viewOf(bytes);
  const isLittle = view.getUint32(FIELD.endian, true) === ENDIAN;
  const number = (at: number) => view.getUint32(at, isLittle);
  const offset = (at: number) => (isLittle ? u64le : u64be).read(view, at);
  if (number(0) !== MAGIC || number(FIELD.endian) !== ENDIAN) {
    throw damaged(`journal header at ${ring.start}: magic 0x${number(0).toString(16)} found`);
  }
  const stored = number(FIELD.checksum);
  const checksum = checksumOf(bytes);
  if (stored !== checksum) throw badChecksum(`journal header at ${ring.start}`, stored, checksum);
  const [start, end, length] = [offset(FIELD.start), offset(FIELD.end), offset(FIELD.bytes)];
  const headerBytes = number(FIELD.headerBytes);
  const isInside = (at: number) => at >= headerBytes && at <= length;
  if (length > ring.end - ring.start || headerBytes < HEADER_BYTES || !isInside(start) || !isInside(end)) {
    throw damaged(`journal header at ${ring.start}: ${start} to ${end} of ${length} bytes found`);
  }
  if (start !== end) {
    throw new Refused(
      "journal-dirty",
      "the journal holds changes that are not in their place yet: the guest was not shut down cleanly",
      "boot the guest and shut it down cleanly, or run fsck_hfs there",
    );
  }
}

/** Over the header with zeros in the place of the checksum. */
export function checksumOf(header: Uint8Array): number {
  let sum = 0;
  for (let at = 0; at < HEADER_BYTES; at++) {
    const isOwn = at >= FIELD.checksum && at < FIELD.checksum + 4;
    sum = ((sum << 8) ^ (sum + (isOwn ? 0 : header[at]!))) | 0;
  }
  return ~sum >>> 0;
}
