/**
 * The copy against the source, byte by byte: what was copied is the same, and everything else in the copy is zeros.
 *
 *   source  |######|????|#####|      what is used and holds something
 *   copy    |######|0000|#####|
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice } from "../../device/device.ts";
import { readPadded } from "../../device/padded.ts";
import { DiskError } from "../../error.ts";

export interface Comparing {
  readonly source: BlockDevice;
  readonly made: BlockDevice;
  /** What must be the same. */
  readonly data: ExtentSet;
  /** What else the copy holds must be zeros; not so where it has a parent. */
  readonly restIsZeros: boolean;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
}

const PIECE_BYTES = 1024 * 1024;

/** @throws DiskError `io` with code `differs`, naming the first byte; `interrupted` */
export async function compare(comparing: Comparing): Promise<void> {
  const { source, made, data } = comparing;
  const rest = comparing.restIsZeros ? (await stored(made)).subtract(data) : ExtentSet.EMPTY;
  const totalBytes = data.bytes + rest.bytes;
  const [ours, theirs] = [Buffer.alloc(PIECE_BYTES), Buffer.alloc(PIECE_BYTES)];
  let doneBytes = 0;
  const expect = async (range: Extent, read: (at: number, into: Uint8Array) => Promise<void>) => {
    for (let at = range.start; at < range.end; at += PIECE_BYTES) {
      if (comparing.signal?.aborted) throw new DiskError("interrupted", "interrupted; nothing was made");
      const bytes = Math.min(PIECE_BYTES, range.end - at);
      const expected = ours.subarray(0, bytes);
      const found = theirs.subarray(0, bytes);
      await Promise.all([read(at, expected), made.read(at, found)]);
      if (!expected.equals(found)) throw differs(at, expected, found);
      comparing.onProgress?.((doneBytes += bytes), totalBytes);
    }
  };
  for (const range of data) await expect(range, (at, into) => readPadded(source, at, into));
  for (const range of rest) {
    await expect(range, async (_, into) => {
      into.fill(0);
    });
  }
}

/** What a device does not promise to be zeros. */
async function stored(device: BlockDevice): Promise<ExtentSet> {
  const found = new ExtentBuilder();
  for await (const runs of device.map({ start: 0, end: device.bytes })) {
    for (const { kind, start, end } of runs) if (kind !== "hole" && kind !== "zero") found.add(start, end);
  }
  return found.build();
}

function differs(at: number, expected: Buffer, found: Buffer): DiskError {
  const offset = expected.findIndex((byte, i) => byte !== found[i]);
  const message = `the copy reads ${found[offset]} at offset ${at + offset}, expected ${expected[offset]}`;
  return new DiskError("io", message, {
    code: "differs",
    hint: "nothing was put into place; test the host's memory and disk, and please report it",
  });
}
