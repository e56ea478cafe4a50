/**
 * `$MFT`, the master file table: one record a file, the first of which says where the table itself lies.
 *
 *   boot sector → record 0 → runs of $MFT → every other record          record 1: $MFTMirr, a copy of records 0 to 3
 *                    └ attribute list → extension records with further runs, each within the runs known before
 *
 * libyal/libfsntfs documentation, "The Master File Table".
 */
import { viewOf } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { attributesOf, TYPE, type Attribute } from "./attributes.ts";
import type { Geometry } from "./boot.ts";
import { LIST_BYTES_MAX, listEntries, type ListEntry } from "./list.ts";
import { decodeRecord, type FileRecord, type Reference } from "./record.ts";
import { damaged } from "./refused.ts";
import { RunList } from "./runs.ts";
import { checkAllocated, joinPieces, readStream, type Stream } from "./stream.ts";

/** Records of the filesystem's own files. */
export const FILE = {
  mft: 0,
  log: 2,
  volume: 3,
  root: 5,
  bitmap: 6,
  boot: 7,
  upCase: 10,
  extend: 11,
} as const;

/** All attributes of a file, of its base record and of its extension records. */
export interface File {
  readonly record: FileRecord;
  readonly attributes: readonly Attribute[];
}

const MIRRORED = 4;
/** Windows makes no more. */
const RECORDS_MAX = 2 ** 32;

export class FileTable {
  readonly device: BlockDevice;
  readonly geometry: Geometry;
  readonly runs: RunList;
  /** How many records there are. */
  records = 0;

  private constructor(device: BlockDevice, geometry: Geometry) {
    this.device = device;
    this.geometry = geometry;
    this.runs = new RunList(geometry);
  }

  static async open(device: BlockDevice, geometry: Geometry): Promise<FileTable> {
    const table = new FileTable(device, geometry);
    await table.#findRuns();
    return table;
  }

  /** Reads records `[first, first + count)` as they lie on disk. */
  async readRaw(first: number, into: Uint8Array): Promise<void> {
    await this.runs.read(this.device, first * this.geometry.recordBytes, into);
  }

  /** @throws Refused when there is no such record, or it is not in use */
  async record(number: number): Promise<FileRecord> {
    const { recordBytes } = this.geometry;
    if (number >= this.records) throw damaged(`file record ${number} found, ${this.records} are there`);
    const bytes = new Uint8Array(recordBytes);
    await this.readRaw(number, bytes);
    const record = decodeRecord(viewOf(bytes), 0, recordBytes, number);
    if (record === undefined) throw damaged(`file record ${number} is not in use`);
    return record;
  }

