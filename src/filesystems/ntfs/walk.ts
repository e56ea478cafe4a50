/**
 * The walk: every run of every attribute of every file record in use, wherever the names lead.
 *
 *   window of the table:  $MFT's own bitmap → records, slice by slice
 *                            record in use → its attributes → their runs
 *                               └ attribute list in clusters: gathered, and read after the slice
 *
 * A record is in use when it says so; when only it says so, and the bitmap does not, the volume is refused. Extension
 * records are visited like others, under the name of their base. What attribute lists and extension records say of
 * each other is compared at the end, and so is whether the pieces of an attribute join. No file is kept in memory.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import { viewOf } from "../../bytes/struct.ts";
import type { Visit } from "../filesystem.ts";
import { IN_FLIGHT, pipelined } from "../reading.ts";
import { type Attribute, attributeName, attributesOf, eachAttribute, type Runs, TYPE } from "./attributes.ts";
import { BOOT_BYTES } from "./boot.ts";
import { eachEntry, type Entry, INDEX_NAME, visitRoot } from "./directory.ts";
import { IndexBatch } from "./index-batch.ts";
import { LIST_BYTES_MAX, listEntries } from "./list.ts";
import { shownText } from "./names.ts";
import { OWNER, ownerOf } from "./owners.ts";
import { decodeRecord, type FileRecord, looksUsed } from "./record.ts";
import { contradiction, damaged } from "./refused.ts";
import { eachRun, HOLE } from "./runs.ts";
import { Spread } from "./spread.ts";
import { checkAllocated, joinPieces, readStream, type Stream } from "./stream.ts";
import { FILE, type FileTable } from "./table.ts";

const SLICE_BYTES = 1 << 20;
/** Records whose part of the bitmap is in memory at a time. */
const WINDOW_RECORDS = 1 << 19;

/** @throws Refused for every damage and contradiction on the way */
export async function walk(table: FileTable, visit: Visit): Promise<void> {
  const walker = new Walker(table, visit);
  walker.visitFixed();
  const mft = await table.file(FILE.mft);
  const map = table.stream(mft, TYPE.bitmap);
  if (map === undefined) throw damaged("$MFT has no bitmap");
  for (let first = 0; first < table.records; first += WINDOW_RECORDS) {
    await walker.visitWindow(map, first, Math.min(table.records, first + WINDOW_RECORDS));
  }
  await walker.visitDirectories();
  walker.check();
}

class Walker {
  readonly #spread = new Spread();
  readonly #table: FileTable;
  readonly #visit: Visit;
  readonly #claimed = new SparseBitmap();
  /** Base records in use, and what directories name. */
  readonly #used = new SparseBitmap();
  readonly #named = new SparseBitmap();
  /** Index blocks that wait to be read; and directories that must be read one by one. */
  readonly #batch: IndexBatch;
  readonly #directories = new SparseBitmap();
  /** Attribute lists that lie in clusters. */
  readonly #waiting: { readonly base: FileRecord; readonly list: Stream }[] = [];
  readonly #buffers: Uint8Array[] = [];
  #turn = 0;

  constructor(table: FileTable, visit: Visit) {
    this.#table = table;
    this.#visit = visit;
    this.#batch = new IndexBatch(table);
  }

  /** The boot sectors; the first is a file, too, which claims its clusters. */
  visitFixed(): void {
    const { backupAt, sectorBytes } = this.#table.geometry;
    this.#reach(ownerOf(FILE.boot), 0, BOOT_BYTES);
    this.#reach(OWNER.backup, backupAt, backupAt + sectorBytes);
  }

  async visitWindow(map: Stream, first: number, end: number): Promise<void> {
    const used = new Uint8Array(Math.ceil((end - first) / 8));
    const mapped = Math.max(0, Math.min(used.length, map.bytes - first / 8));
    await this.#table.read(map, first / 8, used.subarray(0, mapped));
    await pipelined(this.#slices(first, end), async ({ number, bytes }) => {
      this.#scan(number, bytes, used, first);
      for (const { base, list } of this.#waiting.splice(0)) await this.#readList(base, list);
      if (this.#batch.isFull) await this.#batch.visit(this.#name);
    });
  }

  *#slices(first: number, end: number): Generator<Promise<{ number: number; bytes: Uint8Array }>> {
    const perSlice = SLICE_BYTES / this.#table.geometry.recordBytes;
    for (let number = first; number < end; number += perSlice) {
      yield this.#readSlice(number, Math.min(perSlice, end - number));
    }
  }

