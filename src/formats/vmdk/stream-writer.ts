/**
 * Writes a stream-optimized disk from its first grain to its last, as one stream.
 *
 *   | header | descriptor | pad | marker+grain | … | marker | grain table | marker+grain | … | marker | grain table |
 *   | marker | grain directory | marker | footer | end of stream |
 *
 * The header says that the directory is at the end. A stream that was not finished has no footer, and nobody opens it.
 *
 * Grains are deflated on zlib's threads, several at once, and appended in the order they came. All that is appended
 * hangs on one chain: where one link fails, so does every later one, and the stream is never finished (H20).
 * Specification: VMware, Virtual Disk Format 5.0, "Stream-Optimized Compressed Sparse Extents".
 */
import { promisify } from "node:util";
import { deflate } from "node:zlib";
import type { HostFile } from "../../device/device.ts";
import { assert, DiskError } from "../../error.ts";
import { GrainMarker } from "./compressed.ts";
import { DESCRIPTOR_SECTORS, GRAIN_SECTORS } from "./create.ts";
import { SECTOR_BYTES } from "./descriptor.ts";
import {
  DEFLATE,
  ENTRIES_PER_TABLE,
  Flag,
  GD_AT_END,
  LINE_ENDS,
  MAGIC,
  Marker,
  MarkerType,
  SparseExtentHeader,
} from "./sparse-header.ts";

export const GRAIN_BYTES = GRAIN_SECTORS * SECTOR_BYTES;

/** More than zlib has threads, so that none waits while the oldest grain is appended. */
const IN_FLIGHT_MAX = 16;
/** What deflate makes of noise is a little longer than the noise: one buffer holds it. */
const DEFLATE_OPTIONS = { chunkSize: GRAIN_BYTES + 1024 };
const deflated = promisify<Uint8Array, typeof DEFLATE_OPTIONS, Buffer>(deflate);

export class StreamWriter {
  readonly #file: HostFile;
  readonly #sectors: number;
  readonly #directory: Buffer;
  /** Where the next marker goes. */
  #at = GRAIN_BYTES;
  /** The grain that came last. */
  #grain = -1;
  /** One for each grain that is being deflated or waits for its turn, the oldest first. */
  readonly #inFlight: Promise<void>[] = [];
  /** All that was to be appended so far. */
  #chain: Promise<void> = Promise.resolve();
  #table: { readonly number: number; readonly entries: Buffer } | undefined;

  private constructor(file: HostFile, sectors: number) {
    this.#file = file;
    this.#sectors = sectors;
    this.#directory = Buffer.alloc(Math.ceil(sectors / GRAIN_SECTORS / ENTRIES_PER_TABLE) * 4);
  }

