/**
 * A file of the host, in memory: with holes, unwritten and shared extents, a record of what was done to it, and
 * failures on demand. What a format or a plan does to it is what it would do to the host's own file.
 *
 *   const trace: Operation[] = [];
 *   const file = SimulatedFile.from(bytes, { trace });
 *   file.fault = { operation: file.operations + 3 };      the third change from now on fails
 */
import { open, readFile } from "node:fs/promises";
import { type Extent, ExtentSet } from "../bytes/extents.ts";
import type { FileStatus, HostFile, ReadableFile, Run, Zeroing } from "../device/device.ts";
import { assert, DiskError } from "../error.ts";
import { SparseContent } from "./sparse-content.ts";

/** One change to a file, as `crash.ts` replays it. */
export type Operation = { readonly file: string } & (
  | { readonly op: "write"; readonly at: number; readonly data: Uint8Array }
  | { readonly op: "punch" | "zero"; readonly range: Extent }
  | { readonly op: "truncate"; readonly bytes: number }
  | { readonly op: "flush" }
);

export interface Fault {
  /** Number of the change (write, zero, punch, truncate, flush; counted from 0) that fails with `io`. */
  readonly operation?: number;
  /** Number of the read that fails with `io`. */
  readonly read?: number;
  /** Every later one fails too. */
  readonly forever?: boolean;
  /** Number of the change that throws `PowerCut` instead, as does everything after it. */
  readonly powerCut?: number;
}

/** The lights went out: not a failure that a program may handle. */
export class PowerCut extends Error {
  override readonly name = "PowerCut";
}

export interface SimulatedFileOptions {
  /** The granule of holes in bytes. Default 4096. */
  readonly blockBytes?: number;
  /** The file's name in the trace and in its identity. Default "". */
  readonly name?: string;
  /** Where changes are recorded. May be shared by the files of one image: crashes need the common order. */
  readonly trace?: Operation[];
  /** How many bytes may be allocated before writes fail: a full host. */
  readonly capacityBytes?: number;
}

const SECTOR_BYTES = 512;
const MAP_BATCH_RUNS = 1024;

export class SimulatedFile implements HostFile {
  readonly name: string;
  fault: Fault = {};
  trace: Operation[] | undefined;
  capacityBytes: number;
  /** The host has no quick way to zeros: they are written. */
  zeroesSlowly = false;
  /** How many of so many bytes `tryRead` and `tryWrite` move at once. Default: none. */
  atOnce: ((bytes: number) => number) | undefined;
  /** Waited for before everything else that takes its time. */
  lag: (() => Promise<void>) | undefined;
  /** Extents that a reflink shares; a write or punch unshares. */
  shared: ExtentSet = ExtentSet.EMPTY;
  /** Set while somebody holds the lock of `openWritable`. */
  locked = false;
  /** How many changes were tried. */
  operations = 0;
  /** How many reads were tried. */
  reads = 0;
  #content: SparseContent;
  #bytes: number;
  #dead = false;

  constructor(bytes: number, options: SimulatedFileOptions = {}) {
    this.#bytes = bytes;
    this.#content = new SparseContent(options.blockBytes ?? 4096);
    this.name = options.name ?? "";
    this.trace = options.trace;
    this.capacityBytes = options.capacityBytes ?? Infinity;
  }

  /** A file that holds `content`, all of it allocated. */
  static from(content: Uint8Array, options: SimulatedFileOptions = {}): SimulatedFile {
    const file = new SimulatedFile(content.length, options);
    file.#content.write(0, content);
    return file;
  }

  /** A file with the content of a real one; blocks of zeros become holes. */
  static async load(path: string, options: SimulatedFileOptions = {}): Promise<SimulatedFile> {
    const content = await readFile(path);
    const file = new SimulatedFile(content.length, options);
    const { blockBytes } = file;
    const zeros = Buffer.alloc(blockBytes);
    for (let at = 0; at < content.length; at += blockBytes) {
      const block = content.subarray(at, at + blockBytes);
      if (!block.equals(zeros.subarray(0, block.length))) file.#content.write(at, block);
    }
    return file;
  }

