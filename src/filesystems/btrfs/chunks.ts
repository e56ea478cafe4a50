/**
 * The map from logical addresses, in which all else speaks, to places on devices.
 *
 *   chunk [logical, logical + bytes)      one column, or several that take turns every 64 KiB (RAID0, RAID10)
 *   column                                one stripe on a device, or several with the same bytes (DUP, RAID1, RAID10)
 *
 *   logical   | 0 | 1 | 2 | 3 | 4 | 5 |      device 1 | 0 | 2 | 4 |      device 2 | 1 | 3 | 5 |
 *
 * RAID5 and RAID6 are refused.
 */
import { bits64le, raw, struct, u16le, u32le, u64le } from "../../bytes/struct.ts";
import { Refused } from "../refused.ts";
import { damaged, unsupported, type Unreadable } from "./refused.ts";

const ChunkLayout = struct({
  bytes: u64le,
  owner: bits64le,
  stripeBytes: u64le,
  type: bits64le,
  ioAlign: u32le,
  ioWidth: u32le,
  sectorBytes: u32le,
  stripes: u16le,
  subStripes: u16le,
});
const StripeLayout = struct({ device: u64le, at: u64le, uuid: raw(16) });

export const STRIPE_BYTES = 1 << 16;
const PROFILE = { raid0: 8n, raid1: 16n, dup: 32n, raid10: 64n, raid1c3: 512n, raid1c4: 1024n };
const RAID56 = 128n | 256n;
const KNOWN_TYPE = 7n | RAID56 | Object.values(PROFILE).reduce((all, bit) => all | bit, 0n);

/** How many stripes a profile has: exactly, or, where they are striped, at least. */
const STRIPES: ReadonlyMap<bigint, number> = new Map([
  [0n, 1],
  [PROFILE.dup, 2],
  [PROFILE.raid1, 2],
  [PROFILE.raid1c3, 3],
  [PROFILE.raid1c4, 4],
]);

/** The member of a stripe on a device that an older generation had, and that is not at hand. */
const NOWHERE = -1;

interface Stripe {
  /** Place among the members given, or `NOWHERE`. */
  readonly member: number;
  /** In bytes on that member. */
  readonly at: number;
}

export interface Chunk {
  readonly start: number;
  readonly end: number;
  readonly type: bigint;
  readonly columns: number;
  /** How many stripes have the same bytes; those of a column lie side by side in `stripes`. */
  readonly mirrors: number;
  readonly stripes: readonly Stripe[];
  /** Length of each stripe on its device. */
  readonly stripeBytes: number;
}

/** A device as stripes name it. */
export interface Holder {
  readonly id: number;
  readonly uuid: Uint8Array;
  /** Where stripes must end. */
  readonly bytes: number;
}

/** @throws Refused, but not for stripes on devices that are not at hand, when those are passed by */
export function decodeChunk(
  item: Uint8Array,
  start: number,
  holders: readonly Holder[],
  sectorBytes: number,
  unreadable: Unreadable,
): Chunk {
  const head = ChunkLayout.decode(item);
  const where = `chunk at ${start}`;
  if (item.length !== ChunkLayout.bytes + head.stripes * StripeLayout.bytes) {
    throw damaged(`${where}: ${item.length} bytes found for ${head.stripes} stripes`);
  }
  const end = start + head.bytes;
  if (head.bytes === 0 || !Number.isSafeInteger(end) || start % sectorBytes || head.bytes % sectorBytes) {
    throw damaged(`${where}: a length of ${head.bytes} bytes`);
  }
  const { columns, mirrors } = shapeOf(where, head);
  const stripeBytes = head.bytes / columns;
  if (head.stripeBytes !== STRIPE_BYTES || (columns > 1 && stripeBytes % STRIPE_BYTES !== 0)) {
    throw damaged(`${where}: ${head.bytes} bytes in stripes of ${head.stripeBytes}`);
  }
  const stripes = Array.from({ length: head.stripes }, (_, index) => {
    const stripe = StripeLayout.decode(item, ChunkLayout.bytes + index * StripeLayout.bytes);
    const member = memberOf(where, { ...stripe, bytes: stripeBytes }, holders, sectorBytes);
    if (!(member instanceof Refused)) return { member, at: stripe.at };
    if (unreadable === "refuse") throw member;
    return { member: NOWHERE, at: stripe.at };
  });
  return { start, end, type: head.type, columns, mirrors, stripes, stripeBytes };
}

/** Place among the holders, or why there is none. */
function memberOf(
  where: string,
  { device, at, uuid, bytes }: { device: number; at: number; uuid: Uint8Array; bytes: number },
  holders: readonly Holder[],
  sectorBytes: number,
): number | Refused {
  const member = holders.findIndex(({ id }) => id === device);
  if (member < 0) return missing(`${where}: a stripe on device ${device}, which is not at hand`);
  const holder = holders[member]!;
  if (!Buffer.from(holder.uuid).equals(uuid)) return damaged(`${where}: device ${device} has another UUID`);
  if (at % sectorBytes !== 0 || at + bytes > holder.bytes) {
    return damaged(`${where}: a stripe at ${at} of device ${device}, which has ${holder.bytes} bytes`);
  }
  return member;
}

