/**
 * On-disk structures as data: one table decodes, encodes, gives offsets and feeds the fuzzer.
 *
 *   const Footer = struct({ magic: ascii(4), blocks: u32be, reserved: skip(24) });
 *   Footer.bytes                      32
 *   Footer.at.blocks                  4
 *   Footer.decode(buffer, 512)        { magic, blocks }
 *
 * Fields follow each other without padding. Integers that may pass 2^53 - 1 are either `bigint` fields or narrow
 * once here, with `unsupported` (H23).
 */
import { assert, DiskError } from "../error.ts";

/** How one value lies on disk. */
export interface Field<T> {
  readonly bytes: number;
  read(view: DataView, at: number): T;
  write(view: DataView, at: number, value: T): void;
}

type Fields = Readonly<Record<string, Field<unknown>>>;
type ValueOf<F> = F extends Field<infer T> ? T : never;

/** The decoded values of a structure; `skip` fields do not appear. */
export type Decoded<F extends Fields> = {
  -readonly [K in keyof F as ValueOf<F[K]> extends undefined ? never : K]: ValueOf<F[K]>;
};

export interface Struct<F extends Fields> {
  /** Length of the whole structure in bytes. */
  readonly bytes: number;
  /** Offset of every field in bytes. */
  readonly at: { readonly [K in keyof F]: number };
  readonly fields: F;
  /** @throws DiskError `corrupt` when `from` is too short, `unsupported` when a number is past 2^53 - 1 */
  decode(from: Uint8Array, at?: number): Decoded<F>;
  /** Writes the given fields into `into` at `at`; fields not given keep their bytes. */
  encode(values: Partial<Decoded<F>>, into: Uint8Array, at?: number): void;
}

export function struct<F extends Fields>(fields: F): Struct<F> {
  const offsets: Record<string, number> = {};
  let bytes = 0;
  for (const [name, field] of Object.entries(fields)) {
    offsets[name] = bytes;
    bytes += field.bytes;
  }
  return {
    bytes,
    at: offsets as { readonly [K in keyof F]: number },
    fields,
    decode(from, at = 0) {
      if (at < 0 || at + bytes > from.length) {
        throw new DiskError("corrupt", `structure of ${bytes} bytes at ${at} is cut short at ${from.length}`);
      }
      const view = viewOf(from);
      const values: Record<string, unknown> = {};
      for (const [name, field] of Object.entries(fields)) {
        const value = field.read(view, at + offsets[name]!);
        if (value !== undefined) values[name] = value;
      }
      return values as Decoded<F>;
    },
    encode(values, into, at = 0) {
      assert(at >= 0 && at + bytes <= into.length, "room for the structure");
      const view = viewOf(into);
      for (const [name, value] of Object.entries(values)) {
        fields[name]!.write(view, at + offsets[name]!, value);
      }
    },
  };
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The bytes under a view. */
export function bytesOf(view: DataView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

/** Narrows a 64-bit on-disk number. @throws DiskError `unsupported` past 2^53 - 1 (H23) */
export function narrow(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new DiskError("unsupported", `${value} is past 8 PiB, the largest number of bytes supported`);
  }
  return Number(value);
}

const integer = (bytes: 1 | 2 | 4, littleEndian: boolean): Field<number> => ({
  bytes,
  read: (view, at) =>
    bytes === 1
      ? view.getUint8(at)
      : bytes === 2
        ? view.getUint16(at, littleEndian)
        : view.getUint32(at, littleEndian),
  write: (view, at, value) =>
    bytes === 1
      ? view.setUint8(at, value)
      : bytes === 2
        ? view.setUint16(at, value, littleEndian)
        : view.setUint32(at, value, littleEndian),
});

const wide = (littleEndian: boolean): Field<bigint> => ({
  bytes: 8,
  read: (view, at) => view.getBigUint64(at, littleEndian),
  write: (view, at, value) => view.setBigUint64(at, value, littleEndian),
});

const narrowed = (littleEndian: boolean): Field<number> => ({
  bytes: 8,
  read: (view, at) => narrow(view.getBigUint64(at, littleEndian)),
  write: (view, at, value) => view.setBigUint64(at, BigInt(value), littleEndian),
});

export const u8 = integer(1, false);
export const u16be = integer(2, false);
export const u32be = integer(4, false);
export const u16le = integer(2, true);
export const u32le = integer(4, true);
/** 64 bits that are an offset or a length: narrowed to a number. */
export const u64be = narrowed(false);
export const u64le = narrowed(true);
/** 64 bits that are flags, an identifier or a key: kept whole. */
export const bits64be = wide(false);
export const bits64le = wide(true);

/** Bytes that mean nothing to us; left alone by `encode`. */
export const skip = (bytes: number): Field<undefined> => ({ bytes, read: () => undefined, write: () => {} });

/** A copy of raw bytes, such as a UUID. */
export const raw = (bytes: number): Field<Uint8Array> => ({
  bytes,
  read: (view, at) => new Uint8Array(view.buffer, view.byteOffset + at, bytes).slice(),
  write: (view, at, value) => {
    assert(value.length === bytes, `${bytes} bytes`);
    new Uint8Array(view.buffer, view.byteOffset + at, bytes).set(value);
  },
});

/** Latin-1 text, cut at the first NUL, padded with NULs. */
export const ascii = (bytes: number): Field<string> => ({
  bytes,
  read: (view, at) => {
    const text = Buffer.from(view.buffer, view.byteOffset + at, bytes).toString("latin1");
    const end = text.indexOf("\0");
    return end < 0 ? text : text.slice(0, end);
  },
  write: (view, at, value) => {
    const into = Buffer.from(view.buffer, view.byteOffset + at, bytes);
    into.fill(0);
    into.write(value, "latin1");
  },
});

/** `count` unsigned 32-bit numbers, little-endian. */
export const u32leArray = (count: number): Field<readonly number[]> => ({
  bytes: count * 4,
  read: (view, at) => Array.from({ length: count }, (_, i) => view.getUint32(at + i * 4, true)),
  write: (view, at, value) => value.forEach((word, i) => view.setUint32(at + i * 4, word, true)),
});

/** Sixteen bytes as a UUID in text, in the order they lie on disk (RFC 9562; not GPT's mixed-endian form). */
export function uuidText(bytes: Uint8Array): string {
  const hex = Buffer.from(bytes).toString("hex");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}

/** The 32 bits by which FAT and exFAT know a volume, as `1A2B-3C4D`. */
export function serialText(serial: number | undefined): string {
  if (serial === undefined) return "";
  const hex = serial.toString(16).toUpperCase().padStart(8, "0");
  return `${hex.slice(0, 4)}-${hex.slice(4)}`;
}
