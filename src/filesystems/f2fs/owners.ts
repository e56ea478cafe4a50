/**
 * What an owner of blocks is called, and where a file lies.
 *
 *   directory block   | bits: 214 slots in use | 214 × hash, inode, length, kind | 214 × 8 bytes of names |
 *
 * A name takes as many slots as it needs; only the first of them has an entry. Inline directories are the same with
 * fewer slots. Each inode has its name and its parent's number, which may be stale where it has several names.
 */
import { readBytes } from "../../device/device.ts";
import { bytesOf } from "../../bytes/struct.ts";
import { shownName } from "../../bytes/text.ts";
import {
  listedKind,
  LISTED_MAX,
  type FoundFile,
  type ListedFile,
  type OwnerDescription,
} from "../filesystem.ts";
import { unlessDamaged } from "../refused.ts";
import {
  ADDRESSES,
  childrenOf,
  contentOf,
  hasAddresses,
  MODE,
  readInode,
  readNode,
  visitRuns,
  type Inode,
  type Node,
} from "./node.ts";
import { damaged } from "./refused.ts";
import { BLOCK_BYTES, hasFeature, SEGMENT_BLOCKS } from "./superblock.ts";
import { AREAS, type Volume } from "./walk.ts";

const DEPTH_MAX = 1024;
const SLOTS = 214;
const SLOT_BYTES = 8;
const ENTRY_BYTES = 11;
const KIND = { file: 1, directory: 2 };

interface Entry {
  readonly inode: number;
  readonly kind: number;
  readonly name: Uint8Array;
}

interface Opened {
  readonly node: Node;
  readonly inode: Inode;
}

