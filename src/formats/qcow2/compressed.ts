/**
 * Compressed clusters: a deflate stream without header (zlib) or a zstd frame, which starts at any byte and ends
 * somewhere in its last 512-byte sector. What follows it there is the next cluster's business.
 *
 *   … | stream of cluster 7 | stream of cluster 8 | …      several to a host cluster, and across its borders
 *        ^ host offset
 *
 * A stream that yields more or less than one cluster is corrupt; none is inflated further than that (H24).
 */
import { constants, inflateRawSync, zstdDecompressSync } from "node:zlib";
import type { Qcow2Context } from "./context.ts";
import { corrupt } from "./corrupt.ts";

const CACHE_BYTES = 4 * 2 ** 20;

/** Inflates clusters, and keeps the last few: a guest reads a cluster piece by piece. */
export class CompressedClusters {
  readonly #context: Qcow2Context;
  readonly #countMax: number;
  readonly #recent = new Map<number, Uint8Array>();

  constructor(context: Qcow2Context) {
    this.#context = context;
    this.#countMax = Math.max(1, CACHE_BYTES / context.header.clusterBytes);
  }

  /**
   * The whole cluster whose stream lies at `host` and takes at most `hostBytes`. Not to be written into.
   * @throws DiskError `corrupt`
   */
  async read(host: number, hostBytes: number): Promise<Uint8Array> {
    const known = this.#recent.get(host);
    if (known !== undefined) return known;
    const { file, header } = this.#context;
    const stream = new Uint8Array(Math.min(hostBytes, file.bytes - host));
    await file.read(host, stream);
    const cluster = inflate(stream, header.compression, header.clusterBytes, host);
    this.#recent.set(host, cluster);
    if (this.#recent.size > this.#countMax) {
      const [oldest] = this.#recent.keys();
      this.#recent.delete(oldest!);
    }
    return cluster;
  }

  /** To be called when clusters of the file were given away: their place may hold another stream now. */
  forget(): void {
    this.#recent.clear();
  }
}

function inflate(
  stream: Uint8Array,
  compression: "zlib" | "zstd",
  clusterBytes: number,
  host: number,
): Uint8Array {
  const structure = `${compression} cluster`;
  const expected = `a stream of ${clusterBytes} bytes`;
  const limits = { maxOutputLength: clusterBytes, chunkSize: clusterBytes };
  let cluster: Uint8Array;
  try {
    cluster =
      compression === "zlib"
        ? inflateRawSync(stream, { ...limits, finishFlush: constants.Z_SYNC_FLUSH })
        : zstdDecompressSync(stream.subarray(0, zstdFrameBytes(stream)), limits);
  } catch (cause) {
    throw corrupt(structure, host, cause instanceof Error ? cause.message : cause, expected);
  }
  if (cluster.length !== clusterBytes) throw corrupt(structure, host, `${cluster.length} bytes`, expected);
  return cluster;
}

/**
 * Length of the zstd frame at the start of `stream`: the decoder would take what follows for another frame. Past the
 * end where the frame is cut short, and then the decoder complains. RFC 8878, section 3.1.1.
 *
 *   | magic: 4 | descriptor: 1 | window: 0-1 | dictionary: 0-4 | content size: 0-8 | blocks | checksum: 0 or 4 |
 */
function zstdFrameBytes(stream: Uint8Array): number {
  const descriptor = stream[4] ?? 0;
  const isSingleSegment = (descriptor >>> 5) & 1;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3]!;
  const sizeBytes = [isSingleSegment, 2, 4, 8][descriptor >>> 6]!;
  let at = 5 + (1 - isSingleSegment) + dictionaryBytes + sizeBytes;
  for (let isLast = false; !isLast && at + 3 <= stream.length;) {
    const header = stream[at]! | (stream[at + 1]! << 8) | (stream[at + 2]! << 16);
    const isRepeat = ((header >>> 1) & 3) === 1;
    at += 3 + (isRepeat ? 1 : header >>> 3);
    isLast = (header & 1) === 1;
  }
  return at + (descriptor & 4);
}
