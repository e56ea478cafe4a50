/**
 * A file as it will be once its log is replayed: the updates lie over it in memory, and it may be longer.
 *
 *   replayed  |      | u |    | u |       | zeros  |
 *   file      |########################|            its end
 *
 * Specification: [MS-VHDX] 2.3.3.
 */
import type { Extent } from "../../bytes/extents.ts";
import type { BlockDevice, FileStatus, ReadableFile, Run } from "../../device/device.ts";
import { overlay } from "../../device/overlay.ts";
import { readPadded } from "../../device/padded.ts";
import { applyReplay, type Replay } from "./log.ts";

export async function replayed(file: ReadableFile, replay: Replay): Promise<ReadableFile> {
  const device = overlay(new LongerFile(file, replay.fileBytes));
  await applyReplay(device, replay);
  return {
    bytes: device.bytes,
    read: (at, into) => device.read(at, into),
    map: (range) => device.map(range),
    stat: async (): Promise<FileStatus> => ({ ...(await file.stat()), fileBytes: device.bytes }),
    [Symbol.asyncDispose]: () => file[Symbol.asyncDispose](),
  };
}

/** A file with zeros behind its end. */
class LongerFile implements BlockDevice {
  readonly bytes: number;
  readonly #file: ReadableFile;

  constructor(file: ReadableFile, bytes: number) {
    this.#file = file;
    this.bytes = bytes;
  }

  read(at: number, into: Uint8Array): Promise<void> {
    return readPadded(this.#file, at, into);
  }

  async *map(range: Extent): AsyncGenerator<readonly Run[]> {
    const end = Math.min(range.end, this.#file.bytes);
    if (range.start < end) yield* this.#file.map({ start: range.start, end });
    const start = Math.max(range.start, end);
    if (start < range.end) yield [{ start, end: range.end, kind: "hole", shared: false, depth: 0 }];
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}
