/**
 * A directory of FAT: entries of 32 bytes. A long name lies in entries before the one it belongs to, last part first.
 *
 *   | 42 ame.txt  | 01 long n | LONGNA~1TXT, attributes, cluster, bytes | e5: deleted | 00: the end |
 *
 * The long parts count from the last, which has bit 6, to 1, and each holds a checksum of the short name; a long name
 * that is not whole is dropped, as in the guest. What Windows takes for the end Linux passes over, so that nothing
 * may be in use behind it.
 */
import { printable } from "../../bytes/text.ts";
import { viewOf } from "../../bytes/struct.ts";
import type { DirectoryScan, Found } from "../cluster-walk.ts";
import type { Refused } from "../refused.ts";
import { damaged } from "./damage.ts";
import type { Geometry } from "./boot-sector.ts";

const ENTRY_BYTES = 32;
/** Entries are counted by 16 bits. */
export const DIRECTORY_BYTES_MAX = 65536 * ENTRY_BYTES;

export const ATTRIBUTE = { label: 0x08, directory: 0x10, archive: 0x20, long: 0x0f, unknown: 0xc0 };
const ATTRIBUTES_AT = 11;
const END = 0;
const DELETED = 0xe5;
const LAST_LONG = 0x40;
const LONG_PARTS_MAX = 20;

export interface ShortEntry {
  readonly attributes: number;
  readonly first: number;
  readonly bytes: number;
  readonly shortName: Uint8Array;
  /** Which parts of the short name are shown in small letters. */
  readonly smallLetters: number;
  /** "" where there is none. */
  readonly longName: string;
}

/** First cluster of the entry at `at`; only FAT32 has its upper half. */
function firstCluster(view: DataView, at: number, bits: Geometry["bits"]): number {
  const high = bits === 28 ? view.getUint16(at + 20, true) : 0;
  return high * 65536 + view.getUint16(at + 26, true);
}

/** Looks at the clusters of everything that a directory holds, without names. */
export class ClusterScan implements DirectoryScan {
  readonly #geometry: Geometry;
  readonly #self: number;
  readonly #parent: number;
  readonly #found: Found;
  #index = 0;
  #hasEnded = false;

  /** @param self its first cluster; 0 for the root of FAT12/16 */
  constructor(geometry: Geometry, self: number, parent: number, found: Found) {
    this.#geometry = geometry;
    this.#self = self;
    this.#parent = parent;
    this.#found = found;
  }

  next(bytes: Uint8Array): boolean {
    const view = viewOf(bytes);
    for (let at = 0; at < bytes.length; at += ENTRY_BYTES, this.#index++) {
      const first = bytes[at]!;
      if (first === END) this.#hasEnded = true;
      else if (first !== DELETED) this.#visit(view, bytes, at);
    }
    return true;
  }

  end(): void {}