  /** The file whose base record is `number`. @throws Refused */
  async file(number: number): Promise<File> {
    const record = await this.record(number);
    if (record.base !== undefined) throw damaged(`file record ${number} belongs to ${record.base.number}`);
    const attributes = attributesOf(record);
    const seen = new Set([number]);
    for (const entry of await this.#listOf(attributes)) {
      if (seen.has(entry.record.number)) continue;
      seen.add(entry.record.number);
      attributes.push(...attributesOf(await this.#extension(record, entry.record)));
    }
    return { record, attributes };
  }

  /** The stream of a file; undefined when it has none of that type and name. */
  stream({ attributes }: File, type: number, name = ""): Stream | undefined {
    return joinPieces(
      this.geometry,
      attributes.filter((attribute) => attribute.type === type && attribute.name === name),
    );
  }

  read(stream: Stream, at: number, into: Uint8Array): Promise<void> {
    return readStream(this.device, stream, at, into);
  }

  /** @throws Refused when the copy of the first records differs from them */
  async checkMirror(): Promise<void> {
    const { recordBytes, clusterBytes, mirrorCluster, clusters } = this.geometry;
    const at = mirrorCluster * clusterBytes;
    if (at + MIRRORED * recordBytes > clusters * clusterBytes)
      throw damaged(`$MFTMirr at ${at}: is cut short`);
    const copies = viewOf(await readBytes(this.device, at, MIRRORED * recordBytes));
    for (let number = 0; number < MIRRORED; number++) {
      const record = await this.record(number);
      const copy = decodeRecord(copies, number * recordBytes, recordBytes, number);
      if (copy === undefined || !isSame(record, copy)) {
        throw damaged(`$MFTMirr at ${at}: its copy of file record ${number} differs`);
      }
    }
  }

  async #findRuns(): Promise<void> {
    const { recordBytes, clusterBytes, mftCluster, clusters } = this.geometry;
    const at = mftCluster * clusterBytes;
    if (at + recordBytes > clusters * clusterBytes) throw damaged(`$MFT at ${at}: is cut short`);
    const record = decodeRecord(viewOf(await readBytes(this.device, at, recordBytes)), 0, recordBytes, 0);
    if (record === undefined) throw damaged("file record 0 is not in use");
    const attributes = attributesOf(record);
    const first = attributes.find(isData);
    if (first?.content.kind !== "runs" || first.content.sizes === undefined)
      throw damaged("$MFT has no runs");
    const { allocated, initialised } = first.content.sizes;
    this.runs.append(first, first.content);
    for (const entry of (await this.#listOf(attributes)).filter(isLaterData)) {
      this.records = Math.floor((this.runs.clusters * clusterBytes) / recordBytes);
      const piece = attributesOf(await this.#extension(record, entry.record)).find(
        (attribute) => isData(attribute) && startsAt(attribute, this.runs.clusters),
      );
      if (piece?.content.kind !== "runs")
        throw damaged(`$MFT: no piece begins with VCN ${this.runs.clusters}`);
      this.runs.append(piece, piece.content);
    }
    checkAllocated(first, allocated, this.runs.clusters * clusterBytes);
    this.records = Math.floor(initialised / recordBytes);
    if (this.records <= FILE.extend || this.records > RECORDS_MAX) {
      throw damaged(`$MFT: ${this.records} file records found`);
    }
    if (this.runs.position(0) !== at)
      throw damaged(`$MFT: ${at} found in the boot sector, elsewhere in its runs`);
    if (this.runs.hasHole()) throw damaged("$MFT has a hole");
  }

  async #extension(base: FileRecord, { number, sequence }: Reference): Promise<FileRecord> {
    const extension = await this.record(number);
    const { base: named } = extension;
    if (
      named?.number !== base.number ||
      named.sequence !== base.sequence ||
      extension.sequence !== sequence
    ) {
      throw damaged(`file record ${number}: extension of ${named?.number} found, of ${base.number} expected`);
    }
    return extension;
  }

  async #listOf(attributes: readonly Attribute[]): Promise<ListEntry[]> {
    const list = joinPieces(
      this.geometry,
      attributes.filter(({ type }) => type === TYPE.attributeList),
    );
    if (list === undefined) return [];
    const owner = list.attribute.record.number;
    if (list.bytes > LIST_BYTES_MAX)
      throw damaged(`attribute list of file record ${owner}: ${list.bytes} bytes found`);
    const bytes = new Uint8Array(list.bytes);
    await this.read(list, 0, bytes);
    return listEntries(owner, bytes);
  }
}

const isData = ({ type, name }: { type: number; name: string }) => type === TYPE.data && name === "";
const isLaterData = (entry: ListEntry) => isData(entry) && entry.firstVcn > 0;

function startsAt({ content }: Attribute, vcn: number): boolean {
  return content.kind === "runs" && content.firstVcn === vcn;
}

/** Whether two records are equal but for their update sequences. */
function isSame(one: FileRecord, other: FileRecord): boolean {
  const [a, b] = [bytesOf(one), bytesOf(other)];
  const sequenceAt = one.view.getUint16(4, true);
  const sequenceEnd = sequenceAt + one.view.getUint16(6, true) * 2;
  return (
    a.subarray(0, sequenceAt).equals(b.subarray(0, sequenceAt)) &&
    a.subarray(sequenceEnd).equals(b.subarray(sequenceEnd))
  );
}

function bytesOf({ view, start, attributesEnd }: FileRecord): Buffer {
  return Buffer.from(view.buffer, view.byteOffset + start, attributesEnd - start);
}
