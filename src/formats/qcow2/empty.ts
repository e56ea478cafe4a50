/**
 * Giving space back, and making zeros, for a writer.
 *
 *   guest     |  cluster  |  cluster  |  cluster  |
 *   discard        |#####|###########|####|
 *                   piece    whole    piece
 *
 *   whole   the entry goes, and the cluster with the next commit
 *   piece   the cluster is nobody else's: the host's blocks are punched at once, for later somebody may have written
 *           there. Where the host then holds nothing of the whole cluster, and it is found to be zeros, its entry goes too
 *
 * Zeros keep the places of clusters, or give them back, as they are asked for (`Zeroing`).
 */
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import type { HostFile, Zeroing } from "../../device/device.ts";
import { readsZeros } from "../../device/zeros.ts";
import { DiskError } from "../../error.ts";
import type { Changes } from "./changes.ts";
import type { Qcow2Context } from "./context.ts";
import { type Header, SUBCLUSTERS } from "./header.ts";
import { entryOf, ownHostOf } from "./place.ts";
import { l1Copied, l2TableAt, ZERO_LOW } from "./tables.ts";
import { type Consequences, ownedByFlag, UNHEARD, type Unwanted, Unmapping } from "./unmap.ts";

const ZEROS = new Uint8Array(2 ** 20);

/** What the writer does for it. */
export interface Writing {
  write(at: number, from: Uint8Array): Promise<void>;
  /** Called after each L2 table. */
  settle(): Promise<void>;
}

export class Emptying {
  readonly #context: Qcow2Context<HostFile>;
  readonly #changes: Changes;
  readonly #writing: Writing;
  /** Less than that the host cannot punch. */
  #hostBlockBytes: number | undefined;

  constructor(context: Qcow2Context<HostFile>, changes: Changes, writing: Writing) {
    this.#context = context;
    this.#changes = changes;
    this.#writing = writing;
  }