  async #readSlice(number: number, count: number) {
    const buffer = (this.#buffers[this.#turn++ % IN_FLIGHT] ??= new Uint8Array(SLICE_BYTES));
    const bytes = buffer.subarray(0, count * this.#table.geometry.recordBytes);
    await this.#table.readRaw(number, bytes);
    return { number, bytes };
  }

  /** Looks at the records of a slice that begins with record `first`; `used` is the bitmap from record `base` on. */
  #scan(first: number, bytes: Uint8Array, used: Uint8Array, base: number): void {
    const { recordBytes } = this.#table.geometry;
    const view = viewOf(bytes);
    for (let at = 0, number = first; at < bytes.length; at += recordBytes, number++) {
      const bit = number - base;
      if (((used[bit >> 3]! >> (bit & 7)) & 1) === 0) {
        if (!looksUsed(view, at)) continue;
        throw contradiction(`file record ${number} is in use, but the bitmap of $MFT calls it free`);
      }
      const record = decodeRecord(view, at, recordBytes, number);
      if (record !== undefined) this.#visitRecord(record);
    }
  }

  #visitRecord(record: FileRecord): void {
    if (record.base !== undefined) this.#spread.extension(record, record.base);
    else this.#used.setRange(record.number, record.number + 1);
    const base = record.base?.number ?? record.number;
    let hasBlocks = false;
    eachAttribute(record, (attribute) => {
      if (attribute.name === INDEX_NAME) {
        if (attribute.type === TYPE.indexRoot) visitRoot(attribute, this.#name);
        if (attribute.type === TYPE.indexAllocation) hasBlocks = true;
      }
      if (attribute.content.kind === "runs") this.#visitRuns(base, attribute, attribute.content);
      if (attribute.type === TYPE.attributeList) this.#visitList(record, attribute);
    });
    if (!hasBlocks) return;
    const isTaken =
      record.base === undefined && this.#batch.take({ record, attributes: attributesOf(record) });
    if (!isTaken) this.#directories.setRange(base, base + 1);
  }

  readonly #name = ({ name, reference: { number } }: Entry) => {
    if (number >= this.#table.records) throw damaged(`"${shownText(name)}" names file record ${number}`);
    this.#named.setRange(number, number + 1);
  };

  /** Reads the index blocks, which may be torn as file records may. */
  async visitDirectories(): Promise<void> {
    await this.#batch.visit(this.#name);
    await pipelined(this.#indexes(), () => {});
  }

  *#indexes(): Generator<Promise<void>> {
    const end = this.#table.records;
    for (let number = this.#directories.nextSet(0, end); number < end;) {
      yield this.#table.file(number).then((file) => eachEntry(this.#table, file, this.#name));
      number = this.#directories.nextSet(number + 1, end);
    }
  }

  /** What only the whole table can tell. */
  check(): void {
    this.#spread.check();
    const end = this.#table.records;
    for (let from = this.#named.nextSet(0, end); from < end;) {
      const to = this.#named.nextClear(from, end);
      const free = this.#used.nextClear(from, to);
      if (free < to) throw contradiction(`file record ${free} is not in use, but a directory names it`);
      from = this.#named.nextSet(to, end);
    }
  }

  #visitRuns(base: number, attribute: Attribute, piece: Runs): void {
    const { geometry } = this.#table;
    const owner = ownerOf(base);
    const { clusterBytes } = geometry;
    eachRun(geometry, attribute, piece, (_vcn, lcn, clusters) => {
      if (lcn === HOLE) return;
      const taken = this.#claimed.nextSet(lcn, lcn + clusters);
      if (taken < lcn + clusters) {
        throw contradiction(`${attributeName(attribute)}: cluster ${taken} belongs to another attribute too`);
      }
      this.#claimed.setRange(lcn, lcn + clusters);
      this.#visit(0, lcn * clusterBytes, (lcn + clusters) * clusterBytes, owner);
    });
    const mapped = piece.endVcn * clusterBytes;
    if (piece.firstVcn > 0 || mapped < piece.sizes!.allocated)
      this.#spread.piece(base, attribute, piece, clusterBytes);
    else checkAllocated(attribute, piece.sizes!.allocated, mapped);
  }

  #visitList(record: FileRecord, attribute: Attribute): void {
    const list = joinPieces(this.#table.geometry, [attribute])!;
    if (record.base !== undefined || list.bytes > LIST_BYTES_MAX) {
      throw damaged(
        `${attributeName(attribute)}: of ${list.bytes} bytes, of base ${record.base?.number} found`,
      );
    }
    if (list.runs !== undefined) {
      this.#waiting.push({ base: record, list });
      return;
    }
    const { content } = attribute;
    const bytes = new Uint8Array(record.view.buffer, record.view.byteOffset + content.at, list.bytes);
    this.#spread.list(record, listEntries(record.number, bytes));
  }

  async #readList(base: FileRecord, list: Stream): Promise<void> {
    const bytes = new Uint8Array(list.bytes);
    await readStream(this.#table.device, list, 0, bytes);
    this.#spread.list(base, listEntries(base.number, bytes));
  }

  /** Visits bytes, rounded outward to clusters. */
  #reach(owner: number, start: number, end: number): void {
    const { clusterBytes } = this.#table.geometry;
    const first = Math.floor(start / clusterBytes) * clusterBytes;
    this.#visit(0, first, Math.ceil(end / clusterBytes) * clusterBytes, owner);
  }
}
