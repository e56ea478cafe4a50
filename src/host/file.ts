/**
 * Files and block devices of the host, to read and to map. No lock is taken.
 *
 *   HostReader            reads, maps
 *     └── LockedFile      writes (`locked-file.ts`)
 *
 * Access is positional, in slices. Small ones are synchronous system calls, which are fastest, with a turn for the event
 * loop now and then; large ones run on a thread, so that one file is read while another is written. Of a live file nothing
 * waits for the disk but on a thread. Nothing is short: every call does all of it or throws.
 */
import { close, read, readSync } from "node:fs";
import { promisify } from "node:util";
import type { Extent } from "../bytes/extents.ts";
import type { FileStatus, PhysicalExtent, ReadableFile, Run } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { hostError } from "./failure.ts";
import { physicalExtents, runsOf } from "./map.ts";
import { type Medium, mediumOf, sizesOf } from "./medium.ts";
import { platform } from "./platform.ts";
import { fileCalls } from "./straight.ts";
import { turn } from "./turns.ts";

/** One system call moves at most this much, so that a large one cannot hold up the event loop for long. */
export const SLICE_BYTES = 4 * 1024 * 1024;
/** From here on a thread is worth its way. */
export const THREAD_BYTES = 512 * 1024;

const closeAsync = promisify(close);

/** The number of bytes that one system call moved. */
export type Transfer = (
  fd: number,
  buffer: Uint8Array,
  offset: number,
  bytes: number,
  at: number,
) => Promise<number>;

const readAsync: Transfer = (...words) =>
  new Promise((resolve, reject) =>
    read(...words, (error, got) => (error === null ? resolve(got) : reject(error))),
  );
export class HostReader implements ReadableFile {
  /** For messages. */
  readonly path: string;
  readonly medium: Medium;
  readonly fd: number;
  /** The file is mapped while it is being written to: nothing is settled for that. */
  isLive = false;
  protected length: number;
  #open = true;

  /** Takes over the descriptor. */
  constructor(fd: number, path: string, medium: Medium = mediumOf(fd, path)) {
    this.fd = fd;
    this.path = path;
    this.medium = medium;
    this.length = medium.bytes;
  }

  get bytes(): number {
    return this.length;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    for (let done = 0; done < into.length;) {
      const want = Math.min(into.length - done, SLICE_BYTES);
      const got = await this.#readSlice(at + done, into, done, want);
      if (got === 0) {
        const message = `${this.path}: read of ${into.length} bytes at ${at}: the file ends at ${at + done}`;
        throw new DiskError("io", message, { code: "short" });
      }
      done += got;
      await turn();
    }
  }

  /** A live file's server has others to serve: it does not wait for the disk itself. */
  async #readSlice(at: number, into: Uint8Array, offset: number, bytes: number): Promise<number> {
    const quick = this.isLive ? this.tryRead(at, into, offset, bytes) : 0;
    if (quick > 0) return quick;
    if (bytes < THREAD_BYTES && !this.isLive) {
      return this.attempt("read", bytes, at, () => readSync(this.fd, into, offset, bytes, at));
    }
    return this.onThread("read", bytes, at, () => readAsync(this.fd, into, offset, bytes, at));
  }

  tryRead(at: number, into: Uint8Array, offset: number, bytes: number): number {
    try {
      return Math.max(fileCalls()?.read(this.fd, at, into, offset, bytes) ?? 0, 0);
    } catch (error) {
      throw hostError(error, `${this.path}: read of ${bytes} bytes at ${at}`);
    }
  }

  /** Whether the host has all of it in memory. */
  isCached(at: number, bytes: number): boolean {
    return fileCalls()?.isCached(this.fd, at, bytes) ?? false;
  }

  /** Device files are all data: nothing tells what is allocated behind them. */
  async *map(range: Extent): AsyncIterable<readonly Run[]> {
    const host = this.medium.kind === "file" ? platform() : undefined;
    for (let at = range.start; at < range.end;) {
      const rest = { start: at, end: range.end };
      const batch = this.attempt("map", rest.end - at, at, () =>
        this.isLive ? host?.dataExtents?.(this.fd, rest) : host?.extents(this.fd, rest),
      );
      yield runsOf(this, rest, batch);
      at = batch?.end ?? range.end;
      await turn();
    }
  }

  physical(range: Extent): AsyncIterable<readonly PhysicalExtent[]> {
    return physicalExtents(this.medium, range, (rest) =>
      this.attempt("map", rest.end - rest.start, rest.start, () => platform()?.extents(this.fd, rest)),
    );
  }

  forget(): void {
    platform()?.forget?.(this.fd);
  }

  async stat(): Promise<FileStatus> {
    const { blockBytes, identity, kind } = this.medium;
    if (kind === "device") return { fileBytes: this.length, hostBytes: null, blockBytes, identity };
    return { ...sizesOf(this.fd, this.path), blockBytes, identity };
  }

  /** Runs a system call, and gives its failure a name and a place. */
  protected attempt<T>(doing: string, bytes: number, at: number, call: () => T): T {
    try {
      return call();
    } catch (error) {
      throw hostError(error, `${this.path}: ${doing} of ${bytes} bytes at ${at}`);
    }
  }

  /** The same on a thread. */
  protected async onThread<T>(doing: string, bytes: number, at: number, call: () => Promise<T>): Promise<T> {
    try {
      return await call();
    } catch (error) {
      throw hostError(error, `${this.path}: ${doing} of ${bytes} bytes at ${at}`);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    await closeAsync(this.fd);
  }
}
