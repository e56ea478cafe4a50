/**
 * The trailer of a UDIF image: the last 512 bytes of the file. All numbers are big-endian.
 *
 *   | data fork: chunks | property list | … | koly |
 *
 * Specification: libmodi's "Mac OS disk image types", "Universal Disk Image Format". The limits are QEMU's.
 */
import { ascii, raw, skip, struct, u32be, u64be } from "../../bytes/struct.ts";
import { readBytes, type ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";

export const SECTOR_BYTES = 512;
const MAGIC = "koly";
/** Stands at the start of an encrypted image, of whatever kind. */
const ENCRYPTED = "encrcdsa";
/** QEMU reads no longer list. */
const PLIST_BYTES_MAX = 64 * 2 ** 20;

export const Checksum = struct({ type: u32be, bits: u32be, value: u32be, rest: skip(124) });
/** The one type of checksum that is in use, and verified. */
export const CRC32 = 2;

const Trailer = struct({
  magic: ascii(4),
  version: u32be,
  header_size: u32be,
  flags: u32be,
  running_data_fork_offset: u64be,
  data_fork_offset: u64be,
  data_fork_length: u64be,
  rsrc_fork_offset: u64be,
  rsrc_fork_length: u64be,
  segment_number: u32be,
  segment_count: u32be,
  segment_id: raw(16),
  data_checksum: raw(Checksum.bytes),
  xml_offset: u64be,
  xml_length: u64be,
  reserved: skip(120),
  master_checksum: raw(Checksum.bytes),
  image_variant: u32be,
  sector_count: u64be,
  reserved2: skip(12),
});

export interface Udif {
  readonly bytes: number;
  readonly data: { readonly start: number; readonly end: number };
  readonly plist: { readonly start: number; readonly end: number };
  readonly trailerAt: number;
  /** CRC-32 of the data fork, and of the checksums of all blocks; undefined: none that is known. */
  readonly dataChecksum: number | undefined;
  readonly masterChecksum: number | undefined;
}

export type Kind = "udif" | "encrypted" | undefined;

export async function kindOf(file: ReadableFile): Promise<Kind> {
  const textAt = async (at: number, bytes: number) =>
    Buffer.from(await readBytes(file, at, bytes)).toString("latin1");
  if (file.bytes < Trailer.bytes) return undefined;
  if ((await textAt(0, ENCRYPTED.length)) === ENCRYPTED) return "encrypted";
  return (await textAt(file.bytes - Trailer.bytes, MAGIC.length)) === MAGIC ? "udif" : undefined;
}

export function corrupt(what: string, at: number, found: string | number, expected: string): DiskError {
  return new DiskError("corrupt", `UDIF ${what} at ${at}: found ${found}, expected ${expected}`, {
    hint: "hdiutil verify, on a Mac, says whether the image is whole",
  });
}

/** @throws DiskError `corrupt`, `unsupported` */
export async function readTrailer(file: ReadableFile): Promise<Udif> {
  const kind = await kindOf(file);
  const trailerAt = file.bytes - Trailer.bytes;
  if (kind === "encrypted") {
    throw new DiskError("unsupported", `the Apple disk image is encrypted (${ENCRYPTED})`, {
      code: "encrypted",
    });
  }
  if (kind === undefined) throw corrupt("trailer: magic", Math.max(0, trailerAt), "other bytes", MAGIC);
  const trailer = Trailer.decode(await readBytes(file, trailerAt, Trailer.bytes));
  if (trailer.version !== 4 || trailer.header_size !== Trailer.bytes) {
    const { version, header_size: bytes } = trailer;
    throw new DiskError(
      "unsupported",
      `UDIF version ${version} of ${bytes} bytes; known is 4 of ${Trailer.bytes}`,
    );
  }
  if (trailer.segment_count > 1) {
    throw new DiskError(
      "unsupported",
      `the UDIF image has ${trailer.segment_count} segments; only one is read`,
      {
        hint: "join them: hdiutil convert, on a Mac",
      },
    );
  }
  if (trailer.xml_length === 0) {
    throw new DiskError(
      "unsupported",
      "the UDIF image describes its blocks in a resource fork, which is not read",
      {
        hint: "convert it: hdiutil convert, on a Mac",
      },
    );
  }
  if (trailer.xml_length > PLIST_BYTES_MAX) {
    throw corrupt(
      "property list",
      trailer.xml_offset,
      trailer.xml_length,
      `at most ${PLIST_BYTES_MAX} bytes`,
    );
  }
  const data = within(trailer.data_fork_offset, trailer.data_fork_length, trailerAt, "data fork");
  const plist = within(trailer.xml_offset, trailer.xml_length, trailerAt, "property list");
  const bytes = trailer.sector_count * SECTOR_BYTES;
  if (!Number.isSafeInteger(bytes))
    throw corrupt("trailer: sector_count", trailerAt, bytes, "less than 8 PiB");
  return {
    bytes,
    data,
    plist,
    trailerAt,
    dataChecksum: checksumOf(trailer.data_checksum),
    masterChecksum: checksumOf(trailer.master_checksum),
  };
}

function within(start: number, bytes: number, limit: number, what: string) {
  const end = start + bytes;
  if (end <= limit) return { start, end };
  throw corrupt(what, start, `an end at ${end}`, `an end before the trailer, ${limit}`);
}

export function checksumOf(bytes: Uint8Array): number | undefined {
  const { type, bits, value } = Checksum.decode(bytes);
  return type === CRC32 && bits === 32 ? value : undefined;
}