  #visit(view: DataView, bytes: Uint8Array, at: number): void {
    if (this.#hasEnded) throw this.#damaged("in use behind the end of the directory");
    const attributes = bytes[at + ATTRIBUTES_AT]!;
    if ((attributes & ATTRIBUTE.unknown) !== 0) {
      throw this.#damaged(`attributes 0x${attributes.toString(16)} found, at most 0x3f expected`);
    }
    if (attributes === ATTRIBUTE.long) return;
    const first = firstCluster(view, at, this.#geometry.bits);
    const isDirectory = (attributes & ATTRIBUTE.directory) !== 0;
    if ((attributes & ATTRIBUTE.label) !== 0) {
      if (first === 0 && !isDirectory) return;
      throw this.#damaged(`a label with cluster ${first} found, none expected`);
    }
    const strange = strangeCharacter(bytes, at);
    if (strange !== undefined) {
      throw this.#damaged(`a name with the character 0x${strange.toString(16)} found`);
    }
    if (isDirectory) {
      if (!this.#isLink(bytes, at, first))
        this.#found("directory", { first, bytes: undefined, isContiguous: false });
      return;
    }
    const length = view.getUint32(at + 28, true);
    if (length !== 0 || first !== 0) this.#found("file", { first, bytes: length, isContiguous: false });
  }

  /** Whether it is `.` or `..`, which have their places. */
  #isLink(bytes: Uint8Array, at: number, first: number): boolean {
    const { rootCluster } = this.#geometry;
    if (this.#index > 1 || this.#self === rootCluster) return false;
    const name = Buffer.from(bytes.subarray(at, at + 11))
      .toString("latin1")
      .trimEnd();
    if (name !== (this.#index === 0 ? "." : "..")) return false;
    const expected = this.#index === 0 ? this.#self : this.#parent === rootCluster ? 0 : this.#parent;
    // Some write the number of the root, where 0 is meant.
    const isRoot = this.#index === 1 && expected === 0 && first === rootCluster;
    if (first !== expected && !isRoot) {
      throw this.#damaged(`"${name}" leads to cluster ${first}, ${expected} expected`);
    }
    return true;
  }

  #damaged(what: string): Refused {
    return damaged(`directory in cluster ${this.#self}, entry ${this.#index}: ${what}`);
  }
}

/** 1 for what no name has: controls, and what paths and patterns are made of. */
const STRANGE = Uint8Array.from({ length: 256 }, (_, byte) =>
  byte < 32 || '"*/:<>?\\|'.includes(String.fromCharCode(byte)) ? 1 : 0,
);
/** Stands for 0xe5 at the start. */
const KANJI = 0x05;

/** From here on a byte may be the first half of a character in the code pages of East Asia. */
const LEAD = 0x81;
/** No second half is smaller: of what is strange only `\` and `|` can be one. */
const TRAIL = 0x40;

/** A byte of a short name that no system writes. */
function strangeCharacter(bytes: Uint8Array, at: number): number | undefined {
  let before = 0;
  for (let i = 0; i < 11; i++) {
    const byte = i === 0 && bytes[at] === KANJI ? DELETED : bytes[at + i]!;
    if (STRANGE[byte] === 1 && (byte < TRAIL || before < LEAD)) return byte;
    before = byte;
  }
  return undefined;
}

/** Reads whole entries, with names, piece by piece; stops where Windows would. */
export class NameScan {
  readonly #bits: Geometry["bits"];
  #parts: string[] = [];
  #checksum = -1;
  #expected = 0;
  #hasEnded = false;

  constructor(bits: Geometry["bits"]) {
    this.#bits = bits;
  }

  *next(bytes: Uint8Array): Generator<ShortEntry> {
    const view = viewOf(bytes);
    for (let at = 0; at < bytes.length && !this.#hasEnded; at += ENTRY_BYTES) {
      if (bytes[at] === END) this.#hasEnded = true;
      else if (bytes[at] === DELETED) this.#forget();
      else if (bytes[at + ATTRIBUTES_AT] === ATTRIBUTE.long) this.#addLong(view, bytes, at);
      else {
        const shortName = bytes.slice(at, at + 11);
        const isWhole = this.#expected === 0 && this.#checksum === checksum(shortName);
        yield {
          attributes: bytes[at + ATTRIBUTES_AT]!,
          first: firstCluster(view, at, this.#bits),
          bytes: view.getUint32(at + 28, true),
          shortName,
          smallLetters: bytes[at + 12]!,
          longName: isWhole ? this.#parts.join("").replace(/\0.*$/s, "") : "",
        };
        this.#forget();
      }
    }
  }

  #addLong(view: DataView, bytes: Uint8Array, at: number): void {
    const order = bytes[at]! & ~LAST_LONG;
    if ((bytes[at]! & LAST_LONG) !== 0 && order >= 1 && order <= LONG_PARTS_MAX) {
      this.#parts = [];
      this.#checksum = bytes[at + 13]!;
    } else if (order !== this.#expected || order === 0 || bytes[at + 13] !== this.#checksum) {
      return this.#forget();
    }
    let part = "";
    for (const offset of LONG_CHARACTERS_AT) part += String.fromCharCode(view.getUint16(at + offset, true));
    this.#parts.unshift(part);
    this.#expected = order - 1;
  }

  #forget(): void {
    this.#parts = [];
    this.#checksum = -1;
    this.#expected = 0;
  }
}

const LONG_CHARACTERS_AT = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/** Of a short name, as its long parts hold it. */
function checksum(shortName: Uint8Array): number {
  let sum = 0;
  for (const byte of shortName) sum = (((sum & 1) << 7) + (sum >> 1) + byte) & 0xff;
  return sum;
}

/** Windows and Linux keep whether a part of a short name is in small letters, and then write no long name. */
const SMALL = { base: 0x08, extension: 0x10 };

/** `README  TXT` as `README.TXT`. */
export function shortText({ shortName, smallLetters }: ShortEntry): string {
  const bytes = shortName.slice();
  if (bytes[0] === KANJI) bytes[0] = DELETED;
  const base = shown(bytes.subarray(0, 8), (smallLetters & SMALL.base) !== 0);
  const extension = shown(bytes.subarray(8), (smallLetters & SMALL.extension) !== 0);
  return extension === "" ? base : `${base}.${extension}`;
}

export function labelText(label: Uint8Array): string {
  return shown(label, false);
}

/** Without the spaces at the end. The guest's code page is not known: what is not ASCII is shown as `\xNN`. */
function shown(bytes: Uint8Array, isSmall: boolean): string {
  let text = "";
  for (const byte of bytes) {
    text += byte < 0x80 ? String.fromCharCode(byte) : `\\x${byte.toString(16)}`;
  }
  const escaped = printable(text.trimEnd()).replaceAll("/", "\\x2f");
  return isSmall ? escaped.toLowerCase() : escaped;
}
