/**
 * Directories of exFAT: sets of entries of 32 bytes, a primary one and the secondary ones that it counts.
 *
 *   | 85: file, count, checksum | c0: stream, cluster, bytes, hash of the name | c1: name | c1: name | … | 00: the end
 *
 *   type   | in use | secondary | benign | code |       bits 7, 6, 5, 4-0
 *
 * Who does not know a critical entry must leave the volume alone; one who does not know a benign entry passes over it.
 * A set with a wrong checksum, and a secondary entry without a set, are damage. Sections 6 and 7 of the specification.
 */
import { viewOf } from "../../bytes/struct.ts";
import type { DirectoryScan } from "../cluster-walk.ts";
import type { Holding } from "../cluster-chains.ts";
import { Refused } from "../refused.ts";
import { badChecksum, damaged } from "./damage.ts";
import type { UpCase } from "./up-case.ts";

const ENTRY_BYTES = 32;
export const DIRECTORY_BYTES_MAX = 256 * 2 ** 20;
export const ATTRIBUTE = { directory: 0x10, encrypted: 0x4000 };

export const TYPE = {
  bitmap: 0x81,
  upCase: 0x82,
  label: 0x83,
  file: 0x85,
  padding: 0xa1,
  stream: 0xc0,
  name: 0xc1,
};
const IN_USE = 0x80;
const SECONDARY = 0x40;
const BENIGN = 0x20;
const NAME_UNITS = 15;
const POSSIBLE = 1;
const CONTIGUOUS = 2;
const KNOWN_FLAGS = POSSIBLE | CONTIGUOUS;

/** What a directory holds. The bytes belong to the receiver until it returns. */
export interface Sink {
  /** A file or directory with its set; then what its further entries own. */
  file(set: Uint8Array, stream: Stream, attributes: number): void;
  extra(holding: Holding): void;
  /** An entry of the root that describes the volume itself. */
  system(type: number, entry: Uint8Array): void;
}

export interface Stream extends Holding {
  readonly bytes: number;
  readonly validBytes: number;
  readonly nameUnits: number;
}

/** Takes a directory apart, set by set. */
export class SetScan implements DirectoryScan {
  readonly #where: string;
  readonly #isRoot: boolean;
  readonly #upCase: UpCase | undefined;
  readonly #sink: Sink;
  /** Room for a set that the end of a stretch cuts, and how much of it is there. */
  #cut: Uint8Array = new Uint8Array(0);
  #cutBytes = 0;
  readonly #units = new Uint16Array(UNITS_MAX);

  /** @param upCase verifies the hashes of names */
  constructor(where: string, isRoot: boolean, upCase: UpCase | undefined, sink: Sink) {
    this.#where = where;
    this.#isRoot = isRoot;
    this.#upCase = upCase;
    this.#sink = sink;
  }

  next(bytes: Uint8Array): boolean {
    let at = 0;
    if (this.#cutBytes > 0) {
      const missing = this.#cut.length - this.#cutBytes;
      const taken = Math.min(missing, bytes.length);
      this.#cut.set(bytes.subarray(0, taken), this.#cutBytes);
      this.#cutBytes += taken;
      if (taken < missing) return true;
      this.#cutBytes = 0;
      this.#set(this.#cut);
      at = taken;
    }
    while (at < bytes.length) {
      const type = bytes[at]!;
      if (type === 0) return false;
      const length = setBytes(type, bytes[at + 1]!);
      if (at + length > bytes.length) {
        this.#cut = new Uint8Array(length);
        this.#cut.set(bytes.subarray(at));
        this.#cutBytes = bytes.length - at;
        return true;
      }
      if (type >= IN_USE) this.#set(bytes.subarray(at, at + length));
      at += length;
    }
    return true;
  }

