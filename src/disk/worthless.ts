/**
 * What is allocated in the guest and yet worth nothing once it was shut down cleanly: swap, page files, stale hibernation
 * files.
 *
 *   swap file   | header, 64 KiB: kept | pages: worthless                        |
 *
 * The files stay as they are: no metadata of a filesystem is edited, only bytes that are theirs alone may go.
 */
import { ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import { concat } from "../device/concat.ts";
import { type BlockDevice, readBytes } from "../device/device.ts";
import { slice } from "../device/slice.ts";
import type { Refusal } from "../error.ts";
import type { FileSystem, FoundFile } from "../filesystems/filesystem.ts";
import { swap } from "../filesystems/swap.ts";
import { allRegionsOf, type FileSystemContent, type Layout, onDisk, type Region } from "./layout.ts";
import { rootsOf } from "./leftovers.ts";
import type { WorthlessWord } from "./results.ts";

/** What the guest wants to find again; of a swap area its UUID and label. */
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

const SWAP_FILES = [
  "/swapfile",
  "/swap.img",
  "/.swapfile",
  "/swap/swapfile",
  "/@swap/swapfile",
  "/var/swapfile",
  "/var/swap",
];
const WINDOWS_FILES: readonly (readonly [string, WorthlessWord])[] = [
  ["/pagefile.sys", "pagefile"],
  ["/swapfile.sys", "pagefile"],
  ["/hiberfil.sys", "hiberfil"],
];
/** Where Windows has them. Elsewhere a file of such a name is a copy that somebody wants to have. */
const WINDOWS_FILESYSTEMS = /^(ntfs|fat\d\d)$/;

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
    for (const [path, file] of await found(filesystem, [...swapFiles])) {
      const { refusal, scratch } = await swapAreaIn(region, file);
      if (refusal?.code === "hibernated") suspended ??= suspendedIn(region, path);
      contents.push(contentOf(region, { kind: "swap", path, file, scratch }));
    }
    if (!WINDOWS_FILESYSTEMS.test(filesystem.name)) continue;
    const paths = WINDOWS_FILES.map(([path]) => path);
    for (const [path, file] of await found(filesystem, paths)) {
      const kind = WINDOWS_FILES.find(([name]) => name === path)![1];
      const scratch = ExtentSet.of({ start: HEADER_BYTES, end: Number.MAX_SAFE_INTEGER });
      const dumped = kind === "pagefile" && (await holdsDump(region, file));
      const doubt = dumped ? "it holds a crash dump" : undefined;
      contents.push(contentOf(region, { kind, path, file, scratch, doubt }));
    }
  }
  return { contents: contents.filter(({ extents }) => extents.count > 0), suspended };
}

type ReadRegion = Region & { readonly content: FileSystemContent };

function isRead(region: Region): region is ReadRegion {
  return region.content.kind === "filesystem" && region.content.filesystem.refusal === undefined;
}

/** The files that are there; one of several names once. */
async function found(filesystem: FileSystem, paths: readonly string[]): Promise<Map<string, FoundFile>> {
  const files = new Map<string, FoundFile>();
  const owners = new Set<number>();
  for (const path of rootsOf(filesystem).flatMap((root) => paths.map((each) => root + each))) {
    const file = await filesystem.find(path);
    if (file?.kind !== "file" || file.bytes <= HEADER_BYTES || owners.has(file.owner)) continue;
    owners.add(file.owner);
    files.set(path, file);
  }
  return files;
}

function swapArea(region: ReadRegion, scratch: ExtentSet): Worthless {
  const kept = region.encrypted ? "it is encrypted" : undefined;
  return { kind: "swap", volume: region.name, path: "", extents: onDisk(region, scratch), kept };
}

interface Candidate {
  readonly kind: WorthlessWord;
  readonly path: string;
  readonly file: FoundFile;
  /** Bytes of the file that are worth nothing. */
  readonly scratch: ExtentSet;
  readonly doubt?: string | undefined;
}

function contentOf(region: ReadRegion, { kind, path, file, scratch, doubt }: Candidate): Worthless {
  const bytes = new ExtentBuilder();
  for (const { fileOffset, at, bytes: length } of file.extents) {
    for (const { start, end } of scratch.within({ start: fileOffset, end: fileOffset + length }))
      bytes.add(at + start - fileOffset, at + end - fileOffset);
  }
  const fixed = file.fixed === undefined ? undefined : `it is ${file.fixed}`;
  const kept = doubt ?? fixed ?? (region.encrypted ? "it is encrypted" : undefined);
  const extents = onDisk(region.content.members[0]!, bytes.build());
  return { kind, volume: region.name, path, extents, kept };
}

/** What a swap file says of itself. One with holes, or whose header was never written, is none. */
async function swapAreaIn(region: ReadRegion, file: FoundFile) {
  const content = withoutHoles(region, file);
  if (content === undefined || !(await swap.probe(content))) {
    return { refusal: undefined, scratch: ExtentSet.EMPTY };
  }
  const { refusal, scratch = ExtentSet.EMPTY } = await swap.open([content], { replay: false });
  return { refusal, scratch };
}

/** The file as a device. */
function withoutHoles(region: ReadRegion, { bytes, extents }: FoundFile): BlockDevice | undefined {
  const { device } = region.content.members[0]!;
  const parts = [];
  let end = 0;
  for (const { fileOffset, at, bytes: length, unwritten } of extents) {
    if (end >= bytes) break;
    const part = Math.min(length, bytes - end);
    if (fileOffset !== end || at + part > device.bytes || (unwritten && end < HEADER_BYTES)) return undefined;
    parts.push(slice(device, { start: at, end: at + part }));
    end += part;
  }
  return end < bytes ? undefined : concat(parts);
}

const DUMP = "PAGEDU";

/** After a crash the page file holds the memory until Windows has started again. */
async function holdsDump(region: ReadRegion, { extents: [first] }: FoundFile): Promise<boolean> {
  const { device } = region.content.members[0]!;
  if (first === undefined || first.fileOffset !== 0 || first.unwritten) return false;
  if (first.bytes < DUMP.length || first.at + DUMP.length > device.bytes) return false;
  return Buffer.from(await readBytes(device, first.at, DUMP.length)).toString("latin1") === DUMP;
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
/** More than a guest uses; each is looked for in all filesystems. */
const FSTAB_SWAPS_MAX = 32;

/** Swap files that the guest's own tables of mounts name. */
async function fstabOf(content: FileSystemContent): Promise<string[]> {
  const files = [];
  for (const root of rootsOf(content.filesystem))
    files.push(...(await swapFilesIn(content, `${root}/etc/fstab`)));
  return files;
}

async function swapFilesIn({ filesystem, members }: FileSystemContent, path: string): Promise<string[]> {
  const table = await filesystem.find(path);
  if (table?.kind !== "file" || table.bytes > FSTAB_BYTES_MAX || table.fixed === "compressed") return [];
  const text = Buffer.alloc(table.bytes);
  for (const { fileOffset, at, bytes, unwritten } of table.extents) {
    const length = Math.min(bytes, table.bytes - fileOffset, members[0]!.device.bytes - at);
    if (!unwritten && length > 0) text.set(await readBytes(members[0]!.device, at, length), fileOffset);
  }
  const lines = text
    .toString()
    .split("\n")
    .map((line) => line.trim().split(/\s+/));
  const paths = lines.flatMap(([what, , type]) =>
    type === "swap" && what?.startsWith("/") && !what.startsWith("/dev/") ? [what] : [],
  );
  return paths.slice(0, FSTAB_SWAPS_MAX);
}