export const missing = (message: string) =>
  new Refused("members-missing", message, "name the images of all devices of the filesystem in one call");

function shapeOf(
  where: string,
  { type, stripes, subStripes }: { type: bigint; stripes: number; subStripes: number },
): { columns: number; mirrors: number } {
  if ((type & RAID56) !== 0n) throw unsupported(`${where}: RAID5 or RAID6`);
  if ((type & ~KNOWN_TYPE) !== 0n || (type & 7n) === 0n) throw unsupported(`${where}: type ${type}`);
  const profile = type & ~7n;
  const wanted = STRIPES.get(profile);
  if (wanted !== undefined) {
    if (stripes !== wanted) throw damaged(`${where}: ${stripes} stripes found, ${wanted} expected`);
    return { columns: 1, mirrors: wanted };
  }
  if (stripes === 0) throw damaged(`${where}: no stripes`);
  if (profile === PROFILE.raid0) return { columns: stripes, mirrors: 1 };
  if (profile !== PROFILE.raid10) throw damaged(`${where}: type ${type} has several profiles`);
  if (subStripes !== 2 || stripes % 2 !== 0) {
    throw damaged(`${where}: ${stripes} stripes in groups of ${subStripes}`);
  }
  return { columns: stripes / 2, mirrors: 2 };
}

export class ChunkMap {
  /** Ascending, apart from each other. */
  readonly chunks: readonly Chunk[];
  #last: Chunk | undefined;

  /** @throws Refused when two of them overlap */
  constructor(chunks: readonly Chunk[]) {
    this.chunks = [...chunks].sort((a, b) => a.start - b.start);
    for (let i = 1; i < this.chunks.length; i++) {
      if (this.chunks[i]!.start < this.chunks[i - 1]!.end) {
        throw damaged(`chunk at ${this.chunks[i]!.start}: it begins inside the one before`);
      }
    }
  }

  /** The chunk that holds all of the bytes. */
  chunkOf(at: number, bytes: number): Chunk | undefined {
    const last = this.#last;
    if (last !== undefined && at >= last.start && at + bytes <= last.end) return last;
    const chunk = this.#firstBehind(at);
    if (chunk === undefined || chunk.start > at || at + bytes > chunk.end) return undefined;
    this.#last = chunk;
    return chunk;
  }

  /** These chunks, and those of `other` that lie apart from all of them. */
  completedBy(other: ChunkMap): ChunkMap {
    const rest = other.chunks.filter(({ start, end }) => !((this.#firstBehind(start)?.start ?? end) < end));
    return new ChunkMap([...this.chunks, ...rest]);
  }

  /** The first chunk that ends behind `at`. */
  #firstBehind(at: number): Chunk | undefined {
    let low = 0;
    let high = this.chunks.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.chunks[middle]!.end <= at) low = middle + 1;
      else high = middle;
    }
    return this.chunks[low];
  }
}

/** Where a copy of a node lies in one piece; undefined where it is cut in two, nowhere, or there is no such copy. */
export function placeOf(chunk: Chunk, at: number, bytes: number, copy: number): Stripe | undefined {
  const offset = at - chunk.start;
  const column = chunk.columns === 1 ? 0 : Math.floor(offset / STRIPE_BYTES) % chunk.columns;
  if (chunk.columns > 1 && (offset % STRIPE_BYTES) + bytes > STRIPE_BYTES) return undefined;
  if (copy >= chunk.mirrors) return undefined;
  const { member, at: start } = chunk.stripes[column * chunk.mirrors + copy]!;
  if (member === NOWHERE) return undefined;
  return { member, at: start + inColumn(chunk, offset, column) };
}

type Found = (member: number, start: number, end: number) => void;

/** Calls `found` for every range on a member that holds some of the logical bytes `[start, end)` of `chunk`. */
export function eachPlace(chunk: Chunk, start: number, end: number, found: Found): void {
  for (let index = 0; index < chunk.stripes.length; index++) placeInStripe(chunk, index, start, end, found);
}

/** Calls `found` for the range in one stripe of `chunk`, when it holds some of the bytes. */
export function placeInStripe(chunk: Chunk, index: number, start: number, end: number, found: Found): void {
  const { member, at } = chunk.stripes[index]!;
  if (member === NOWHERE) return;
  const column = Math.floor(index / chunk.mirrors);
  const from = inColumn(chunk, start - chunk.start, column);
  const to = inColumn(chunk, end - chunk.start, column);
  if (from < to) found(member, at + from, at + to);
}

/** How many of the first `bytes` bytes of a chunk lie in a column of it. */
function inColumn({ columns }: Chunk, bytes: number, column: number): number {
  if (columns === 1) return bytes;
  const rows = Math.floor(bytes / (columns * STRIPE_BYTES));
  const rest = bytes - rows * columns * STRIPE_BYTES - column * STRIPE_BYTES;
  return rows * STRIPE_BYTES + Math.min(STRIPE_BYTES, Math.max(0, rest));
}
