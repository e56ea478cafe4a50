/**
 * The guard: a TRIM or WRITE_ZEROES destroys nothing for a while (H32).
 *
 *   image   |##########|##########|##########|          the old bytes stay where they are
 *   reads   |##########|0000000000|##########|          masked at once
 *   log     mask …                                      durable with the next flush
 *
 *   a write into the mask: old bytes → log → flush → image; then the mask ends there
 *   its time is over:      doom → flush → image zeroed and given back → flush → release
 *
 * It works on the guest's bytes, over any image. What it promises after a crash anywhere: what was flushed reads as it
 * was; what was flushed as zeros reads zeros; everything whose mask was flushed can be restored (`guard/vault.ts` has
 * the invariants, `disk/undo.ts` the restoring). docs/LIVE.md "The guard".
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import type { HostFile, Place, Run, WritableDevice, Zeroing } from "../device/device.ts";
import { Filter } from "../device/filter.ts";
import { DiskError } from "../error.ts";
import { Alarms, type AlarmOptions, type GuardEvent } from "./guard/alarms.ts";
import { Journal } from "./guard/journal.ts";
import { maskedRuns, readMasked } from "./guard/masked.ts";
import { bare, cut, HIDDEN, KEEP, type Piece, PieceList, PROMISED, WRITE } from "./guard/pieces.ts";
import { replay } from "./guard/replay.ts";
import { type Choice, offered, restore } from "./guard/restore.ts";
import { expire, settle } from "./guard/retire.ts";
import { fitting, isUnsaved, save, saveTops } from "./guard/saving.ts";
import { type FileStamp, stale, whyStale } from "./guard/stamp.ts";
import { Stamping } from "./guard/stamping.ts";
import { GuardState } from "./guard/state.ts";
import { PENDING_MAX, Vault } from "./guard/vault.ts";

export interface GuardOptions {
  /** How long nothing is lost, in milliseconds. */
  readonly forMs: number;
  /** How many bytes are guarded at most. */
  readonly maxBytes: number;
  /** Plain writes save what they write over, too. */
  readonly writes?: boolean;
  /** How many pieces it may consist of: each is memory. Default a million. */
  readonly piecesMax?: number;
  /** So much of the log may be dead. Default 1 MiB. */
  readonly slackBytes?: number;
  /** A TRIM of less keeps its bytes: the host's block. Default 4096. */
  readonly granuleBytes?: number;
  /** Milliseconds since 1970. */
  readonly now?: () => number;
  /** Milliseconds that really went by, from any beginning: a clock that is set forward makes nothing older than that. */
  readonly elapsed?: () => number;
  /** What the files of the image look like; undefined where that cannot be told. Asked also after they were closed. */
  readonly stamp?: () => Promise<readonly FileStamp[] | undefined>;
  /** The image is as the guard left it, whatever its stamp says (`--allow guard`). */
  readonly isTrusted?: boolean;
  readonly alarms?: AlarmOptions;
  readonly onEvent?: (event: GuardEvent) => void;
}

export interface GuardCounters {
  /** Bytes that can be brought back. */
  readonly guardedBytes: number;
  /** Of these, bytes that lie in the image behind a mask. */
  readonly maskedBytes: number;
  /** Of these, bytes that were written over, or whose image really holds zeros: they lie in the log. */
  readonly savedBytes: number;
  /** TRIMs that gave nothing back, and zeroes and writes that were not guarded, because the guard was full. */
  readonly refused: number;
}

const PIECES_FULL = 1_000_000;
const SLACK_BYTES = 1024 * 1024;
/** What is saved at once, around a write. */
const REACH_BYTES = 64 * 1024;
const REACH_BYTES_MAX = 1024 * 1024;
/** What is copied to the log in one go of `expire`, where the guest was promised zeros. */
const SETTLE_BYTES = 64 * 1024 * 1024;

