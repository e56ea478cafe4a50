/**
 * The B+trees of an allocation group, whose pointers are blocks of that AG.
 *
 *   block:  | magic | level u16 | records u16 | left u32 | right u32 |
 *           version 5 adds: | own place in sectors u64 | lsn u64 | UUID | AG u32 | checksum u32 |
 *   leaf:   records one behind another                 node:  keys one behind another … pointers behind room for all keys
 *
 * A tree is read level by level, and each block must name its neighbours in its level, so that none comes twice.
 * Allocation_groups.asciidoc of "XFS Algorithms & Data Structures".
 */
import { viewOf } from "../../bytes/struct.ts";
import { readScattered } from "../reading.ts";
import type { Root, Volume } from "./headers.ts";
import { contradiction, damaged, verifyChecksum } from "./refused.ts";
import { agLength, type Superblock } from "./superblock.ts";

export interface TreeKind {
  readonly name: string;
  /** For versions 4 and 5. */
  readonly magic: readonly [string, string];
  readonly recordBytes: number;
  /** Of all keys that stand for one child. Each begins with the first word of the child's first record. */
  readonly keyBytes: number;
}

const TREES = {
  byBlock: { name: "free space by block", magic: ["ABTB", "AB3B"], recordBytes: 8, keyBytes: 8 },
  bySize: { name: "free space by size", magic: ["ABTC", "AB3C"], recordBytes: 8, keyBytes: 8 },
  inodes: { name: "inodes", magic: ["IABT", "IAB3"], recordBytes: 16, keyBytes: 4 },
  freeInodes: { name: "free inodes", magic: ["FIBT", "FIB3"], recordBytes: 16, keyBytes: 4 },
  rmap: { name: "owners", magic: ["RMB3", "RMB3"], recordBytes: 24, keyBytes: 40 },
  refcount: { name: "shared blocks", magic: ["R3FC", "R3FC"], recordBytes: 12, keyBytes: 4 },
} as const satisfies Readonly<Record<string, TreeKind>>;

export type TreeName = keyof typeof TREES;

const HEADER_BYTES = { 4: 16, 5: 56 } as const;
const POINTER_BYTES = 4;
const CHECKSUM_AT = 52;
const NONE = 0xffffffff;

export interface TreeSink {
  /** A block of the AG that belongs to the tree. */
  block?(block: number): void;
  /** `count` records from `at` of a leaf, in order. Without it leaves are not read. */
  leaf?(view: DataView, at: number, count: number): void;
}

/** One level of a tree while it is read. */
interface Level {
  readonly level: number;
  readonly blocks: readonly number[];
  /** First words of the blocks, as their parents know them; none for the root. */
  readonly keys: readonly number[];
}

/** Visits a tree, its leaves from left to right. @throws Refused when it is damaged */
export async function readTree(
  { device, sb }: Volume,
  ag: number,
  name: TreeName,
  root: Root,
  sink: TreeSink,
): Promise<void> {
  if (root.levels === 0) return;
  const kind: TreeKind = TREES[name];
  let level: Level = { level: root.levels - 1, blocks: [root.block], keys: [] };
  for (;;) {
    for (const block of level.blocks) {
      if (block < sb.headerBlocks || block >= agLength(sb, ag)) {
        throw damaged(`${treeName(kind, ag)}: a pointer to block ${block} found`);
      }
      sink.block?.(block);
    }
    if (level.level === 0 && sink.leaf === undefined) return;
    const below = { level: level.level - 1, blocks: [] as number[], keys: [] as number[] };
    const positions = level.blocks.map((block) => ag * sb.agBlocks + block);
    await readScattered(device, sb.blockBytes, positions, (index, bytes) => {
      const view = viewOf(bytes);
      const count = checkBlock(sb, kind, ag, level, index, view);
      if (level.level === 0) sink.leaf!(view, HEADER_BYTES[sb.version], count);
      else readNode(sb, kind, view, count, below);
    });
    if (level.level === 0) return;
    level = below;
  }
}

function readNode(
  sb: Superblock,
  kind: TreeKind,
  view: DataView,
  count: number,
  below: { readonly blocks: number[]; readonly keys: number[] },
): void {
  const keysAt = HEADER_BYTES[sb.version];
  const pointersAt = keysAt + roomFor(sb, kind.keyBytes + POINTER_BYTES) * kind.keyBytes;
  for (let index = 0; index < count; index++) {
    below.keys.push(view.getUint32(keysAt + index * kind.keyBytes));
    below.blocks.push(view.getUint32(pointersAt + index * POINTER_BYTES));
  }
}

const roomFor = (sb: Superblock, entryBytes: number) =>
  Math.floor((sb.blockBytes - HEADER_BYTES[sb.version]) / entryBytes);

const treeName = (kind: TreeKind, ag: number) => `tree of ${kind.name} of AG ${ag}`;

/** @returns how many records or children the block has */
function checkBlock(
  sb: Superblock,
  kind: TreeKind,
  ag: number,
  { level, blocks, keys }: Level,
  index: number,
  view: DataView,
): number {
  const block = blocks[index]!;
  const where = () => `${treeName(kind, ag)}, block ${block}`;
  const magic = kind.magic[sb.version - 4]!;
  const found = Buffer.from(view.buffer, view.byteOffset, 4).toString("latin1");
  if (found !== magic) throw damaged(`${where()}: ${JSON.stringify(found)} found, ${magic} expected`);
  if (sb.version === 5) checkStamp(sb, ag, block, view, where);
  const count = view.getUint16(6);
  const most = roomFor(sb, level === 0 ? kind.recordBytes : kind.keyBytes + POINTER_BYTES);
  const isRootLeaf = keys.length === 0 && level === 0;
  if (view.getUint16(4) !== level || count > most || (count === 0 && !isRootLeaf)) {
    throw damaged(
      `${where()}: ${count} entries in level ${view.getUint16(4)} found, at most ${most} in level ${level} expected`,
    );
  }
  const [left, right] = [blocks[index - 1] ?? NONE, blocks[index + 1] ?? NONE];
  if (view.getUint32(8) !== left || view.getUint32(12) !== right) {
    throw contradiction(
      `${where()}: neighbours ${view.getUint32(8)} and ${view.getUint32(12)} found, ${left} and ${right} expected`,
    );
  }
  const key = keys[index];
  const first = view.getUint32(HEADER_BYTES[sb.version]);
  if (key !== undefined && key !== first) {
    throw contradiction(`${where()}: first key ${first} found, ${key} expected`);
  }
  return count;
}

/** What version 5 stamps on each block: its place, its filesystem, its AG. */
function checkStamp(sb: Superblock, ag: number, block: number, view: DataView, where: () => string): void {
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  verifyChecksum(where, bytes, CHECKSUM_AT);
  const sector = ((ag * sb.agBlocks + block) * sb.blockBytes) / 512;
  const owner = view.getUint32(48);
  const place = view.getUint32(16) * 2 ** 32 + view.getUint32(20);
  if (place !== sector || owner !== ag || Buffer.compare(bytes.subarray(32, 48), sb.metaUuid) !== 0) {
    throw damaged(`${where()}: it says it lies at sector ${place} of AG ${owner} or of another filesystem`);
  }
}