export class Owners {
  readonly #volume: Volume;

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  async describe(owner: number): Promise<OwnerDescription> {
    if (owner < 0) return { kind: "metadata", name: AREAS[-1 - owner] ?? "unknown" };
    const opened = await unlessDamaged(this.#open(owner));
    if (opened === undefined) return { kind: "unknown", name: `inode ${owner}` };
    const kind = kindOf(opened.inode.mode);
    const path = await unlessDamaged(this.#pathOf(opened.inode));
    if (path === undefined)
      return { kind, name: `${kind} without a name, inode ${owner}`, bytes: opened.inode.bytes };
    return { kind, name: kind, path, bytes: opened.inode.bytes };
  }

  async #pathOf(inode: Inode): Promise<string | undefined> {
    const names: string[] = [];
    let at = inode;
    for (let depth = 0; depth < DEPTH_MAX; depth++) {
      if (at.id === this.#volume.sb.root) return `/${names.join("/")}`;
      if (at.parent === 0 || at.name.length === 0) return undefined;
      names.unshift(shownName(at.name));
      at = (await this.#open(at.parent)).inode;
    }
    return undefined;
  }

  async find(path: string): Promise<FoundFile | undefined> {
    const opened = await unlessDamaged(this.#lookUp(path));
    if (opened === undefined) return undefined;
    const extents = await unlessDamaged(this.#extentsOf(opened));
    if (extents === undefined) return undefined;
    const { id: owner, mode, bytes } = opened.inode;
    const fixed = fixedBecause(opened.inode);
    return { owner, kind: listedKind(kindOf(mode)), bytes, ...(fixed && { fixed }), extents };
  }

  async list(path: string, atMost = LISTED_MAX): Promise<readonly ListedFile[] | undefined> {
    const opened = await unlessDamaged(this.#lookUp(path));
    if (opened === undefined || kindOf(opened.inode.mode) !== "directory") return undefined;
    const listed: ListedFile[] = [];
    const entries = (await unlessDamaged(this.#entriesOf(opened))) ?? [];
    for (const { inode, kind, name } of entries.slice(0, atMost)) {
      const file = kind === KIND.file ? await unlessDamaged(this.#open(inode)) : undefined;
      listed.push({
        name: shownName(name),
        kind: kind === KIND.file ? "file" : kind === KIND.directory ? "directory" : "other",
        allocatedBytes: (file?.inode.blocks ?? 0) * BLOCK_BYTES,
      });
    }
    return listed;
  }

  async #lookUp(path: string): Promise<Opened | undefined> {
    let opened = await this.#open(this.#volume.sb.root);
    for (const part of path.split("/").filter((name) => name !== "" && name !== ".")) {
      if (kindOf(opened.inode.mode) !== "directory") return undefined;
      const entry = (await this.#entriesOf(opened)).find((one) => this.#isNamed(one.name, part));
      if (entry === undefined) return undefined;
      opened = await this.#open(entry.inode);
    }
    return opened;
  }

  #isNamed(bytes: Uint8Array, name: string): boolean {
    if (Buffer.from(name).equals(bytes) || shownName(bytes) === name) return true;
    if (!hasFeature(this.#volume.sb, "casefold")) return false;
    const folded = (text: string) => text.normalize("NFD").toLowerCase();
    return folded(Buffer.from(bytes).toString()) === folded(name);
  }

  async #open(id: number): Promise<Opened> {
    const node = await this.#read(id, id);
    return { node, inode: readInode(this.#volume.sb, node) };
  }

  async #read(id: number, inode: number): Promise<Node> {
    const { device, sb, table } = this.#volume;
    const block = id < table.blocks.length ? table.blocks[id]! : 0;
    const end = sb.main + sb.mainSegments * SEGMENT_BLOCKS;
    if (block < sb.main || block >= end) throw damaged(`NAT: no node ${id} found`);
    return readNode(await readBytes(device, block * BLOCK_BYTES, BLOCK_BYTES), block, id, inode);
  }

  /** The blocks of an inode, ascending in the file. */
  async #visitRuns(
    { node, inode }: Opened,
    visit: (start: number, blocks: number, logical: number) => void,
  ): Promise<void> {
    if (!hasAddresses(inode)) return;
    visitRuns(node.view, inode.at, inode.words, visit);
    let logical = inode.words;
    const seen = new Set<number>();
    const descend = async (id: number, place: number, depth: number): Promise<void> => {
      const spans = ADDRESSES ** (depth + 1);
      const start = logical;
      if (id !== 0) {
        if (seen.has(id)) throw damaged(`inode ${inode.id}: node ${id} found twice`);
        seen.add(id);
        const child = await this.#read(id, inode.id);
        if (child.place !== place) throw damaged(`node ${id}: place ${child.place} found, ${place} expected`);
        if (contentOf(place) === "addresses") {
          visitRuns(child.view, 0, ADDRESSES, (first, blocks, index) => visit(first, blocks, start + index));
        } else {
          for (let index = 0; index < ADDRESSES; index++) {
            const step = ADDRESSES ** (depth - 1);
            const next = place + 1 + index * (depth === 1 ? 1 : step + 1);
            await descend(child.view.getUint32(index * 4, true), next, depth - 1);
          }
        }
      }
      logical = start + spans;
    };
    const places = [1, 2, 3, 4 + ADDRESSES, 5 + 2 * ADDRESSES];
    const depths = [0, 0, 1, 1, 2];
    for (const [index, child] of childrenOf(node.view).entries())
      await descend(child, places[index]!, depths[index]!);
  }

  async #extentsOf(opened: Opened): Promise<FoundFile["extents"]> {
    const extents: { fileOffset: number; at: number; bytes: number; unwritten: boolean }[] = [];
    await this.#visitRuns(opened, (start, blocks, logical) => {
      extents.push({
        fileOffset: logical * BLOCK_BYTES,
        at: start * BLOCK_BYTES,
        bytes: blocks * BLOCK_BYTES,
        unwritten: false,
      });
    });
    return extents;
  }

  async #entriesOf(opened: Opened): Promise<Entry[]> {
    const { device } = this.#volume;
    const entries: Entry[] = [];
    const { node, inode } = opened;
    if (inode.isInline) {
      const bytes = (inode.words - 1) * 4;
      const slots = Math.floor((bytes * 8) / ((ENTRY_BYTES + SLOT_BYTES) * 8 + 1));
      const whole = bytesOf(node.view).subarray(inode.at + 4, inode.at + 4 + bytes);
      addEntries(whole, slots, bytes - slots * (ENTRY_BYTES + SLOT_BYTES), entries);
      return entries;
    }
    const blocks: number[] = [];
    await this.#visitRuns(opened, (start, count) => {
      for (let block = start; block < start + count; block++) blocks.push(block);
    });
    for (const block of blocks) {
      if ((block + 1) * BLOCK_BYTES > device.bytes)
        throw damaged(`directory ${inode.id}: block ${block} found`);
      const bytes = await readBytes(device, block * BLOCK_BYTES, BLOCK_BYTES);
      addEntries(bytes, SLOTS, BLOCK_BYTES - SLOTS * (ENTRY_BYTES + SLOT_BYTES), entries);
    }
    return entries;
  }
}

/** @param at where the entries begin, behind the bits and what is reserved */
function addEntries(bytes: Uint8Array, slots: number, at: number, entries: Entry[]): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const names = at + slots * ENTRY_BYTES;
  for (let slot = 0; slot < slots && entries.length < LISTED_MAX;) {
    const isUsed = ((bytes[slot >> 3]! >> (slot & 7)) & 1) === 1;
    const entry = at + slot * ENTRY_BYTES;
    const length = isUsed ? view.getUint16(entry + 8, true) : 0;
    const name = bytes.slice(names + slot * SLOT_BYTES, names + slot * SLOT_BYTES + length);
    if (length > 0 && !isDots(name)) {
      entries.push({ inode: view.getUint32(entry + 4, true), kind: view.getUint8(entry + 10), name });
    }
    slot += Math.max(1, Math.ceil(length / SLOT_BYTES));
  }
}

const DOT = 0x2e;
const isDots = (name: Uint8Array) => name.length <= 2 && name.every((byte) => byte === DOT);

function kindOf(mode: number): OwnerDescription["kind"] {
  const kind = mode & MODE.mask;
  if (kind === MODE.directory) return "directory";
  if (kind === MODE.file) return "file";
  return kind === MODE.symlink ? "symlink" : "special";
}

function fixedBecause(inode: Inode): string | undefined {
  if (inode.isInline) return "inline";
  if (inode.isEncrypted) return "encrypted";
  if (inode.isCompressed) return "compressed";
  return inode.isVerity ? "checksummed" : undefined;
}
