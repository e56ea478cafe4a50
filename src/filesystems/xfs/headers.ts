/**
 * The headers of an allocation group: four sectors at its start.
 *
 *   sector 0  superblock, a copy but in AG 0
 *   sector 1  AGF   roots of the trees of free space, of owners (rmap) and of shared blocks (refcount); counts
 *   sector 2  AGI   roots of the trees of inodes; lists of inodes that were deleted while open
 *   sector 3  AGFL  a ring of blocks that the trees above grow from: in no tree, and not free for anybody else
 *
 * Allocation_groups.asciidoc of "XFS Algorithms & Data Structures".
 */
import { raw, skip, struct, u32be, u32le } from "../../bytes/struct.ts";
import { viewOf } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { pipelined } from "../reading.ts";
import { hasRoCompat } from "./features.ts";
import { contradiction, damaged, verifyChecksum } from "./refused.ts";
import { agLength, type Superblock } from "./superblock.ts";

const AGF_MAGIC = 0x58414746;
const AGI_MAGIC = 0x58414749;
const AGFL_MAGIC = 0x5841464c;
const NONE = 0xffffffff;
const LEVELS_MAX = 16;
const UNLINKED_BUCKETS = 64;

export const AgfLayout = struct({
  magic: u32be,
  version: u32be,
  number: u32be,
  length: u32be,
  byBlockRoot: u32be,
  bySizeRoot: u32be,
  rmapRoot: u32be,
  byBlockLevels: u32be,
  bySizeLevels: u32be,
  rmapLevels: u32be,
  listFirst: u32be,
  listLast: u32be,
  listCount: u32be,
  freeBlocks: u32be,
  longest: u32be,
  treeBlocks: u32be,
  uuid: raw(16),
  rmapBlocks: u32be,
  refcountBlocks: u32be,
  refcountRoot: u32be,
  refcountLevels: u32be,
  spare: skip(112),
  lsn: skip(8),
  checksum: u32le,
});

export const AgiLayout = struct({
  magic: u32be,
  version: u32be,
  number: u32be,
  length: u32be,
  inodes: u32be,
  root: u32be,
  levels: u32be,
  freeInodes: u32be,
  newest: u32be,
  directory: u32be,
  unlinked: skip(4 * UNLINKED_BUCKETS),
  uuid: raw(16),
  checksum: u32le,
  pad: skip(4),
  lsn: skip(8),
  freeRoot: u32be,
  freeLevels: u32be,
  treeBlocks: u32be,
  freeTreeBlocks: u32be,
});

export const AgflLayout = struct({
  magic: u32be,
  number: u32be,
  uuid: raw(16),
  lsn: skip(8),
  checksum: u32le,
});

/** A tree of an AG: its root, a block of the AG, and how many levels it has. No levels: there is no such tree. */
export interface Root {
  readonly block: number;
  readonly levels: number;
}

export interface AgHeader {
  readonly byBlock: Root;
  readonly bySize: Root;
  readonly rmap: Root;
  readonly refcount: Root;
  readonly inodes: Root;
  readonly freeInodes: Root;
  /** Blocks of the AGFL. */
  readonly list: readonly number[];
  readonly freeBlocks: number;
  readonly longest: number;
  /** Blocks of the trees of free space and of owners, without their roots. */
  readonly treeBlocks: number;
  readonly inodeCount: number;
  readonly freeInodeCount: number;
  readonly hasUnlinked: boolean;
}

export interface Volume {
  readonly device: BlockDevice;
  readonly sb: Superblock;
  readonly ags: readonly AgHeader[];
}

/** @throws Refused for the first damaged header */
export async function readHeaders(device: BlockDevice, sb: Superblock): Promise<AgHeader[]> {
  const ags: AgHeader[] = [];
  function* reads() {
    for (let ag = 0; ag < sb.agCount; ag++) yield readBytes(device, placeOf(sb, ag), 4 * sb.sectorBytes);
  }
  await pipelined(reads(), (bytes) => void ags.push(decode(sb, ags.length, bytes)));
  return ags;
}

/** @throws Refused when it is damaged */
export async function readHeader(device: BlockDevice, sb: Superblock, ag: number): Promise<AgHeader> {
  return decode(sb, ag, await readBytes(device, placeOf(sb, ag), 4 * sb.sectorBytes));
}

const placeOf = (sb: Superblock, ag: number) => ag * sb.agBlocks * sb.blockBytes;

