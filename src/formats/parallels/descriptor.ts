/**
 * `DiskDescriptor.xml`: which files hold a Parallels disk, and which snapshot each of them is.
 *
 *   Disk_Parameters   Disk_size (sectors), Padding (0)
 *   StorageData       Storage: Start, End, Blocksize (sectors); for each snapshot an Image: GUID, Type, File
 *   Snapshots         TopGUID; Shot: GUID, ParentGUID
 *
 * Specification: QEMU's docs/interop/prl-xml.txt.
 */
import { type Element, parseXml } from "../../bytes/xml.ts";
import { readBytes, type ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { SECTOR_BYTES } from "./header.ts";

export const DESCRIPTOR = "DiskDescriptor.xml";
const ROOT = "Parallels_disk_image";
const VERSION = "1.0";
/** The snapshot that is written to, where no TopGUID says otherwise. */
const TOP = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
const NONE = "{00000000-0000-0000-0000-000000000000}";
/** A file for each of thousands of snapshots; far more than Parallels makes. */
const DESCRIPTOR_BYTES_MAX = 16 * 2 ** 20;
/** As for chains of other formats. */
const LAYERS_MAX = 200;

export interface StorageImage {
  readonly guid: string;
  readonly type: "Plain" | "Compressed";
  readonly file: string;
}

export interface Storage {
  /** The range of the disk in bytes. */
  readonly start: number;
  readonly end: number;
  readonly clusterBytes: number;
  readonly images: ReadonlyMap<string, StorageImage>;
}

export interface Descriptor {
  readonly bytes: number;
  /** In the order of the disk, without gaps. */
  readonly storages: readonly Storage[];
  /** From a snapshot to its parent. */
  readonly shots: ReadonlyMap<string, string>;
  readonly top: string;
}

/** Whether a descriptor says that it is one. */
export async function isDescriptor(file: ReadableFile): Promise<boolean> {
  try {
    return (await rootOf(file)).name === ROOT;
  } catch (error) {
    if (error instanceof DiskError) return false;
    throw error;
  }
}

async function rootOf(file: ReadableFile): Promise<Element> {
  if (file.bytes > DESCRIPTOR_BYTES_MAX)
    throw wrong("its length", file.bytes, `at most ${DESCRIPTOR_BYTES_MAX}`);
  return parseXml(await readBytes(file, 0, file.bytes), DESCRIPTOR);
}

/** @throws DiskError `corrupt`, `unsupported` */
export async function readDescriptor(file: ReadableFile): Promise<Descriptor> {
  const root = await rootOf(file);
  if (root.name !== ROOT) throw wrong("the outermost element", root.name, ROOT);
  const version = root.attributes.get("Version");
  if (version !== VERSION) {
    throw new DiskError("unsupported", `${DESCRIPTOR}: Version ${version}; only ${VERSION} is known`);
  }
  const parameters = one(root, "Disk_Parameters");
  const padding = parameters.children.find(({ name }) => name === "Padding")?.text.trim() ?? "0";
  if (padding !== "0")
    throw new DiskError("unsupported", `${DESCRIPTOR}: Padding ${padding} is not specified`);
  const bytes = sectors(parameters, "Disk_size");
  const storages = all(one(root, "StorageData"), "Storage").map(readStorage);
  storages.sort((a, b) => a.start - b.start);
  let at = 0;
  for (const { start, end, clusterBytes } of storages) {
    if (clusterBytes === 0) throw wrong("Blocksize", 0, "at least one sector");
    if (start !== at || end <= start) throw wrong("Storage", `${start}-${end}`, `one that begins at ${at}`);
    at = end;
  }
  if (at === 0) throw wrong("StorageData", "no Storage", "at least one");
  if (at !== bytes) throw wrong("the end of the last Storage", at, `Disk_size, ${bytes}`);
  requireOwnFiles(storages);
  const snapshots = root.children.find(({ name }) => name === "Snapshots");
  const shots = new Map<string, string>();
  for (const shot of snapshots ? all(snapshots, "Shot") : []) {
    const guid = guidOf(shot, "GUID");
    if (shots.has(guid)) throw wrong("Shot", `${guid} again`, "each snapshot once");
    shots.set(guid, guidOf(shot, "ParentGUID"));
  }
  const stated = snapshots?.children.some(({ name }) => name === "TopGUID");
  const top = stated ? guidOf(snapshots!, "TopGUID") : TOP;
  return { bytes, storages, shots, top };
}

function readStorage(storage: Element): Storage {
  const images = new Map<string, StorageImage>();
  for (const image of all(storage, "Image")) {
    const guid = guidOf(image, "GUID");
    const type = textOf(image, "Type");
    if (type !== "Plain" && type !== "Compressed") {
      throw new DiskError(
        "unsupported",
        `${DESCRIPTOR}: an Image of Type ${JSON.stringify(type.slice(0, 40))}`,
      );
    }
    if (images.has(guid)) throw wrong("Image", `${guid} again`, "each snapshot once in a Storage");
    images.set(guid, { guid, type, file: textOf(image, "File") });
  }
  return {
    start: sectors(storage, "Start"),
    end: sectors(storage, "End"),
    clusterBytes: sectors(storage, "Blocksize"),
    images,
  };
}

/** Two places for one file would be written over each other. */
function requireOwnFiles(storages: readonly Storage[]): void {
  const files = new Set([DESCRIPTOR]);
  for (const { images } of storages) {
    for (const { file } of images.values()) {
      if (files.has(file)) throw wrong("File", JSON.stringify(file), "each file once");
      files.add(file);
    }
  }
}

/** The snapshots that `guid` is read from, itself first. @throws DiskError `corrupt` when they have no end */
export function chainOf({ shots }: Descriptor, guid: string): readonly string[] {
  const chain = [guid];
  for (let next = shots.get(guid) ?? NONE; next !== NONE; next = shots.get(next) ?? NONE) {
    if (chain.includes(next) || !shots.has(next)) throw wrong("ParentGUID", next, "a snapshot below");
    if (chain.push(next) > LAYERS_MAX)
      throw wrong("Snapshots", chain.length, `at most ${LAYERS_MAX} above each other`);
  }
  return chain;
}

/** The image of a snapshot in a storage. @throws DiskError `corrupt` */
export function imageOf({ images, start }: Storage, guid: string): StorageImage {
  const image = images.get(guid);
  if (image !== undefined) return image;
  throw wrong(`Storage at ${start}`, "no Image", `one for ${guid}`);
}

function all({ children }: Element, name: string): Element[] {
  return children.filter((child) => child.name === name);
}

function one(parent: Element, name: string): Element {
  const [only, second] = all(parent, name);
  if (only !== undefined && second === undefined) return only;
  throw wrong(`<${parent.name}>`, only ? "more of them" : "none", `one <${name}>`);
}

function textOf(parent: Element, name: string): string {
  return one(parent, name).text.trim();
}

function sectors(parent: Element, name: string): number {
  const text = textOf(parent, name);
  const bytes = Number(text) * SECTOR_BYTES;
  if (/^\d+$/.test(text) && Number.isSafeInteger(bytes)) return bytes;
  throw wrong(name, JSON.stringify(text.slice(0, 40)), "a number of sectors");
}

function guidOf(parent: Element, name: string): string {
  const guid = textOf(parent, name).toLowerCase();
  if (/^\{[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\}$/.test(guid)) return guid;
  throw wrong(name, JSON.stringify(guid.slice(0, 60)), "a GUID in braces");
}

function wrong(what: string, found: string | number, expected: string): DiskError {
  return new DiskError("corrupt", `${DESCRIPTOR}: ${what}: found ${found}, expected ${expected}`);
}
