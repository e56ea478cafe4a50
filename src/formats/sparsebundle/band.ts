/**
 * The files of a bundle's bands. There may be a hundred thousand: few are open at a time, and the length of each is
 * known from the beginning.
 *
 *   band 1f   idle ─ use → open ─ (64 others are used) → flushed where it was written, closed → idle
 */
import type { Extent } from "../../bytes/extents.ts";
import type { FileStatus, HostFile, Place, ReadableFile, Run, Zeroing } from "../../device/device.ts";
import { readsZeros } from "../../device/zeros.ts";
import { assert } from "../../error.ts";

/** Well below the usual limit of 1024 open files. */
const OPEN_MAX = 64;

/** Who is open, the least recently used first. */
export class OpenBands {
  /** A change failed: nothing more is promised, and no flush is tried again (H13). */
  hasFailed = false;
  readonly #open = new Set<Band>();

  /** @returns after room was made for it */
  async use(band: Band): Promise<void> {
    this.#open.delete(band);
    this.#open.add(band);
    for (const other of this.#open) {
      if (this.#open.size <= OPEN_MAX) return;
      if (other === band || other.isBusy) continue;
      this.#open.delete(other);
      await other.close();
    }
  }

  /** An open band is used at once. */
  touch(band: Band): void {
    this.#open.delete(band);
    this.#open.add(band);
  }

  forget(band: Band): void {
    this.#open.delete(band);
  }
}

/** One band, opened when it is used. */
export class Band<F extends ReadableFile = ReadableFile> implements ReadableFile {
  bytes: number;
  readonly #openFile: () => Promise<F>;
  protected readonly all: OpenBands;
  #file: Promise<F> | undefined;
  /** The same, once it is there. */
  #opened: F | undefined;
  #users = 0;

  constructor(bytes: number, openFile: () => Promise<F>, all: OpenBands) {
    this.bytes = bytes;
    this.#openFile = openFile;
    this.all = all;
  }

  get isBusy(): boolean {
    return this.#users > 0;
  }

  /** While the band is open. */
  locate(at: number, bytes: number, _access: "read" | "write"): Place | undefined {
    const file = this.#opened;
    const inside = Math.min(bytes, this.bytes - at);
    if (file === undefined || inside <= 0) return undefined;
    this.all.touch(this);
    return { file, at, bytes: inside };
  }

  read(at: number, into: Uint8Array): Promise<void> {
    return this.with((file) => file.read(at, into));
  }

  async *map(range: Extent): AsyncGenerator<readonly Run[]> {
    const batches: (readonly Run[])[] = [];
    await this.with(async (file) => {
      for await (const batch of file.map(range)) batches.push(batch);
    });
    for (const batch of batches) {
      yield batch.map((run) => (run.place ? { ...run, place: { ...run.place, file: this } } : run));
    }
  }

  stat(): Promise<FileStatus> {
    return this.with((file) => file.stat());
  }

  async close(): Promise<void> {
    assert(!this.isBusy, "a band in use stays open");
    this.all.forget(this);
    const file = this.#file;
    this.#file = undefined;
    this.#opened = undefined;
    if (file) await (await file)[Symbol.asyncDispose]();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  protected async with<T>(work: (file: F) => Promise<T>): Promise<T> {
    this.#users++;
    try {
      await this.all.use(this);
      this.#file ??= this.#openFile();
      this.#opened = await this.#file.catch((error: unknown) => this.#lost(error));
      return await work(this.#opened);
    } finally {
      this.#users--;
    }
  }

  /** What failed to open is tried anew next time. */
  #lost(error: unknown): never {
    this.#file = undefined;
    throw error;
  }
}

/** A band that is written; its lock is held while it is open, that of the bundle all the time. */
export class WritableBand extends Band<HostFile> implements HostFile {
  /** Written since the last flush. */
  #isDirty = false;
  /** It is about to be cut, and no place to write to. */
  #isJudged = false;

  override locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    if (access === "read") return super.locate(at, bytes, access);
    const place = this.all.hasFailed || this.#isJudged ? undefined : super.locate(at, bytes, access);
    if (place !== undefined) this.#isDirty = true;
    return place;
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.#change((file) => file.write(at, from));
  }

  zero(range: Extent, how?: Zeroing): Promise<void> {
    return this.#change((file) => file.zero(range, how));
  }

  discard(range: Extent): Promise<void> {
    return this.#change((file) => file.discard(range));
  }

  punch(range: Extent): Promise<void> {
    return this.#change((file) => file.punch(range));
  }

  truncate(bytes: number): Promise<void> {
    return this.#change((file) => file.truncate(bytes));
  }

  /** Becomes a file of no bytes where the host holds nothing of it, and it is found to be zeros. */
  cutIfEmpty(): Promise<void> {
    return this.#change(async (file) => {
      const all = { start: 0, end: file.bytes };
      if (file.bytes === 0 || file.isHole?.(all) !== true) return;
      this.#isJudged = true;
      try {
        if (await readsZeros(file, all)) await file.truncate(0);
      } finally {
        this.#isJudged = false;
      }
    });
  }

  async flush(): Promise<void> {
    if (!this.#isDirty) return;
    this.#isDirty = false;
    await this.#orFail((file) => file.flush());
  }

  override async close(): Promise<void> {
    try {
      if (!this.all.hasFailed) await this.flush();
    } finally {
      await super.close();
    }
  }

  #change(work: (file: HostFile) => Promise<void>): Promise<void> {
    this.#isDirty = true;
    return this.#orFail(async (file) => {
      try {
        await work(file);
      } finally {
        this.bytes = file.bytes;
      }
    });
  }

  async #orFail(work: (file: HostFile) => Promise<void>): Promise<void> {
    try {
      await this.with(work);
    } catch (error) {
      this.all.hasFailed = true;
      throw error;
    }
  }
}