function decode(sb: Superblock, ag: number, bytes: Uint8Array): AgHeader {
  const sector = (index: number) => bytes.subarray(index * sb.sectorBytes, (index + 1) * sb.sectorBytes);
  const agf = AgfLayout.decode(bytes, sb.sectorBytes);
  const agi = AgiLayout.decode(bytes, 2 * sb.sectorBytes);
  checkHeader(sb, ag, "AGF", sector(1), AGF_MAGIC, agf, AgfLayout.at.checksum);
  checkHeader(sb, ag, "AGI", sector(2), AGI_MAGIC, agi, AgiLayout.at.checksum);
  for (const [name, header] of Object.entries({ AGF: agf, AGI: agi })) {
    if (header.version !== 1 || header.length !== agLength(sb, ag)) {
      throw damaged(
        `${name} of AG ${ag}: version ${header.version}, ${header.length} blocks found, 1 and ${agLength(sb, ag)} expected`,
      );
    }
  }
  const root = (block: number, levels: number, isThere = true): Root => {
    if (!isThere) return { block: 0, levels: 0 };
    if (levels < 1 || levels > LEVELS_MAX || block < sb.headerBlocks || block >= agLength(sb, ag)) {
      throw damaged(`AG ${ag}: a tree of ${levels} levels with its root in block ${block} found`);
    }
    return { block, levels };
  };
  const unlinked = viewOf(sector(2));
  return {
    byBlock: root(agf.byBlockRoot, agf.byBlockLevels),
    bySize: root(agf.bySizeRoot, agf.bySizeLevels),
    rmap: root(agf.rmapRoot, agf.rmapLevels, hasRoCompat(sb, "rmapbt")),
    refcount: root(agf.refcountRoot, agf.refcountLevels, hasRoCompat(sb, "reflink")),
    inodes: root(agi.root, agi.levels),
    freeInodes: root(agi.freeRoot, agi.freeLevels, hasRoCompat(sb, "finobt")),
    list: readList(sb, ag, sector(3), agf),
    freeBlocks: agf.freeBlocks,
    longest: agf.longest,
    treeBlocks: agf.treeBlocks,
    inodeCount: agi.inodes,
    freeInodeCount: agi.freeInodes,
    hasUnlinked: Array.from({ length: UNLINKED_BUCKETS }, (_, bucket) =>
      unlinked.getUint32(AgiLayout.at.unlinked + bucket * 4),
    ).some((inode) => inode !== NONE),
  };
}

function checkHeader(
  sb: Superblock,
  ag: number,
  name: string,
  bytes: Uint8Array,
  magic: number,
  header: { readonly magic: number; readonly number: number; readonly uuid: Uint8Array },
  checksumAt: number,
): void {
  if (header.magic !== magic || header.number !== ag) {
    throw damaged(`${name} of AG ${ag}: magic 0x${header.magic.toString(16)} of AG ${header.number} found`);
  }
  if (sb.version < 5) return;
  verifyChecksum(() => `${name} of AG ${ag}`, bytes, checksumAt);
  if (Buffer.compare(header.uuid, sb.metaUuid) !== 0) {
    throw damaged(`${name} of AG ${ag}: it bears the UUID of another filesystem`);
  }
}

/** The blocks of the ring from `listFirst` to `listLast`. */
function readList(
  sb: Superblock,
  ag: number,
  bytes: Uint8Array,
  { listFirst, listLast, listCount }: ReturnType<typeof AgfLayout.decode>,
): number[] {
  const start = sb.version < 5 ? 0 : AgflLayout.bytes;
  if (sb.version === 5) {
    checkHeader(sb, ag, "AGFL", bytes, AGFL_MAGIC, AgflLayout.decode(bytes), AgflLayout.at.checksum);
  }
  const slots = Math.floor((sb.sectorBytes - start) / 4);
  const span = listFirst < slots && listLast < slots ? ((listLast - listFirst + slots) % slots) + 1 : -1;
  if (listCount !== 0 && listCount !== span) {
    throw contradiction(
      `AGFL of AG ${ag}: ${listCount} blocks from slot ${listFirst} to ${listLast} of ${slots} found`,
    );
  }
  const view = viewOf(bytes);
  return Array.from({ length: listCount }, (_, index) => {
    const block = view.getUint32(start + ((listFirst + index) % slots) * 4);
    if (block < sb.headerBlocks || block >= agLength(sb, ag)) {
      throw damaged(`AGFL of AG ${ag}: block ${block} found, inside ${agLength(sb, ag)} blocks expected`);
    }
    return block;
  });
}
