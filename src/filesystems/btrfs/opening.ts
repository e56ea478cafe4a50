/**
 * How a volume is opened: the superblocks of all members, then the chunks, the devices, and the roots of the trees
 * that the allocation map needs.
 *
 *   superblock → system chunks → chunk tree → all chunks → root tree → extent tree, device tree, …
 */
import type { BlockDevice } from "../../device/device.ts";
import { Refused } from "../refused.ts";
import { ChunkMap, decodeChunk, missing, type Chunk, type Holder } from "./chunks.ts";
import { checkLength, checkState } from "./features.ts";
import { KEY, TREE } from "./keys.ts";
import { keyAt, u64At, type Node } from "./node.ts";
import { damaged, type Unreadable } from "./refused.ts";
import { rootsIn } from "./root-items.ts";
import { readSuperblock, type Roots, type Superblock } from "./superblock.ts";
import { rootAt, traverse, type Root, type Visitor } from "./trees.ts";
import { NodeSource, type Member } from "./volume.ts";

/** Limits on what a disk may choose. */
const DEVICES_MAX = 1024;
const STRIPES_MAX = 1 << 20;
const ROOTS_MAX = 1 << 20;

export interface Volume {
  readonly sb: Superblock;
  readonly members: readonly Member[];
  readonly nodes: NodeSource;
  /** By the id of its tree. Of relocation trees, whose id is not theirs alone, one. */
  readonly roots: ReadonlyMap<bigint, Root>;
}

/** @throws Refused */
export async function openMembers(devices: readonly BlockDevice[]): Promise<Member[]> {
  const members: Member[] = [];
  for (const device of devices) members.push({ device, sb: await readSuperblock(device) });
  const { sb } = members[0]!;
  checkState(sb);
  if (sb.devices > DEVICES_MAX) throw damaged(`superblock: ${sb.devices} devices`);
  if (sb.devices !== members.length) {
    throw missing(`superblock: ${sb.devices} devices make this filesystem, ${members.length} at hand`);
  }
  members.forEach((member, index) => {
    checkLength(member.device, member.sb);
    if (!Buffer.from(member.sb.fsid).equals(sb.fsid)) {
      throw missing(`device ${member.sb.deviceId} belongs to another filesystem`);
    }
    if (members.findIndex((other) => other.sb.deviceId === member.sb.deviceId) !== index) {
      throw new Refused(
        "members-missing",
        `device ${member.sb.deviceId} is there twice`,
        "name each device of the filesystem once, and not with a copy of it",
      );
    }
    for (const field of ["generation", "root", "chunkRoot", "logRoot", "flags"] as const) {
      if (member.sb[field] === sb[field]) continue;
      throw new Refused(
        "members-stale",
        `superblock of device ${member.sb.deviceId}: ${field} ${member.sb[field]} found, ${sb[field]} expected`,
        "the images were not taken at one time, or a device was away: mount all of them once in the guest",
      );
    }
  });
  return members;
}

/** @throws Refused */
export async function openVolume(members: readonly Member[]): Promise<Volume> {
  const { sb } = members[0]!;
  const nodes = new NodeSource(members, await readChunks(members, sb, sb, "refuse"), "refuse");
  const roots = new Map([[TREE.root as bigint, rootTree(sb)]]);
  const visitor: Visitor = {
    enters: nodes.onceEach(),
    leaf(node, tree) {
      for (const root of rootsIn(node, tree)) roots.set(root.tree.id, root);
      if (roots.size > ROOTS_MAX) throw damaged(`root tree: more than ${ROOTS_MAX} trees`);
    },
  };
  await traverse(nodes, [rootTree(sb)], visitor);
  return { sb, members, nodes, roots };
}

export const rootTree = ({ root, generation, rootLevel }: Roots): Root =>
  rootAt({ tree: TREE.root, at: root, generation, level: rootLevel });

export const chunkTree = ({ chunkRoot, chunkRootGeneration, chunkRootLevel }: Roots): Root =>
  rootAt({ tree: TREE.chunk, at: chunkRoot, generation: chunkRootGeneration, level: chunkRootLevel });

