/**
 * A guarded disk beside a shadow of it: what each sector holds, and what can be brought back to it.
 *
 *   shadow   content now | first: what it held before the earliest guarded change | tops: not written since
 */
import assert from "node:assert/strict";
import { readBytes, type WritableDevice } from "../device/device.ts";
import { Guard, type GuardOptions } from "../live/guard.ts";
import type { HostFile } from "../device/device.ts";
import type { Random } from "./seeds.ts";

const SECTOR_BYTES = 512;

/** A change of a sector that is guarded. */
interface Old {
  readonly time: number;
  readonly bytes: Uint8Array;
  /** The guest wrote something else there since. */
  isWritten: boolean;
}

export class GuardedDisk {
  readonly guard: Guard;
  /** In seconds. */
  now: number;
  /** All that each sector held since the last flush, the newest last. */
  versions: Uint8Array[];
  /** For each sector what was guarded, in order. */
  olds: Old[][];
  /** What the disk held when each second began. */
  readonly snapshots = new Map<number, Uint8Array>();
  /** What happened up to that second may be gone. */
  expired = -1;
  readonly #random: Random;

  private constructor(guard: Guard, content: Uint8Array, now: number, random: Random, olds?: Old[][]) {
    this.guard = guard;
    this.versions = [content];
    this.now = now;
    this.#random = random;
    this.olds = olds ?? Array.from({ length: content.length / SECTOR_BYTES }, () => []);
    this.snapshots.set(now, content);
  }

  static async open(
    below: WritableDevice,
    log: HostFile,
    random: Random,
    options: Partial<GuardOptions> = {},
    before?: GuardedDisk,
  ): Promise<GuardedDisk> {
    let disk: GuardedDisk | undefined;
    const start = before?.now ?? 1000;
    const guard = await Guard.open(below, log, {
      forMs: 1e9,
      maxBytes: 1e9,
      now: () => (disk?.now ?? start) * 1000,
      ...options,
    });
    disk = new GuardedDisk(guard, await readBytes(guard, 0, guard.bytes), start, random, before?.olds);
    disk.expired = before?.expired ?? -1;
    return disk;
  }

  get content(): Uint8Array {
    return this.versions.at(-1)!;
  }

  /** One random change, and sometimes a tick of the clock. */
  async change({ writes = false } = {}): Promise<void> {
    const random = this.#random;
    if (random.oneIn(2)) this.snapshots.set(++this.now, this.content);
    const sectors = this.guard.bytes / SECTOR_BYTES;
    const start = random.below(sectors);
    const end = Math.min(sectors, start + 1 + random.below(random.pick([2, 12, 60])));
    const range = { start: start * SECTOR_BYTES, end: end * SECTOR_BYTES };
    const choice = random.below(10);
    if (choice < 5) await this.#write(range, writes);
    else if (choice < 7) await this.#clear(range, () => this.guard.zero(range, { keep: random.oneIn(3) }));
    else await this.#clear(range, () => this.guard.discard(range));
  }

  async #write(range: { start: number; end: number }, isGuarded: boolean): Promise<void> {
    const data = this.#random.bytes(range.end - range.start);
    const before = this.content;
    await this.guard.write(range.start, data);
    const after = before.slice();
    after.set(data, range.start);
    this.versions.push(after);
    this.#each(range, (sector, at) => {
      for (const old of this.olds[sector]!) old.isWritten = true;
      if (isGuarded) this.#keep(sector, before, at, true);
    });
  }

  /** Trimmed or zeroed: what it holds then, the guard itself says. */
  async #clear(range: { start: number; end: number }, change: () => Promise<void>): Promise<void> {
    const before = this.content;
    await change();
    const after = await readBytes(this.guard, 0, this.guard.bytes);
    this.versions.push(after);
    for (let at = 0; at < after.length; at += SECTOR_BYTES) {
      const isSame =
        Buffer.compare(before.subarray(at, at + SECTOR_BYTES), after.subarray(at, at + SECTOR_BYTES)) === 0;
      const isInside = at >= range.start && at < range.end;
      // Zeros that were trimmed: the guard may hold them, or know that nothing was there.
      if (isSame && isInside && isZero(after, at)) this.#keep(at / SECTOR_BYTES, before, at, false);
      if (isSame) continue;
      assert.ok(isInside, `nothing changes outside of the range, at ${at}`);
      assert.ok(isZero(after, at), `zeros at ${at}`);
      this.#keep(at / SECTOR_BYTES, before, at, false);
    }
  }

  #keep(sector: number, before: Uint8Array, at: number, isWritten: boolean): void {
    this.olds[sector]!.push({ time: this.now, bytes: before.slice(at, at + SECTOR_BYTES), isWritten });
  }

  #each({ start, end }: { start: number; end: number }, visit: (sector: number, at: number) => void): void {
    for (let at = start; at < end; at += SECTOR_BYTES) visit(at / SECTOR_BYTES, at);
  }

  async flush(): Promise<void> {
    await this.guard.flush();
    this.versions = [this.content];
  }

  /** What was guarded up to that second may be gone. */
  async expire(upTo: number): Promise<void> {
    await this.guard.expire(this.now * 1000);
    this.expired = upTo;
  }

  /** Offset of the first sector of `content` that holds none of what it may hold after a crash; -1: none does. */
  foreignSector(content: Uint8Array): number {
    for (let at = 0; at < content.length; at += SECTOR_BYTES) {
      const sector = Buffer.from(content.buffer, content.byteOffset + at, SECTOR_BYTES);
      if (!this.versions.some((version) => sector.equals(version.subarray(at, at + SECTOR_BYTES)))) return at;
    }
    return -1;
  }
}

function isZero(content: Uint8Array, at: number): boolean {
  return content.subarray(at, at + SECTOR_BYTES).every((byte) => byte === 0);
}

/** What each sector is to hold after a restore; undefined: nothing is said of it. */
export function restored(
  disk: GuardedDisk,
  { since, overWrites }: { since: number; overWrites: boolean },
): (Uint8Array | undefined)[] {
  return disk.olds.map((olds, sector) => {
    const candidates = olds.filter((old) => old.time >= since && (overWrites || !old.isWritten));
    // Where zeros were guarded the guard may have known that nothing was there.
    if (overWrites && olds.some(({ bytes }) => bytes.every((byte) => byte === 0))) return undefined;
    const at = sector * SECTOR_BYTES;
    return candidates[0]?.bytes ?? disk.content.slice(at, at + SECTOR_BYTES);
  });
}

/** Offset of the first sector that is not as expected; -1: none. */
export function differs(content: Uint8Array, expected: readonly (Uint8Array | undefined)[]): number {
  for (const [sector, bytes] of expected.entries()) {
    const at = sector * SECTOR_BYTES;
    if (bytes && Buffer.compare(bytes, content.subarray(at, at + SECTOR_BYTES)) !== 0) return at;
  }
  return -1;
}
