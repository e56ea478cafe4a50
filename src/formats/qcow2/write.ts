/**
 * Writing to the active disk of an image.
 *
 *   write     in place where the mapping is the only owner; otherwise into a new cluster, with a copy of what the
 *             write leaves of it; tables change in memory alone
 *   commit    file flushed → L2 entries, L1 entries written → flushed → dropped clusters punched → flushed → released
 *
 * So a mapping never becomes durable before what it refers to, a cluster is free only when nothing durable refers to
 * it and its punch returned (H12), and it is claimed by nobody before that (H14). A crash leaves leaks at worst. What
 * the guest reads changes at once, for readers use the same tables in memory.
 *
 * Changes are made one after the other. Beside them goes whoever asks for a place and writes there at once (`locate`), but
 * not in clusters that a change is about. When one fails the writer is dead: the image has to be opened anew (H13).
 */
import type { Extent } from "../../bytes/extents.ts";
import type { BlockDevice, HostFile, Place, Zeroing } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { ClaimedPlace } from "../format.ts";
import { Allocator } from "./allocate.ts";
import { BitmapKeeper } from "./bitmap-keeper.ts";
import { Changes } from "./changes.ts";
import { countedReferences, forgetInspection } from "./check.ts";
import type { CompressedClusters } from "./compressed.ts";
import type { Qcow2Context } from "./context.ts";
import { Emptying } from "./empty.ts";
import { entryOf, placeOf } from "./place.ts";
import { refuseUnwritable } from "./plan.ts";
import { refuseEncrypted } from "./read.ts";
import { COPIED_HIGH, type Entry } from "./tables.ts";

/** Changed tables and dropped clusters held in memory before they are committed. */
const UNCOMMITTED_BYTES_MAX = 8 * 2 ** 20;

export class Qcow2Writer {
  readonly #context: Qcow2Context<HostFile>;
  readonly #disk: Pick<BlockDevice, "bytes" | "read">;
  readonly #compressed: CompressedClusters;
  readonly #allocator: Allocator;
  readonly #changes: Changes;
  readonly #bitmaps: BitmapKeeper;
  readonly #emptying: Emptying;
  readonly #readers = new Set<Promise<unknown>>();
  #hasBegun = false;
  #isUnflushed = false;
  /** Begun, and neither failed nor closed: whole clusters of the guest may be written beside the changes. */
  #isOpen = false;
  /** The clusters that the change under way is about. */
  #busyStart = 0;
  #busyEnd = 0;
  #failure: unknown;
  #last: Promise<void> = Promise.resolve();

