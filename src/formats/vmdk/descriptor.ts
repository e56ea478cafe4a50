/**
 * The descriptor: the lines of text that say of which extents a disk is made, and on which parent it is built. It is a
 * file of its own, or lies in the one extent of a monolithic image.
 *
 *   # Disk DescriptorFile
 *   version=1
 *   CID=a4a7c3f1                                  changes when the content does
 *   parentCID=ffffffff                            the parent's CID; ffffffff: there is no parent
 *   createType="twoGbMaxExtentSparse"
 *   parentFileNameHint="base.vmdk"
 *   RW 4192256 SPARSE "disk-s001.vmdk"            access, length in sectors, type, file, start in sectors
 *   RW 2101248 FLAT "disk-f002.vmdk" 0
 *   ddb.adapterType = "ide"                       the disk data base: what the guest's hardware is told
 *
 * Specification: VMware, Virtual Disk Format 5.0, "The Descriptor File".
 */
import { DiskError } from "../../error.ts";
import { quoted } from "./damaged.ts";

export const SECTOR_BYTES = 512;
/** parentCID of a disk that is built on none. */
export const NO_PARENT = "ffffffff";
/** VMware's hold a few hundred bytes and some dozen of lines; QEMU reads up to 1 MiB. */
export const DESCRIPTOR_BYTES_MAX = 64 * 1024;
/** 62 TiB, VMware's largest disk, in extents of 2 GiB would be 31,744; nobody splits disks beyond some TiB. */
const EXTENTS_MAX = 4096;
/** 64 TiB: VMware's largest disk has 62. */
export const SECTORS_MAX = 2 ** 37;

export interface ExtentLine {
  readonly access: string;
  readonly sectors: number;
  readonly type: string;
  /** Undefined for an extent without a file: ZERO. */
  readonly file: string | undefined;
  /** Where the extent begins in its file, in sectors. */
  readonly startSectors: number;
}

export interface Descriptor {
  /** As it lies on disk, a character for each byte. */
  readonly text: string;
  /** Eight hexadecimal digits, lower case. */
  readonly cid: string;
  readonly parentCid: string;
  readonly createType: string;
  readonly parentName: string | undefined;
  readonly extents: readonly ExtentLine[];
  /** Lines that mean nothing to us: who writes may break what they promise. */
  readonly unknown: readonly string[];
}

const EXTENT_LINE =
  /^(RW|RDONLY|NOACCESS)\s+(\d{1,15})\s+([A-Z]+)(?:\s+"([^"]*)"(?:\s+(\d{1,15}))?(?:\s+\S.*)?)?$/;
const SETTING = /^([A-Za-z][\w.]*)\s*=\s*(.*)$/;
const FIRST_LINE = "# Disk DescriptorFile";
const KNOWN = new Set([
  "version",
  "encoding",
  "CID",
  "parentCID",
  "isNativeSnapshot",
  "createType",
  "parentFileNameHint",
]);

/** Whether a file may begin like this and be a descriptor. */
export function isDescriptor(bytes: Uint8Array): boolean {
  const text = Buffer.from(bytes).toString("latin1");
  if (!text.toLowerCase().startsWith(FIRST_LINE.toLowerCase())) return false;
  const lines = linesOf(text).map((line) => line.trim());
  const first = lines.find((line) => line !== "" && !line.startsWith("#"));
  return first !== undefined && /^version\s*=/i.test(first);
}

function linesOf(text: string): string[] {
  return text.split(/\r\n|\n|\r/);
}

/**
 * @param bytes may be padded with NULs
 * @throws DiskError `corrupt`, `unsupported`
 */
export function parseDescriptor(bytes: Uint8Array): Descriptor {
  const padded = Buffer.from(bytes).toString("latin1");
  const end = padded.indexOf("\0");
  const text = end < 0 ? padded : padded.slice(0, end);
  const settings = new Map<string, string>();
  const lines: string[] = [];
  const unknown: string[] = [];
  for (const line of linesOf(text).map((each) => each.trim())) {
    if (line === "" || line.startsWith("#")) continue;
    const [, key, value] = SETTING.exec(line) ?? [];
    if (key === undefined) {
      if (/^(RW|RDONLY|NOACCESS)\s/.test(line)) lines.push(line);
      else unknown.push(line);
    } else if (KNOWN.has(key) && !settings.has(key)) settings.set(key, unquoted(value!));
    else if (!key.startsWith("ddb.")) unknown.push(line);
  }
  if (lines.length > EXTENTS_MAX) {
    throw new DiskError(
      "unsupported",
      `the descriptor lists ${lines.length} extents, the limit is ${EXTENTS_MAX}`,
    );
  }
  const version = settings.get("version") ?? "";
  if (!/^[1-3]$/.test(version)) {
    throw new DiskError("unsupported", `descriptor: version ${quoted(version)}, expected 1 to 3`);
  }
  const decode = decoderOf(settings.get("encoding"));
  const parentName = settings.get("parentFileNameHint");
  return {
    text,
    cid: contentId(settings, "CID"),
    parentCid: contentId(settings, "parentCID"),
    createType: settings.get("createType") ?? "",
    parentName: parentName === undefined ? undefined : decode(parentName),
    extents: lines.map((line) => parseExtent(line, decode)),
    unknown,
  };
}

function unquoted(value: string): string {
  return /^"(.*)"$/.exec(value)?.[1] ?? value;
}

/** How names are written: VMware says `UTF-8`, or a code page of Windows, of which we know the western one. */
function decoderOf(encoding: string | undefined): (text: string) => string {
  if (encoding !== undefined && encoding.toLowerCase() !== "utf-8") return (text) => text;
  return (text) => Buffer.from(text, "latin1").toString("utf8");
}

function contentId(settings: ReadonlyMap<string, string>, key: string): string {
  const value = settings.get(key) ?? "";
  if (/^[0-9a-f]{1,8}$/i.test(value)) return value.toLowerCase().padStart(8, "0");
  throw new DiskError(
    "corrupt",
    `descriptor: ${key} is ${quoted(value)}, expected up to 8 hexadecimal digits`,
  );
}

function parseExtent(line: string, decode: (text: string) => string): ExtentLine {
  const [, access, sectors, type, file, start] = EXTENT_LINE.exec(line) ?? [];
  if (access === undefined) {
    throw new DiskError(
      "corrupt",
      `descriptor: ${quoted(line)}, expected an extent: access, sectors, type, "file"`,
    );
  }
  const count = Number(sectors);
  if (count === 0 || count > SECTORS_MAX || Number(start ?? 0) > SECTORS_MAX) {
    throw new DiskError("corrupt", `descriptor: ${quoted(line)}, expected 1 to ${SECTORS_MAX} sectors`);
  }
  return {
    access,
    sectors: count,
    type: type!,
    file: file === undefined ? undefined : decode(file),
    startSectors: Number(start ?? 0),
  };
}

/** The same text with another CID, for a disk whose content is about to change. */
export function withCid(text: string, cid: string): string {
  return text.replace(/^([ \t]*CID[ \t]*=[ \t]*)[0-9A-Fa-f]{1,8}/m, `$1${cid}`);
}
