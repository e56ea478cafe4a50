/**
 * Makes a new VHD.
 *
 *   dynamic        | footer | header | table: all absent | footer |
 *   differencing   | footer | header | parent's relative path | table | footer |
 *   fixed          | a hole as long as the disk | footer |
 *
 * `subformat` and `force_size` are those of `qemu-img create -o`; `block_size` and `backing_file` are ours. The disk
 * gets the length that was asked for; `force_size=off` rounds it up to a whole geometry, as QEMU and Virtual PC do.
 * Specification: Virtual Hard Disk Image Format Specification 1.0.
 */
import { parseBytes } from "../../bytes/sizes.ts";
import { randomBytes } from "node:crypto";
import type { HostFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { CreateOptions, Image } from "../format.ts";
import {
  checksumOf,
  COOKIE,
  DISK_BYTES_MAX,
  DiskType,
  Footer,
  geometryOf,
  SECTOR_BYTES,
  VERSION,
  type VhdKind,
  wholeGeometry,
} from "./footer.ts";
import { BLOCK_SIZE_MAX, BLOCKS_MAX, Header, HEADER_COOKIE, isBlockSize, Locator } from "./header.ts";

export interface VhdOptions {
  readonly kind: VhdKind;
  readonly virtualBytes: number;
  readonly blockSize: number;
  readonly backing: string | undefined;
}

const BLOCK_SIZE = 2 ** 21;

/** @throws DiskError `usage` naming the option */
export function parseOptions({ virtualBytes, options }: CreateOptions): VhdOptions {
  const {
    subformat = "dynamic",
    force_size: force = "on",
    block_size: size,
    backing_file: backing,
    ...others
  } = options;
  const { backing_fmt: backingFormat = "vhd", ...unknown } = others;
  for (const name of Object.keys(unknown)) throw usage(`vhd has no option ${JSON.stringify(name)}`);
  if (subformat !== "dynamic" && subformat !== "fixed")
    throw usage(`subformat ${subformat}: expected dynamic or fixed`);
  if (force !== "on" && force !== "off") throw usage(`force_size ${force}: expected on or off`);
  if (backingFormat !== "vhd") throw usage(`backing_fmt ${backingFormat}: the parent of a VHD is a VHD`);
  if (subformat === "fixed" && (backing ?? size) !== undefined)
    throw usage("a fixed VHD has no blocks and no parent");
  const blockSize = size === undefined ? BLOCK_SIZE : (parseBytes(size) ?? 0);
  if (!isBlockSize(blockSize)) {
    throw usage(`block_size ${size}: expected a power of two from 512 to ${BLOCK_SIZE_MAX}`);
  }
  const sectors = Math.ceil(virtualBytes / SECTOR_BYTES);
  const bytes = (force === "on" ? sectors : wholeGeometry(sectors)) * SECTOR_BYTES;
  if (bytes > DISK_BYTES_MAX) throw usage(`a VHD holds at most ${DISK_BYTES_MAX} bytes`);
  if (subformat === "dynamic" && bytes / blockSize > BLOCKS_MAX)
    throw usage(`${bytes} bytes need larger blocks`);
  const kind = backing === undefined ? subformat : "differencing";
  return { kind, virtualBytes: bytes, blockSize, backing };
}

const usage = (message: string): DiskError => new DiskError("usage", message);

/** Writes a new image into an empty file. */
export async function writeNewImage(
  file: HostFile,
  options: VhdOptions,
  parent: Image | undefined,
): Promise<void> {
  const footer = encodeFooter(options);
  if (options.kind === "fixed") {
    await file.truncate(options.virtualBytes);
    await file.write(options.virtualBytes, footer);
    return file.flush();
  }
  const name = options.backing === undefined ? undefined : Buffer.from(`.\\${options.backing}`, "utf16le");
  const locatorAt = SECTOR_BYTES + Header.bytes;
  const tableAt = locatorAt + Math.ceil((name?.length ?? 0) / SECTOR_BYTES) * SECTOR_BYTES;
  const blocks = Math.ceil(options.virtualBytes / options.blockSize);
  const table = new Uint8Array(Math.max(1, Math.ceil((blocks * 4) / SECTOR_BYTES)) * SECTOR_BYTES).fill(0xff);
  await file.write(tableAt, table);
  if (name) await file.write(locatorAt, name);
  await file.write(SECTOR_BYTES, encodeHeader(options, { tableAt, blocks, locatorAt, name, parent }));
  await file.write(tableAt + table.length, footer);
  await file.flush();
  // The first copy comes last: until then it is no image.
  await file.write(0, footer);
  await file.flush();
}

const SECONDS_TO_2000 = 946_684_800;

function encodeFooter({ kind, virtualBytes }: VhdOptions): Uint8Array {
  const footer = new Uint8Array(Footer.bytes);
  Footer.encode(
    {
      cookie: COOKIE,
      features: 2,
      version: VERSION,
      dataOffset: kind === "fixed" ? 2n ** 64n - 1n : BigInt(SECTOR_BYTES),
      timeStamp: Math.floor(Date.now() / 1000) - SECONDS_TO_2000,
      // QEMU takes the length of the disk from the geometry, unless it knows the creator for one that means its size.
      creatorApplication: "win ",
      creatorVersion: 0x000a_0000,
      creatorHostOs: "Wi2k",
      originalSize: virtualBytes,
      currentSize: virtualBytes,
      ...geometryOf(virtualBytes / SECTOR_BYTES),
      diskType: DiskType[kind],
      uniqueId: new Uint8Array(randomBytes(16)),
    },
    footer,
  );
  Footer.encode({ checksum: checksumOf(footer, Footer.at.checksum) }, footer);
  return footer;
}

interface HeaderPlaces {
  readonly tableAt: number;
  readonly blocks: number;
  readonly locatorAt: number;
  readonly name: Uint8Array | undefined;
  readonly parent: Image | undefined;
}

function encodeHeader(
  options: VhdOptions,
  { tableAt, blocks, locatorAt, name, parent }: HeaderPlaces,
): Uint8Array {
  const header = new Uint8Array(Header.bytes);
  Header.encode(
    {
      cookie: HEADER_COOKIE,
      dataOffset: 2n ** 64n - 1n,
      tableOffset: tableAt,
      headerVersion: VERSION,
      maxTableEntries: blocks,
      blockSize: options.blockSize,
    },
    header,
  );
  if (name && parent) {
    const [id] = parent.identifiers ?? [];
    Header.encode(
      { parentUniqueId: new Uint8Array(Buffer.from((id ?? "").replaceAll("-", ""), "hex")) },
      header,
    );
    header.set(nameField(options.backing!), Header.at.parentUnicodeName);
    Locator.encode(
      {
        platformCode: "W2ru",
        platformDataSpace: Math.ceil(name.length / SECTOR_BYTES),
        platformDataLength: name.length,
        platformDataOffset: BigInt(locatorAt),
      },
      header,
      Header.at.locators,
    );
  }
  Header.encode({ checksum: checksumOf(header, Header.at.checksum) }, header);
  return header;
}

/** @throws DiskError `usage` where the field is too short */
function nameField(name: string): Uint8Array {
  const bytes = Buffer.from(name, "utf16le").swap16();
  if (bytes.length > 510) throw usage(`backing_file: a name of ${name.length} characters does not fit`);
  return bytes;
}
