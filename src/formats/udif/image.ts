/**
 * A UDIF image, opened for reading: the disk over its chunks.
 */
import { inflate } from "node:zlib";
import { promisify } from "node:util";
import { bunzip2 } from "../../bytes/bzip2.ts";
import { crc32, crc32OfZeros } from "../../bytes/checksum.ts";
import type { Extent } from "../../bytes/extents.ts";
import { readBytes, type ReadableFile, type Run } from "../../device/device.ts";
import { joined } from "../../device/runs.ts";
import { DiskError } from "../../error.ts";
import type { Finding, Image, Snapshot } from "../format.ts";
import { type Block, type Blocks, type Chunk, seek } from "./chunks.ts";
import { corrupt, type Udif } from "./trailer.ts";

const inflated = promisify(inflate);

/** Unpacked chunks are kept for the next read; each is at most 64 MiB, and mostly 256 KiB to 1 MiB. */
const KEPT_MAX = 4;
/** So much is read at a time where all of it is. */
const STRIDE_BYTES = 1024 * 1024;

export class UdifImage implements Image {
  readonly format = "dmg";
  readonly encrypted = false;
  readonly parent = undefined;
  readonly references = [];
  readonly files: ReadonlyMap<string, ReadableFile>;
  readonly grainBytes: number;
  readonly #file: ReadableFile;
  readonly #udif: Udif;
  readonly #chunks: readonly Chunk[];
  readonly #blocks: readonly Block[];
  readonly #kept = new Map<Chunk, Promise<Uint8Array>>();

  constructor(file: ReadableFile, udif: Udif, { chunks, blocks }: Blocks) {
    this.#file = file;
    this.#udif = udif;
    this.#chunks = chunks;
    this.#blocks = blocks;
    this.files = new Map([["", file]]);
    this.grainBytes = chunks.reduce((most, { start, end }) => Math.max(most, end - start), 512);
  }

  get bytes(): number {
    return this.#udif.bytes;
  }

