/**
 * The guard's state and its log, kept in step.
 *
 *   changes of the disk ── state (at once) ── pending ── log (with the next flush)
 *   old bytes           ── log, flushed    ── state    ── and only then the image is written over
 *
 * Invariants, whatever stops us and wherever:
 *  (1) A record that lifts a mask (write, settle, release) is in the log only if the image durably holds what is to be
 *      read instead.
 *  (2) Old bytes that the image is about to lose are durable in the log.
 *  (3) What is done to the state and what is appended come in the same order, as far as they speak of the same bytes:
 *      a replay of the log makes the same state.
 */
import type { Extent } from "../../bytes/extents.ts";
import type { WritableDevice } from "../../device/device.ts";
import { entryAt, inRecords, type Journal, liveIn, recordsOf } from "./journal.ts";
import { RangeLocks, Turns } from "./locks.ts";
import type { LogEntry, LogRecord } from "./log.ts";
import { Pending, recordsFor } from "./pending.ts";
import { WRITE } from "./pieces.ts";
import { encodeStamp, type Stamp } from "./stamp.ts";
import { type GuardState, zerosAt } from "./state.ts";

/** So many changes are kept in memory before they are written without anybody asking. */
export const PENDING_MAX = 65_536;

/** What is to be saved: which ranges, and where in the data each begins. */
export interface SaveRequest {
  readonly entries: readonly LogEntry[];
  readonly data: Uint8Array;
}

interface Save {
  readonly request: SaveRequest;
  readonly done: PromiseWithResolvers<void>;
}

export class Vault {
  readonly state: GuardState;
  readonly pending = new Pending();
  readonly locks = new RangeLocks();
  readonly #below: WritableDevice;
  readonly #journal: Journal;
  readonly #turns = new Turns();
  #stamp: Stamp | undefined;
  #commit: Promise<void> | undefined;
  #saves: Save[] = [];

  constructor(below: WritableDevice, state: GuardState, journal: Journal) {
    this.#below = below;
    this.state = state;
    this.#journal = journal;
  }

  get stamp(): Stamp | undefined {
    return this.#stamp;
  }

  /** Everything that was done before is durable: in the image, and in the log. Those who wait share one flush. */
  commit(): Promise<void> {
    this.#commit ??= this.#turns.take(() => {
      this.#commit = undefined;
      return this.#writeAll();
    });
    return this.#commit;
  }

  async #writeAll(): Promise<void> {
    const { needsImage } = this.pending;
    const changes = this.pending.take("all");
    const dead = this.state.takeDead();
    if (changes.length === 0) return await allOf([this.#below.flush(), this.#journal.flush()]);
    const log = async (): Promise<void> => {
      await this.#journal.append(recordsFor(changes));
      await this.#journal.flush();
    };
    try {
      if (needsImage) {
        await this.#below.flush(); // (1)
        await log();
      } else await allOf([this.#below.flush(), log()]);
    } catch (error) {
      this.pending.putBack(changes);
      throw error;
    }
    await this.#journal.drop(dead);
  }

  /** Makes old bytes durable in the log (2), for all who ask at the same time with one flush. */
  async save(requests: readonly SaveRequest[]): Promise<void> {
    const saves = requests.map((request) => ({ request, done: Promise.withResolvers<void>() }));
    const isFirst = this.#saves.length === 0;
    this.#saves.push(...saves);
    if (isFirst) void this.#turns.take(() => this.#writeSaves());
    await allOf(saves.map(({ done }) => done.promise));
  }

  async #writeSaves(): Promise<void> {
    const saves = this.#saves;
    this.#saves = [];
    try {
      const written = saves.flatMap(({ request }) => request.entries.filter(({ flags }) => flags & WRITE));
      await this.#writeMasks(written);
      const placed = [];
      for (const { request } of saves)
        placed.push(...(await this.#journal.append([{ kind: "save", ...request }])));
      await this.#journal.flush();
      for (const [i, { request }] of saves.entries()) {
        const block = placed[i]!;
        for (const { start, end, time, flags, at } of request.entries) {
          if (flags & WRITE) this.state.cover({ start, end, time, flags, block, offset: at });
          else this.state.save({ start, end }, block, at);
        }
      }
      for (const { done } of saves) done.resolve();
    } catch (error) {
      for (const { done } of saves) done.reject(error);
    }
  }

  /** A range of zeros is written over, and is to be restored as such. */
  addZeros(range: Extent, time: number): void {
    this.state.cover(zerosAt(range, time));
    this.pending.add("zeros", range, time);
  }

  /** The same where nothing is masked: in the log before the image is written to, and durable with the next flush. */
  noteZeros(ranges: readonly Extent[], time: number): Promise<void> {
    if (ranges.length === 0) return Promise.resolve();
    return this.#turns.take(async () => {
      await this.#writeMasks(ranges);
      const entries = ranges.map((range) => entryAt(range, time));
      await this.#journal.append(inRecords("zeros", entries));
      for (const range of ranges) this.state.cover(zerosAt(range, time));
    });
  }

  /** What is saved of a masked range comes after its mask, and of a written one after what was there before (3). */
  async #writeMasks(written: readonly Extent[]): Promise<void> {
    if (this.pending.areEntangled(written)) return await this.#writeAll();
    const masks = this.pending.take("masks");
    try {
      await this.#journal.append(recordsFor(masks));
    } catch (error) {
      this.pending.putBack(masks);
      throw error;
    }
  }

  /** From here on nobody is offered what lies in these ranges; durable before the image loses it. */
  doom(ranges: readonly Extent[]): Promise<void> {
    return this.#turns.take(async () => {
      for (const range of ranges) {
        this.state.doom(range);
        this.pending.add("doom", range);
      }
      await this.#writeAll();
    });
  }

  putStamp(stamp: Stamp): Promise<void> {
    return this.#turns.take(async () => {
      await this.#journal.append([recordOfStamp(stamp)]);
      await this.#journal.flush();
      this.#stamp = stamp;
    });
  }

  /** Begins the log anew where it is mostly dead. */
  async shorten(slackBytes: number): Promise<void> {
    if (!this.#journal.isLong(this.state, slackBytes)) return;
    await this.#turns.take(async () => {
      const changes = this.pending.take("all");
      this.state.takeDead();
      const records = recordsOf(this.state);
      const live = liveIn(this.state);
      if (this.#stamp !== undefined) records.push(recordOfStamp(this.#stamp));
      try {
        await this.#below.flush(); // (1)
        await this.#journal.restart(records, live);
      } catch (error) {
        this.pending.putBack(changes);
        throw error;
      }
    });
  }

  async close(): Promise<void> {
    await this.#journal.close();
  }
}

function recordOfStamp(stamp: Stamp): LogRecord {
  return { kind: "stamp", entries: [], data: encodeStamp(stamp) };
}

/** Waits for all of them, and throws what the first threw. */
async function allOf(works: readonly Promise<void>[]): Promise<void> {
  for (const outcome of await Promise.allSettled(works))
    if (outcome.status === "rejected") throw outcome.reason;
}
