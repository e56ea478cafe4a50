/**
 * Intents: what a transaction promised and later ones were to do. What is done has an item that says so; the rest the
 * kernel does when it mounts.
 *
 *   intent:  | type u16 | regions u16 | extents u32 | id u64 | extent … |      done:  | type | regions | u32 | id of the intent |
 *   extent:  to be freed, or shared by one more or less: | address u64 | blocks u32 | 0 or flags u32 |, on 32-bit machines 12 bytes
 *            to be mapped, or given an owner:            | owner u64 | address u64 | file block u64 | blocks u32 | flags u32 |
 *
 * Nothing is done here: the extents of what is left count as used. What the kernel allocates on the way it takes from
 * free blocks, whose content it does not read. fs/xfs/libxfs/xfs_log_format.h of Linux.
 */
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import { corrupt } from "./log-records.ts";
import { blockAt, type Superblock } from "./superblock.ts";
import type { Item } from "./transactions.ts";

const HEADER_BYTES = 16;
/** Which of the done items ends an intent; and what its extents look like, where it has some. */
interface Kind {
  readonly done: number;
  readonly extents?: "plain" | "mapped";
}

const KINDS: ReadonlyMap<number, Kind> = new Map([
  [0x1236, { done: 0x1237, extents: "plain" }], // to free
  [0x1240, { done: 0x1241, extents: "mapped" }], // owners
  [0x1242, { done: 0x1243, extents: "plain" }], // shares
  [0x1244, { done: 0x1245, extents: "mapped" }], // files
  [0x1246, { done: 0x1247 }], // attributes
  [0x1248, { done: 0x1249 }], // exchanges between two files
]);
const DONE: ReadonlyMap<number, number> = new Map([...KINDS].map(([intent, { done }]) => [done, intent]));
const ADDRESS_AT = { plain: 0, mapped: 8 } as const;
const BLOCKS_AT = { plain: 8, mapped: 24 } as const;
const EXTENT_BYTES = { plain: [16, 12], mapped: [32] } as const;

export const isIntent = (type: number) => KINDS.has(type) || DONE.has(type);

export class Intents {
  readonly #sb: Superblock;
  /** Those that are not done, by their kind and id. */
  readonly #open = new Map<string, Item>();

  constructor(sb: Superblock) {
    this.#sb = sb;
  }

  get count(): number {
    return this.#open.size;
  }

  /** An intent, or that one is done. @throws Refused */
  add(item: Item): void {
    const format = item.regions[0]!;
    if (format.length < HEADER_BYTES) throw corrupt(`an intent in ${format.length} bytes found`);
    const id = viewOf(format).getBigUint64(8, true);
    const intent = DONE.get(item.type);
    if (intent === undefined) this.#open.set(`${item.type} ${id}`, item);
    else this.#open.delete(`${intent} ${id}`);
  }

  /** The extents of what is not done, in bytes. @throws Refused for one outside the filesystem */
  extents(): ExtentSet {
    const { blockBytes } = this.#sb;
    const extents = new ExtentBuilder();
    for (const { type, regions } of this.#open.values()) {
      const kind = KINDS.get(type)!.extents;
      if (kind === undefined) continue;
      const view = viewOf(regions[0]!);
      const count = view.getUint32(4, true);
      const bytes = EXTENT_BYTES[kind].find((length) => HEADER_BYTES + count * length === view.byteLength);
      if (bytes === undefined)
        throw corrupt(`${count} extents of an intent in ${view.byteLength} bytes found`);
      for (let at = HEADER_BYTES; at < view.byteLength; at += bytes) {
        const address = Number(view.getBigUint64(at + ADDRESS_AT[kind], true));
        const blocks = view.getUint32(at + BLOCKS_AT[kind], true);
        const start = blockAt(this.#sb, address, blocks);
        if (start < 0) throw corrupt(`an intent for ${blocks} blocks at address ${address} found`);
        extents.add(start * blockBytes, (start + blocks) * blockBytes);
      }
    }
    return extents.build();
  }
}
