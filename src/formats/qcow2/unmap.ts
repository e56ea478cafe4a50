/**
 * What becomes of the entries of the mapping when guest ranges are no longer wanted: the decisions, without any I/O
 * but the reading of tables.
 *
 *   entry         whole cluster unwanted                          part of it unwanted
 *   data, alone   unmapped; above a parent: zero flag (v3),       holes at the host; subclusters get zero bits
 *                 kept and punched where there is none (v2)
 *   data, shared  untouched: a snapshot needs it (H11)            untouched
 *   compressed    unmapped, as far as the parent stays covered    untouched: never punched in part (H11)
 *   raw external  kept, for the data file is the disk itself      holes at the host
 *
 * After it a range reads zeros or is unchanged, and never shows the parent or stale data (H9). A `blank` range must
 * read zeros: where that cannot be brought about here it goes to `mustBeZero`, and the caller has to look.
 *
 * Specification: QEMU's docs/interop/qcow2.txt, "Cluster mapping", "Extended L2 Entries", "External data".
 */
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import { bytesOf, viewOf } from "../../bytes/struct.ts";
import type { Wish } from "../../reclaim/plan.ts";
import type { CachedTable } from "./cache.ts";
import type { Qcow2Context } from "./context.ts";
import { SUBCLUSTERS } from "./header.ts";
import {
  COPIED_HIGH,
  decodeEntry,
  type Entry,
  l1Copied,
  l2TableAt,
  OFFSET_HIGH,
  ZERO_LOW,
} from "./tables.ts";

/** How many references each host cluster really has: counted, not what the image states. */
export interface References {
  get(cluster: number): number;
}

/** Says what the active mapping refers to and nothing else does. */
export interface Ownership {
  ownsTable(index: number, at: number): boolean;
  ownsCluster(host: number, copied: boolean): boolean;
}

/** Trusts nothing but the count of all references (H11). */
export function ownedByCount({ header }: Qcow2Context, references: References): Ownership {
  const isAlone = (at: number) => references.get(Math.floor(at / header.clusterBytes)) === 1;
  return {
    ownsTable: (_, at) => isAlone(at),
    ownsCluster: (host) => header.externalData || isAlone(host),
  };
}

/** Trusts the copied flags: for a writer, who keeps them true. */
export function ownedByFlag({ l1 }: Qcow2Context): Ownership {
  return { ownsTable: (index) => l1Copied(l1, index), ownsCluster: (_, copied) => copied };
}

/** What follows from the decisions; told in ascending order of the guest's offsets. */
export interface Consequences {
  /** A guest range loses its mapping, and every host cluster that `host` touches one reference. */
  unmap(guest: Extent, host: Extent): void;
  /** Bytes of the data file that nobody wants, in a cluster that stays. */
  hole(host: Extent): void;
  /** Bytes of the data file that must be zeros, in a cluster that stays. */
  blank(host: Extent): void;
  /** Guest bytes that will read differently, if they were no zeros. */
  change(guest: Extent): void;
  /** Guest bytes that must read as zeros, and nothing here can make them. */
  mustBeZero(guest: Extent): void;
}

/** An L2 table in its two versions. */
export interface RevisedTable {
  readonly at: number;
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

export interface Unwanted extends Pick<Wish, "free" | "blank"> {
  /** Clusters that are allocated for the guest alone stay so, and are blanked where they lie. */
  readonly keepsPlaces?: boolean;
}

/** The decisions over one wish. The same tables give the same decisions. */
export class Unmapping {
  readonly #context: Qcow2Context;
  readonly #ownership: Ownership;
  readonly #unwanted: ExtentSet;
  readonly #blank: ExtentSet;
  readonly #keepsPlaces: boolean;

  constructor(context: Qcow2Context, ownership: Ownership, wish: Unwanted) {
    const disk = { start: 0, end: context.header.virtualBytes };
    this.#context = context;
    this.#ownership = ownership;
    this.#keepsPlaces = wish.keepsPlaces ?? false;
    this.#unwanted = wish.free.union(wish.blank).within(disk);
    this.#blank = wish.blank.within(disk);
  }

  /** Every L2 table that the wish touches and nobody else refers to. */
  async *tables(consequences: Consequences): AsyncGenerator<RevisedTable> {
    for (const index of this.#unwanted.spans(this.#context.header.l2SpanBytes)) {
      const revised = await this.revise(index, consequences);
      if (revised) yield revised;
    }
  }

