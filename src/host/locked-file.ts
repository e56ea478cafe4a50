/**
 * A file or block device of the host that is written to: under its lock for as long as it is open (`lock.ts`).
 *
 * Zeros and holes are the host's to make; where it cannot, zeros are written, and holes are `unsupported`. A flush that
 * failed is never repeated: the file takes no more changes (H13).
 */
import { fdatasync, fstatSync, ftruncateSync, write, writeSync } from "node:fs";
import { promisify } from "node:util";
import type { Extent } from "../bytes/extents.ts";
import type { BlockDevice, HostFile, Zeroing } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { codeOf, hostError } from "./failure.ts";
import { HostReader, SLICE_BYTES, THREAD_BYTES, type Transfer } from "./file.ts";
import { type Medium, sizesOf } from "./medium.ts";
import type { Platform } from "./platform.ts";
import { fileCalls } from "./straight.ts";
import { turn } from "./turns.ts";

/** Punching is metadata only, and still takes its time on a fragmented file. */
const PUNCH_SLICE_BYTES = 1024 * 1024 * 1024;

const fdatasyncAsync = promisify(fdatasync);

const writeAsync: Transfer = (...words) =>
  new Promise((resolve, reject) =>
    write(...words, (error, put) => (error === null ? resolve(put) : reject(error))),
  );

const ZEROS = new Uint8Array(1024 * 1024);

/** Means to make a range read as zeros, from the best on, by what is to become of its space. */
const MEANS = {
  any: ["zeroRange", "punch"],
  keep: ["zeroRange"],
  free: ["punch", "zeroRange"],
} as const;

export class LockedFile extends HostReader implements HostFile {
  readonly #platform: Platform;
  /** Bytes of the host that punching set free, counted while the file is live. */
  returnedBytes = 0;
  #canZeroRange = true;
  #canPunch = true;
  /** The length was compared since the last punch. */
  #lengthProven = true;
  #punched = false;
  #clones = true;
  #broken: DiskError | undefined;

  /** The descriptor is open for writing and locked. */
  constructor(fd: number, path: string, host: Platform, medium?: Medium) {
    super(fd, path, medium);
    this.#platform = host;
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    this.#assertWhole();
    for (let done = 0; done < from.length;) {
      const want = Math.min(from.length - done, SLICE_BYTES);
      const offset = done;
      const put =
        want < THREAD_BYTES
          ? this.attempt("write", want, at + done, () => writeSync(this.fd, from, offset, want, at + offset))
          : await this.onThread("write", want, at + done, () =>
              writeAsync(this.fd, from, offset, want, at + offset),
            );
      if (put === 0)
        throw new DiskError("io", `${this.path}: write of ${want} bytes at ${at + done}: none written`);
      done += put;
      if (this.medium.kind === "file") this.length = Math.max(this.length, at + done);
      await turn();
    }
  }

  tryWrite(at: number, from: Uint8Array, offset: number, bytes: number): number {
    this.#assertWhole();
    if (at + bytes > this.length) return 0;
    try {
      return Math.max(fileCalls()?.write(this.fd, at, from, offset, bytes) ?? 0, 0);
    } catch (error) {
      throw hostError(error, `${this.path}: write of ${bytes} bytes at ${at}`);
    }
  }

