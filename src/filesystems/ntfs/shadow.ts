/**
 * Shadow copies (VSS): snapshots that read most of their blocks from the living volume, where a cluster that was freed
 * since must stay (H4).
 *
 *   volume header at 0x1e00, inside $Boot → catalog → an entry a store ─┬─ bitmap: 1 is a block that it does not need
 *                                                                       ├─ bitmap of the store before, where there is one
 *                                                                       └─ block list: what was copied where
 *   all but the header:  blocks of 16 KiB, chained    | identifier | version, type | offsets: relative, own, next | … |
 *
 * Kept is every block that the bitmap of any store needs, and every block that any list names. Windows copies a block
 * into the store before it writes to it; a hole that is punched from outside goes past that.
 *
 * libyal/libvshadow documentation/.
 */
import { clearRuns } from "../../bytes/bitmap.ts";
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { bits64le, raw, skip, struct, u32le, u64le, viewOf } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { Refused } from "../refused.ts";

/** {3808876b-c176-4e48-b7ae-04046e6cc752}, as it lies on disk. */
export const IDENTIFIER = Buffer.from("6b87083876c1484eb7ae04046e6cc752", "hex");
const HEADER_AT = 0x1e00;
const BLOCK_BYTES = 16_384;
const BLOCK_HEADER_BYTES = 128;
const ENTRY_BYTES = 128;
const DESCRIPTOR_FORWARDER = 1;
const STORES_MAX = 4096;

const TYPE = { header: 1, catalog: 2, blockList: 3, bitmap: 6 } as const;
const ENTRY = { store: 2, places: 3 } as const;
const VERSIONS: ReadonlySet<number> = new Set([1, 2]);

export const HeaderLayout = struct({
  identifier: raw(16),
  version: u32le,
  type: u32le,
  own: u64le,
  next: skip(16),
  catalog: u64le,
  bytesMax: skip(8),
  volume: raw(16),
  storage: raw(16),
});

export const BlockLayout = struct({
  identifier: raw(16),
  version: u32le,
  type: u32le,
  relative: skip(8),
  own: u64le,
  next: u64le,
});

/** A catalog entry of type 3: where a store keeps what. */
export const PlacesLayout = struct({
  type: u64le,
  blockList: u64le,
  store: raw(16),
  header: skip(16),
  bitmap: u64le,
  file: skip(16),
  previousBitmap: u64le,
});

export const DescriptorLayout = struct({
  original: u64le,
  relative: bits64le,
  copy: u64le,
  flags: u32le,
  filled: skip(4),
});

export interface Shadows {
  readonly stores: number;
  /** What may not be freed, in bytes of the volume. */
  readonly kept: ExtentSet;
}

/** What the shadow copies need; undefined where there are none. @throws Refused when that cannot be told */
export async function readShadows(device: BlockDevice): Promise<Shadows | undefined> {
  const bytes = await readBytes(device, HEADER_AT, HeaderLayout.bytes);
  if (!IDENTIFIER.equals(bytes.subarray(0, IDENTIFIER.length))) return undefined;
  const header = HeaderLayout.decode(bytes);
  if (!VERSIONS.has(header.version) || header.type !== TYPE.header || header.own !== HEADER_AT) {
    throw unreadable(`header at ${HEADER_AT}: version ${header.version}, type ${header.type} found`);
  }
  const isStored = header.storage.some((byte) => byte !== 0);
  const isElsewhere = isStored && Buffer.compare(header.volume, header.storage) !== 0;
  if (isElsewhere) throw unreadable("they lie on another volume");
  if (header.catalog === 0) return undefined;
  const chains: Chains = { device, seen: new Set() };
  const stores = await readCatalog(chains, header.catalog);
  if (stores.length === 0) return undefined;
  const spare = new Int32Array(Math.ceil(device.bytes / BLOCK_BYTES / 32)).fill(-1);
  const bitmaps = new Set(stores.map(({ bitmap }) => bitmap));
  for (const { previousBitmap } of stores) if (previousBitmap !== 0) bitmaps.add(previousBitmap);
  for (const bitmap of bitmaps) await takeBitmap(chains, bitmap, spare);
  for (const { blockList } of stores) await takeBlockList(chains, blockList, spare);
  const kept = new ExtentBuilder();
  clearRuns(spare, Math.ceil(device.bytes / BLOCK_BYTES), (start, end) => {
    kept.add(start * BLOCK_BYTES, Math.min(end * BLOCK_BYTES, device.bytes));
  });
  return { stores: stores.length, kept: kept.build() };
}

