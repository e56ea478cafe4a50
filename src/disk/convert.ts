/**
 * Convert: a copy of a disk in any format, that holds only what its guest uses.
 *
 *   open → what is used → make beside the destination → copy → flush → compare? → look again → move into place
 *
 * The source is only read. Whatever fails or is interrupted, the destination is as it was before. Rooms: `selection`
 * (what has to be copied), `copy`, `compare`.
 */
import path from "node:path";
import { ExtentSet } from "../bytes/extents.ts";
import { DiskError } from "../error.ts";
import { FORMATS } from "../formats/all.ts";
import type { Image, ImageFormat } from "../formats/format.ts";
import { Destination, type Occupant, occupantOf, sweep } from "../host/destination.ts";
import { inUse } from "../host/inuse.ts";
import { draftSource } from "../host/source.ts";
import { hostFree } from "../host/space.ts";
import { allocationOf } from "./allocation.ts";
import { type Elder, identitiesOf, refuseParents } from "./children.ts";
import { compare } from "./convert/compare.ts";
import { copy } from "./convert/copy.ts";
import { select, type Selection } from "./convert/selection.ts";
import { type Disk, formatNamed, parentsOf, reading, refuseGuess, sourceOf, openImage } from "./open.ts";
import type { Converted, ConvertOptions, OpenOptions, Progress } from "./results.ts";
import { requireTestedHost, sizesOf } from "./survey.ts";
import { usageOf } from "./usage.ts";

/** What a file name means where nobody says `--to`. */
const SUFFIXES: Readonly<Record<string, string>> = {
  ".raw": "raw",
  ".img": "raw",
  ".qcow2": "qcow2",
  ".vhdx": "vhdx",
  ".vhd": "vhd",
  ".vpc": "vhd",
  ".vdi": "vdi",
  ".vmdk": "vmdk",
  ".hds": "parallels",
  ".hdd": "parallels",
  ".sparsebundle": "sparsebundle",
  ".sparseimage": "sparseimage",
};

/** Formats that are made above a parent with `backing_file`, and the formats that the parent may have. */
const PARENTS: Readonly<Record<string, string>> = {
  qcow2: "any",
  vhdx: "vhdx",
  vhd: "vhd",
  vdi: "vdi",
  vmdk: "vmdk",
};

/** Filesystems that say truly what of a file was never written, and what is not yet on the disk (H8). */
const HONEST = new Set(["ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs"]);
/** Filesystems that may share the blocks of the source, and so need no room for the copy. */
const SHARING = new Set(["btrfs", "xfs", "bcachefs", "ocfs2"]);

/**
 * Copies what the guest of `file` uses into a new image.
 * @throws DiskError `usage` when the destination exists or its format is not known, `busy` when somebody writes to the
 * source, `refused`, `unsupported`, `corrupt`, `interrupted`, `io`
 */
export async function convert(
  file: string,
  destination: string,
  options: ConvertOptions = {},
): Promise<Converted> {
  requireTestedHost(options);
  const format = formatFor(destination, options.to);
  const occupant = await occupantOf(destination, { replaces: options.force === true });
  return await reading(file, options, async (disk) => {
    refuseBusy(disk.inUse, file);
    refuseGuess(disk);
    const replaced = await refuseDestination(disk, { path: destination, format, occupant }, options);
    await sweep(destination);
    using place = new Destination(destination, { replaces: options.force === true });
    const converted = await make(disk, place, format, options);
    await refuseParts(place, replaced, options);
    for (const { path: each } of [disk, ...disk.companions]) refuseBusy(await inUse(each), each);
    if (options.signal?.aborted) throw new DiskError("interrupted", "interrupted; nothing was made");
    place.publish();
    return converted;
  });
}

/** @throws DiskError `usage` where neither a word nor the suffix says it, `unsupported` for one that is only read */
function formatFor(destination: string, stated: string | undefined): ImageFormat {
  const suffix = path.extname(destination).toLowerCase();
  const name = stated ?? SUFFIXES[suffix];
  if (name === undefined) {
    throw new DiskError("usage", `"${suffix}" says no format for the copy`, {
      hint: `say --to FORMAT: ${makers()}`,
    });
  }
  const format = formatNamed(name);
  if (format.create) return format;
  throw new DiskError("unsupported", `${name} images are not made`, { hint: `these are: ${makers()}` });
}