  async punch(range: Extent): Promise<void> {
    this.#assertWhole();
    const inner = this.#inward(range);
    for (let at = inner.start; at < inner.end;) {
      const end = Math.min(at + PUNCH_SLICE_BYTES, inner.end);
      const slice = { start: at, end };
      const before = this.#allocatedBytes();
      this.attempt("punch", end - at, at, () => this.#platform.punch(this.fd, slice));
      this.returnedBytes += before - this.#allocatedBytes();
      this.#lengthProven = false;
      // The first punch tells whether this host keeps the length; the others are compared before the next flush.
      if (!this.#punched) this.#proveLength();
      this.#punched = true;
      at = end;
      await turn();
    }
    await this.#writeEdges(range, inner);
  }

  #allocatedBytes(): number {
    return this.isLive && this.medium.kind === "file" ? fstatSync(this.fd).blocks * 512 : 0;
  }

  async cloneFrom(source: BlockDevice, from: number, at: number, bytes: number): Promise<boolean> {
    this.#assertWhole();
    if (!this.#clones || !(source instanceof HostReader)) return false;
    // The host shares whole blocks only.
    if ([from, at, bytes].some((offset) => offset % this.medium.blockBytes !== 0)) return false;
    try {
      this.#platform.clone(source.fd, { start: from, end: from + bytes }, this.fd, at);
    } catch (error) {
      if (!CANNOT_CLONE.has(codeOf(error) ?? "")) {
        throw hostError(error, `${this.path}: clone of ${bytes} bytes at ${at}`);
      }
      this.#clones = false;
      return false;
    }
    this.length = Math.max(this.length, at + bytes);
    await turn();
    return true;
  }

  isHole(range: Extent): boolean {
    if (this.medium.kind === "device") return false;
    return this.#platform.isHole?.(this.fd, range) ?? false;
  }

  /** Ranges past the end lengthen the file. What the host's calls do comes first: it may turn out to be impossible. */
  async zero(range: Extent, how: Zeroing = {}): Promise<void> {
    this.#assertWhole();
    const within = { start: Math.min(range.start, this.length), end: Math.min(range.end, this.length) };
    const inner = this.#inward(within);
    if (inner.start < inner.end) await this.#zeroInner(inner, how);
    await this.#writeEdges(within, inner);
    if (range.end > this.length) await this.truncate(range.end);
  }

  async #zeroInner(range: Extent, { keep, fast }: Zeroing): Promise<void> {
    // A block device that cannot do it writes the zeros itself, as slowly as anybody.
    const canRange = !(fast && this.medium.kind === "device");
    for (const means of MEANS[keep === undefined ? "any" : keep ? "keep" : "free"]) {
      if (means === "zeroRange" && canRange && this.#zeroedRange(range)) return;
      if (means === "punch" && (await this.#punchedZeros(range))) return;
    }
    if (fast) {
      throw new DiskError("unsupported", `${this.#zeroing(range)}: the host would have to write them`);
    }
    await this.#writeZeros(range);
  }

  #zeroedRange(range: Extent): boolean {
    if (!this.#canZeroRange) return false;
    try {
      this.#platform.zeroRange(this.fd, range);
      return true;
    } catch (error) {
      if (!STEP_DOWN.has(codeOf(error) ?? "")) throw hostError(error, this.#zeroing(range));
      if (codeOf(error) === "ENOTSUP") this.#canZeroRange = false;
      return false;
    }
  }

  async #punchedZeros(range: Extent): Promise<boolean> {
    if (!this.#canPunch) return false;
    try {
      await this.punch(range);
      return true;
    } catch (error) {
      if (!(error instanceof DiskError && error.kind === "unsupported")) throw error;
      this.#canPunch = false;
      return false;
    }
  }

  #zeroing({ start, end }: Extent): string {
    return `${this.path}: zeroing of ${end - start} bytes at ${start}`;
  }

  async #writeZeros({ start, end }: Extent): Promise<void> {
    for (let at = start; at < end; at += ZEROS.length) {
      await this.write(at, ZEROS.subarray(0, Math.min(ZEROS.length, end - at)));
    }
  }

  /** What of `range` the host's calls can take. */
  #inward({ start, end }: Extent): Extent {
    const { alignBytes } = this.medium;
    const first = Math.ceil(start / alignBytes) * alignBytes;
    return { start: first, end: Math.max(first, Math.floor(end / alignBytes) * alignBytes) };
  }

  /** Writes zeros where the host's calls could not reach. */
  async #writeEdges(range: Extent, inner: Extent): Promise<void> {
    if (inner.start >= inner.end) return this.#writeZeros(range);
    await this.#writeZeros({ start: range.start, end: inner.start });
    await this.#writeZeros({ start: inner.end, end: range.end });
  }

  async discard(range: Extent): Promise<void> {
    try {
      await this.punch(this.#inward(range));
    } catch (error) {
      if (!(error instanceof DiskError && error.kind === "unsupported")) throw error;
    }
  }

  async truncate(bytes: number): Promise<void> {
    this.#assertWhole();
    if (this.medium.kind === "device") {
      throw new DiskError("unsupported", `${this.path}: a block device keeps its length`);
    }
    this.attempt("truncate", bytes, 0, () => ftruncateSync(this.fd, bytes));
    this.length = bytes;
  }

  /** After a failure the kernel may have dropped the dirty pages: nothing more is written through this file (H13). */
  async flush(): Promise<void> {
    this.#assertWhole();
    this.#proveLength();
    try {
      await fdatasyncAsync(this.fd);
    } catch (error) {
      throw this.#breakDown(hostError(error, `${this.path}: flush`));
    }
  }

  /** Some hosts have moved the end of a file in spite of KEEP_SIZE (facebook/rocksdb#2038). */
  #proveLength(): void {
    if (this.#lengthProven || this.medium.kind === "device") return;
    const { fileBytes } = sizesOf(this.fd, this.path);
    if (fileBytes !== this.length) {
      const message = `${this.path}: the file has ${fileBytes} bytes after a punch; expected ${this.length}`;
      throw this.#breakDown(new DiskError("io", message, { code: "host-lies" }));
    }
    this.#lengthProven = true;
  }

  #breakDown(error: DiskError): DiskError {
    this.#broken = error;
    return error;
  }

  #assertWhole(): void {
    if (this.#broken !== undefined) {
      throw new DiskError("io", `${this.path}: not written any more, since: ${this.#broken.message}`, {
        cause: this.#broken,
      });
    }
  }
}

/** Another filesystem, or one without reflinks; EINVAL also where the two may not share. */
const CANNOT_CLONE = new Set(["ENOTSUP", "EXDEV", "EINVAL", "ENOTTY", "ENOSYS", "EPERM", "ETXTBSY"]);

/** ZERO_RANGE may need room for its metadata where a hole needs none. */
const STEP_DOWN = new Set(["ENOTSUP", "ENOSPC", "EDQUOT"]);
