/**
 * Random requests of one client or several, many in flight, each answer held against the `ShadowDisk`.
 */
import assert from "node:assert/strict";
import { CMD, CMD_FLAG, ERRNO, STATE } from "../nbd/protocol.ts";
import type { Question, Reply } from "./nbd-wire.ts";
import type { Random } from "./seeds.ts";
import type { Change, ShadowDisk } from "./shadow-disk.ts";

export interface Asker {
  /** Number of the context `base:allocation`; undefined: not agreed on. */
  readonly allocation: number | undefined;
  ask(question: Question): Promise<Reply>;
}

export interface LifeOptions {
  readonly operations: number;
  readonly inFlightMax: number;
  /** Lengths and offsets are mostly multiples of one of these. */
  readonly grains: readonly number[];
  /** The longest request in bytes. */
  readonly bytesMax: number;
  /** For messages: what replays this. */
  readonly label: string;
  /** Waited for now and then, so that others get their turn. */
  readonly turn?: () => Promise<void>;
}

const POOL_BYTES = 1 << 20;
const PIECE_BYTES = 4096;
let pool: Uint8Array | undefined;

export class Life {
  readonly #askers: readonly Asker[];
  readonly #shadow: ShadowDisk;
  readonly #random: Random;
  readonly #options: LifeOptions;
  #active = 0;
  #wake: (() => void) | undefined;
  #failure: unknown;
  #number = 0;
  /** Answers by command. */
  readonly answered: Record<string, number> = {};

  constructor(askers: readonly Asker[], shadow: ShadowDisk, random: Random, options: LifeOptions) {
    pool ??= random.bytes(POOL_BYTES);
    this.#askers = askers;
    this.#shadow = shadow;
    this.#random = random;
    this.#options = options;
  }