function makers(): string {
  const made = FORMATS.filter((format) => format.create !== undefined);
  return made.map(({ name }) => name).join(", ");
}

/** A copy of a disk that changes meanwhile is torn. */
function refuseBusy(isInUse: boolean, file: string): void {
  if (!isInUse) return;
  throw new DiskError("busy", `${file}: another process writes to it: a copy would be torn`, {
    code: "locked",
    hint: "shut the guest down first",
  });
}

interface Target {
  readonly path: string;
  readonly format: ImageFormat;
  readonly occupant: Occupant | undefined;
}

/**
 * Nothing that the source, or another image, is made of is replaced, and no folder that is no image.
 * @returns the identities of what may be replaced
 */
async function refuseDestination(
  disk: Disk,
  target: Target,
  options: ConvertOptions,
): Promise<ReadonlySet<string>> {
  const { path, occupant } = target;
  if (occupant === undefined) return new Set();
  if (occupant.kind === "folder") {
    const isImage = target.format.isBundle && (await target.format.probe(sourceOf(path, {})));
    if (!isImage) throw new DiskError("usage", `${path}: it is a directory, and no image`);
  }
  const old = await imageAt(path);
  const replaced = new Set([...occupant.identities(), ...old.identities]);
  for (let each: Image | undefined = disk.image; each !== undefined; each = each.parent) {
    for (const identity of await identitiesOf(each)) {
      if (!replaced.has(identity)) continue;
      throw new DiskError("usage", `${path}: the source is made of it`, {
        hint: "name another file, and replace this one afterwards",
      });
    }
  }
  if (occupant.kind === "file" && !options.allow?.children) {
    await refuseParents({ path, identities: replaced, identifiers: old.identifiers });
  }
  return replaced;
}

/** What is to be replaced: its files, and by what children know it; nothing where it cannot be read. */
async function imageAt(path: string): Promise<Pick<Elder, "identities" | "identifiers">> {
  try {
    await using image = await openImage(sourceOf(path, {}), {});
    return { identities: await identitiesOf(image), identifiers: image.identifiers ?? [] };
  } catch (error) {
    if (error instanceof DiskError) return { identities: new Set(), identifiers: [] };
    throw error;
  }
}

/** The user named one file: of the others, only those of the image that was there give way. */
async function refuseParts(
  place: Destination,
  replaced: ReadonlySet<string>,
  { force }: ConvertOptions,
): Promise<void> {
  for (const path of place.parts()) {
    const occupant = await occupantOf(path, { replaces: force === true });
    if (occupant === undefined || replaced.has(occupant.identity)) continue;
    throw new DiskError("usage", `${path}: it exists, and is no file of the image that is replaced`, {
      code: "exists",
      hint: "name another destination, or move this file away",
    });
  }
}

async function make(
  disk: Disk,
  place: Destination,
  format: ImageFormat,
  options: ConvertOptions,
): Promise<Converted> {
  const { image } = disk;
  const { selection, notes } = await selectionOf(disk, options);
  await requireRoom(disk.path, place, selection.data.bytes, options);
  const progress = (phase: Progress["phase"]) => (doneBytes: number, totalBytes: number) =>
    options.onProgress?.({ phase, doneBytes, totalBytes });
  const allowed: OpenOptions = options.allow ? { allow: options.allow } : {};
  // A parent is looked for from where the copy will lie, not from where it is made.
  const lies = path.join(place.directory, path.basename(place.draft));
  const source = draftSource(place.draft, lies, { outside: options.allow?.outside ?? [] });
  const parents = parentsOf(sourceOf(lies, allowed));
  const asked = {
    virtualBytes: image.bytes,
    options: { ...options.options, ...chainOf(disk, place, format, options) },
  };
  const hasParent = options.keepChain === true && image.parent !== undefined;
  const copied = await (async () => {
    await using target = await format.create!(source, asked, parents);
    if (target.bytes < image.bytes) {
      throw new DiskError("unsupported", `a ${format.name} of ${image.bytes} bytes cannot be made`);
    }
    const counted = await copy({
      source: image,
      target,
      data: selection.data,
      hasParent,
      signal: options.signal,
      onProgress: (doneBytes) => progress("copying")(doneBytes, selection.data.bytes),
    });
    for (const range of selection.blank) await target.zero(range);
    await target.flush();
    return counted;
  })();
  await using made = await format.open(source, parents);
  if (options.verify) {
    const { signal } = options;
    await refuseErrors(made);
    const data = hasParent
      ? ExtentSet.of({ start: 0, end: image.bytes }).subtract(selection.blank)
      : selection.data;
    await compare({
      source: image,
      made,
      data,
      restIsZeros: !hasParent,
      signal,
      onProgress: progress("verifying"),
    });
  }
  const { fileBytes, hostBytes } = await sizesOf(made);
  return {
    path: disk.path,
    destination: place.path,
    format: format.name,
    sourceFormat: image.format,
    virtualBytes: made.bytes,
    ...copied,
    fileBytes,
    hostBytes,
    verified: options.verify ? true : null,
    notes,
  };
}

