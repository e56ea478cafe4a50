/**
 * Directories: a short one in its inode, a longer one in blocks, each of one or more blocks of the filesystem.
 *
 *   in the inode:  | entries u8 | of which with long numbers u8 | parent | entry … |
 *                  entry: | name length u8 | u16 | name | type u8, if kept | inode u32 or u64 |
 *   block:         | "XD2B" or "XDB3": all of it; "XD2D" or "XDD3": one of several | … | entry … | (hashes of all) |
 *                  entry: | inode u64 | name length u8 | name | type u8, if kept | padding | own place u16 |
 *                  unused: | 0xffff | length u16 | … |
 *
 * Hashes and indexes lie from 32 GiB of the file on; who reads all entries needs none of them.
 * Directories, "XFS Algorithms & Data Structures".
 */
import { viewOf } from "../../bytes/struct.ts";
import { readBytes } from "../../device/device.ts";
import { ENTRY_TYPE, type Directories, type VisitEntry } from "../paths.ts";
import { hasTypes, hasVersion } from "./features.ts";
import { dataRuns } from "./fork.ts";
import type { Volume } from "./headers.ts";
import { FORMAT, readInode, TYPE, type Inode } from "./inode.ts";
import { damaged, verifyChecksum } from "./refused.ts";
import type { Superblock } from "./superblock.ts";

const HEADER_BYTES = { 4: 16, 5: 64 } as const;
const WHOLE = { 4: "XD2B", 5: "XDB3" } as const;
const PART = { 4: "XD2D", 5: "XDD3" } as const;
const CHECKSUM_AT = 4;
const TAIL_BYTES = 8;
const HASH_BYTES = 8;
const ENTRY_BYTES_MIN = 16;
const UNUSED = 0xffff;
const INDEX_AT = 2 ** 35;
const READ_BYTES = 1 << 18;

const PARENT = Buffer.from("..");

export function directoriesOf(volume: Volume): Directories<Inode> {
  return {
    root: volume.sb.rootInode,
    inode: (number) => readInode(volume, number),
    isDirectory: ({ type }) => type === TYPE.directory,
    visit: (directory, visit) => readDirectory(volume, directory, visit),
    isSame: (a, b) => hasVersion(volume.sb, "ascii-ci") && lowered(a).equals(lowered(b)),
  };
}

function lowered(name: Uint8Array): Buffer {
  return Buffer.from(name.map((byte) => (byte >= 0x41 && byte <= 0x5a ? byte + 0x20 : byte)));
}

/** Visits all entries; in blocks `.` and `..` are among them, of a short directory only `..`. @throws Refused */
export async function readDirectory(volume: Volume, directory: Inode, visit: VisitEntry): Promise<void> {
  const { sb } = volume;
  if (directory.data.format === FORMAT.local) return readShort(sb, directory, visit);
  const blockBytes = sb.directoryBlocks * sb.blockBytes;
  const block = new Uint8Array(blockBytes);
  let [current, filled, first] = [-1, 0, 0];
  const checkWhole = () => {
    if (filled === 0 || filled === sb.directoryBlocks) return;
    throw damaged(`directory inode ${directory.number}: block ${current} has ${filled} parts`);
  };
  for (const run of await dataRuns(volume, directory)) {
    if (run.logical * sb.blockBytes >= INDEX_AT) break;
    const perRead = Math.max(1, Math.floor(READ_BYTES / sb.blockBytes));
    for (let from = 0; from < run.blocks; from += perRead) {
      const count = Math.min(perRead, run.blocks - from);
      const bytes = await readBytes(volume.device, (run.start + from) * sb.blockBytes, count * sb.blockBytes);
      for (let index = 0; index < count; index++) {
        const logical = run.logical + from + index;
        const number = Math.floor(logical / sb.directoryBlocks);
        if (number !== current) {
          checkWhole();
          [current, filled, first] = [number, 0, run.start + from + index];
        }
        const at = (logical % sb.directoryBlocks) * sb.blockBytes;
        block.set(bytes.subarray(index * sb.blockBytes, (index + 1) * sb.blockBytes), at);
        if (++filled === sb.directoryBlocks) readBlock(sb, directory.number, first, block, visit);
      }
    }
  }
  checkWhole();
}

