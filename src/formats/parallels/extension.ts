/**
 * The format extension: one cluster that says what a Parallels image has besides its disk. Little-endian.
 *
 *   | magic | MD5 of all behind byte 24 | magic, flags, data_size, 0, data, to 8 bytes | … | end: 24 zeros |
 *   0       8                          24
 *
 *   dirty bitmap:  | size | id: 16 bytes | granularity | l1_size | l1_size × 8 bytes: 0, 1 or a sector of the file |
 *
 * Whoever changes the disk has to mark the bitmaps, which is not done here: an image that has one is only read.
 * Specification: QEMU's docs/interop/parallels.txt, "Format Extension".
 */
import { createHash } from "node:crypto";
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import { bits64le, raw, struct, u32le, u64le } from "../../bytes/struct.ts";
import { readBytes, type ReadableFile } from "../../device/device.ts";
import { corrupt, type Geometry, SECTOR_BYTES } from "./header.ts";

const MAGIC = 0xab23_4cef_23dc_ea87n;
const DIRTY_BITMAP = 0x2038_5fae_252c_b34an;
const END = 0n;
/** The largest that is read: bitmaps of more lie in clusters of their own. */
const BYTES_MAX = 64 * 2 ** 20;

const Head = struct({ magic: bits64le, checksum: raw(16) });
const Section = struct({ magic: bits64le, flags: bits64le, data_size: u32le, unused: u32le });
const Bitmap = struct({ size: u64le, id: raw(16), granularity: u32le, l1_size: u32le });

export interface Extension {
  /** The extension's own cluster, and those of its bitmaps. */
  readonly clusters: ExtentSet;
  readonly bitmaps: number;
  /** Features that are not known, by their magic. */
  readonly unknown: readonly string[];
}

/** @throws DiskError `corrupt` */
export async function readExtension(file: ReadableFile, geometry: Geometry): Promise<Extension | undefined> {
  const { extensionAt: at, clusterBytes, dataAt } = geometry;
  if (at === 0) return undefined;
  const end = at + clusterBytes;
  if (at < dataAt || end > file.bytes || clusterBytes > BYTES_MAX || clusterBytes < Head.bytes) {
    throw corrupt("format extension", at, `${at}-${end}`, `a cluster between ${dataAt} and ${file.bytes}`);
  }
  const cluster = await readBytes(file, at, clusterBytes);
  const head = Head.decode(cluster);
  if (head.magic !== MAGIC) {
    throw corrupt("format extension: magic", at, head.magic.toString(16), MAGIC.toString(16));
  }
  const checksum = createHash("md5").update(cluster.subarray(Head.bytes)).digest();
  if (!checksum.equals(head.checksum)) {
    throw corrupt(
      "format extension: checksum",
      at + 8,
      Buffer.from(head.checksum).toString("hex"),
      checksum.toString("hex"),
    );
  }
  return readSections(cluster, file, geometry);
}

function readSections(cluster: Uint8Array, file: ReadableFile, geometry: Geometry): Extension {
  const { extensionAt, clusterBytes } = geometry;
  const clusters: Extent[] = [{ start: extensionAt, end: extensionAt + clusterBytes }];
  const unknown: string[] = [];
  let bitmaps = 0;
  let at = Head.bytes;
  for (;;) {
    const section = Section.decode(cluster, at);
    if (section.magic === END) break;
    const data = at + Section.bytes;
    const end = data + section.data_size;
    if (end > cluster.length) {
      throw corrupt(
        "format extension: section",
        extensionAt + at,
        `an end at ${end}`,
        `one in ${cluster.length}`,
      );
    }
    if (section.magic === DIRTY_BITMAP) {
      bitmaps++;
      clusters.push(...bitmapClusters(cluster.subarray(data, end), file, geometry));
    } else unknown.push(`0x${section.magic.toString(16)}`);
    at = data + Math.ceil(section.data_size / 8) * 8;
  }
  return { clusters: ExtentSet.from(clusters), bitmaps, unknown };
}

function* bitmapClusters(section: Uint8Array, file: ReadableFile, geometry: Geometry): Generator<Extent> {
  const { extensionAt, dataAt, clusterBytes } = geometry;
  const { l1_size: entries } = Bitmap.decode(section);
  if (Bitmap.bytes + entries * 8 > section.length) {
    throw corrupt("dirty bitmap: l1_size", extensionAt, entries, `a table inside ${section.length} bytes`);
  }
  const view = new DataView(section.buffer, section.byteOffset, section.byteLength);
  for (let i = 0; i < entries; i++) {
    const sector = view.getBigUint64(Bitmap.bytes + i * 8, true);
    if (sector <= 1n) continue;
    const start = Number(sector) * SECTOR_BYTES;
    if (start < dataAt || start + clusterBytes > file.bytes) {
      throw corrupt(`dirty bitmap: L1 entry ${i}`, extensionAt, `sector ${sector}`, "a cluster of the file");
    }
    yield { start, end: start + clusterBytes };
  }
}
