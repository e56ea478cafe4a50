/**
 * Opening: which format, whose parent, in use or not.
 *
 * The format comes from the content and never from a name; `--format` beats it (H21). A backing file needs the format
 * that its child states, consent for its place (H22), and an end to the chain (H24).
 */
import path from "node:path";
import { DiskError } from "../error.ts";
import { FORMATS } from "../formats/all.ts";
import type { Image, ImageFormat, OpenParent, WritableImage } from "../formats/format.ts";
import type { Source } from "../device/source.ts";
import type { BlockDevice } from "../device/device.ts";
import { windowed } from "../device/window.ts";
import { inUse } from "../host/inuse.ts";
import { hostSource } from "../host/source.ts";
import type { Keys } from "../volumes/volume.ts";
import { keysOf } from "./keys.ts";
import { disksBeside, distinctFrom, isUnreadable, missesMembers } from "./companions.ts";
import { allRegionsOf, type Layout, type LayoutOptions, layOut } from "./layout.ts";
import { foreignImage } from "./foreign-image.ts";
import { type GuardView, masked, refuseGuarded, viewGuard } from "./guarded.ts";
import type { OpenOptions } from "./results.ts";

/** QEMU has no limit; nobody has been seen with more than a few dozen. */
const CHAIN_MAX = 200;
/** Names that may be tried for one image: at each level of a chain there are a few, and all may lead on (H24). */
const TRIED_MAX = 4 * CHAIN_MAX;

/** Opens another disk of the same guest. */
type OpenCompanion = (file: string) => Promise<Disk>;

/** An open image and what lies on it. */
export class Disk<I extends Image = Image> implements AsyncDisposable {
  readonly path: string;
  readonly image: I;
  readonly source: Source;
  readonly options: OpenOptions;
  /** What a guard beside the image holds of it, where the image is only read. */
  readonly guard: GuardView | undefined;
  readonly #held: boolean;
  readonly #openCompanion: OpenCompanion | undefined;
  readonly #keys: Keys | undefined;
  readonly #headers: BlockDevice[] = [];
  #companions: readonly Disk[] = [];
  #layout: Promise<Layout> | undefined;

  /** @param openCompanion without it volumes on several disks stay closed */
  constructor(
    path: string,
    image: I,
    source: Source,
    held: boolean,
    options: OpenOptions,
    openCompanion?: OpenCompanion,
    guard?: GuardView,
  ) {
    this.guard = guard;
    this.path = path;
    this.image = image;
    this.source = source;
    this.options = options;
    this.#held = held;
    this.#openCompanion = openCompanion;
    this.#keys = keysOf(options);
  }

  /** Another process holds it, or a disk that it belongs to, for writing: what is read may be torn, and figures are not exact. */
  get inUse(): boolean {
    return this.#held || this.#companions.some(({ inUse }) => inUse);
  }

  /** The other disks of the guest, where some of its volumes lie on several. Known once `layout` is. */
  get companions(): readonly Disk[] {
    return this.#companions;
  }

  /** Partition tables, volumes and filesystems; read once. A running guest's journal is always dirty: it is replayed
   * in memory for the estimate, which is not exact anyway. */
  layout(): Promise<Layout> {
    this.#layout ??= this.#withHeaders(() => this.#layOut());
    return this.#layout;
  }

