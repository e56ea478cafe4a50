/**
 * The header of a VDI.
 *
 *   | text "<<< … >>>" | signature | version | sizes | map at | blocks at | disk, block, extra bytes | counts | UUIDs |
 *
 * All numbers are little-endian; of a UUID the first three groups are, too. Only version 1.1 exists since 2007.
 * Specification: VirtualBox, src/VBox/Storage/VDICore.h, `VDIPREHEADER` and `VDIHEADER1`.
 */
import { ascii, type Decoded, raw, skip, struct, u32le, u64le } from "../../bytes/struct.ts";
import { type ReadableFile, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { damaged, hex } from "../blocks/damaged.ts";

export const SIGNATURE = 0xbeda_107f;
export const VERSION = 0x0001_0001;
export const SECTOR_BYTES = 512;

export const Header = struct({
  fileInfo: ascii(64),
  signature: u32le,
  version: u32le,
  headerBytes: u32le,
  type: u32le,
  flags: u32le,
  comment: skip(256),
  blocksOffset: u32le,
  dataOffset: u32le,
  legacyGeometry: skip(12),
  sectorBytes: u32le,
  unused: skip(4),
  diskBytes: u64le,
  blockBytes: u32le,
  blockExtraBytes: u32le,
  blocks: u32le,
  blocksAllocated: u32le,
  uuidCreate: raw(16),
  uuidModify: raw(16),
  uuidLinkage: raw(16),
  uuidParentModify: raw(16),
});

export type HeaderFields = Decoded<typeof Header.fields>;

export const ImageType = { dynamic: 1, fixed: 2, differencing: 4 } as const;
export type VdiKind = keyof typeof ImageType;

/** New blocks are filled with zeros: the one flag that an image may have; it says nothing of what is there. */
const FLAGS_KNOWN = 0x1;
/** 64 TiB in blocks of the usual MiB. */
export const BLOCKS_MAX = 2 ** 26;
/** VirtualBox and QEMU make blocks of 1 MiB only; a block must fit into memory. */
const BLOCK_BYTES_MAX = 2 ** 28;

export interface VdiHeader {
  readonly kind: VdiKind;
  readonly fields: HeaderFields;
  /** Length of the guest's disk in bytes: whole sectors. */
  readonly diskBytes: number;
  readonly uuid: string;
  /** As it was when a child was made, where the image is one. */
  readonly modified: string;
  readonly parent: { readonly uuid: string; readonly modified: string } | undefined;
  /** Why the image must not be written: one sentence each. */
  readonly faults: readonly string[];
}

/** Whether `file` starts as a VDI does, whatever follows. */
export async function hasSignature(file: ReadableFile): Promise<boolean> {
  if (file.bytes < Header.bytes) return false;
  const bytes = await readBytes(file, Header.at.signature, 4);
  return Buffer.from(bytes).readUInt32LE() === SIGNATURE;
}

/** @throws DiskError `corrupt`, `unsupported` */
export async function readHeader(file: ReadableFile): Promise<VdiHeader> {
  if (file.bytes < SECTOR_BYTES) throw damaged("VDI header", 0, `${file.bytes} bytes`, "at least 512");
  const fields = Header.decode(await readBytes(file, 0, Header.bytes));
  if (fields.signature !== SIGNATURE) {
    throw damaged("VDI signature", Header.at.signature, hex(fields.signature), hex(SIGNATURE));
  }
  const kind = kindOf(fields);
  requireTable(fields, file);
  const diskBytes = requireDisk(fields);
  const [uuid, modified] = [uuidOf(fields.uuidCreate), uuidOf(fields.uuidModify)];
  const [linkage, parentModified] = [uuidOf(fields.uuidLinkage), uuidOf(fields.uuidParentModify)];
  if (kind !== "differencing" && linkage !== NO_UUID) {
    throw new DiskError("unsupported", `a ${kind} VDI that names a parent, ${linkage}, is not known`);
  }
  if (kind === "differencing" && linkage === NO_UUID) {
    throw damaged("UUID of the parent", Header.at.uuidLinkage, "none", "that of another image");
  }
  const parent = kind === "differencing" ? { uuid: linkage, modified: parentModified } : undefined;
  return { kind, fields, diskBytes, uuid, modified, parent, faults: faultsOf(fields) };
}

function kindOf({ version, type }: HeaderFields): VdiKind {
  if (version !== VERSION) {
    throw new DiskError(
      "unsupported",
      `VDI version ${version >>> 16}.${version & 0xffff}: only 1.1 is supported`,
      {
        hint: "VBoxManage clonemedium makes one of version 1.1",
      },
    );
  }
  for (const [kind, number] of Object.entries(ImageType)) if (number === type) return kind as VdiKind;
  throw new DiskError("unsupported", `VDI image type ${type} is not known: expected 1, 2 or 4`);
}

function requireTable({ blocksOffset, dataOffset, blocks }: HeaderFields, file: ReadableFile): void {
  const { at } = Header;
  if (blocks > BLOCKS_MAX) throw damaged("number of blocks", at.blocks, blocks, `at most ${BLOCKS_MAX}`);
  const end = blocksOffset + blocks * 4;
  if (blocksOffset % SECTOR_BYTES !== 0 || blocksOffset < SECTOR_BYTES || end > file.bytes) {
    throw damaged(
      "block map",
      at.blocksOffset,
      `offset ${blocksOffset}`,
      `sectors within ${file.bytes} bytes`,
    );
  }
  if (dataOffset % SECTOR_BYTES !== 0 || dataOffset < end) {
    throw damaged("offset of the blocks", at.dataOffset, dataOffset, `sectors from ${end} on`);
  }
}

/** @returns the length of the disk: VirtualBox makes odd ones from raw files, which a guest sees as whole sectors */
function requireDisk({ diskBytes, blockBytes, blockExtraBytes, blocks, sectorBytes }: HeaderFields): number {
  const { at } = Header;
  if (sectorBytes !== SECTOR_BYTES) {
    throw new DiskError("unsupported", `VDI with sectors of ${sectorBytes} bytes: only 512 are supported`);
  }
  if (!isBlockLength(blockBytes)) {
    throw damaged("block size", at.blockBytes, blockBytes, `a power of two from 512 to ${BLOCK_BYTES_MAX}`);
  }
  if (blockExtraBytes % SECTOR_BYTES !== 0 || blockExtraBytes > blockBytes) {
    throw damaged("extra bytes of a block", at.blockExtraBytes, blockExtraBytes, "sectors, at most a block");
  }
  const whole = Math.ceil(diskBytes / SECTOR_BYTES) * SECTOR_BYTES;
  if (whole > blocks * blockBytes) {
    throw damaged("disk size", at.diskBytes, diskBytes, `at most ${blocks} blocks of ${blockBytes} bytes`);
  }
  return whole;
}

export function isBlockLength(bytes: number): boolean {
  return bytes >= SECTOR_BYTES && bytes <= BLOCK_BYTES_MAX && (bytes & (bytes - 1)) === 0;
}

function faultsOf({ flags, blockExtraBytes }: HeaderFields): string[] {
  const faults: string[] = [];
  const unknown = flags & ~FLAGS_KNOWN;
  if (unknown !== 0) faults.push(`flags ${hex(unknown >>> 0)} are not known`);
  if (blockExtraBytes !== 0)
    faults.push(`what the ${blockExtraBytes} extra bytes before each block mean is not known`);
  return faults;
}

export const NO_UUID = "00000000-0000-0000-0000-000000000000";

/** A UUID as VirtualBox prints it. */
export function uuidOf(bytes: Uint8Array): string {
  const view = Buffer.from(bytes);
  const start = [view.readUInt32LE(0), view.readUInt16LE(4), view.readUInt16LE(6)];
  const groups = start.map((group, i) => group.toString(16).padStart(i === 0 ? 8 : 4, "0"));
  return [...groups, view.toString("hex", 8, 10), view.toString("hex", 10)].join("-");
}