  /** @param disk the active disk as the guest reads it */
  constructor(
    context: Qcow2Context<HostFile>,
    disk: Pick<BlockDevice, "bytes" | "read">,
    compressed: CompressedClusters,
  ) {
    this.#context = context;
    this.#disk = disk;
    this.#compressed = compressed;
    this.#allocator = new Allocator(context);
    this.#changes = new Changes(context, this.#allocator);
    this.#bitmaps = new BitmapKeeper(context);
    this.#emptying = new Emptying(context, this.#changes, {
      write: (at, from) => this.#write(at, from),
      settle: () => this.#commitWhenLarge(),
    });
  }

  /** A place to be written at once, for what of the range is mapped and nobody else's. */
  locate(at: number, bytes: number): Place | undefined {
    if (!this.#isOpen || (at < this.#busyEnd && at + bytes > this.#busyStart)) return undefined;
    const place = placeOf(this.#context, this.#context.l1, at, bytes, "write");
    if (place === undefined) return undefined;
    if (this.#bitmaps.isTracking) this.#bitmaps.mark({ start: at, end: at + place.bytes });
    this.#isUnflushed = true;
    return place;
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.#change({ start: at, end: at + from.length }, () => this.#write(at, from));
  }

  /** Fresh clusters that follow each other in the file, for the first clusters of `range` that nothing maps. */
  async claim(range: Extent): Promise<ClaimedPlace | undefined> {
    const { backing, extendedL2, externalData } = this.#context.header;
    if (backing !== undefined || extendedL2 || externalData) return undefined;
    let claimed: ClaimedPlace | undefined;
    await this.#change(range, async () => (claimed = await this.#claim(range)));
    return claimed;
  }

  async zero(range: Extent, how: Zeroing): Promise<void> {
    let refusal: DiskError | undefined;
    await this.#change(range, async () => (refusal = await this.#emptying.zero(range, how)));
    if (refusal !== undefined) throw refusal;
  }

  discard(range: Extent): Promise<void> {
    return this.#change(range, () => this.#emptying.discard(range));
  }

  flush(): Promise<void> {
    return this.#exclusive(() => this.#commit());
  }

  /** Makes everything durable; to be called before the files are closed. */
  close(): Promise<void> {
    if (this.#failure !== undefined) return Promise.resolve();
    return this.#exclusive(async () => {
      this.#isOpen = false;
      await this.#commit();
      if (this.#hasBegun) await this.#bitmaps.close();
    });
  }

  /** Watches a read of the disk: clusters that it may be looking at are not given away before it ends. */
  async reading(read: Promise<void>): Promise<void> {
    const reader = read.catch(() => {});
    this.#readers.add(reader);
    try {
      await read;
    } finally {
      this.#readers.delete(reader);
    }
  }

  #change(range: Extent, act: () => Promise<unknown>): Promise<void> {
    if (range.start >= range.end) return Promise.resolve();
    return this.#exclusive(async () => {
      if (!this.#hasBegun) await this.#begin();
      const { clusterBytes } = this.#context.header;
      this.#busyStart = range.start - (range.start % clusterBytes);
      this.#busyEnd = Math.ceil(range.end / clusterBytes) * clusterBytes;
      forgetInspection(this.#context);
      this.#bitmaps.mark(range);
      this.#isUnflushed = true;
      try {
        await act();
      } finally {
        this.#busyEnd = 0;
      }
      await this.#commitWhenLarge();
    });
  }

  /**
   * One change after the other; after a failure none (H13). Only a host without room stops a change before anything leads
   * to what it wrote: the next one may find room.
   */
  #exclusive(act: () => Promise<void>): Promise<void> {
    const done = this.#last.then(async () => {
      if (this.#failure !== undefined) {
        const message = "an earlier write failed: the image has to be opened anew";
        throw new DiskError("io", message, { cause: this.#failure });
      }
      try {
        await act();
      } catch (error) {
        if (isFull(error) && this.#failure === undefined) await this.#allocator.giveBack();
        else this.#fail(error);
        throw error;
      }
    });
    this.#last = done.catch(() => {});
    return done;
  }

  #fail(error: unknown): void {
    if (this.#hasBegun) this.#failure ??= error;
    this.#isOpen = false;
  }

  /** Before the first change. @throws DiskError `refused`, `unsupported`, `corrupt` (H17) */
  async #begin(): Promise<void> {
    refuseUnwritable(this.#context.header);
    refuseEncrypted(this.#context);
    await countedReferences(this.#context);
    this.#hasBegun = true;
    try {
      await this.#bitmaps.open();
    } catch (error) {
      this.#fail(error);
      throw error;
    }
    this.#isOpen = true;
  }

  async #commitWhenLarge(): Promise<void> {
    if (this.#changes.bytes <= UNCOMMITTED_BYTES_MAX) return;
    await this.#commit();
    // A change is under way.
    this.#isUnflushed = true;
  }

  async #commit(): Promise<void> {
    if (!this.#isUnflushed) return;
    // Before the first await: what is written meanwhile is the next commit's.
    this.#isUnflushed = false;
    try {
      await this.#changes.commit(async () => {
        await Promise.all(this.#readers);
        this.#compressed.forget();
      });
    } catch (error) {
      this.#fail(error);
      throw error;
    }
  }

  async #claim({ start, end }: Extent): Promise<ClaimedPlace | undefined> {
    const { data, header } = this.#context;
    const { clusterBytes, l2Entries } = header;
    const first = start / clusterBytes;
    const stop = Math.min(Math.ceil(end / clusterBytes), (Math.floor(first / l2Entries) + 1) * l2Entries);
    let clusters = 0;
    while (
      first + clusters < stop &&
      (await entryOf(this.#context, first + clusters)).entry.kind === "unallocated"
    )
      clusters++;
    if (clusters === 0) return undefined;
    const table = await this.#changes.ownTable(Math.floor(first / l2Entries));
    const run = await this.#allocator.claimRun(clusters);
    const bytes = Math.min(end - start, run.clusters * clusterBytes);
    await this.#emptying.zeroHost({ start: run.at, end: run.at + bytes });
    for (let i = 0; i < run.clusters; i++) {
      const host = run.at + i * clusterBytes;
      const index = (first + i) % l2Entries;
      table.view.setUint32(index * header.l2EntryBytes, (Math.floor(host / 2 ** 32) | COPIED_HIGH) >>> 0);
      table.view.setUint32(index * header.l2EntryBytes + 4, host % 2 ** 32);
      this.#changes.touch(table, index);
    }
    this.#allocator.keep();
    return { file: data, at: run.at, bytes };
  }

  async #write(at: number, from: Uint8Array): Promise<void> {
    const { clusterBytes } = this.#context.header;
    for (let done = 0; done < from.length;) {
      const start = at + done;
      const left = from.subarray(done);
      const { host, bytes } = await this.#inPlace(start, left.length);
      if (bytes > 0) {
        await this.#context.data.write(host, left.subarray(0, bytes));
        done += bytes;
      } else {
        const piece = left.subarray(0, clusterBytes - (start % clusterBytes));
        await this.#writeCluster(start, piece);
        await this.#commitWhenLarge();
        done += piece.length;
      }
    }
  }

  /** The longest run from `at` on that can be written where it lies. */
  async #inPlace(at: number, bytesMax: number): Promise<{ host: number; bytes: number }> {
    const { clusterBytes } = this.#context.header;
    let host = -1;
    let bytes = 0;
    while (bytes < bytesMax) {
      const offset = (at + bytes) % clusterBytes;
      const { entry, isOwned } = await entryOf(this.#context, Math.floor((at + bytes) / clusterBytes));
      if (!isOwned || entry.kind !== "data") break;
      if (host < 0) host = entry.host + offset;
      else if (entry.host !== host + bytes) break;
      bytes += clusterBytes - offset;
    }
    return { host, bytes: Math.min(bytes, bytesMax) };
  }

  /** Writes inside one guest cluster whose entry has to change. */
  async #writeCluster(at: number, from: Uint8Array): Promise<void> {
    const { header } = this.#context;
    const cluster = Math.floor(at / header.clusterBytes);
    const { entry, isOwned } = await entryOf(this.#context, cluster);
    const isBlank = entry.kind === "zero" || (entry.kind === "unallocated" && header.backing === undefined);
    const owned = { entry, isOwned };
    const placed =
      isBlank && !header.extendedL2
        ? await this.#writeAmongZeros(cluster, owned, at, from)
        : await this.#writeCopy(cluster, owned, at, from);
    await this.#map(cluster, owned, placed);
  }

  /** The rest of the cluster reads as zeros: it needs no bytes, where the host's file has holes. */
  async #writeAmongZeros(cluster: number, owned: Owned, at: number, from: Uint8Array): Promise<Placed> {
    const { data, header } = this.#context;
    const start = cluster * header.clusterBytes;
    const host = await this.#hostFor(start, owned);
    const isWhole = from.length === header.clusterBytes;
    if (!isWhole)
      await this.#emptying.zeroHost({ start: host, end: host + header.clusterBytes }, { keep: false });
    await data.write(host + at - start, from);
    return { host, placed: ALL };
  }

  /** What the write leaves of the subclusters that it touches, and all that only the old place held, is copied. */
  async #writeCopy(cluster: number, owned: Owned, at: number, from: Uint8Array): Promise<Placed> {
    const { data, header } = this.#context;
    const { clusterBytes, subclusterBytes } = header;
    const { entry, isOwned } = owned;
    const start = cluster * clusterBytes;
    const first = Math.floor((at - start) / subclusterBytes);
    const last = Math.floor((at + from.length - 1 - start) / subclusterBytes);
    let placed = isOwned ? 0 : entry.kind === "compressed" ? ALL : entry.alloc;
    for (let i = first; i <= last; i++) placed |= 1 << i;
    const isPlaced = (i: number) => ((placed >>> i) & 1) === 1;
    const count = clusterBytes / subclusterBytes;
    const content = new Map<number, Uint8Array>();
    for (let i = 0; i < count;) {
      let end = i;
      while (end < count && isPlaced(end)) end++;
      if (end > i) {
        const offset = i * subclusterBytes;
        content.set(offset, await this.#content(start + offset, (end - i) * subclusterBytes, at, from));
      }
      i = end + 1;
    }
    const host = await this.#hostFor(start, owned);
    for (const [offset, bytes] of content) await data.write(host + offset, bytes);
    return { host, placed };
  }

  /** The host cluster to write to. @param start guest offset of the cluster */
  async #hostFor(start: number, { entry, isOwned }: Owned): Promise<number> {
    if (isOwned) return entry.host;
    return this.#context.header.externalData ? start : this.#allocator.claim();
  }

  async #map(cluster: number, { entry, isOwned }: Owned, { host, placed }: Placed): Promise<void> {
    const { externalData, extendedL2, l2Entries, l2EntryBytes } = this.#context.header;
    const index = cluster % l2Entries;
    const table = await this.#changes.ownTable(Math.floor(cluster / l2Entries));
    const offset = index * l2EntryBytes;
    table.view.setUint32(offset, (Math.floor(host / 2 ** 32) | COPIED_HIGH) >>> 0);
    table.view.setUint32(offset + 4, host % 2 ** 32);
    if (extendedL2) {
      table.view.setUint32(offset + 8, entry.zero & ~placed);
      table.view.setUint32(offset + 12, placed | (isOwned ? entry.alloc : 0));
    }
    this.#changes.touch(table, index);
    this.#allocator.keep();
    if (!isOwned && entry.host >= 0 && !externalData)
      this.#changes.drop(entry.host, entry.host + entry.hostBytes);
  }

  /** What `bytes` guest bytes at `start` will hold when `from` is written at `at`. */
  async #content(start: number, bytes: number, at: number, from: Uint8Array): Promise<Uint8Array> {
    const end = start + bytes;
    if (at <= start && at + from.length >= end) return from.subarray(start - at, end - at);
    const content = new Uint8Array(bytes);
    await this.#disk.read(start, content.subarray(0, Math.max(0, this.#disk.bytes - start)));
    const from0 = Math.max(at, start);
    const from1 = Math.min(at + from.length, end);
    if (from0 < from1) content.set(from.subarray(from0 - at, from1 - at), from0 - start);
    return content;
  }
}

const ALL = 0xffffffff;

function isFull(error: unknown): boolean {
  return error instanceof DiskError && error.code === "no-space";
}

/** A guest cluster as it was, and whether its host cluster is nobody else's. */
interface Owned {
  readonly entry: Entry;
  readonly isOwned: boolean;
}

/** Where a guest cluster lies now, and which of its subclusters were written there. */
interface Placed {
  readonly host: number;
  readonly placed: number;
}