  get summary(): string {
    const packed = [...new Set(this.#chunks.map(({ kind }) => kind))].filter(
      (kind) => kind === "zlib" || kind === "bzip2",
    );
    return ["read-only", ...packed].join(", ");
  }

  get details(): Image["details"] {
    return { chunks: this.#chunks.length, blockTables: this.#blocks.length };
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    for (const { start, end, chunk } of this.#pieces({ start: at, end: at + into.length })) {
      const target = into.subarray(start - at, end - at);
      if (chunk === undefined || chunk.kind === "zero" || chunk.kind === "ignore") target.fill(0);
      else if (chunk.kind === "raw") await this.#file.read(chunk.at + start - chunk.start, target);
      else target.set((await this.#unpacked(chunk)).subarray(start - chunk.start, end - chunk.start));
    }
  }

  map(range: Extent): AsyncGenerator<readonly Run[]> {
    return joined(this.#runs(range));
  }

  tableBytes(): Promise<number> {
    const { plist, trailerAt } = this.#udif;
    return Promise.resolve(plist.end - plist.start + this.#file.bytes - trailerAt);
  }

  snapshots(): Promise<readonly Snapshot[]> {
    return Promise.resolve([]);
  }

  /** The checksums: of the packed data, of each table's part of the disk, and of those checksums. */
  async *check(): AsyncGenerator<Finding> {
    const { data, dataChecksum, masterChecksum } = this.#udif;
    if (dataChecksum !== undefined) {
      const found = await sumOf(this.#file, data);
      if (found !== dataChecksum) yield wrong("the data fork", found, dataChecksum);
    }
    const sums: number[] = [];
    for (const { name, start, end, checksum } of this.#blocks) {
      if (checksum === undefined) continue;
      sums.push(checksum);
      if (!this.#isWhole({ start, end })) continue;
      const found = await this.#sumOf({ start, end });
      if (found !== checksum)
        yield wrong(`block table ${JSON.stringify(name.slice(0, 80))}`, found, checksum);
    }
    if (masterChecksum === undefined || sums.length < this.#blocks.length) return;
    const all = Buffer.alloc(sums.length * 4);
    sums.forEach((sum, i) => all.writeUInt32BE(sum, i * 4));
    if (crc32(all) !== masterChecksum) yield wrong("all block tables", crc32(all), masterChecksum);
  }

  async plan(): Promise<never> {
    throw new DiskError("unsupported", "Apple disk images (UDIF) are only read", {
      hint: "they are packed and hold nothing to give back; convert it to write to it",
    });
  }

  async describe(fileOffset: number): Promise<string | undefined> {
    const { plist, trailerAt } = this.#udif;
    if (fileOffset >= trailerAt) return "trailer";
    return fileOffset >= plist.start && fileOffset < plist.end ? "property list" : undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#kept.clear();
    await this.#file[Symbol.asyncDispose]();
  }

  /** Chunks, and the gaps between them, which read as zeros. */
  *#pieces({ start, end }: Extent): Generator<Extent & { chunk: Chunk | undefined }> {
    let at = start;
    for (let i = seek(this.#chunks, start); at < end; i++) {
      const chunk = this.#chunks[i];
      const next = Math.min(end, chunk?.start ?? end);
      if (at < next) yield { start: at, end: next, chunk: undefined };
      at = Math.max(at, next);
      if (at >= end || chunk === undefined) return;
      const stop = Math.min(end, chunk.end);
      yield { start: at, end: stop, chunk };
      at = stop;
    }
  }

  async *#runs(range: Extent): AsyncGenerator<readonly Run[]> {
    for (const { start, end, chunk } of this.#pieces(range)) {
      const run = { start, end, shared: false, depth: 0 };
      if (chunk === undefined || chunk.kind === "ignore") yield [{ ...run, kind: "hole" }];
      else if (chunk.kind === "zero") yield [{ ...run, kind: "zero" }];
      else if (chunk.kind === "raw") {
        const place = { file: this.#file, at: chunk.at + start - chunk.start, bytes: end - start };
        yield [{ ...run, kind: "data", place }];
      } else yield [{ ...run, kind: "compressed" }];
    }
  }

  /** Whether chunks that say something cover all of it: of what they ignore a checksum says nothing. */
  #isWhole(range: Extent): boolean {
    for (const { chunk } of this.#pieces(range))
      if (chunk === undefined || chunk.kind === "ignore") return false;
    return true;
  }

  async #sumOf(range: Extent): Promise<number> {
    let sum = 0;
    for (const { start, end, chunk } of this.#pieces(range)) {
      // One chunk may say so of a whole disk of 8 PiB.
      if (chunk?.kind === "zero") sum = crc32OfZeros(end - start, sum);
      else sum = await sumOf(this, { start, end }, sum);
    }
    return sum;
  }

  #unpacked(chunk: Chunk): Promise<Uint8Array> {
    let content = this.#kept.get(chunk);
    if (content === undefined) {
      content = this.#unpack(chunk);
      this.#kept.set(chunk, content);
      content.catch(() => this.#kept.delete(chunk));
      const [oldest] = this.#kept.keys();
      if (this.#kept.size > KEPT_MAX) this.#kept.delete(oldest!);
    }
    return content;
  }

  async #unpack({ kind, start, end, at, length }: Chunk): Promise<Uint8Array> {
    const packed = await readBytes(this.#file, at, length);
    const bytes = end - start;
    let content: Uint8Array;
    try {
      content = kind === "zlib" ? await inflated(packed, { maxOutputLength: bytes }) : bunzip2(packed, bytes);
    } catch (cause) {
      if (cause instanceof DiskError) throw cause;
      throw new DiskError("corrupt", `UDIF chunk of ${kind} at ${at}: it does not unpack to ${bytes} bytes`, {
        cause,
      });
    }
    if (content.length === bytes) return content;
    throw corrupt(`chunk of ${kind}`, at, `${content.length} bytes`, `${bytes}`);
  }
}

async function sumOf(device: Pick<ReadableFile, "read">, { start, end }: Extent, seed = 0): Promise<number> {
  let sum = seed;
  for (let at = start; at < end; at += STRIDE_BYTES) {
    const bytes = new Uint8Array(Math.min(STRIDE_BYTES, end - at));
    await device.read(at, bytes);
    sum = crc32(bytes, sum);
  }
  return sum;
}

function wrong(what: string, found: number, expected: number): Finding {
  const message = `checksum of ${what}: found ${found.toString(16)}, expected ${expected.toString(16)}`;
  return { kind: "error", isMendable: false, count: 1, message };
}