  /** Writes the content to a real file, for foreign tools; holes stay holes. */
  async save(path: string): Promise<void> {
    const handle = await open(path, "w");
    try {
      await handle.truncate(this.#bytes);
      for (const block of this.#content.allocatedIn(0, Math.ceil(this.#bytes / this.blockBytes))) {
        const at = block * this.blockBytes;
        const bytes = this.peek(at, Math.min(this.blockBytes, this.#bytes - at));
        await handle.write(bytes, 0, bytes.length, at);
      }
    } finally {
      await handle.close();
    }
  }

  /** The same bytes in a second file: no trace, no faults, no lock; cheap, and neither sees the other's changes. */
  fork(options: Omit<SimulatedFileOptions, "blockBytes"> = {}): SimulatedFile {
    const copy = new SimulatedFile(this.#bytes, { name: this.name, ...options, blockBytes: this.blockBytes });
    copy.#content = this.#content.fork();
    copy.shared = this.shared;
    return copy;
  }

  get blockBytes(): number {
    return this.#content.blockBytes;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** What the host has allocated in bytes. */
  get hostBytes(): number {
    return this.#content.allocatedBlocks * this.blockBytes;
  }

  /** Bytes as they are, for assertions: counts as no read and never fails. */
  peek(at = 0, bytes = this.#bytes - at): Uint8Array {
    const into = new Uint8Array(bytes);
    this.#content.read(at, into);
    return into;
  }

  /** Allocates `range` without writing it (fallocate), growing the file where needed. */
  preallocate(range: Extent): void {
    this.#content.preallocate(range);
    this.#bytes = Math.max(this.#bytes, range.end);
  }

  stat(): Promise<FileStatus> {
    return Promise.resolve({
      fileBytes: this.#bytes,
      hostBytes: this.hostBytes,
      blockBytes: this.blockBytes,
      identity: `simulated:${this.name}`,
    });
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    if (this.lag !== undefined) await this.lag();
    const number = this.reads++;
    if (this.#dead) throw new PowerCut();
    const { read, forever } = this.fault;
    if (read !== undefined && (number === read || (forever && number > read))) {
      throw new DiskError("io", `${this.name}: injected failure of read ${number}`);
    }
    this.#mustLieInside({ start: at, end: at + into.length });
    this.#content.read(at, into);
  }

  map(range: Extent): AsyncIterable<readonly Run[]> {
    return this.#mapAs(this, range);
  }

  async *#mapAs(owner: ReadableFile, range: Extent): AsyncIterable<readonly Run[]> {
    this.#mustLieInside(range);
    let batch: Run[] = [];
    for (const run of this.#runs(range)) {
      const place = { file: owner, at: run.start, bytes: run.end - run.start };
      batch.push(run.kind === "hole" ? run : { ...run, place });
      if (batch.length === MAP_BATCH_RUNS) {
        yield batch;
        batch = [];
      }
    }
    if (batch.length > 0) yield batch;
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    if (this.lag !== undefined) await this.lag();
    const isFull = this.#wouldOverflow(at, from.length);
    this.#change({ op: "write", at, data: new Uint8Array(from) }, (data) => {
      if (isFull) throw new DiskError("io", `${this.name}: no space left on device`, { code: "no-space" });
      this.#content.write(at, data);
      this.#bytes = Math.max(this.#bytes, at + data.length);
      this.#unshare({ start: at, end: at + data.length });
    });
  }

  tryRead(at: number, into: Uint8Array, offset: number, bytes: number): number {
    const got = this.#dead ? 0 : Math.max(0, Math.min(this.atOnce?.(bytes) ?? 0, this.#bytes - at));
    if (got > 0) this.#content.read(at, into.subarray(offset, offset + got));
    return got;
  }

  tryWrite(at: number, from: Uint8Array, offset: number, bytes: number): number {
    const put = this.atOnce?.(bytes) ?? 0;
    if (put === 0 || at + bytes > this.#bytes || this.#wouldOverflow(at, bytes)) return 0;
    this.#change({ op: "write", at, data: from.slice(offset, offset + put) }, (data) => {
      this.#content.write(at, data);
      this.#unshare({ start: at, end: at + data.length });
    });
    return put;
  }

  async zero(range: Extent, { keep, fast }: Zeroing = {}): Promise<void> {
    this.#mustLieInside(range);
    if (fast && this.zeroesSlowly) throw new DiskError("unsupported", `${this.name}: zeros would be written`);
    if (keep === false) return this.punch(range);
    if (this.lag !== undefined) await this.lag();
    this.#change({ op: "zero", range }, () => {
      this.#content.zero(range);
      this.#unshare(range);
    });
  }

