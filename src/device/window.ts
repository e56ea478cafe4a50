/**
 * A part of a file as a file of its own: a raw disk that lies inside of another file, or of a device.
 *
 *   file    |......[ window ]........|        what lies outside is neither read nor written
 *
 * The file belongs to the window and is closed with it.
 */
import type { Extent } from "../bytes/extents.ts";
import { assert, DiskError } from "../error.ts";
import type { FileStatus, HostFile, ReadableFile, Run, Zeroing } from "./device.ts";
import type { Source } from "./source.ts";

/** Which part of a file. */
export interface Window {
  readonly offset: number;
  /** Undefined: to the end of the file. */
  readonly bytes?: number | undefined;
}

/** The same source, of which only the window is seen. */
export function windowed(source: Source, window: Window): Source {
  const openWritable = source.openWritable?.bind(source);
  return {
    name: source.name,
    open: async () => within(await source.open(), window, (file, range) => new ReadableWindow(file, range)),
    ...(openWritable && {
      openWritable: async () =>
        within(await openWritable(), window, (file, range) => new WritableWindow(file, range)),
    }),
    refer: (name) => source.refer(name),
  };
}

/** @throws DiskError `usage` when the window does not lie in the file, which is then closed */
async function within<F extends ReadableFile, T>(
  file: F,
  { offset, bytes }: Window,
  make: (file: F, range: Extent) => T,
): Promise<T> {
  const end = offset + (bytes ?? file.bytes - offset);
  if (offset >= 0 && offset <= end && end <= file.bytes) return make(file, { start: offset, end });
  await file[Symbol.asyncDispose]();
  throw new DiskError(
    "usage",
    `a disk from ${offset} to ${end} does not lie in the file of ${file.bytes} bytes`,
    {
      hint: "--offset and --length are bytes of the file",
    },
  );
}

class ReadableWindow<F extends ReadableFile = ReadableFile> implements ReadableFile {
  readonly bytes: number;
  protected readonly file: F;
  readonly #start: number;

  constructor(file: F, { start, end }: Extent) {
    this.file = file;
    this.bytes = end - start;
    this.#start = start;
  }

  /** Every way into the file leads through here. */
  protected inFile({ start, end }: Extent): Extent {
    assert(start >= 0 && start <= end && end <= this.bytes, `${start}-${end} lies in ${this.bytes} bytes`);
    return { start: start + this.#start, end: end + this.#start };
  }

  tryRead(at: number, into: Uint8Array, offset: number, bytes: number): number {
    return this.file.tryRead?.(this.inFile({ start: at, end: at + bytes }).start, into, offset, bytes) ?? 0;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    await this.file.read(this.inFile({ start: at, end: at + into.length }).start, into);
  }

  /** Places stay in the window's own offsets: plans punch them through it. */
  async *map(range: Extent): AsyncIterable<readonly Run[]> {
    for await (const runs of this.file.map(this.inFile(range))) {
      yield runs.map(({ start: first, end: last, place, ...run }) => {
        const start = first - this.#start;
        const end = last - this.#start;
        return { ...run, start, end, ...(place && { place: { file: this, at: start, bytes: end - start } }) };
      });
    }
  }

  /** What the host stores is counted from its map, which block devices do not have. */
  async stat(): Promise<FileStatus> {
    const { blockBytes, hostBytes, identity } = await this.file.stat();
    const stored = hostBytes === null ? null : await this.#storedBytes();
    return { fileBytes: this.bytes, hostBytes: stored, blockBytes, identity };
  }

  async #storedBytes(): Promise<number> {
    let bytes = 0;
    for await (const runs of this.map({ start: 0, end: this.bytes })) {
      for (const { kind, start, end } of runs) if (kind !== "hole") bytes += end - start;
    }
    return bytes;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.file[Symbol.asyncDispose]();
  }
}

class WritableWindow extends ReadableWindow<HostFile> implements HostFile {
  tryWrite(at: number, from: Uint8Array, offset: number, bytes: number): number {
    return this.file.tryWrite?.(this.inFile({ start: at, end: at + bytes }).start, from, offset, bytes) ?? 0;
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    await this.file.write(this.inFile({ start: at, end: at + from.length }).start, from);
  }

  async punch(range: Extent): Promise<void> {
    await this.file.punch(this.inFile(range));
  }

  isHole(range: Extent): boolean {
    return this.file.isHole?.(this.inFile(range)) ?? false;
  }

  async zero(range: Extent, how?: Zeroing): Promise<void> {
    await this.file.zero(this.inFile(range), how);
  }

  async discard(range: Extent): Promise<void> {
    await this.file.discard(this.inFile(range));
  }

  async flush(): Promise<void> {
    await this.file.flush();
  }

  truncate(): Promise<void> {
    return Promise.reject(new DiskError("unsupported", "a part of a file keeps its length"));
  }
}
