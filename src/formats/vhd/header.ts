/**
 * The dynamic disk header, which leads to the block table and to the parent.
 *
 *   | cxsparse | table offset | entries | block size | parent: id, name, 8 locators |
 *
 * A name of the parent is a path on the host that made the child; only its last part is looked for, beside the child.
 * Specification: Virtual Hard Disk Image Format Specification 1.0, "Dynamic Disk Header Format" and "Parent Locator".
 */
import {
  ascii,
  bits64be,
  type Decoded,
  raw,
  skip,
  struct,
  u32be,
  u64be,
  uuidText,
} from "../../bytes/struct.ts";
import { type ReadableFile, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { damaged } from "../blocks/damaged.ts";
import { checksumOf, DISK_BYTES_MAX, type FooterCopy, SECTOR_BYTES, VERSION } from "./footer.ts";

export const HEADER_COOKIE = "cxsparse";
const LOCATORS = 8;

export const Header = struct({
  cookie: ascii(8),
  dataOffset: bits64be,
  tableOffset: u64be,
  headerVersion: u32be,
  maxTableEntries: u32be,
  blockSize: u32be,
  checksum: u32be,
  parentUniqueId: raw(16),
  parentTimeStamp: u32be,
  reserved: skip(4),
  parentUnicodeName: raw(512),
  locators: raw(LOCATORS * 24),
  reserved2: skip(256),
});

export const Locator = struct({
  platformCode: ascii(4),
  platformDataSpace: u32be,
  platformDataLength: u32be,
  reserved: skip(4),
  platformDataOffset: bits64be,
});

/** Four times what a disk of 2 TiB in blocks of 512 KiB, the smallest that Hyper-V makes, needs. */
export const BLOCKS_MAX = 2 ** 24;
/** Windows makes blocks of 512 KiB and 2 MiB; a block must fit into memory. */
export const BLOCK_SIZE_MAX = 2 ** 28;
/** Longer paths exist on no host. */
const NAME_BYTES_MAX = 64 * 1024;

export interface DynamicHeader {
  readonly at: number;
  readonly fields: Decoded<typeof Header.fields>;
  /** File ranges that names of the parent take, by what they are. */
  readonly locators: readonly {
    readonly code: string;
    readonly at: number;
    readonly bytes: number;
    readonly spaceBytes: number;
  }[];
  readonly faults: readonly string[];
}

/** @throws DiskError `corrupt`, `unsupported` */
export async function readHeader(file: ReadableFile, { fields: footer }: FooterCopy): Promise<DynamicHeader> {
  const at = Number(footer.dataOffset);
  if (at % SECTOR_BYTES !== 0 || at + Header.bytes > file.bytes) {
    throw damaged("dynamic header", at, `a file of ${file.bytes} bytes`, "sectors inside of it");
  }
  const bytes = await readBytes(file, at, Header.bytes);
  const fields = Header.decode(bytes);
  if (fields.cookie !== HEADER_COOKIE)
    throw damaged("dynamic header", at, JSON.stringify(fields.cookie), HEADER_COOKIE);
  if (fields.headerVersion >>> 16 !== VERSION >>> 16) {
    throw new DiskError(
      "unsupported",
      `dynamic header of version ${fields.headerVersion >>> 16}: only 1 is supported`,
    );
  }
  requireTable(fields, at, file, footer.currentSize);
  const isSummed = checksumOf(bytes, Header.at.checksum) === fields.checksum;
  return {
    at,
    fields,
    locators: locatorsOf(fields.locators, file),
    faults: isSummed ? [] : ["the checksum of the dynamic header is wrong"],
  };
}

export function isBlockSize(bytes: number): boolean {
  return bytes >= SECTOR_BYTES && bytes <= BLOCK_SIZE_MAX && (bytes & (bytes - 1)) === 0;
}

function requireTable(
  fields: DynamicHeader["fields"],
  at: number,
  file: ReadableFile,
  diskBytes: number,
): void {
  const { blockSize, maxTableEntries, tableOffset } = fields;
  if (!isBlockSize(blockSize)) {
    throw damaged(
      "block size",
      at + Header.at.blockSize,
      blockSize,
      `a power of two up to ${BLOCK_SIZE_MAX}`,
    );
  }
  const needed = Math.ceil(diskBytes / blockSize);
  if (maxTableEntries < needed || maxTableEntries > BLOCKS_MAX) {
    const expected = `${needed} to ${BLOCKS_MAX}`;
    throw damaged("max table entries", at + Header.at.maxTableEntries, maxTableEntries, expected);
  }
  const end = tableOffset + maxTableEntries * 4;
  if (tableOffset % SECTOR_BYTES !== 0 || end > Math.min(file.bytes, DISK_BYTES_MAX)) {
    throw damaged(
      "block table",
      tableOffset,
      `${maxTableEntries} entries`,
      `sectors inside of ${file.bytes} bytes`,
    );
  }
  const isApart = end <= at || tableOffset >= at + Header.bytes;
  if (!isApart || Math.min(at, tableOffset) < SECTOR_BYTES) {
    throw damaged(
      "block table",
      tableOffset,
      `dynamic header at ${at}`,
      "both behind the footer copy, apart",
    );
  }
}

/** What does not lie in the file is nobody's name: it is passed over. */
function locatorsOf(bytes: Uint8Array, file: ReadableFile): DynamicHeader["locators"] {
  return Array.from({ length: LOCATORS }, (_, i) =>
    bytes.subarray(i * Locator.bytes, (i + 1) * Locator.bytes),
  ).flatMap((one) => {
    if (one.every((byte) => byte === 0)) return [];
    const { platformCode, platformDataSpace, platformDataLength, platformDataOffset } = Locator.decode(one);
    const at = Number(platformDataOffset);
    if (platformDataLength > NAME_BYTES_MAX || at + platformDataLength > file.bytes) return [];
    // In sectors by the specification; Windows writes bytes.
    const spaceBytes =
      platformDataSpace % SECTOR_BYTES === 0 ? platformDataSpace : platformDataSpace * SECTOR_BYTES;
    return [{ code: platformCode, at, bytes: platformDataLength, spaceBytes }];
  });
}

/** What a child says of its parent. */
export interface ParentNames {
  readonly id: string;
  /** Names of files beside the child, the likeliest first. */
  readonly names: readonly string[];
}

const UTF16BE = new TextDecoder("utf-16be");
const UTF16LE = new TextDecoder("utf-16le");

/** The names that locators give, and the one of the header: `W2ru` and `MacX` before what may be outdated. */
export async function readParentNames(file: ReadableFile, header: DynamicHeader): Promise<ParentNames> {
  const found = new Map<string, string>();
  for (const { code, at, bytes } of header.locators) {
    if (!LIKELIEST.includes(code)) continue;
    const data = await readBytes(file, at, bytes);
    const path = code === "MacX" ? pathOfUrl(Buffer.from(data).toString("utf8")) : UTF16LE.decode(data);
    found.set(code, lastPart(path));
  }
  const ordered = LIKELIEST.map((code) => found.get(code));
  const names = [...ordered, lastPart(UTF16BE.decode(header.fields.parentUnicodeName))];
  const usable = names.filter((name) => name !== undefined && name !== "" && name !== "." && name !== "..");
  return { id: uuidText(header.fields.parentUniqueId), names: [...new Set(usable as string[])] };
}

const LIKELIEST: readonly string[] = ["W2ru", "W2ku", "MacX"];

function lastPart(path: string): string {
  return path.split("\0", 1)[0]!.split(/[\\/]/).at(-1)!;
}

function pathOfUrl(url: string): string {
  try {
    return decodeURIComponent(url);
  } catch {
    return "";
  }
}
