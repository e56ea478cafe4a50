/**
 * Makes a new VDI.
 *
 *   dynamic, differencing   | header | map: all free |
 *   fixed                   | header | map: 0, 1, 2 … | a hole as long as the disk |
 *
 * `static` is that of `qemu-img create -o`; `subformat`, `block_size` and `backing_file` are ours. QEMU opens images
 * with blocks of 1 MiB only, and no differencing ones.
 * Specification: VirtualBox, src/VBox/Storage/VDICore.h.
 */
import { parseBytes } from "../../bytes/sizes.ts";
import { randomBytes } from "node:crypto";
import { viewOf } from "../../bytes/struct.ts";
import type { HostFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { ABSENT } from "../blocks/table.ts";
import type { CreateOptions } from "../format.ts";
import {
  BLOCKS_MAX,
  Header,
  type HeaderFields,
  ImageType,
  isBlockLength,
  SECTOR_BYTES,
  SIGNATURE,
  type VdiKind,
  VERSION,
} from "./header.ts";

export interface VdiOptions {
  readonly kind: VdiKind;
  readonly virtualBytes: number;
  readonly blockBytes: number;
  readonly backing: string | undefined;
}

const BLOCK_BYTES = 2 ** 20;

const usage = (message: string): DiskError => new DiskError("usage", message);

/** @throws DiskError `usage` naming the option */
export function parseOptions({ virtualBytes, options }: CreateOptions): VdiOptions {
  const { subformat, static: isStatic, block_size: size, backing_file: backing, ...others } = options;
  const { backing_fmt: backingFormat = "vdi", ...unknown } = others;
  for (const name of Object.keys(unknown)) throw usage(`vdi has no option ${JSON.stringify(name)}`);
  if (![undefined, "dynamic", "fixed"].includes(subformat)) {
    throw usage(`subformat ${subformat}: expected dynamic or fixed`);
  }
  if (![undefined, "on", "off"].includes(isStatic)) throw usage(`static ${isStatic}: expected on or off`);
  if (backingFormat !== "vdi") throw usage(`backing_fmt ${backingFormat}: the parent of a VDI is a VDI`);
  const isFixed = subformat === "fixed" || isStatic === "on";
  if (isFixed && (subformat === "dynamic" || isStatic === "off"))
    throw usage("subformat and static contradict");
  if (isFixed && backing !== undefined) throw usage("a fixed VDI has no parent");
  const blockBytes = size === undefined ? BLOCK_BYTES : (parseBytes(size) ?? 0);
  if (!isBlockLength(blockBytes)) throw usage(`block_size ${size}: expected a power of two from 512 on`);
  const bytes = Math.ceil(virtualBytes / SECTOR_BYTES) * SECTOR_BYTES;
  if (Math.ceil(bytes / blockBytes) > BLOCKS_MAX) throw usage(`${bytes} bytes need larger blocks`);
  const kind = isFixed ? "fixed" : backing === undefined ? "dynamic" : "differencing";
  return { kind, virtualBytes: bytes, blockBytes, backing };
}

const CHUNK_ENTRIES = 64 * 1024;
/** Blocks are to lie on the blocks of any host. */
const DATA_ALIGN_BYTES = 4096;

/** Writes a new image into an empty file. @param parent the header of the image below */
export async function writeNewImage(
  file: HostFile,
  { kind, virtualBytes, blockBytes }: VdiOptions,
  parent: HeaderFields | undefined,
): Promise<void> {
  const blocks = Math.ceil(virtualBytes / blockBytes);
  const isFixed = kind === "fixed";
  const dataOffset = Math.ceil((SECTOR_BYTES + blocks * 4) / DATA_ALIGN_BYTES) * DATA_ALIGN_BYTES;
  await file.truncate(dataOffset + (isFixed ? blocks * blockBytes : 0));
  for (let first = 0; first < blocks; first += CHUNK_ENTRIES) {
    const chunk = new Uint8Array(Math.min(CHUNK_ENTRIES, blocks - first) * 4);
    const view = viewOf(chunk);
    for (let i = 0; i * 4 < chunk.length; i++) view.setUint32(i * 4, isFixed ? first + i : ABSENT, true);
    await file.write(SECTOR_BYTES + first * 4, chunk);
  }
  await file.flush();
  const header = new Uint8Array(SECTOR_BYTES);
  Header.encode(
    {
      fileInfo: "<<< Ullage VM Virtual Disk Image >>>\n",
      signature: SIGNATURE,
      version: VERSION,
      // From this field on, with the geometry that follows the UUIDs.
      headerBytes: 400,
      type: ImageType[kind],
      blocksOffset: SECTOR_BYTES,
      dataOffset,
      sectorBytes: SECTOR_BYTES,
      diskBytes: virtualBytes,
      blockBytes,
      blocks,
      blocksAllocated: isFixed ? blocks : 0,
      uuidCreate: newUuid(),
      uuidModify: newUuid(),
      ...(parent && { uuidLinkage: parent.uuidCreate, uuidParentModify: parent.uuidModify }),
    },
    header,
  );
  // The header comes last: until then it is no image.
  await file.write(0, header);
  await file.flush();
}

/** A random one of version 4; VirtualBox keeps the version in the third group, whose bytes are swapped. */
function newUuid(): Uint8Array {
  const uuid = new Uint8Array(randomBytes(16));
  uuid[7] = (uuid[7]! & 0x0f) | 0x40;
  uuid[8] = (uuid[8]! & 0x3f) | 0x80;
  return uuid;
}