export class Guard extends Filter {
  readonly #vault: Vault;
  readonly #log: HostFile;
  readonly #options: GuardOptions;
  readonly #alarms: Alarms;
  readonly #stamping: Stamping;
  readonly #now: () => number;
  /** When `elapsed` began. */
  readonly #epoch: number;
  #refused = 0;
  #isSettled = false;
  #expiring: Promise<number> | undefined;
  #lastWriteEnd = -1;
  #reachBytes = REACH_BYTES;
  /** With `writes`: what was saved in this second needs not be saved again. */
  #recent = { time: -1, ranges: new PieceList() };

  private constructor(below: WritableDevice, log: HostFile, vault: Vault, options: GuardOptions) {
    super(below);
    this.#log = log;
    this.#vault = vault;
    this.#options = options;
    this.#now = options.now ?? Date.now;
    this.#epoch = this.#now() - (options.elapsed?.() ?? 0);
    this.#stamping = new Stamping(vault, options.stamp, this.#now);
    this.#alarms = new Alarms(below.bytes, options.alarms ?? {}, options.onEvent ?? (() => {}));
  }

  /**
   * @param log empty, or the log of this image; the guard closes it
   * @throws DiskError `refused` where somebody else wrote to the image, `corrupt` for a damaged log, `io`
   */
  static async open(below: WritableDevice, log: HostFile, options: GuardOptions): Promise<Guard> {
    const found = await replay(log);
    const files = await options.stamp?.();
    const isNew = found === undefined || found.state.isEmpty;
    if (!isNew && found.header.diskBytes !== below.bytes)
      throw stale(`its disk had ${found.header.diskBytes} bytes, and has ${below.bytes}`);
    if (!isNew && options.stamp !== undefined && !options.isTrusted) {
      const why = whyStale(found.stamp, files);
      if (why !== undefined) throw stale(why);
    }
    const journal = isNew ? await Journal.begin(log, below.bytes) : await Journal.resume(log, found);
    const vault = new Vault(below, isNew ? new GuardState() : found.state, journal);
    const guard = new Guard(below, log, vault, options);
    await guard.#stamping.put();
    return guard;
  }

  /** What it holds, for who only looks. */
  get state(): GuardState {
    return this.#vault.state;
  }

