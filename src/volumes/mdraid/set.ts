/**
 * How the members of a set make one volume.
 *
 *   linear   one behind the other
 *   RAID 0   chunk by chunk; members of unequal length make zones, each of the members that reach so far
 *   RAID 1   the same on every member
 *   RAID 10  near copies: each chunk on neighbouring members
 *
 * Parity (4, 5, 6) is not read: a freed block of one member is a lie to its row. Source: Linux, drivers/md/raid0.c,
 * raid1.c, raid10.c, md-linear.c.
 */
import { DiskError } from "../../error.ts";
import { linear, type Segment, type Stretch } from "../mapped.ts";
import type { Superblock } from "./superblock.ts";

const LINEAR = -1;
/** Of RAID 0 with members of unequal length. */
const LAYOUT_ORIGINAL = 1;
const LAYOUT_ALTERNATE = 2;
const CHUNK_BYTES_MAX = 2 ** 31;

/** `RAID 1`, `linear RAID`. */
export function levelName(level: number): string {
  return level === LINEAR ? "linear RAID" : `RAID ${level}`;
}

/** @param members all of the set, by role @throws DiskError `unsupported`, `corrupt` */
export function segmentsOf(members: readonly Superblock[]): readonly Segment[] {
  const { level } = members[0]!;
  if (level === LINEAR) return inWholeChunks(members).map((stretch) => linear(stretch));
  if (level === 0) return zones(members);
  if (level === 1) {
    const [first, ...copies] = usedParts(members);
    return [linear(first!, ...copies)];
  }
  if (level === 10) return [nearCopies(members)];
  throw unsupported(`${levelName(level)} is not read: a part of it is parity`, "md-level");
}

function nearCopies(members: readonly Superblock[]): Segment {
  const layout = members[0]!.layout!;
  const copies = layout & 0xff;
  if (layout !== 0x100 + copies || copies === 0 || copies > members.length)
    throw unsupported(`RAID 10 of layout 0x${layout.toString(16)}: only near copies are read`, "md-layout");
  const chunkBytes = chunk(members);
  const columns = usedParts(members).map((stretch) => rounded(stretch, chunkBytes));
  return { columns, chunkBytes, copies };
}

/** What a set of equal members uses of each. */
function usedParts(members: readonly Superblock[]): Stretch[] {
  const bytes = members[0]!.usedBytes;
  if (bytes === 0 || members.some(({ data }) => data.end - data.start < bytes))
    throw damaged(`uses ${bytes} bytes of each member, more than one has`);
  return members.map(({ data }, disk) => ({ disk, start: data.start, end: data.start + bytes }));
}

function inWholeChunks(members: readonly Superblock[]): Stretch[] {
  const { chunkBytes } = members[0]!;
  return members.map(({ data }, disk) => {
    const stretch = { disk, ...data };
    return chunkBytes === 0 ? stretch : rounded(stretch, chunkBytes);
  });
}

function rounded(stretch: Stretch, chunkBytes: number): Stretch {
  const chunks = Math.floor((stretch.end - stretch.start) / chunkBytes);
  if (chunks === 0) throw damaged(`has chunks of ${chunkBytes} bytes, more than one member has`);
  return { ...stretch, end: stretch.start + chunks * chunkBytes };
}

function chunk(members: readonly Superblock[]): number {
  const { chunkBytes } = members[0]!;
  if (chunkBytes === 0 || chunkBytes > CHUNK_BYTES_MAX) throw damaged(`has chunks of ${chunkBytes} bytes`);
  return chunkBytes;
}

function zones(members: readonly Superblock[]): Segment[] {
  const chunkBytes = chunk(members);
  const stretches = members.map(({ data }, disk) => rounded({ disk, ...data }, chunkBytes));
  const lengths = stretches.map(({ start, end }) => end - start);
  const borders = [...new Set(lengths)].toSorted((a, b) => a - b);
  const rotation = borders.length === 1 ? () => 0 : firstColumn(members[0]!.layout);
  const segments: Segment[] = [];
  let chunksBefore = 0;
  for (const [i, border] of borders.entries()) {
    const from = borders[i - 1] ?? 0;
    const zone = stretches.filter((_, member) => lengths[member]! >= border);
    const turn = rotation(chunksBefore) % zone.length;
    const columns = [...zone.slice(turn), ...zone.slice(0, turn)].map(({ disk, start }) => ({
      disk,
      start: start + from,
      end: start + border,
    }));
    segments.push({ columns, chunkBytes, copies: 1 });
    chunksBefore += (zone.length * (border - from)) / chunkBytes;
  }
  return segments;
}

/** Which member holds the first chunk of a zone: the original layout goes on counting from the zones before. */
function firstColumn(layout: number | undefined): (chunksBefore: number) => number {
  if (layout === LAYOUT_ORIGINAL) return (chunksBefore) => chunksBefore;
  if (layout === LAYOUT_ALTERNATE) return () => 0;
  throw unsupported("RAID 0 of unequal members does not say which of two layouts it has", "md-layout");
}

function unsupported(message: string, code: string): DiskError {
  return new DiskError("unsupported", `Linux RAID: ${message}`, { code });
}

function damaged(message: string): DiskError {
  return new DiskError("corrupt", `the Linux RAID set ${message}`, { code: "md-damaged" });
}