  end(): void {
    if (this.#cutBytes > 0) throw damaged(`${this.#where}: a set of entries found that is cut short`);
  }

  #set(set: Uint8Array): void {
    const type = set[0]!;
    if ((type & SECONDARY) !== 0) {
      throw damaged(`${this.#where}: an entry 0x${type.toString(16)} found that belongs to no set`);
    }
    if (type === TYPE.file) return this.#file(set);
    if (this.#isRoot && (type === TYPE.bitmap || type === TYPE.upCase || type === TYPE.label)) {
      return this.#sink.system(type, set);
    }
    if ((type & BENIGN) === 0 || type === TYPE.padding) {
      throw new Refused(
        "feature-unsupported",
        `${this.#where}: an entry of the unknown type 0x${type.toString(16)} found`,
        "trim inside the guest",
      );
    }
    for (let at = ENTRY_BYTES; at < set.length; at += ENTRY_BYTES) {
      if (set[at]! < (IN_USE | SECONDARY)) {
        throw damaged(
          `${this.#where}: a set 0x${type.toString(16)} counts an entry 0x${set[at]!.toString(16)} in`,
        );
      }
    }
  }

  #file(set: Uint8Array): void {
    const view = viewOf(set);
    const stored = view.getUint16(2, true);
    const expected = setChecksum(set);
    if (stored !== expected) throw badChecksum(`${this.#where}: set of entries`, stored, expected);
    if (set.length < 3 * ENTRY_BYTES || set[ENTRY_BYTES] !== TYPE.stream) {
      throw damaged(`${this.#where}: a file without a stream found`);
    }
    const stream = this.#stream(view);
    this.#checkName(view, set, stream);
    this.#sink.file(set, stream, view.getUint16(4, true));
    for (let at = nameEnd(stream); at < set.length; at += ENTRY_BYTES) this.#extra(view, at);
  }

  #stream(view: DataView): Stream {
    const at = ENTRY_BYTES;
    const holding = this.#holding(view, at);
    const validBytes = size(view, at + 8);
    if (validBytes > holding.bytes) {
      throw damaged(`${this.#where}: ${validBytes} valid bytes of ${holding.bytes} found`);
    }
    return { ...holding, validBytes, nameUnits: view.getUint8(at + 3) };
  }

  /** What any secondary entry owns. */
  #holding(view: DataView, at: number): Holding & { readonly bytes: number } {
    const flags = view.getUint8(at + 1);
    if ((flags & ~KNOWN_FLAGS) !== 0)
      throw damaged(`${this.#where}: flags 0x${flags.toString(16)} of an entry found`);
    const first = view.getUint32(at + 20, true);
    const bytes = size(view, at + 24);
    if ((flags & POSSIBLE) === 0 && (first !== 0 || bytes !== 0)) {
      throw damaged(`${this.#where}: clusters from ${first} found of an entry that can have none`);
    }
    return { first, bytes, isContiguous: (flags & CONTIGUOUS) !== 0 };
  }

  #checkName(view: DataView, set: Uint8Array, stream: Stream): void {
    const { nameUnits } = stream;
    const end = nameEnd(stream);
    if (nameUnits === 0 || end > set.length) {
      throw damaged(`${this.#where}: a name of ${nameUnits} characters found in ${set.length} bytes`);
    }
    for (let at = 2 * ENTRY_BYTES; at < end; at += ENTRY_BYTES) {
      if (set[at] !== TYPE.name) {
        throw damaged(`${this.#where}: an entry 0x${set[at]!.toString(16)} found, a name expected`);
      }
    }
    checkUnits(this.#units, nameUnits, readUnits(view, stream, this.#units), this.#where);
    if (this.#upCase === undefined) return;
    const expected = nameHash(this.#units, nameUnits, this.#upCase);
    const stored = view.getUint16(ENTRY_BYTES + 4, true);
    if (stored !== expected) throw badChecksum(`${this.#where}: hash of a name`, stored, expected);
  }

  /** What a vendor, or a later revision, has added to a file. */
  #extra(view: DataView, at: number): void {
    const type = view.getUint8(at);
    if (type < (IN_USE | SECONDARY | BENIGN))
      throw damaged(`${this.#where}: an entry 0x${type.toString(16)} found behind a name`);
    if ((view.getUint8(at + 1) & POSSIBLE) === 0) return;
    const holding = this.#holding(view, at);
    if (holding.first !== 0) this.#sink.extra(holding);
  }
}

