/**
 * Header extensions: what did not fit into the header's fixed part.
 *
 *   | type: 4 | length: 4 | data, padded to 8 bytes | … | type 0: the end |
 *
 * Specification: qcow2.txt, "Header extensions".
 */
import { ascii, bits64be, struct, u32be, u8, viewOf } from "../../bytes/struct.ts";
import { corrupt, hex, quoted, type Stretch } from "./corrupt.ts";

export const ExtensionType = {
  end: 0,
  backingFormat: 0xe2792aca,
  featureNames: 0x6803f857,
  bitmaps: 0x23852875,
  cryptoHeader: 0x0537be77,
  dataFileName: 0x44415441,
} as const;

export const FeatureName = struct({ kind: u8, bit: u8, name: ascii(46) });
export const BitmapsExtension = struct({
  count: u32be,
  reserved: u32be,
  directoryBytes: bits64be,
  directoryAt: bits64be,
});
const CryptoExtension = struct({ at: bits64be, bytes: bits64be });

/** One header extension; `at` is the file offset of its data. */
export interface Extension extends Stretch {
  readonly type: number;
}

/** The extensions up to the end marker; each is checked to lie before `end`. */
export function readExtensions(cluster: Uint8Array, start: number, end: number): Extension[] {
  const view = viewOf(cluster);
  const extensions: Extension[] = [];
  const stop = Math.min(end, cluster.length);
  for (let at = start; at + 8 <= stop;) {
    const type = view.getUint32(at);
    const bytes = view.getUint32(at + 4);
    if (type === ExtensionType.end) break;
    at += 8;
    if (bytes > stop - at) {
      throw corrupt(`header extension ${hex(type)}`, at - 8, `${bytes} bytes`, `at most ${stop - at}`);
    }
    extensions.push({ type, at, bytes });
    at += Math.ceil(bytes / 8) * 8;
  }
  return extensions;
}

/** The first extension of a type. */
export function one(extensions: readonly Extension[], type: number): Extension | undefined {
  return extensions.find((extension) => extension.type === type);
}

/** The data of an extension, or another stretch of the first cluster, as text. */
export function textOf(cluster: Uint8Array, stretch: Stretch | undefined): string | undefined {
  return stretch && Buffer.from(cluster.subarray(stretch.at, stretch.at + stretch.bytes)).toString("utf8");
}

/**
 * The incompatible features whose bits are set in `unknown`, by the names that the image has for them: whoever made
 * the image knew that not everybody knows them.
 */
export function featureNames(
  unknown: bigint,
  cluster: Uint8Array,
  extensions: readonly Extension[],
): string[] {
  const names = new Map<number, string>();
  const table = one(extensions, ExtensionType.featureNames);
  for (
    let at = table?.at ?? 0;
    table && at + FeatureName.bytes <= table.at + table.bytes;
    at += FeatureName.bytes
  ) {
    const { kind, bit, name } = FeatureName.decode(cluster, at);
    if (kind === 0) names.set(bit, name);
  }
  const listed: string[] = [];
  for (let bit = 0; bit < 64; bit++) {
    if ((unknown >> BigInt(bit)) & 1n) listed.push(`${quoted(names.get(bit) ?? "unnamed")} (bit ${bit})`);
  }
  return listed;
}

export function readCryptoHeader(cluster: Uint8Array, extension: Extension): Stretch {
  if (extension.bytes !== CryptoExtension.bytes) {
    throw corrupt(
      "crypto header extension",
      extension.at,
      `${extension.bytes} bytes`,
      `${CryptoExtension.bytes}`,
    );
  }
  const { at, bytes } = CryptoExtension.decode(cluster, extension.at);
  return { at: Number(at), bytes: Number(bytes) };
}

export function readBitmapsExtension(
  cluster: Uint8Array,
  extension: Extension,
): Stretch & { readonly count: number } {
  if (extension.bytes !== BitmapsExtension.bytes) {
    throw corrupt("bitmaps extension", extension.at, `${extension.bytes} bytes`, `${BitmapsExtension.bytes}`);
  }
  const { count, directoryAt, directoryBytes } = BitmapsExtension.decode(cluster, extension.at);
  return { count, at: Number(directoryAt), bytes: Number(directoryBytes) };
}
