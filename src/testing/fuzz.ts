/**
 * Structure-aware fuzzing: valid samples by real tools, mutated where they mean something.
 *
 *   sample   bytes, and the spots that a parser looks at: structures by their layouts, and chunks that are no payload
 *   mutant   a few changes: a field at a boundary of its width or of the disk, flipped bits, a spot copied over another
 *   fix      sets the checksums anew, so that the mutation reaches what lies behind them
 *
 * The oracle (H24): nothing is thrown but `DiskError`, nothing is read outside the device, and the work is bounded.
 * One seed is one case, and replays it.
 */
import { type Struct, viewOf } from "../bytes/struct.ts";
import { checked } from "../device/checked.ts";
import type { BlockDevice } from "../device/device.ts";
import { assert, DiskError } from "../error.ts";
import type { Random } from "./seeds.ts";

/** A stretch of a sample that a parser looks at. */
export interface Spot {
  readonly at: number;
  readonly bytes: number;
  /** Offsets from `at`; without them any aligned word is a field. */
  readonly fields?: readonly { readonly at: number; readonly bytes: number }[];
}

export interface Sample {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly spots: readonly Spot[];
  /** Length of the device; zeros follow `bytes`. Default: `bytes.length`. */
  readonly deviceBytes?: number;
  /** Sets all checksums right in place; may be given anything. */
  readonly fix?: (bytes: Uint8Array) => void | Promise<void>;
}

export interface FuzzTarget {
  readonly name: string;
  /** Tools that make the samples. */
  readonly needs: readonly string[];
  /** Made once a run, in a folder that is removed afterwards. */
  samples(folder: string): Promise<readonly Sample[]>;
  /** Feeds a mutant to the parser. Returns a word for the statistics; throws what is a finding, or a `DiskError`. */
  run(bytes: Uint8Array, random: Random, sample: Sample, folder: string): Promise<string>;
}

/** The spot of a structure, field by field. */
export function spotOf(layout: Struct<never> | AnyStruct, at: number): Spot {
  const fields = Object.entries(layout.fields).map(([name, field]) => ({
    at: (layout.at as Readonly<Record<string, number>>)[name]!,
    bytes: field.bytes,
  }));
  return { at, bytes: layout.bytes, fields };
}

interface AnyStruct {
  readonly bytes: number;
  readonly at: object;
  readonly fields: Readonly<Record<string, { readonly bytes: number }>>;
}

const CHUNK_BYTES = 128;

/** Chunks of 128 bytes that are neither zero nor payload, as spots. */
export function chunksOf(bytes: Uint8Array, isPayload: (chunk: Uint8Array) => boolean): Spot[] {
  const zeros = Buffer.alloc(CHUNK_BYTES);
  const spots: Spot[] = [];
  for (let at = 0; at + CHUNK_BYTES <= bytes.length; at += CHUNK_BYTES) {
    const chunk = bytes.subarray(at, at + CHUNK_BYTES);
    if (!zeros.equals(chunk) && !isPayload(chunk)) spots.push({ at, bytes: CHUNK_BYTES });
  }
  return spots;
}

/** A changed copy, and in words what was changed. */
export async function mutate(
  sample: Sample,
  random: Random,
): Promise<{ bytes: Uint8Array; changes: string[] }> {
  let bytes = sample.bytes.slice();
  const changes: string[] = [];
  for (let count = 1 + random.below(random.pick([1, 2, 5])); count > 0; count--) {
    changes.push(changeOnce(bytes, sample, random));
  }
  if (sample.fix !== undefined && random.oneIn(2)) {
    changes.push("checksums fixed");
    await sample.fix(bytes);
  }
  if (random.oneIn(20)) {
    bytes = bytes.slice(0, random.below(bytes.length));
    changes.push(`cut at ${bytes.length}`);
  }
  return { bytes, changes };
}