async function selectionOf(
  disk: Disk,
  options: ConvertOptions,
): Promise<{ readonly selection: Selection; readonly notes: readonly string[] }> {
  const { image } = disk;
  const notes: string[] = [];
  const whole = ExtentSet.of({ start: 0, end: image.bytes });
  let kept = whole;
  if (!options.includeFree) {
    const usage = await usageOf(disk, await allocationOf(image), options);
    ({ kept } = usage);
    // The other disks of the guest are known only now.
    refuseBusy(disk.inUse, disk.path);
    for (const { name, reason, state } of usage.volumes) {
      if (state === "clean") continue;
      const what = name === "" ? "the whole disk" : `all of volume ${name}`;
      notes.push(`${what} is copied: ${reason?.message ?? "it is not understood"}`);
    }
  }
  const snapshots = await image.snapshots();
  if (snapshots.length > 0)
    notes.push(`${snapshots.length} snapshots are not copied, only the disk as it is`);
  const keepsChain = options.keepChain === true && image.parent !== undefined;
  const trustsHoles = HONEST.has((await hostFree(disk.path)).filesystem);
  return { selection: await select(image, { kept, keepsChain, trustsHoles }), notes };
}

/** @throws DiskError `io` with code `no-space` where the copy would not fit */
async function requireRoom(
  file: string,
  place: Destination,
  bytes: number,
  options: ConvertOptions,
): Promise<void> {
  const host = await hostFree(place.directory);
  const mayShare = SHARING.has(host.filesystem) && host.mount === (await hostFree(file)).mount;
  const compresses = options.options?.["subformat"] === "streamOptimized";
  if (mayShare || compresses || bytes <= host.freeBytes) return;
  throw new DiskError(
    "io",
    `${place.path}: ${bytes} bytes are to be copied, ${host.freeBytes} are free on ${host.mount}`,
    {
      code: "no-space",
      hint: "make room, or copy to another filesystem",
    },
  );
}

/** What names the source's parent in the copy. @throws DiskError `refused` where the copy cannot have it */
function chainOf(
  disk: Disk,
  place: Destination,
  format: ImageFormat,
  { keepChain }: ConvertOptions,
): Readonly<Record<string, string>> {
  const backing = disk.image.references.find(({ role }) => role === "backing");
  if (!keepChain || backing === undefined) return {};
  const refuse = (why: string) =>
    new DiskError("refused", `the chain cannot be kept: ${why}`, {
      code: "keep-chain",
      hint: "without --keep-chain the copy holds everything itself",
    });
  const parentFormat = disk.image.parent?.format;
  const above = PARENTS[format.name];
  if (above === undefined || parentFormat === undefined || !(above === "any" || above === parentFormat)) {
    throw refuse(`a ${format.name} is not made above a ${parentFormat ?? "parent"}`);
  }
  const directory = path.dirname(path.resolve(disk.path));
  if (!path.isAbsolute(backing.name) && directory !== place.directory) {
    throw refuse(`the parent "${backing.name}" lies beside the source, and the copy elsewhere`);
  }
  return { backing_file: backing.name, backing_fmt: parentFormat };
}

/** @throws DiskError `io` when what was just made is not whole */
async function refuseErrors(made: Image): Promise<void> {
  for await (const { kind, message } of made.check()) {
    if (kind === "error") throw new DiskError("io", `the copy has an error: ${message}`, { code: "differs" });
  }
}