/** Only the sets of files have a count; what is not in use stands alone. */
function setBytes(type: number, secondaries: number): number {
  const isSet = type >= IN_USE && (type === TYPE.file || ((type & SECONDARY) === 0 && (type & BENIGN) !== 0));
  return isSet ? (1 + secondaries) * ENTRY_BYTES : ENTRY_BYTES;
}

/** 2^53 and more is no size of a file here. */
function size(view: DataView, at: number): number {
  const [low, high] = [view.getUint32(at, true), view.getUint32(at + 4, true)];
  if (high >= 2 ** 21) throw damaged(`a length of 0x${high.toString(16)}00000000 bytes or more found`);
  return high * 2 ** 32 + low;
}

function nameEnd({ nameUnits }: Stream): number {
  return (2 + Math.ceil(nameUnits / NAME_UNITS)) * ENTRY_BYTES;
}

/** All that the entries of a name have room for. */
const UNITS_MAX = 18 * NAME_UNITS;

/** Reads the UTF-16 units of a name and the rest of its last entry. @returns how many */
function readUnits(view: DataView, stream: Stream, units: Uint16Array): number {
  const end = nameEnd(stream);
  let count = 0;
  for (let entry = 2 * ENTRY_BYTES; entry < end; entry += ENTRY_BYTES) {
    for (let at = entry + 2; at < entry + ENTRY_BYTES; at += 2) units[count++] = view.getUint16(at, true);
  }
  return count;
}

export function nameOf(set: Uint8Array, stream: Stream): string {
  const units = new Uint16Array(UNITS_MAX);
  readUnits(viewOf(set), stream, units);
  return String.fromCharCode(...units.subarray(0, stream.nameUnits));
}

/** By unit: what no name may have, controls and what paths and patterns are made of. */
const FORBIDDEN = Uint8Array.from({ length: 128 }, (_, unit) =>
  unit < 32 || '"*/:<>?\\|'.includes(String.fromCharCode(unit)) ? 1 : 0,
);
const DOT = 0x2e;

/** @throws Refused when the guest would not have written such a name */
function checkUnits(units: Uint16Array, count: number, room: number, where: string): void {
  let dots = 0;
  for (let i = 0; i < count; i++) {
    const unit = units[i]!;
    if (unit === DOT) dots++;
    if (unit < 128 && FORBIDDEN[unit] === 1) {
      throw damaged(`${where}: a name with the character 0x${unit.toString(16)} found`);
    }
  }
  if (dots === count && count <= 2)
    throw damaged(`${where}: a file with the name of a directory's link found`);
  for (let i = count; i < room; i++) {
    if (units[i] !== 0) throw damaged(`${where}: a name that goes on behind its ${count} characters found`);
  }
}

function nameHash(units: Uint16Array, count: number, upCase: UpCase): number {
  let hash = 0;
  for (let i = 0; i < count; i++) {
    const upper = upCase[units[i]!]!;
    hash = (((hash << 15) | (hash >> 1)) + (upper & 0xff)) & 0xffff;
    hash = (((hash << 15) | (hash >> 1)) + (upper >> 8)) & 0xffff;
  }
  return hash;
}

/** Of all bytes of a set but the two that hold it. */
export function setChecksum(set: Uint8Array): number {
  let sum = 0;
  for (let at = 0; at < set.length; at++) {
    if (at === 2) at = 4;
    sum = (((sum << 15) | (sum >> 1)) + set[at]!) & 0xffff;
  }
  return sum;
}