function readShort(sb: Superblock, directory: Inode, visit: VisitEntry): void {
  const { number, data, bytes, size } = directory;
  const end = data.start + size;
  const damage = () => damaged(`directory inode ${number}: an entry that does not fit into the inode found`);
  const room = (at: number, length: number) => {
    if (at + length > end || end > data.end) throw damage();
  };
  room(data.start, 2);
  const [count, long] = [bytes.getUint8(data.start), bytes.getUint8(data.start + 1)];
  const numberBytes = long > 0 ? 8 : 4;
  const inodeAt = (at: number) =>
    long > 0 ? bytes.getUint32(at) * 2 ** 32 + bytes.getUint32(at + 4) : bytes.getUint32(at);
  room(data.start + 2, numberBytes);
  visit(inodeAt(data.start + 2), PARENT, ENTRY_TYPE.directory);
  const typeBytes = hasTypes(sb) ? 1 : 0;
  let at = data.start + 2 + numberBytes;
  for (let index = 0; index < count; index++) {
    room(at, 3);
    const nameBytes = bytes.getUint8(at);
    const nameAt = at + 3;
    const after = nameAt + nameBytes + typeBytes;
    if (nameBytes === 0) throw damage();
    room(after, numberBytes);
    const name = new Uint8Array(bytes.buffer, bytes.byteOffset + nameAt, nameBytes);
    visit(inodeAt(after), name, typeBytes === 1 ? bytes.getUint8(after - 1) : ENTRY_TYPE.unknown);
    at = after + numberBytes;
  }
}

function readBlock(
  sb: Superblock,
  directory: number,
  position: number,
  bytes: Uint8Array,
  visit: VisitEntry,
): void {
  const where = () => `block ${position} of directory inode ${directory}`;
  const view = viewOf(bytes);
  const magic = Buffer.from(bytes.subarray(0, 4)).toString("latin1");
  if (magic !== WHOLE[sb.version] && magic !== PART[sb.version]) {
    throw damaged(`${where()}: ${JSON.stringify(magic)} found, ${PART[sb.version]} expected`);
  }
  if (sb.version === 5) {
    verifyChecksum(where, bytes, CHECKSUM_AT);
    const place = view.getUint32(8) * 2 ** 32 + view.getUint32(12);
    const owner = view.getUint32(40) * 2 ** 32 + view.getUint32(44);
    const isPlace = place === (position * sb.blockBytes) / 512;
    if (!isPlace || owner !== directory || Buffer.compare(bytes.subarray(24, 40), sb.metaUuid) !== 0) {
      throw damaged(
        `${where()}: it says it lies at sector ${place} and belongs to inode ${owner}, or to another filesystem`,
      );
    }
  }
  let end = bytes.length;
  if (magic === WHOLE[sb.version]) {
    end -= TAIL_BYTES + view.getUint32(bytes.length - TAIL_BYTES) * HASH_BYTES;
  }
  const typeBytes = hasTypes(sb) ? 1 : 0;
  for (let at: number = HEADER_BYTES[sb.version]; at < end;) {
    const damage = () => damaged(`${where()}: an entry at ${at} that does not fit found`);
    if (view.getUint16(at) === UNUSED) {
      const length = view.getUint16(at + 2);
      if (length < 8 || length % 8 !== 0 || at + length > end) throw damage();
      at += length;
      continue;
    }
    const nameBytes = at + ENTRY_BYTES_MIN > end ? 0 : view.getUint8(at + 8);
    const next = at + Math.ceil((9 + nameBytes + typeBytes + 2) / 8) * 8;
    if (nameBytes === 0 || next > end) throw damage();
    const inode = view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
    const nameAt = at + 9;
    const type = typeBytes === 1 ? bytes[nameAt + nameBytes]! : ENTRY_TYPE.unknown;
    visit(inode, bytes.subarray(nameAt, nameAt + nameBytes), type);
    at = next;
  }
}