  /** Begins a stream on an empty file. @param descriptor of at most 20 sectors */
  static async begin(file: HostFile, sectors: number, descriptor: Buffer): Promise<StreamWriter> {
    assert(descriptor.length <= DESCRIPTOR_SECTORS * SECTOR_BYTES, "the descriptor fits");
    const writer = new StreamWriter(file, sectors);
    await file.truncate(GRAIN_BYTES);
    await file.write(0, writer.#header(GD_AT_END));
    await file.write(SECTOR_BYTES, descriptor);
    return writer;
  }

  /** The grain that came last; -1: none did. */
  get lastGrain(): number {
    return this.#grain;
  }

  /**
   * Takes a grain, which may be appended later; what fails then fails a later call, at the latest `finish`.
   * @param content a whole grain, the last of the disk padded with zeros; it now belongs to the stream
   */
  async write(grain: number, content: Uint8Array): Promise<void> {
    assert(grain > this.#grain && content.length === GRAIN_BYTES, "one whole grain behind the other");
    this.#grain = grain;
    const data = deflated(content, DEFLATE_OPTIONS);
    data.catch(() => {});
    this.#inFlight.push(this.#then(async () => this.#appendGrain(grain, await data)));
    if (this.#inFlight.length >= IN_FLIGHT_MAX) await this.#inFlight.shift();
  }

  /** Ends the stream, durably. */
  async finish(): Promise<void> {
    await this.#then(() => this.#end());
  }

  /** Waits until nothing is written any more, whether or not it failed: the file may be closed then. */
  async settle(): Promise<void> {
    await Promise.allSettled([this.#chain]);
  }

  /** Does `work` when everything before it is done; never, where that failed. */
  #then(work: () => Promise<void>): Promise<void> {
    this.#chain = this.#chain.then(work);
    // Whoever awaits it learns of a failure, and so does `finish`.
    this.#chain.catch(() => {});
    return this.#chain;
  }

  async #appendGrain(grain: number, data: Buffer): Promise<void> {
    const number = Math.floor(grain / ENTRIES_PER_TABLE);
    if (this.#table?.number !== number) {
      await this.#writeTable();
      this.#table = { number, entries: Buffer.alloc(ENTRIES_PER_TABLE * 4) };
    }
    const bytes = Buffer.alloc(sectorsOf(GrainMarker.bytes + data.length) * SECTOR_BYTES);
    GrainMarker.encode({ lba: grain * GRAIN_SECTORS, dataBytes: data.length }, bytes);
    data.copy(bytes, GrainMarker.bytes);
    this.#table!.entries.writeUInt32LE(this.#sector(), (grain % ENTRIES_PER_TABLE) * 4);
    await this.#append(bytes);
  }

  async #end(): Promise<void> {
    await this.#writeTable();
    await this.#mark(MarkerType.grainDirectory, sectorsOf(this.#directory.length));
    const directory = this.#sector();
    const padded = Buffer.alloc(sectorsOf(this.#directory.length) * SECTOR_BYTES);
    this.#directory.copy(padded);
    await this.#append(padded);
    await this.#mark(MarkerType.footer, 1);
    await this.#append(this.#header(BigInt(directory)));
    await this.#mark(MarkerType.endOfStream, 0);
    await this.#file.flush();
  }

  async #writeTable(): Promise<void> {
    if (this.#table === undefined) return;
    const { number, entries } = this.#table;
    await this.#mark(MarkerType.grainTable, entries.length / SECTOR_BYTES);
    this.#directory.writeUInt32LE(this.#sector(), number * 4);
    await this.#append(entries);
    this.#table = undefined;
  }

  async #mark(type: number, sectors: number): Promise<void> {
    const marker = Buffer.alloc(SECTOR_BYTES);
    Marker.encode({ value: sectors, dataBytes: 0, type }, marker);
    await this.#append(marker);
  }

  async #append(bytes: Uint8Array): Promise<void> {
    await this.#file.write(this.#at, bytes);
    this.#at += bytes.length;
  }

  /** @throws DiskError `unsupported` where the file outgrows the 32 bits of an entry */
  #sector(): number {
    const sector = this.#at / SECTOR_BYTES;
    if (sector < 2 ** 32) return sector;
    throw new DiskError("unsupported", "a streamOptimized disk of more than 2 TiB cannot be written");
  }

  #header(gdOffset: bigint): Buffer {
    const header = Buffer.alloc(SECTOR_BYTES);
    SparseExtentHeader.encode(
      {
        magicNumber: MAGIC,
        version: 3,
        flags: Flag.lineEnds | Flag.compressed | Flag.markers,
        capacity: this.#sectors,
        grainSize: GRAIN_SECTORS,
        descriptorOffset: 1,
        descriptorSize: DESCRIPTOR_SECTORS,
        numGTEsPerGT: ENTRIES_PER_TABLE,
        rgdOffset: 0n,
        gdOffset,
        overHead: GRAIN_SECTORS,
        uncleanShutdown: 0,
        lineEnds: LINE_ENDS,
        compressAlgorithm: DEFLATE,
      },
      header,
    );
    return header;
  }
}

function sectorsOf(bytes: number): number {
  return Math.ceil(bytes / SECTOR_BYTES);
}