interface Places {
  readonly blockList: number;
  readonly bitmap: number;
  readonly previousBitmap: number;
}

/** Chains of blocks do not meet: each block is read once (H24). */
interface Chains {
  readonly device: BlockDevice;
  readonly seen: Set<number>;
}

async function readCatalog(chains: Chains, at: number): Promise<Places[]> {
  const stores = new Set<string>();
  const places = new Map<string, Places>();
  await eachBlock(chains, at, TYPE.catalog, (bytes) => {
    const view = viewOf(bytes);
    for (let entry = BLOCK_HEADER_BYTES; entry < BLOCK_BYTES; entry += ENTRY_BYTES) {
      const type = view.getUint32(entry, true);
      const identifier = Buffer.from(bytes.subarray(entry + 16, entry + 32)).toString("hex");
      if (type === ENTRY.store) stores.add(identifier);
      else if (type === ENTRY.places) places.set(identifier, PlacesLayout.decode(bytes, entry));
      else if (type > ENTRY.places) throw unreadable(`catalog entry of type ${type} found`);
    }
    if (stores.size > STORES_MAX) throw unreadable(`more than ${STORES_MAX} found`);
  });
  for (const identifier of stores) {
    if (!places.has(identifier)) throw unreadable(`the catalog does not say where store ${identifier} lies`);
  }
  return [...places.values()];
}

/** Clears the bits of blocks that the bitmap needs; what it does not reach, it may need. */
async function takeBitmap(chains: Chains, at: number, spare: Int32Array): Promise<void> {
  let word = 0;
  await eachBlock(chains, at, TYPE.bitmap, (bytes) => {
    const view = viewOf(bytes);
    for (let byte = BLOCK_HEADER_BYTES; byte < BLOCK_BYTES && word < spare.length; byte += 4) {
      spare[word++]! &= view.getInt32(byte, true);
    }
  });
  spare.fill(0, word);
}

/** Clears the bits of every block that a descriptor names. */
async function takeBlockList(chains: Chains, at: number, spare: Int32Array): Promise<void> {
  const keep = (offset: number) => {
    const block = Math.floor(offset / BLOCK_BYTES);
    if (block < spare.length * 32) spare[Math.floor(block / 32)]! &= ~(1 << (block % 32));
  };
  await eachBlock(chains, at, TYPE.blockList, (bytes) => {
    for (let entry = BLOCK_HEADER_BYTES; entry < BLOCK_BYTES; entry += DescriptorLayout.bytes) {
      const { original, relative, copy, flags } = DescriptorLayout.decode(bytes, entry);
      if (copy === 0 && relative === 0n) continue;
      keep(original);
      if (copy !== 0) keep(copy);
      if ((flags & DESCRIPTOR_FORWARDER) !== 0) keep(Number(relative));
    }
  });
}

async function eachBlock(
  { device, seen }: Chains,
  first: number,
  type: number,
  visit: (bytes: Uint8Array) => void,
): Promise<void> {
  for (let at = first; at !== 0;) {
    if (at + BLOCK_BYTES > device.bytes || seen.has(at)) throw unreadable(`a chain of blocks leads to ${at}`);
    seen.add(at);
    const bytes = await readBytes(device, at, BLOCK_BYTES);
    const block = BlockLayout.decode(bytes);
    const isBlock = IDENTIFIER.equals(block.identifier) && block.type === type && block.own === at;
    if (!isBlock || !VERSIONS.has(block.version)) {
      throw unreadable(`block at ${at}: type ${block.type} found, ${type} expected`);
    }
    visit(bytes);
    at = block.next;
  }
}

function unreadable(what: string): Refused {
  return new Refused(
    "shadow-copies",
    `the volume has shadow copies, and what they need cannot be told: ${what}`,
    "delete them in the guest (vssadmin delete shadows /all), or give them up: --allow shadow-loss",
  );
}