  /** The L2 table under one L1 entry; undefined where it may not be changed, or does not exist. */
  async revise(index: number, consequences: Consequences): Promise<RevisedTable | undefined> {
    const { header, l1, l2 } = this.#context;
    const span = { start: index * header.l2SpanBytes, end: (index + 1) * header.l2SpanBytes };
    const at = l2TableAt(this.#context, l1, index);
    if (at === 0 && header.backing === undefined) return undefined;
    const blank = this.#blank.within(span);
    if (at === 0 || !this.#ownership.ownsTable(index, at)) {
      for (const extent of blank) consequences.mustBeZero(extent);
      return undefined;
    }
    const table = await l2.get(at);
    const before = bytesOf(table.view);
    const after = before.slice();
    const unwanted = this.#unwanted.within(span);
    const task = { table, after, unwanted, blank, keepsPlaces: this.#keepsPlaces };
    new Revision(this.#context, this.#ownership, consequences, task).run(index);
    return { at, before, after };
  }
}

interface Task {
  readonly table: CachedTable;
  readonly after: Uint8Array;
  /** Inside the span of the table. */
  readonly unwanted: ExtentSet;
  readonly blank: ExtentSet;
  readonly keepsPlaces: boolean;
}

/** One pass over one L2 table that has no other owner. */
class Revision {
  readonly #view: DataView;
  readonly #context: Qcow2Context;
  readonly #ownership: Ownership;
  readonly #consequences: Consequences;
  readonly #task: Task;
  readonly #hasParent: boolean;
  /** Whether an entry can say "reads as zeros" without a cluster of its own. */
  readonly #canSayZero: boolean;
  /** Plain clusters unmapped last, which follow each other for the guest and at the host: told as one. */
  #plain = { guestStart: 0, guestEnd: 0, hostStart: 0, hostEnd: 0 };

  constructor(context: Qcow2Context, ownership: Ownership, consequences: Consequences, task: Task) {
    this.#view = viewOf(task.after);
    this.#context = context;
    this.#ownership = ownership;
    this.#consequences = consequences;
    this.#task = task;
    this.#hasParent = context.header.backing !== undefined;
    this.#canSayZero = !this.#hasParent || context.header.version === 3;
  }

  run(l1Index: number): void {
    const { blank, keepsPlaces, table, unwanted } = this.#task;
    const { clusterBytes, extendedL2, l2Entries, l2EntryBytes, rawExternalData } = this.#context.header;
    const skipsNothing = !extendedL2 && blank.count === 0;
    const knowsPlain = !extendedL2 && !rawExternalData && !keepsPlaces && this.#canSayZero;
    let next = 0;
    for (let i = 0; i < unwanted.count; i++) {
      const range = { start: unwanted.start(i), end: unwanted.end(i) };
      const end = Math.ceil(range.end / clusterBytes);
      for (let cluster = Math.max(next, Math.floor(range.start / clusterBytes)); cluster < end; cluster++) {
        const index = cluster - l1Index * l2Entries;
        const at = index * l2EntryBytes;
        if (skipsNothing && (table.view.getUint32(at) | table.view.getUint32(at + 4)) === 0) continue;
        const start = cluster * clusterBytes;
        const isInside = range.start <= start && range.end >= start + clusterBytes;
        if (isInside && knowsPlain && this.#unmapPlain(at, start)) continue;
        this.#decide(cluster, index, range);
      }
      next = end;
    }
    this.#tellPlain();
  }

  /** Nearly all there is: a data cluster of its own, wholly unwanted. Returns false where more thought is needed. */
  #unmapPlain(at: number, guestStart: number): boolean {
    const { clusterBytes } = this.#context.header;
    const high = this.#view.getUint32(at);
    const low = this.#view.getUint32(at + 4);
    if ((high & ~(COPIED_HIGH | OFFSET_HIGH)) !== 0 || (low & (clusterBytes - 1)) !== 0) return false;
    const host = (high & OFFSET_HIGH) * 2 ** 32 + low;
    if (host === 0 || !this.#ownership.ownsCluster(host, (high & COPIED_HIGH) !== 0)) return false;
    this.#view.setUint32(at, 0);
    this.#view.setUint32(at + 4, this.#hasParent ? ZERO_LOW : 0);
    if (this.#plain.guestEnd !== guestStart || this.#plain.hostEnd !== host) {
      this.#tellPlain();
      this.#plain = { guestStart, guestEnd: guestStart, hostStart: host, hostEnd: host };
    }
    this.#plain.guestEnd += clusterBytes;
    this.#plain.hostEnd += clusterBytes;
    return true;
  }

  #tellPlain(): void {
    const { guestStart, guestEnd, hostStart, hostEnd } = this.#plain;
    if (guestStart === guestEnd) return;
    this.#consequences.change({ start: guestStart, end: guestEnd });
    this.#consequences.unmap({ start: guestStart, end: guestEnd }, { start: hostStart, end: hostEnd });
    this.#plain.guestStart = guestEnd;
  }

  /** @param range the first unwanted range that touches the cluster */
  #decide(cluster: number, index: number, range: Extent): void {
    const { clusterBytes, extendedL2, rawExternalData, virtualBytes } = this.#context.header;
    this.#tellPlain();
    const entry = decodeEntry(this.#context, this.#task.table, index);
    const start = cluster * clusterBytes;
    const guest = { start, end: Math.min(start + clusterBytes, virtualBytes) };
    const isWhole = range.start <= guest.start && range.end >= guest.end;
    const isOwned =
      entry.host >= 0 && entry.kind !== "compressed" && this.#ownership.ownsCluster(entry.host, entry.copied);
    if (!isOwned) {
      this.#decideUntouchable(index, entry, guest, isWhole);
    } else if (isWhole && this.#canSayZero && !rawExternalData && !this.#task.keepsPlaces) {
      this.#unmap(index, entry, guest);
    } else if (extendedL2 && !rawExternalData) {
      this.#decideSubclusters(index, entry, guest);
    } else {
      this.#punch(entry, guest, guest, entry.kind === "data");
    }
  }

  /** Nothing at the host, or something that must not be changed in place. */
  #decideUntouchable(index: number, entry: Entry, guest: Extent, isWhole: boolean): void {
    const isRead = entry.kind !== "zero" && (entry.host >= 0 || this.#hasParent);
    const isBlanked = isRead && this.#task.blank.covers(guest);
    const isCompressed = entry.kind === "compressed";
    if (isWhole && this.#canSayZero && (isCompressed || isBlanked)) this.#unmap(index, entry, guest);
    else if (isRead)
      for (const extent of this.#task.blank.within(guest)) this.#consequences.mustBeZero(extent);
  }

  /** Drops the whole mapping: the cluster reads as zeros, whatever the parent holds. */
  #unmap(index: number, entry: Entry, guest: Extent): void {
    const offset = index * this.#context.header.l2EntryBytes;
    const isExtended = this.#context.header.extendedL2;
    this.#view.setUint32(offset, 0);
    this.#view.setUint32(offset + 4, this.#hasParent && !isExtended ? ZERO_LOW : 0);
    if (isExtended) {
      this.#view.setUint32(offset + 8, this.#hasParent ? 0xffffffff : 0);
      this.#view.setUint32(offset + 12, 0);
    }
    if (entry.kind !== "zero") this.#consequences.change(guest);
    if (entry.host >= 0) this.#drop(entry, guest);
  }

  #drop(entry: Entry, guest: Extent): void {
    this.#consequences.unmap(guest, { start: entry.host, end: entry.host + entry.hostBytes });
  }

  #decideSubclusters(index: number, entry: Entry, guest: Extent): void {
    const { keepsPlaces, unwanted } = this.#task;
    const { subclusterBytes, l2EntryBytes } = this.#context.header;
    let { alloc, zero } = entry;
    for (let i = 0; i < SUBCLUSTERS; i++) {
      const start = guest.start + i * subclusterBytes;
      const part = { start, end: Math.min(start + subclusterBytes, guest.end) };
      if (part.start >= part.end || !unwanted.touches(part)) continue;
      const bit = (1 << i) >>> 0;
      const isAllocated = (alloc & bit) !== 0;
      const isRead = isAllocated || ((zero & bit) === 0 && this.#hasParent);
      const isGiven = isAllocated ? !keepsPlaces : isRead && this.#task.blank.covers(part);
      if (isGiven && unwanted.covers(part)) {
        alloc = (alloc & ~bit) >>> 0;
        zero = (zero | bit) >>> 0;
        this.#consequences.change(part);
      } else if (isRead && !isAllocated) {
        for (const extent of this.#task.blank.within(part)) this.#consequences.mustBeZero(extent);
      }
      this.#punch(entry, guest, part, (alloc & bit) !== 0);
    }
    const offset = index * l2EntryBytes;
    if (alloc === 0 && !keepsPlaces) {
      this.#view.setBigUint64(offset, 0n);
      this.#drop(entry, guest);
    }
    this.#view.setUint32(offset + 8, zero);
    this.#view.setUint32(offset + 12, alloc);
  }

  /**
   * Gives away what is unwanted of `part` of a guest cluster, where it lies.
   * @param isVisible whether the guest reads these bytes of the cluster
   */
  #punch(entry: Entry, guest: Extent, part: Extent, isVisible: boolean): void {
    const { blank, unwanted } = this.#task;
    const shift = entry.host - guest.start;
    const atHost = ({ start, end }: Extent) => ({ start: start + shift, end: end + shift });
    for (let i = unwanted.seek(part.start); i < unwanted.count && unwanted.start(i) < part.end; i++) {
      const hole = {
        start: Math.max(unwanted.start(i), part.start),
        end: Math.min(unwanted.end(i), part.end),
      };
      this.#consequences.hole(atHost(hole));
      if (!isVisible) continue;
      this.#consequences.change(hole);
      for (const extent of blank.within(hole)) this.#consequences.blank(atHost(extent));
    }
  }
}

/** For a second pass, when everything was told already. */
export const UNHEARD: Consequences = { unmap() {}, hole() {}, blank() {}, change() {}, mustBeZero() {} };