  /** @throws AssertionError at the first answer that cannot be right */
  async live(): Promise<void> {
    const { operations, inFlightMax, turn } = this.#options;
    for (; this.#number < operations && this.#failure === undefined; this.#number++) {
      while (this.#active >= inFlightMax) await this.#settled();
      this.#begin();
      if (this.#random.oneIn(3)) await (turn?.() ?? Promise.resolve());
    }
    while (this.#active > 0) await this.#settled();
    if (this.#failure !== undefined) throw this.#failure;
  }

  #settled(): Promise<void> {
    return new Promise((resolve) => (this.#wake = resolve));
  }

  #begin(): void {
    this.#active++;
    const label = `${this.#options.label} operation ${this.#number}`;
    void this.#operation(label)
      .catch((error: unknown) => (this.#failure ??= error))
      .then(() => {
        this.#active--;
        this.#wake?.();
      });
  }

  #range(): { start: number; end: number } {
    const random = this.#random;
    const { grains, bytesMax } = this.#options;
    const { bytes } = this.#shadow;
    for (let attempt = 0; ; attempt++) {
      const grain = random.pick(grains);
      const start = Math.floor(random.below(bytes) / grain) * grain;
      const length = Math.min(bytesMax, random.between(1, random.pick([2, 2, 4, 9])) * grain);
      const end = Math.min(bytes, start + length);
      // Now and then requests overlap that are in flight.
      if (attempt === 4 || random.oneIn(12) || !this.#shadow.isBusy(start, end)) return { start, end };
    }
  }

  async #operation(label: string): Promise<void> {
    const random = this.#random;
    const { start, end } = this.#range();
    const asker = random.pick(this.#askers);
    const question = { offset: start, bytes: end - start };
    const fua = random.oneIn(25) ? CMD_FLAG.FUA : 0;
    if (random.oneIn(30)) return this.#pieces(asker, start, label);
    switch (random.below(20)) {
      case 0:
        return this.#flush(asker, label);
      case 1:
        return this.#status(asker, start, end, label);
      case 2:
      case 3:
      case 4: {
        const flags = fua | this.#pickZeroFlags();
        const asked = { ...question, command: CMD.WRITE_ZEROES, flags };
        return this.#change(asker, asked, { kind: "zero", start, end }, label);
      }
      case 5:
      case 6:
      case 7: {
        const asked = { ...question, command: CMD.TRIM, flags: fua };
        return this.#change(asker, asked, { kind: "trim", start, end }, label);
      }
      case 8:
      case 9:
      case 10:
      case 11:
      case 12: {
        const from = random.below(POOL_BYTES - (end - start));
        const data = pool!.subarray(from, from + end - start);
        const asked = { ...question, command: CMD.WRITE, flags: fua, data };
        return this.#change(asker, asked, { kind: "write", start, end, data }, label);
      }
      default:
        return this.#read(asker, start, end, label);
    }
  }

  #pickZeroFlags(): number {
    return this.#random.pick([0, 0, CMD_FLAG.NO_HOLE, CMD_FLAG.FAST_ZERO]);
  }

  #count(what: string): void {
    this.answered[what] = (this.answered[what] ?? 0) + 1;
  }

  async #change(asker: Asker, question: Question, change: Change, label: string): Promise<void> {
    this.#shadow.begin(change);
    const { error, message } = await asker.ask(question);
    if (error === ERRNO.ENOTSUP && (question.flags! & CMD_FLAG.FAST_ZERO) !== 0) {
      this.#count("slow");
      return this.#shadow.end(change, "refused");
    }
    assert.equal(error, 0, `${label}: ${change.kind} ${change.start}-${change.end}: ${message}`);
    this.#shadow.end(change);
    this.#count(change.kind);
  }

  /** A block of the table is trimmed in pieces; while the last one goes, so that its entry may, another one is written. */
  async #pieces(asker: Asker, at: number, label: string): Promise<void> {
    const random = this.#random;
    const block = Math.max(...this.#options.grains);
    const base = at - (at % block);
    const end = Math.min(this.#shadow.bytes, base + block);
    const step = Math.max(PIECE_BYTES, block / 8);
    const trim = (start: number): Promise<void> => {
      const change = { kind: "trim", start, end: Math.min(end, start + step) } as const;
      const question = { command: CMD.TRIM, offset: start, bytes: change.end - start };
      return this.#change(asker, question, { ...change }, label);
    };
    const pieces: Promise<void>[] = [];
    for (let start = base + step; start < end; start += step) pieces.push(trim(start));
    await Promise.all(pieces);
    const last = trim(base);
    for (let turns = random.below(30); turns > 0; turns--) await Promise.resolve();
    if (base + step < end) {
      const start = base + step + random.below(end - base - step);
      const from = random.below(POOL_BYTES - PIECE_BYTES);
      const data = pool!.subarray(from, from + Math.min(random.between(1, PIECE_BYTES), end - start));
      const question = { command: CMD.WRITE, offset: start, data };
      await this.#change(
        asker,
        { ...question, flags: 0 },
        { kind: "write", start, end: start + data.length, data },
        label,
      );
    }
    await last;
  }

  async #read(asker: Asker, start: number, end: number, label: string): Promise<void> {
    const look = this.#shadow.look(start, end);
    const { error, data } = await asker.ask({ command: CMD.READ, offset: start, bytes: end - start });
    assert.equal(error, 0, `${label}: read ${start}-${end}`);
    this.#shadow.saw(look, data!, `${label}: read ${start}-${end}`);
    this.#count("read");
  }

  async #flush(asker: Asker, label: string): Promise<void> {
    assert.equal((await asker.ask({ command: CMD.FLUSH })).error, 0, `${label}: flush`);
    this.#count("flush");
  }

  /** H28: what is said to be zeros reads as zeros. */
  async #status(asker: Asker, start: number, end: number, label: string): Promise<void> {
    const { allocation } = asker;
    if (allocation === undefined) return;
    const look = this.#shadow.look(start, end);
    const question = { command: CMD.BLOCK_STATUS, offset: start, bytes: end - start };
    const { error, status } = await asker.ask(question);
    assert.equal(error, 0, `${label}: status ${start}-${end}`);
    this.#shadow.lookAway(look);
    this.#count("status");
    if (look.contents !== undefined) return;
    let at = start;
    for (const { bytes, flags } of status.get(allocation)!) {
      const stop = Math.min(end, at + bytes);
      if ((flags & STATE.ZERO) !== 0 && stop > at) {
        this.#shadow.saw(
          this.#shadow.look(at, stop),
          Buffer.alloc(stop - at),
          `${label}: ZERO ${at}-${stop}`,
        );
      }
      at += bytes;
    }
  }
}