  /** What shows on a disk to which such a header belongs may be stale: each must open something. */
  async #withHeaders(layOut: () => Promise<Layout>): Promise<Layout> {
    const files = this.options.luksHeaders ?? [];
    for (const file of files) this.#headers.push(await hostSource(path.resolve(file)).open());
    const layout = await layOut();
    const used = new Set(
      [...allRegionsOf(layout)].map(({ content }) => content.kind === "table" && content.table.header),
    );
    const unused = files.find((_, i) => !used.has(this.#headers[i]!));
    if (unused === undefined) return layout;
    throw new DiskError("refused", `the LUKS header ${JSON.stringify(unused)} opens nothing on the disk`, {
      code: "luks-header-unused",
      hint: "is it the header of this disk, and the passphrase the right one?",
    });
  }

  async #layOut(): Promise<Layout> {
    const alone = await layOut([this.image], this.#layoutOptions());
    const openCompanion = this.#openCompanion;
    const { companions = [], candidates = [] } = this.options;
    const named = distinctFrom(this.path, companions);
    const others = distinctFrom(this.path, [...named, ...(missesMembers(alone) ? candidates : [])]);
    if (openCompanion === undefined || others.length === 0) return alone;
    const opened: Disk[] = [];
    this.#companions = opened;
    for (const file of named) opened.push(await openCompanion(file));
    let obstacle: unknown;
    for (const file of others.slice(named.length)) {
      try {
        opened.push(await openCompanion(file));
      } catch (error) {
        if (!isUnreadable(error)) obstacle ??= error;
      }
    }
    const layout = await this.#layOutTogether();
    if (missesMembers(layout)) {
      if (obstacle !== undefined) throw obstacle;
      return layout;
    }
    const beside = disksBeside(layout);
    const stays = (_: Disk, i: number): boolean => i < named.length || beside.has(i + 1);
    this.#companions = opened.filter(stays);
    if (this.#companions.length === opened.length) return layout;
    for (const disk of opened) if (!this.#companions.includes(disk)) await disk[Symbol.asyncDispose]();
    return await this.#layOutTogether();
  }

  #layOutTogether(): Promise<Layout> {
    return layOut([this.image, ...this.#companions.map(({ image }) => image)], this.#layoutOptions());
  }

  #layoutOptions(): LayoutOptions {
    const { allow } = this.options;
    return {
      replay: this.inUse || (allow?.replay ?? false),
      shadowLoss: allow?.shadowLoss ?? false,
      headers: this.#headers,
      ...(this.#keys && { keys: this.#keys }),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const other of [...this.#companions, ...this.#headers]) await other[Symbol.asyncDispose]();
    await this.image[Symbol.asyncDispose]();
  }
}

/**
 * Opens an image for reading: no lock is taken, and none is in the way.
 * @throws DiskError `corrupt`, `unsupported`, `refused`, `io`
 */
export async function open(file: string, options: OpenOptions = {}): Promise<Disk> {
  const held = await inUse(file);
  try {
    const source = sourceOf(file, options);
    const alone = withoutCompanions(options);
    const image = await openImage(source, options);
    const guard = options.window ? undefined : await viewGuard(file, image);
    const seen = guard === undefined || guard.doubt !== undefined ? image : masked(image, guard.state.tops);
    return new Disk(file, seen, source, held, options, (other) => open(other, alone), guard);
  } catch (error) {
    throw held ? torn(error) : error;
  }
}

/** For another disk of the same guest: a window is a part of one file only. */
function withoutCompanions(options: OpenOptions): OpenOptions {
  const { format, allow } = options;
  return { ...(format !== undefined && { format }), ...(allow && { allow }) };
}

/** The image alone, whoever holds it. @throws DiskError `corrupt`, `unsupported`, `refused`, `io` */
export async function openImage(source: Source, options: OpenOptions): Promise<Image> {
  const format = await formatOf(source, options);
  return await format.open(source, parentsOf(source));
}

/** Opens an image for `work`, in which corruption is no verdict while somebody else writes. @throws as `open` */
export async function reading<T>(
  file: string,
  options: OpenOptions,
  work: (disk: Disk) => Promise<T>,
): Promise<T> {
  await using disk = await open(file, options);
  try {
    return await work(disk);
  } catch (error) {
    throw disk.inUse ? torn(error) : error;
  }
}

/** What seems corrupt in an image that is being written to was read while it changed. */
function torn(error: unknown): unknown {
  if (!(error instanceof DiskError) || error.kind !== "corrupt") return error;
  return new DiskError("io", `the image changed while it was being read: ${error.message}`, {
    code: "torn",
    hint: "another process is writing to it; try again, or stop the guest first",
    cause: error,
  });
}

/**
 * Opens an image for writing, locked; the other disks of its guest will be locked with it.
 * @throws DiskError `busy` when it is held by another process, `refused` while a guard holds something of it, and as
 * `open`
 */
export async function openWritable(file: string, options: OpenOptions = {}): Promise<Disk<WritableImage>> {
  if (!options.withGuard) await refuseGuarded(file);
  const source = sourceOf(file, options);
  const format = await formatOf(source, options);
  if (!format.openWritable) throw new DiskError("unsupported", `${format.name} images are only read`);
  const image = await format.openWritable(source, parentsOf(source));
  try {
    await refuseTwoPlaces(image, source.folder !== undefined);
    // Asked before, because opening may write, and again, because only now nobody else can.
    if (!options.withGuard) await refuseGuarded(file);
    const alone = withoutCompanions(options);
    return new Disk(file, image, source, false, options, (other) => openWritable(other, alone));
  } catch (error) {
    await image[Symbol.asyncDispose]();
    throw error;
  }
}

/** What is free in one place of a chain is another place's content, if both are the same file. */
async function refuseTwoPlaces(image: Image, isBundle: boolean): Promise<void> {
  const names = new Map<string, string>();
  for (let each: Image | undefined = image; each !== undefined; each = each.parent) {
    for (const [name, file] of each.files) {
      // The snapshots of a bundle have its description in common, which nobody writes.
      if (isBundle && name === "" && each !== image) continue;
      const { identity } = await file.stat();
      const other = names.get(identity);
      if (other !== undefined) {
        const files = [other, name].map((one) => (one === "" ? "the image" : JSON.stringify(one)));
        throw new DiskError("corrupt", `${files.join(" and ")} are one file, which stands in two places`);
      }
      names.set(identity, name);
    }
  }
}

/** No disk of a guest is so small: what is describes one, and is its owner's work (a VMDK descriptor). */
const DESCRIPTION_BYTES_MAX = 64 * 1024;

/**
 * H21: the header that makes a file an image may be its guest's work, on a disk that its owner runs as raw. It may
 * harm that guest, but must not reach into another file. A folder is no guest's work, nor a file too short for a disk.
 * @throws DiskError `refused` when the format was not stated and the data lie in another file
 */
export function refuseGuess({ image, options, source }: Disk): void {
  const data = image.references.find(({ role }) => role === "data");
  if (data === undefined || options.format !== undefined || source.folder !== undefined) return;
  if ((image.files.get("")?.bytes ?? Infinity) <= DESCRIPTION_BYTES_MAX) return;
  throw new DiskError("refused", `by its content it is ${image.format} with its data in "${data.name}"`, {
    code: "format-guessed",
    hint: `if that is so, say --format ${image.format}`,
  });
}

export function sourceOf(file: string, options: OpenOptions): Source {
  const source = hostSource(path.resolve(file), { outside: options.allow?.outside ?? [] });
  return options.window ? windowed(source, options.window) : source;
}

/** @throws DiskError `usage` for a format that does not exist */
export function formatNamed(name: string): ImageFormat {
  const format = FORMATS.find((candidate) => candidate.name === name);
  if (format) return format;
  const known = FORMATS.map((candidate) => candidate.name).join(", ");
  throw new DiskError("usage", `there is no format "${name}"`, { hint: `known formats: ${known}` });
}

/**
 * @throws DiskError `unsupported` for a format that is known but not read, which must not pass as raw, `refused` for a
 * content that is two formats at once (H21)
 */
export async function formatOf(
  source: Source,
  { format: stated, window }: OpenOptions,
  formats: readonly ImageFormat[] = FORMATS,
): Promise<ImageFormat> {
  if (window !== undefined && stated !== undefined && stated !== "raw") {
    throw new DiskError("usage", `a part of a file is a raw disk, not ${stated}`);
  }
  if (window !== undefined) return formatNamed("raw");
  if (stated !== undefined) return formatNamed(stated);
  const isBundle = source.folder !== undefined;
  const found: ImageFormat[] = [];
  for (const format of formats) {
    if (format.name === "raw" || (format.isBundle ?? false) !== isBundle) continue;
    if (await format.probe(source)) found.push(format);
  }
  if (found.length > 1) throw ambiguous(found);
  if (found[0]) return found[0];
  if (isBundle) {
    throw new DiskError("unsupported", `${source.name}: it is a folder, and no bundle that is known`, {
      code: "not-a-file",
      hint: "name the image inside it",
    });
  }
  await using file = await source.open();
  const foreign = await foreignImage(file);
  if (foreign === undefined) return formatNamed("raw");
  throw new DiskError("unsupported", `this is a ${foreign} image, which is not supported yet`, {
    hint: "if it is a raw disk whose guest wrote that signature, say --format raw",
  });
}

function ambiguous(found: readonly ImageFormat[]): DiskError {
  const names = found.map(({ name }) => name);
  return new DiskError("refused", `by its content it is ${names.join(" and ")} at once`, {
    code: "format-ambiguous",
    hint: `say which it is: --format ${names.join(" or --format ")}, or --format raw`,
  });
}

/** Opens the images that `child` is based on, as far as a chain may reach. */
export function parentsOf(child: Source): OpenParent {
  return parentOpener(child, CHAIN_MAX, { left: TRIED_MAX });
}

function parentOpener(child: Source, depthLeft: number, tries: { left: number }): OpenParent {
  return async (name, stated): Promise<Image> => {
    if (depthLeft === 0)
      throw new DiskError("refused", `backing chain is longer than ${CHAIN_MAX}, or a loop`);
    if (tries.left-- <= 0)
      throw new DiskError("refused", `${TRIED_MAX} names were tried in search of the backing chain`);
    if (stated === undefined) {
      throw new DiskError("refused", `backing file "${name}" has no stated format`, {
        code: "backing-format",
        hint: "state it: qemu-img rebase -u -F FORMAT -b BACKING IMAGE",
      });
    }
    const source = await child.refer(name);
    return formatNamed(stated).open(source, parentOpener(source, depthLeft - 1, tries));
  };
}
