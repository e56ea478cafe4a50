/**
 * What is allocated in the guest and yet worth nothing once it was shut down cleanly: swap, page files, stale hibernation
 * files.
 *
 *   swap file   | header, 64 KiB: kept | pages: worthless                        |
 *
 * The files stay as they are: no metadata of a filesystem is edited, only bytes that are theirs alone may go.
 */
import { ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import { readBytes } from "../device/device.ts";
import type { Refusal } from "../error.ts";
import type { FileSystem, FoundFile } from "../filesystems/filesystem.ts";
import { allRegionsOf, type FileSystemContent, type Layout, onDisk, type Region } from "./layout.ts";
import type { WorthlessWord } from "./results.ts";

/** Headers that the guest wants to find again: a swap area's with its UUID and label. */
const HEADER_BYTES = 64 * 1024;

export interface Worthless {
  readonly kind: WorthlessWord;
  readonly volume: string;
  /** Of the file; "" for a whole swap area. */
  readonly path: string;
  /** On the judged disk. */
  readonly extents: ExtentSet;
  /** Why it stays all the same. */
  readonly kept: string | undefined;
}

export interface WorthlessFindings {
  readonly contents: readonly Worthless[];
  /** The memory of a hibernated guest lies in one of its files (H3). */
  readonly suspended: Refusal | undefined;
}

const SWAP_FILES = ["/swapfile", "/swap.img", "/.swapfile", "/swap/swapfile", "/var/swapfile", "/var/swap"];
const WINDOWS_FILES: readonly (readonly [string, WorthlessWord])[] = [
  ["/pagefile.sys", "pagefile"],
  ["/swapfile.sys", "pagefile"],
  ["/hiberfil.sys", "hiberfil"],
];

/** Looks for them by name: reads directories, and the first pages of the files. @throws DiskError `io` */
export async function worthlessOn(layout: Layout): Promise<WorthlessFindings> {
  const contents: Worthless[] = [];
  let suspended: Refusal | undefined;
  const regions = [...allRegionsOf(layout)].filter(isRead);
  const swapFiles = new Set(SWAP_FILES);
  for (const { content } of regions) for (const path of await fstabOf(content)) swapFiles.add(path);
  for (const region of regions) {
    const { filesystem } = region.content;
    if (filesystem.scratch) contents.push(swapArea(region, filesystem.scratch));
    for (const path of swapFiles) {
      const file = await found(filesystem, path);
      if (file === undefined) continue;
      const header = await headerOf(region, file);
      const signature = swapSignatureOf(header);
      if (signature === "suspended") suspended ??= suspendedIn(region, path);
      if (signature === "swap") contents.push(contentOf(region, "swap", path, file));
    }
    for (const [path, kind] of WINDOWS_FILES) {
      const file = await found(filesystem, path);
      if (file === undefined) continue;
      const dumped = kind === "pagefile" && holdsDump(await headerOf(region, file));
      contents.push(contentOf(region, kind, path, file, dumped ? "it holds a crash dump" : undefined));
    }
  }
  return { contents: contents.filter(({ extents }) => extents.count > 0), suspended };
}

type ReadRegion = Region & { readonly content: FileSystemContent };

function isRead(region: Region): region is ReadRegion {
  return region.content.kind === "filesystem" && region.content.filesystem.refusal === undefined;
}

async function found(filesystem: FileSystem, path: string): Promise<FoundFile | undefined> {
  const file = await filesystem.find(path);
  return file !== undefined && file.bytes > HEADER_BYTES ? file : undefined;
}

function swapArea(region: ReadRegion, scratch: ExtentSet): Worthless {
  const kept = region.encrypted ? "it is encrypted" : undefined;
  return { kind: "swap", volume: region.name, path: "", extents: onDisk(region, scratch), kept };
}

function contentOf(
  region: ReadRegion,
  kind: WorthlessWord,
  path: string,
  file: FoundFile,
  doubt?: string,
): Worthless {
  const member = region.content.members[0]!;
  const bytes = new ExtentBuilder();
  for (const { fileOffset, at, bytes: length } of file.extents) {
    const skipped = Math.max(0, HEADER_BYTES - fileOffset);
    if (skipped < length) bytes.add(at + skipped, at + length);
  }
  const fixed = file.fixed === undefined ? undefined : `it is ${file.fixed}`;
  const kept = doubt ?? fixed ?? (region.encrypted ? "it is encrypted" : undefined);
  return { kind, volume: region.name, path, extents: onDisk(member, bytes.build()), kept };
}

/** The first bytes of a file, as far as they lie in one piece; zeros behind. */
async function headerOf(region: ReadRegion, { extents }: FoundFile): Promise<Buffer> {
  const header = Buffer.alloc(HEADER_BYTES);
  const { device } = region.content.members[0]!;
  for (const { fileOffset, at, bytes, unwritten } of extents) {
    if (unwritten || fileOffset >= HEADER_BYTES) continue;
    const length = Math.min(bytes, HEADER_BYTES - fileOffset, device.bytes - at);
    if (length > 0) header.set(await readBytes(device, at, length), fileOffset);
  }
  return header;
}

const PAGES = [4096, 8192, 16_384, 32_768, 65_536];
const SIGNATURE_BYTES = 10;

/** The last bytes of the first page say what a swap file is at the moment. */
function swapSignatureOf(header: Buffer): "swap" | "suspended" | undefined {
  for (const page of PAGES) {
    const found = header.toString("latin1", page - SIGNATURE_BYTES, page);
    if (found === "SWAPSPACE2" || found === "SWAP-SPACE") return "swap";
    if (/^(S[12]SUSPEND|ULSUSPEND|LINHIB0001)/.test(found)) return "suspended";
  }
  return undefined;
}

/** After a crash the page file holds the memory until Windows has started again. */
function holdsDump(header: Buffer): boolean {
  return header.toString("latin1", 0, 6) === "PAGEDU";
}

function suspendedIn({ name }: Region, path: string): Refusal {
  const where = name === "" ? path : `${path} on volume ${name}`;
  return {
    code: "hibernated",
    message: `the guest is hibernated: ${where} holds its memory`,
    hint: "resume the guest and shut it down",
  };
}

const FSTAB_BYTES_MAX = 64 * 1024;

/** Swap files that the guest's own table of mounts names. */
async function fstabOf({ filesystem, members }: FileSystemContent): Promise<string[]> {
  const table = await filesystem.find("/etc/fstab");
  if (table === undefined || table.bytes > FSTAB_BYTES_MAX || table.fixed === "compressed") return [];
  const text = Buffer.alloc(table.bytes);
  for (const { fileOffset, at, bytes, unwritten } of table.extents) {
    const length = Math.min(bytes, table.bytes - fileOffset, members[0]!.device.bytes - at);
    if (!unwritten && length > 0) text.set(await readBytes(members[0]!.device, at, length), fileOffset);
  }
  const lines = text
    .toString()
    .split("\n")
    .map((line) => line.trim().split(/\s+/));
  return lines.flatMap(([what, , type]) =>
    type === "swap" && what?.startsWith("/") && !what.startsWith("/dev/") ? [what] : [],
  );
}