function changeOnce(bytes: Uint8Array, { spots }: Sample, random: Random): string {
  const spot = random.pick(spots);
  switch (random.below(12)) {
    case 0: {
      const [at, bit] = [spot.at + random.below(spot.bytes), random.below(8)];
      bytes[at]! ^= 1 << bit;
      return `bit ${bit} of ${at}`;
    }
    case 1: {
      const at = random.below(bytes.length);
      bytes[at] = random.below(256);
      return `byte ${at}`;
    }
    case 2: {
      const from = random.pick(spots);
      const length = Math.min(from.bytes, spot.bytes);
      bytes.copyWithin(spot.at, from.at, from.at + length);
      return `${length} bytes from ${from.at} to ${spot.at}`;
    }
    case 3: {
      const end = spot.at + 1 + random.below(spot.bytes);
      const value = random.pick([0, 0xff, 1]);
      bytes.fill(value, spot.at, end);
      return `${value} in ${spot.at}-${end}`;
    }
    default:
      return setField(bytes, spot, random);
  }
}

/** Puts a number at the edge of something into a field. */
function setField(bytes: Uint8Array, spot: Spot, random: Random): string {
  const wordBytes = random.pick([1, 2, 4, 8]);
  const words = spot.bytes >= wordBytes ? spot.bytes / wordBytes : 1;
  const field = spot.fields
    ? random.pick(spot.fields)
    : { at: random.below(Math.floor(words)) * wordBytes, bytes: wordBytes };
  const at = spot.at + field.at;
  const width = Math.min(field.bytes, bytes.length - at);
  if (width > 8 || ![1, 2, 4, 8].includes(width)) {
    bytes[at + random.below(Math.max(1, width))] = random.below(256);
    return `a byte of the field at ${at}`;
  }
  const isLittle = random.oneIn(2);
  const old = readWord(bytes, at, width, isLittle);
  const value = BigInt.asUintN(width * 8, boundary(old, width, bytes.length, random));
  writeWord(bytes, at, width, isLittle, value);
  return `${width} bytes at ${at}: ${old} to ${value}${isLittle ? "" : ", big-endian"}`;
}

function boundary(old: bigint, width: number, deviceBytes: number, random: Random): bigint {
  const bits = BigInt(width * 8);
  const device = BigInt(deviceBytes);
  const power = 1n << BigInt(random.below(width * 8));
  const small = BigInt(random.between(-2, 3));
  const unit = random.pick([1, 512, 1024, 4096, 65536]);
  return random.pick([
    small,
    (1n << bits) + small,
    (1n << (bits - 1n)) + small,
    old + small,
    old ^ power,
    power + small,
    old * 2n,
    old / 2n,
    device / BigInt(unit) + small,
    BigInt(random.below(deviceBytes / unit)),
    BigInt(random.below(deviceBytes / unit)),
    BigInt(random.below(deviceBytes / unit)) * BigInt(unit),
    (1n << 53n) + small,
  ]);
}

function readWord(bytes: Uint8Array, at: number, width: number, isLittle: boolean): bigint {
  let value = 0n;
  for (let i = 0; i < width; i++) {
    value = (value << 8n) | BigInt(bytes[isLittle ? at + width - 1 - i : at + i]!);
  }
  return value;
}

function writeWord(bytes: Uint8Array, at: number, width: number, isLittle: boolean, value: bigint): void {
  const word = new Uint8Array(8);
  viewOf(word).setBigUint64(0, value, isLittle);
  bytes.set(isLittle ? word.subarray(0, width) : word.subarray(8 - width), at);
}

/** Reads that one case may make, and how many times it may read the whole device. */
const READS_MAX = 20_000;
const READ_TIMES_MAX = 64;

/** The mutant as a device that watches its bounds and counts the work. */
export function fuzzDevice(bytes: Uint8Array, deviceBytes = bytes.length): BlockDevice {
  let reads = 0;
  let readBytes = 0;
  return checked<BlockDevice>({
    bytes: deviceBytes,
    async read(at, into) {
      reads++;
      readBytes += into.length;
      const isBounded = reads <= READS_MAX && readBytes <= READ_TIMES_MAX * deviceBytes + 2 ** 24;
      assert(isBounded, `work without end: ${reads} reads of ${readBytes} bytes`);
      into.fill(0);
      into.set(bytes.subarray(at, at + into.length));
    },
    async *map(range) {
      if (range.start < range.end) yield [{ ...range, kind: "data", shared: false, depth: 0 }];
    },
    [Symbol.asyncDispose]: async () => {},
  });
}

/** The kind of the `DiskError` that `work` ends with, or what it returns. */
export async function outcome(work: () => Promise<string>): Promise<string> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof DiskError && error.kind !== "io") return error.kind;
    throw error;
  }
}
