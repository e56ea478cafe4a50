/**
 * `Info.plist` of a sparse bundle: how long the disk is, and how long a band.
 *
 *   diskimage-bundle-type        com.apple.diskimage.sparsebundle
 *   bundle-backingstore-version  1
 *   band-size, size              in bytes
 *
 * Specification: libmodi's "Mac OS disk image types", "Sparse bundle". The limits are those of hdiutil(1).
 */
import { readBytes, type ReadableFile } from "../../device/device.ts";
import type { Folder } from "../../device/source.ts";
import { DiskError } from "../../error.ts";
import { parsePlist, type Plist } from "../apple/plist.ts";

export const INFO = "Info.plist";
const TYPE = "com.apple.diskimage.sparsebundle";
const VERSION = 1;
/** It says a handful of numbers. */
const INFO_BYTES_MAX = 1024 * 1024;
export const SECTOR_BYTES = 512;
/** 16,777,216 sectors. */
export const BAND_BYTES_MAX = 8 * 2 ** 30;

export interface Info {
  /** Length of the disk. */
  readonly bytes: number;
  readonly bandBytes: number;
}

/** Whether it is a sparse bundle: by what its property list says it is. */
export async function isSparseBundle(folder: Folder): Promise<boolean> {
  try {
    await using file = await folder.file(INFO).open();
    return (await dictionaryOf(file)).get("diskimage-bundle-type") === TYPE;
  } catch (error) {
    if (error instanceof DiskError) return false;
    throw error;
  }
}

async function dictionaryOf(file: ReadableFile): Promise<ReadonlyMap<string, Plist>> {
  if (file.bytes > INFO_BYTES_MAX) {
    throw new DiskError("unsupported", `${INFO}: ${file.bytes} bytes, expected at most ${INFO_BYTES_MAX}`);
  }
  return parsePlist(await readBytes(file, 0, file.bytes), INFO);
}

/** @throws DiskError `corrupt`, `unsupported` */
export async function readInfo(file: ReadableFile): Promise<Info> {
  const values = await dictionaryOf(file);
  const type = values.get("diskimage-bundle-type");
  if (type !== TYPE) throw wrong("diskimage-bundle-type", type, TYPE);
  const version = values.get("bundle-backingstore-version") ?? VERSION;
  if (version !== VERSION) {
    throw new DiskError(
      "unsupported",
      `${INFO}: bundle-backingstore-version ${told(version)}, only 1 is known`,
    );
  }
  const bytes = values.get("size");
  const bandBytes = values.get("band-size");
  if (!isCount(bytes)) throw wrong("size", bytes, "a number of bytes");
  if (
    !isCount(bandBytes) ||
    bandBytes === 0 ||
    bandBytes > BAND_BYTES_MAX ||
    bandBytes % SECTOR_BYTES !== 0
  ) {
    throw wrong("band-size", bandBytes, `whole sectors, at most ${BAND_BYTES_MAX} bytes`);
  }
  return { bytes, bandBytes };
}

function isCount(value: Plist | undefined): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

function wrong(key: string, found: Plist | undefined, expected: string): DiskError {
  return new DiskError("corrupt", `${INFO}: ${key} is ${told(found)}, expected ${expected}`, {
    hint: "Info.bckup beside it may hold the right numbers",
  });
}

function told(value: Plist | undefined): string {
  const isPlain = typeof value === "string" || typeof value === "number" || value === undefined;
  return isPlain ? String(value).slice(0, 80) : "something else";
}

/** The property list of a new bundle. */
export function writtenInfo({ bytes, bandBytes }: Info): Uint8Array {
  const keys: readonly (readonly [string, string])[] = [
    ["CFBundleInfoDictionaryVersion", "<string>6.0</string>"],
    ["band-size", `<integer>${bandBytes}</integer>`],
    ["bundle-backingstore-version", `<integer>${VERSION}</integer>`],
    ["diskimage-bundle-type", `<string>${TYPE}</string>`],
    ["size", `<integer>${bytes}</integer>`],
  ];
  const lines = [
    '<?xml version="1.0" encoding="UTF-8"?>',
    '<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">',
    '<plist version="1.0">',
    "<dict>",
    ...keys.flatMap(([key, value]) => [`\t<key>${key}</key>`, `\t${value}`]),
    "</dict>",
    "</plist>",
    "",
  ];
  return Buffer.from(lines.join("\n"));
}