  async punch(range: Extent): Promise<void> {
    if (this.lag !== undefined) await this.lag();
    this.#mustLieInside(range);
    this.#change({ op: "punch", range }, () => {
      this.#content.punch(range);
      this.#unshare(range);
    });
  }

  /** As SEEK_DATA has it: what is allocated and was never written is no data. */
  isHole(range: Extent): boolean {
    this.#mustLieInside(range);
    for (const { kind } of this.#allocatedRuns(range)) if (kind === "data") return false;
    return true;
  }

  async discard(range: Extent): Promise<void> {
    const [whole] = ExtentSet.of(range).alignInward(this.blockBytes);
    if (whole) await this.punch(whole);
  }

  async truncate(bytes: number): Promise<void> {
    this.#change({ op: "truncate", bytes }, () => {
      if (bytes < this.#bytes) this.#content.punch({ start: bytes, end: this.#wholeBlocks(this.#bytes) });
      this.#bytes = bytes;
    });
  }

  async flush(): Promise<void> {
    if (this.lag !== undefined) await this.lag();
    this.#change({ op: "flush" }, () => {});
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.locked = false;
    return Promise.resolve();
  }

  /** A view that can only read. */
  readable(): ReadableFile {
    const bytes = () => this.#bytes;
    const view: ReadableFile = {
      get bytes() {
        return bytes();
      },
      read: (at, into) => this.read(at, into),
      map: (range) => this.#mapAs(view, range),
      stat: () => this.stat(),
      [Symbol.asyncDispose]: () => Promise.resolve(),
    };
    return view;
  }

  #unshare(range: Extent): void {
    this.shared = this.shared.subtract(ExtentSet.of(range).alignOutward(this.blockBytes));
  }

  #wholeBlocks(bytes: number): number {
    return Math.ceil(bytes / this.blockBytes) * this.blockBytes;
  }

  #wouldOverflow(at: number, bytes: number): boolean {
    if (this.capacityBytes === Infinity) return false;
    return this.hostBytes + this.#content.missing(at, bytes) * this.blockBytes > this.capacityBytes;
  }

  #mustLieInside({ start, end }: Extent): void {
    assert(start >= 0 && start <= end && end <= this.#bytes, `${start}-${end} lies in ${this.#bytes} bytes`);
  }

  /** Counts the change, lets it fail where a fault says so, applies and records it. */
  #change(operation: OperationOn, apply: (data: Uint8Array) => void): void {
    const number = this.operations++;
    const data = operation.op === "write" ? operation.data : UNUSED;
    if (this.#dead || number === this.fault.powerCut) {
      this.#dead = true;
      throw new PowerCut();
    }
    const { operation: failing, forever } = this.fault;
    if (failing !== undefined && (number === failing || (forever && number > failing))) {
      const half = data.subarray(0, Math.floor(data.length / 2 / SECTOR_BYTES) * SECTOR_BYTES);
      if (operation.op === "write" && half.length > 0) {
        apply(half);
        this.trace?.push({ ...operation, data: half, file: this.name });
      }
      throw new DiskError("io", `${this.name}: injected failure of ${operation.op} ${number}`);
    }
    apply(data);
    this.trace?.push({ ...operation, file: this.name });
  }

  *#runs(range: Extent): Generator<Run> {
    let at = range.start;
    for (const run of this.#allocatedRuns(range)) {
      if (run.start > at) yield { start: at, end: run.start, kind: "hole", shared: false, depth: 0 };
      yield* this.#splitByShared(run);
      at = run.end;
    }
    if (at < range.end) yield { start: at, end: range.end, kind: "hole", shared: false, depth: 0 };
  }

  *#allocatedRuns(range: Extent): Generator<Extent & { kind: "data" | "zero" }> {
    const { blockBytes } = this;
    const endBlock = Math.ceil(range.end / blockBytes);
    let open: { start: number; end: number; kind: "data" | "zero" } | undefined;
    for (const block of this.#content.allocatedIn(Math.floor(range.start / blockBytes), endBlock)) {
      const kind = this.#content.kind(block) === "data" ? "data" : "zero";
      const start = Math.max(range.start, block * blockBytes);
      const end = Math.min(range.end, (block + 1) * blockBytes);
      if (open?.end === start && open.kind === kind) {
        open.end = end;
        continue;
      }
      if (open) yield open;
      open = { start, end, kind };
    }
    if (open) yield open;
  }

  *#splitByShared(run: Extent & { kind: "data" | "zero" }): Generator<Run> {
    const piece = (start: number, end: number, shared: boolean): Run => ({
      start,
      end,
      kind: run.kind,
      shared,
      depth: 0,
    });
    let at = run.start;
    for (const { start, end } of this.shared.within(run)) {
      if (start > at) yield piece(at, start, false);
      yield piece(start, end, true);
      at = end;
    }
    if (at < run.end) yield piece(at, run.end, false);
  }
}

type OperationOn = Operation extends infer T ? (T extends Operation ? Omit<T, "file"> : never) : never;

const UNUSED = new Uint8Array(0);
