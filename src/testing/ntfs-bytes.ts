/**
 * The bytes of a small NTFS volume, for tests that change them: where its records, attributes and runs lie, found
 * without the reader. Clusters of 4096 bytes, records of 1024, and a table that is in one piece.
 */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import type { ExtentSet } from "../bytes/extents.ts";
import type { FileSystem } from "../filesystems/filesystem.ts";
import { BootLayout } from "../filesystems/ntfs/boot.ts";
import { ntfs } from "../filesystems/ntfs.ts";
import { prove } from "../reclaim/prove.ts";
import { fuzzDevice } from "./fuzz.ts";
import { attempt } from "./tools.ts";

export const CLUSTER = 4096;
const RECORD = 1024;
const MiB = 2 ** 20;
export const TYPE = { list: 0x20, name: 0x30, information: 0x70, data: 0x80, index: 0xa0, bitmap: 0xb0 };

export class NtfsBytes {
  readonly bytes: Buffer;
  readonly #mft: number;
  readonly #mirror: number;

  readonly #probed: string;

  /** @param probed where a file may be put for ntfs-3g to look at */
  constructor(bytes: Buffer, probed: string) {
    this.bytes = bytes;
    this.#probed = probed;
    const { mftCluster, mirrorCluster } = BootLayout.decode(bytes);
    this.#mft = mftCluster * CLUSTER;
    this.#mirror = mirrorCluster * CLUSTER;
  }

  /** Where a file record lies; the table of a volume so small is in one piece up to here. */
  record(number: number): number {
    return this.#mft + number * RECORD;
  }

  /** Changes a record, and its copy if it has one. */
  change(number: number, change: (record: Buffer) => void): void {
    for (const at of number < 4
      ? [this.record(number), this.#mirror + number * RECORD]
      : [this.record(number)]) {
      change(this.bytes.subarray(at, at + RECORD));
    }
  }

  /** The number of the file that one of the records in use gives this name. */
  named(name: string): number {
    const wanted = Buffer.from(name, "utf16le");
    for (let number = 16; number < 300; number++) {
      const record = this.bytes.subarray(this.record(number), this.record(number) + RECORD);
      if ((record[0x16]! & 1) !== 0 && record.includes(wanted)) return record.readUIntLE(0x20, 6) || number;
    }
    throw new Error(`no record is named ${name}`);
  }

  /** Where an attribute begins in a record; an index, and what is its own, under any name. */
  attribute(number: number, type: number, name = ""): number {
    const record = this.bytes.subarray(this.record(number), this.record(number) + RECORD);
    for (let at = record.readUInt16LE(0x14); at < RECORD; at += record.readUInt32LE(at + 4)) {
      const nameAt = at + record.readUInt16LE(at + 10);
      const found = record.toString("utf16le", nameAt, nameAt + record[at + 9]! * 2);
      if (record.readUInt32LE(at) === type && (found === name || type >= TYPE.index)) return at;
      if (record.readUInt32LE(at + 4) === 0) break;
    }
    throw new Error(`record ${number} has no attribute ${type}`);
  }

  /** The first cluster of an attribute whose first run has a length of one byte. */
  firstCluster(number: number, type: number): number {
    const runs = this.runs(number, type);
    return this.bytes.readIntLE(runs + 1 + (this.bytes[runs]! & 15), this.bytes[runs]! >> 4);
  }

  /** Where the run list of an attribute lies. */
  runs(number: number, type: number): number {
    const at = this.record(number) + this.attribute(number, type);
    return at + this.bytes.readUInt16LE(at + 32);
  }

  /** Where an attribute of a file lies. */
  at(name: string, type: number): number {
    return this.record(this.named(name)) + this.attribute(this.named(name), type);
  }

  /** Where the copy of a record lies. */
  mirrored(number: number): number {
    return this.#mirror + number * RECORD;
  }

  /** Clears a bit of a bitmap that is one file's. */
  clearBit(number: number, type: number, bit: number): void {
    this.bytes[this.firstCluster(number, type) * CLUSTER + (bit >> 3)]! &= ~(1 << (bit & 7));
  }

  setBit(number: number, type: number, bit: number): void {
    this.bytes[this.firstCluster(number, type) * CLUSTER + (bit >> 3)]! |= 1 << (bit & 7);
  }

  /** The first index block of a directory. */
  indexBlock(): number {
    return this.firstCluster(this.named("many"), TYPE.index) * CLUSTER;
  }

  /** An entry of the attribute list of the file with holes that is about an extension record: 1 the first, -1 the last. */
  listEntry(which: 1 | -1): number {
    const number = this.named("holes");
    const at = this.at("holes", TYPE.list);
    const list =
      this.bytes[at + 8] === 0
        ? at + this.bytes.readUInt16LE(at + 20)
        : this.firstCluster(number, TYPE.list) * CLUSTER;
    const end =
      list + (this.bytes[at + 8] === 0 ? this.bytes.readUInt32LE(at + 16) : this.bytes.readUInt32LE(at + 48));
    const entries: number[] = [];
    for (let entry = list; entry < end; entry += this.bytes.readUInt16LE(entry + 4)) {
      if (this.bytes.readUIntLE(entry + 16, 6) !== number) entries.push(entry);
    }
    return entries.at(which === 1 ? 0 : -1)!;
  }

  /** The extension record with the last piece of the file with holes. */
  extension(): number {
    return this.record(this.bytes.readUIntLE(this.listEntry(-1) + 16, 6));
  }

  open(): Promise<FileSystem> {
    return ntfs.open([fuzzDevice(this.bytes)], { replay: false });
  }

  async free(): Promise<ExtentSet> {
    return (await (await this.open()).free())[0]!;
  }

  /** The code of the refusal. */
  async refusal(): Promise<string | undefined> {
    return (await this.verdict())?.replace(/:.*/, "");
  }

  /** The code of the refusal and its message. */
  async verdict(): Promise<string | undefined> {
    const { refusal, free } = await prove(await this.open(), "full");
    if (refusal === undefined) assert.ok(free[0]!.bytes > MiB);
    else assert.equal(free[0]!.bytes, 0);
    return refusal && `${refusal.code}: ${refusal.message}`;
  }

  /** What ntfs-3g.probe makes of it: 0 is fine, 14 hibernated, 15 unclean. */
  probe(): number {
    writeFileSync(this.#probed, this.bytes);
    return attempt("ntfs-3g.probe", ["--readwrite", this.#probed]).status;
  }
}