  /** What would come back. */
  offered(choice: Choice): readonly Piece[] {
    return offered(this.#vault.state, choice);
  }

  /** Brings it back. Nobody else uses the disk meanwhile. */
  async restore(choice: Choice, onProgress?: (bytes: number) => void): Promise<void> {
    await restore(this.#vault, this.below, this.#log, choice, this.#stamping.renew, onProgress);
  }

  get counters(): GuardCounters {
    const { bytes, hiddenBytes } = this.#vault.state;
    return {
      guardedBytes: bytes,
      maskedBytes: hiddenBytes,
      savedBytes: bytes - hiddenBytes,
      refused: this.#refused,
    };
  }

  /** Ranges whose old bytes lie in the image, and are read as zeros. */
  guarded(): ExtentSet {
    return this.#vault.state.hidden();
  }

  override read(at: number, into: Uint8Array): Promise<void> {
    return readMasked(this.below, this.#vault.state.tops, at, into);
  }

  override map(range: Extent): AsyncIterable<readonly Run[]> {
    return maskedRuns(this.below.map(range), this.#vault.state.tops);
  }

  override locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    const { state, locks } = this.#vault;
    let end = at + bytes;
    if (access === "write") {
      if (this.#stamping.isIdle || this.#options.writes || locks.touches({ start: at, end }))
        return undefined;
      end = Math.min(end, state.tops.after(at)?.start ?? end);
    } else {
      for (const { start, flags } of state.tops.within({ start: at, end })) {
        if ((flags & HIDDEN) === 0) continue;
        end = Math.min(end, start);
        break;
      }
    }
    if (end <= at) return undefined;
    return this.below.locate?.(at, end - at, access);
  }

  override async write(at: number, from: Uint8Array): Promise<void> {
    const range = { start: at, end: at + from.length };
    const { state, locks } = this.#vault;
    if (this.#stamping.isIdle) await this.#stamping.put();
    if (!this.#options.writes && !state.tops.touches(range) && !locks.touches(range))
      return await this.below.write(at, from);
    const reach = this.#reachOf(range);
    const release = await locks.take(reach);
    try {
      const time = this.#second();
      const zeros = this.#options.writes ? await this.#saveData(range, time) : ExtentSet.EMPTY;
      await saveTops(this.#vault, this.below, reach);
      const written = this.#isCrowded ? await this.#clear(reach) : range;
      await this.below.write(at, from);
      this.#written(written);
      for (const each of zeros) this.#vault.addZeros(each, time);
    } finally {
      release();
    }
    await this.#limitPending();
  }

  /** A guard of very many pieces makes no new ones: around a write, all is as if it had been written over with zeros. */
  async #clear(reach: Extent): Promise<Extent> {
    const pieces = [...this.#vault.state.tops.within(reach)];
    for (const piece of pieces) if (piece.flags & HIDDEN) await this.below.zero(cut(piece, reach));
    return reach;
  }

  get #isCrowded(): boolean {
    return this.#vault.state.count >= (this.#options.piecesMax ?? PIECES_FULL);
  }

  /** A write needs more than itself saved, so that those that follow need not wait for the log again. */
  #reachOf({ start, end }: Extent): Extent {
    const isNext = start === this.#lastWriteEnd;
    this.#reachBytes = isNext ? Math.min(this.#reachBytes * 2, REACH_BYTES_MAX) : REACH_BYTES;
    this.#lastWriteEnd = end;
    const unsaved = [...this.#vault.state.tops.within({ start, end })].some(isUnsaved);
    if (!unsaved) return { start, end };
    const from = Math.floor(start / REACH_BYTES) * REACH_BYTES;
    const to = Math.ceil(end / this.#reachBytes) * this.#reachBytes;
    return { start: from, end: Math.min(to, this.bytes) };
  }

  /** With `writes`: what nothing guards yet. @returns what is masked now, and must be restored as zeros */
  async #saveData(range: Extent, time: number): Promise<ExtentSet> {
    if (this.#recent.time !== time) this.#recent = { time, ranges: new PieceList() };
    const recent = ExtentSet.from(this.#recent.ranges.within(range));
    const { data, tops } = await this.#partsOf(range);
    const saved = data.subtract(recent);
    const zeros = ExtentSet.of(range).subtract(data).subtract(recent);
    if (this.#room() < saved.bytes || (this.#isCrowded && saved.count + zeros.count > 0)) {
      this.#refuse(range, "write");
      throw new DiskError("io", "the guard is full: what this write would destroy cannot be saved", {
        code: "no-space",
        hint: "wait until its time is over, or give it more room: --guard-max",
      });
    }
    const pieces = Array.from(saved, ({ start, end }) => ({ start, end, time, flags: WRITE }));
    await save(this.#vault, this.below, pieces);
    const gap = (start: number, end: number) => bare(start, end, time, WRITE);
    this.#recent.ranges.rewrite(range, { piece: (piece) => piece, gap });
    await this.#vault.noteZeros([...zeros.subtract(tops)], time);
    return zeros.intersect(tops);
  }

  #written(range: Extent): void {
    for (const { start, end } of [...this.#vault.state.tops.within(range)].map((piece) => cut(piece, range)))
      this.#vault.pending.add("write", { start, end });
    this.#vault.state.write(range);
  }

  override async zero(range: Extent, how: Zeroing = {}): Promise<void> {
    if (this.#stamping.isIdle) await this.#stamping.put();
    const release = await this.#vault.locks.take(range);
    try {
      const { data, empty, tops } = await this.#partsOf(range);
      const guarded = fitting(data, this.#room());
      const plain = data.subtract(guarded);
      if (plain.count > 0 && how.fast)
        throw new DiskError("unsupported", "the guard is full: zeros would have to be written");
      for (const each of empty) await this.below.zero(each, how);
      for (const each of plain) await this.below.zero(each, how);
      if (plain.count > 0) this.#refuse(range, "zero");
      this.#mask(guarded.union(tops), PROMISED | (how.keep ? KEEP : 0));
      this.#alarms.trimmed(guarded, this.#now());
    } finally {
      release();
    }
    await this.#limitPending();
  }

  override async discard(range: Extent): Promise<void> {
    const granule = this.#options.granuleBytes ?? 4096;
    const [whole] = ExtentSet.of(range).alignInward(granule);
    if (whole === undefined) return;
    if (this.#stamping.isIdle) await this.#stamping.put();
    const release = await this.#vault.locks.take(whole);
    try {
      const { data, empty } = await this.#partsOf(whole);
      const guarded = fitting(data, this.#room());
      if (guarded.bytes < data.bytes) this.#refuse(whole, "trim");
      for (const each of empty) await this.below.discard(each);
      this.#mask(guarded, 0);
      this.#alarms.trimmed(data, this.#now());
    } finally {
      release();
    }
    await this.#limitPending();
  }

  #mask(ranges: ExtentSet, flags: number): void {
    const time = this.#second();
    for (const range of ranges) {
      this.#vault.state.mask(range, time, flags);
      this.#vault.pending.add("mask", range, time, flags);
    }
  }

  /** Of a range: what holds something, what reads as zeros, and what is guarded already. */
  async #partsOf(range: Extent): Promise<{ data: ExtentSet; empty: ExtentSet; tops: ExtentSet }> {
    const found = new ExtentBuilder();
    for await (const runs of this.below.map(range))
      for (const { start, end, kind } of runs)
        if (kind === "data" || kind === "compressed") found.add(start, end);
    const tops = ExtentSet.from(this.#vault.state.tops.within(range)).within(range);
    const data = found.build().subtract(tops);
    return { data, tops, empty: ExtentSet.of(range).subtract(data).subtract(tops) };
  }

  #room(): number {
    return this.#isCrowded ? 0 : Math.max(0, this.#options.maxBytes - this.#vault.state.bytes);
  }

  #refuse({ start, end }: Extent, what: "trim" | "zero" | "write"): void {
    this.#refused++;
    this.#alarms.full({ start, end }, what, this.#now());
  }

  override async flush(): Promise<void> {
    await this.#vault.commit();
    this.#alarms.flushed(this.#now());
  }

  /**
   * What is to be done now and then, every few seconds: makes the image read as the guest was promised, lets go of what is
   * too old, renews the stamp, shortens the log.
   * Who calls it again meanwhile waits for the same. @returns the bytes that went back to the image
   */
  expire(now: number = this.#now()): Promise<number> {
    this.#expiring ??= this.#tidy(now).finally(() => (this.#expiring = undefined));
    return this.#expiring;
  }

  async #tidy(now: number): Promise<number> {
    const { elapsed, forMs } = this.#options;
    const steady = elapsed === undefined ? now : Math.min(now, this.#epoch + elapsed());
    const upTo = Math.floor((steady - forMs) / 1000);
    if (this.#stamping.isIdle && this.#vault.state.oldest <= upTo) await this.#stamping.put();
    const { renew } = this.#stamping;
    const bytes = await expire(this.#vault, this.below, upTo, renew);
    await settle(this.#vault, this.below, renew, SETTLE_BYTES);
    await this.#stamping.rest();
    await this.#vault.shorten(this.#options.slackBytes ?? SLACK_BYTES);
    return bytes;
  }

  /** Gives up everything that is guarded: masked ranges really become zeros. */
  async forget(): Promise<void> {
    await expire(this.#vault, this.below, Number.MAX_SAFE_INTEGER, this.#stamping.renew);
  }

  /** Leaves an image that other tools read rightly. `seal` is called when it is closed. */
  override async [Symbol.asyncDispose](): Promise<void> {
    try {
      await settle(this.#vault, this.below, this.#stamping.renew);
      await this.#vault.commit();
      this.#isSettled = true;
    } finally {
      await super[Symbol.asyncDispose]();
    }
  }

  /** Writes down what the closed image looks like, and closes the log; where it durably holds nothing, it is removed. */
  async seal(remove: () => void = () => {}): Promise<void> {
    try {
      if (this.#isSettled && this.state.isEmpty) remove();
      else if (this.#isSettled) await this.#stamping.put(true);
    } finally {
      await this.#vault.close();
    }
  }

  async #limitPending(): Promise<void> {
    if (this.#vault.pending.count > PENDING_MAX) await this.#vault.commit();
  }

  #second(): number {
    return Math.floor(this.#now() / 1000);
  }
}