  /** @returns why it was not done, where it was to be fast: then nothing is altered */
  async zero(range: Extent, how: Zeroing): Promise<DiskError | undefined> {
    const spans = [...this.#spans(range)];
    if (how.fast) {
      const refusal = await this.#zeroFast(spans, how);
      if (refusal !== undefined) return refusal;
    }
    const punches = how.keep === false || (how.keep !== true && this.#context.header.rawExternalData);
    for (const { index, span } of spans) {
      await this.#ownTable(index);
      const { blanked, unreachable } = await this.#unmap(index, asked(span, how), punches);
      for (const host of how.fast ? [] : blanked) await this.zeroHost(host, how);
      for (const { start, end } of unreachable) {
        for (let from = start; from < end; from += ZEROS.length) {
          await this.#writing.write(from, ZEROS.subarray(0, Math.min(ZEROS.length, end - from)));
        }
      }
      await this.#writing.settle();
    }
    if (how.keep === false) for (const piece of this.#divided(range).pieces) await this.#dropIfEmpty(piece);
    return undefined;
  }

  /** What lies past the end of the file reads as zeros already. */
  async zeroHost({ start, end }: Extent, how?: Zeroing): Promise<void> {
    const { data } = this.#context;
    if (start < data.bytes) await data.zero({ start, end: Math.min(end, data.bytes) }, how);
  }

  async discard(range: Extent): Promise<void> {
    const { whole, pieces } = this.#divided(range);
    for (const { index, span } of this.#spans(whole)) {
      const isDone = await this.#dropPlain(index, { start: span.start(0), end: span.end(0) });
      if (!isDone) await this.#unmap(index, { free: span, blank: ExtentSet.EMPTY }, true);
      await this.#writing.settle();
    }
    for (const { start, end } of pieces) {
      const { clusterBytes, virtualBytes } = this.#context.header;
      // What of the last cluster lies behind the disk's end is nobody's.
      const piece = { start, end: end === virtualBytes ? Math.ceil(end / clusterBytes) * clusterBytes : end };
      if (piece.end - start < (await this.#holeBytes())) continue;
      await this.#discardPiece(piece);
      await this.#dropIfEmpty(piece);
    }
  }

  /**
   * Nearly all there is: data clusters that are nobody else's, dropped in the table itself.
   * @param span whole clusters under one L1 entry
   * @returns false where more thought is needed; then nothing was done
   */
  async #dropPlain(index: number, span: Extent): Promise<boolean> {
    const { header, l1, l2 } = this.#context;
    const { backing, clusterBytes, extendedL2, externalData, l2EntryBytes, l2Entries, version } = header;
    const at = l2TableAt(this.#context, l1, index);
    if (at === 0 || !l1Copied(l1, index) || extendedL2 || externalData) return false;
    if (backing !== undefined && version < 3) return false;
    const table = await l2.get(at);
    const base = index * l2Entries;
    const first = span.start / clusterBytes - base;
    const end = Math.ceil(span.end / clusterBytes) - base;
    // Without a parent an entry of zeros has nothing to give.
    const isNothing = (i: number): boolean =>
      backing === undefined &&
      (table.view.getUint32(i * l2EntryBytes) | table.view.getUint32(i * l2EntryBytes + 4)) === 0;
    for (let i = first; i < end; i++) {
      if (!isNothing(i) && ownHostOf(this.#context, table, i) < 0) return false;
    }
    for (let i = first; i < end; i++) {
      if (isNothing(i)) continue;
      const host = ownHostOf(this.#context, table, i);
      table.view.setUint32(i * l2EntryBytes, 0);
      table.view.setUint32(i * l2EntryBytes + 4, backing === undefined ? 0 : ZERO_LOW);
      this.#changes.touch(table, i);
      this.#changes.drop(host, host + clusterBytes);
    }
    return true;
  }

  async #holeBytes(): Promise<number> {
    this.#hostBlockBytes ??= (await this.#context.data.stat()).blockBytes;
    return this.#hostBlockBytes;
  }

  /** The clusters that lie in a range, and what is left of it at both ends. */
  #divided(range: Extent): { readonly whole: Extent; readonly pieces: readonly Extent[] } {
    const { clusterBytes, virtualBytes } = this.#context.header;
    const start = Math.ceil(range.start / clusterBytes) * clusterBytes;
    const end = range.end === virtualBytes ? range.end : Math.floor(range.end / clusterBytes) * clusterBytes;
    if (start > end) return { whole: { start: 0, end: 0 }, pieces: [range] };
    const pieces = [
      { start: range.start, end: start },
      { start: end, end: range.end },
    ];
    return { whole: { start, end }, pieces: pieces.filter((piece) => piece.start < piece.end) };
  }

  *#spans(range: Extent): Generator<{ readonly index: number; readonly span: ExtentSet }> {
    const { l2SpanBytes } = this.#context.header;
    const set = ExtentSet.of(range);
    for (const index of set.spans(l2SpanBytes)) {
      yield { index, span: set.within({ start: index * l2SpanBytes, end: (index + 1) * l2SpanBytes }) };
    }
  }

  /** Zeros above a parent, or where a snapshot reads, need an entry of their own. */
  async #ownTable(index: number): Promise<void> {
    const { header, l1 } = this.#context;
    const isRead = l2TableAt(this.#context, l1, index) !== 0 || header.backing !== undefined;
    if (isRead && header.version === 3) await this.#changes.ownTable(index);
  }

  /** Zeros what has to be zeroed at the host, once it is known that entries do the rest. */
  async #zeroFast(spans: Iterable<{ index: number; span: ExtentSet }>, how: Zeroing) {
    const blanked: Extent[] = [];
    let unreachableBytes = 0;
    for (const { index, span } of spans) {
      await this.#ownTable(index);
      await new Unmapping(this.#context, ownedByFlag(this.#context), asked(span, how)).revise(index, {
        ...UNHEARD,
        blank: (host) => blanked.push(host),
        mustBeZero: ({ start, end }) => (unreachableBytes += end - start),
      });
    }
    if (unreachableBytes > 0) {
      return new DiskError("unsupported", `${unreachableBytes} bytes would have to be written as zeros`);
    }
    try {
      for (const host of blanked) await this.zeroHost(host, how);
    } catch (error) {
      if (error instanceof DiskError && error.kind === "unsupported") return error;
      throw error;
    }
    return undefined;
  }

  /** Punches what the host can of a part of a cluster that nobody else refers to. */
  async #discardPiece(piece: Extent): Promise<void> {
    const { clusterBytes, extendedL2, l2SpanBytes } = this.#context.header;
    if (extendedL2) {
      const index = Math.floor(piece.start / l2SpanBytes);
      await this.#unmap(index, { free: ExtentSet.of(piece), blank: ExtentSet.EMPTY }, true);
      return;
    }
    const cluster = Math.floor(piece.start / clusterBytes);
    const { entry, isOwned } = await entryOf(this.#context, cluster);
    if (!isOwned) return;
    const by = entry.host - cluster * clusterBytes;
    await this.#discardHost({ start: piece.start + by, end: piece.end + by });
  }

  async #discardHost({ start, end }: Extent): Promise<void> {
    const { data } = this.#context;
    if (start < data.bytes) await data.discard({ start, end: Math.min(end, data.bytes) });
  }

  /** A cluster of its own that holds nothing any more loses its place. Subclusters that show the parent go on to. */
  async #dropIfEmpty(piece: Extent): Promise<void> {
    const { data, header } = this.#context;
    const { backing, clusterBytes, extendedL2, l2SpanBytes, subclusterBytes, virtualBytes } = header;
    const canSayZero = backing === undefined || header.version === 3;
    if (!canSayZero || header.rawExternalData) return;
    const cluster = Math.floor(piece.start / clusterBytes);
    const { entry, isOwned } = await entryOf(this.#context, cluster);
    if (!isOwned) return;
    const host = { start: entry.host, end: Math.min(entry.host + clusterBytes, data.bytes) };
    if (host.start >= host.end || data.isHole?.(host) !== true || !(await readsZeros(data, host))) return;
    const start = cluster * clusterBytes;
    const end = Math.min(start + clusterBytes, virtualBytes);
    let free = ExtentSet.of({ start, end });
    if (extendedL2 && backing !== undefined) {
      const held = Array.from({ length: SUBCLUSTERS }, (_, i) => i).filter((i) => (entry.alloc >>> i) & 1);
      free = ExtentSet.from(
        held.map((i) => ({ start: start + i * subclusterBytes, end: start + (i + 1) * subclusterBytes })),
      ).within({ start, end });
    }
    await this.#unmap(Math.floor(start / l2SpanBytes), { free, blank: ExtentSet.EMPTY }, false);
  }

  /**
   * Drops mappings under one L1 entry; returns what of `blank` that leaves to be done.
   * @param punches whether what is unwanted of clusters that stay is given back
   */
  async #unmap(index: number, wish: Unwanted, punches: boolean) {
    const { header, l2 } = this.#context;
    const discarded: Extent[] = [];
    const blanked: Extent[] = [];
    const unreachable: Extent[] = [];
    const consequences: Consequences = {
      unmap: (_, host) => {
        if (header.externalData) discarded.push(host);
        else this.#changes.drop(host.start, host.end);
      },
      hole: (host) => {
        if (punches) discarded.push(host);
      },
      blank: (host) => blanked.push(host),
      change: () => {},
      mustBeZero: (guest) => unreachable.push(guest),
    };
    const unmapping = new Unmapping(this.#context, ownedByFlag(this.#context), wish);
    const revised = await unmapping.revise(index, consequences);
    if (revised) {
      const { first, end } = entriesOf(wish.free.union(wish.blank), index, header);
      this.#changes.replace(await l2.get(revised.at), revised.after, first, end);
    }
    // Of these clusters nothing is given to anybody else: their holes need no order. Subclusters are smaller than the
    // host's blocks.
    for (const host of ExtentSet.from(discarded)) await this.#discardHost(host);
    return { blanked, unreachable };
  }
}

/** Which entries of an L2 table a wish inside its span is about. */
function entriesOf(set: ExtentSet, index: number, { clusterBytes, l2Entries }: Header) {
  const base = index * l2Entries;
  const first = Math.floor(set.start(0) / clusterBytes) - base;
  return { first, end: Math.ceil(set.end(set.count - 1) / clusterBytes) - base };
}

function asked(blank: ExtentSet, { keep }: Zeroing): Unwanted {
  return { free: ExtentSet.EMPTY, blank, keepsPlaces: keep === true };
}