/**
 * The map of chunks that a set of roots has.
 * @param holder the superblock in which the roots stand, for its system chunks
 * @throws Refused, unless what is unreadable is passed by
 */
export async function readChunks(
  members: readonly Member[],
  holder: Superblock,
  roots: Roots,
  unreadable: Unreadable,
): Promise<ChunkMap> {
  const { sb } = members[0]!;
  const holders = members.map(({ device, sb }): Holder => ({
    id: sb.deviceId,
    uuid: sb.deviceUuid,
    // A device may have been longer before.
    bytes: unreadable === "refuse" ? sb.deviceBytes : device.bytes,
  }));
  const decode = (item: Uint8Array, start: number) =>
    decodeChunk(item, start, holders, sb.sectorBytes, unreadable);
  const system = systemChunks(holder, decode);
  const chunks: Chunk[] = [];
  let devices = 0;
  let stripes = 0;
  const nodes = new NodeSource(members, new ChunkMap(system), unreadable);
  await traverse(nodes, [chunkTree(roots)], {
    enters: nodes.onceEach(),
    leaf(node) {
      for (let index = 0; index < node.count; index++) {
        const type = node.type(index);
        if (type === KEY.chunk) {
          const chunk = decode(node.item(index), node.offset(index));
          chunks.push(chunk);
          stripes += chunk.stripes.length;
        } else if (type === KEY.device && unreadable === "refuse") {
          checkDevice(node, index, members);
          devices++;
        }
      }
      if (stripes > STRIPES_MAX) throw damaged(`chunk tree: more than ${STRIPES_MAX} stripes`);
    },
  });
  if (unreadable === "refuse" && devices !== members.length) {
    throw damaged(`chunk tree: ${devices} devices found, ${members.length} expected`);
  }
  const map = new ChunkMap(chunks);
  for (const { start, end, type } of unreadable === "refuse" ? system : []) {
    const chunk = map.chunkOf(start, end - start);
    if (chunk?.start !== start || chunk.end !== end || chunk.type !== type) {
      throw damaged(`superblock: its chunk at ${start} is not in the chunk tree`);
    }
  }
  return map;
}

/** @throws Refused when an item for a device and the device do not agree */
function checkDevice(node: Node, index: number, members: readonly Member[]): void {
  const id = node.offset(index);
  const member = members.find(({ sb }) => sb.deviceId === id);
  if (member === undefined) throw missing(`chunk tree: device ${id} is not at hand`);
  const bytes = u64At(node.view, node.itemPlace(index) + 8);
  if (node.itemBytes(index) < 98 || bytes !== member.sb.deviceBytes) {
    throw damaged(
      `device ${id}: ${bytes} bytes in the chunk tree, ${member.sb.deviceBytes} in its superblock`,
    );
  }
}

const KEY_BYTES = 17;
const CHUNK_BYTES = 48;
const STRIPES_AT = 44;
const STRIPE_BYTES = 32;

/** The chunks that hold the chunk tree: `| key | chunk | key | chunk | …`. */
function systemChunks(sb: Superblock, decode: (item: Uint8Array, start: number) => Chunk): Chunk[] {
  const bytes = sb.systemChunks.subarray(0, sb.systemChunksBytes);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const chunks: Chunk[] = [];
  for (let at = 0; at < bytes.length;) {
    const item = at + KEY_BYTES;
    if (item + CHUNK_BYTES > bytes.length) throw damaged("superblock: its last system chunk is cut off");
    const end = item + CHUNK_BYTES + view.getUint16(item + STRIPES_AT, true) * STRIPE_BYTES;
    const key = keyAt(view, at);
    if (key.type !== KEY.chunk || end > bytes.length) throw damaged(`superblock: no system chunk at ${at}`);
    chunks.push(decode(bytes.subarray(item, end), u64At(view, at + 9)));
    at = end;
  }
  return chunks;
}
