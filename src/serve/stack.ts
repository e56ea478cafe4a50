/**
 * An image that is served, and what lies between it and its clients.
 *
 *   image ── guessed ──┬─ guard ─┬── error ── delay ── log ── clients
 *                      └─ erase ─┘
 *
 * Closing goes the other way: the filters settle what they hold, the image is made durable, and last of all the guard writes
 * down what the closed image looks like.
 */
import { ExtentSet } from "../bytes/extents.ts";
import type { WritableDevice } from "../device/device.ts";
import { Borrowed } from "../device/filter.ts";
import { type Graded, servedGrade } from "../disk/erase/grade.ts";
import { openGuard, type OpenGuard } from "../disk/guarded.ts";
import { type Disk, open, openWritable } from "../disk/open.ts";
import type { OpenOptions } from "../disk/results.ts";
import { requireSafe } from "../disk/safe.ts";
import { requireTestedHost } from "../disk/survey.ts";
import { DiskError } from "../error.ts";
import type { Image, WritableImage } from "../formats/format.ts";
import { HostReader } from "../host/file.ts";
import { Delayed, type Delays } from "../live/delay.ts";
import { stackOf } from "../host/stack.ts";
import { Erasing } from "../live/erase.ts";
import { Failing, type FailureOptions, type FailureRules } from "../live/error.ts";
import type { GuardOptions } from "../live/guard.ts";
import { Logged } from "../live/log.ts";
import type { Alarm } from "../live/meter.ts";
import type { PatternName } from "../live/pattern.ts";
import { ReadOnly } from "../live/readonly.ts";
import { alarmOf } from "./alarm.ts";
import { GuessedFormat } from "./guessed.ts";
import { RunningGuest } from "./guest.ts";

/** How an image is opened, and what is put over it. */
export interface StackOptions {
  readonly open: OpenOptions;
  readonly readOnly: boolean;
  /** What is freed can be taken back. */
  readonly guard?: GuardWish;
  /** What is freed is overwritten with this first. */
  readonly erase?: PatternName;
  readonly delays?: Delays;
  readonly failures?: { readonly rules: FailureRules; readonly options: FailureOptions };
  readonly logLine?: (line: string) => void;
}

export interface GuardWish extends Pick<GuardOptions, "forMs" | "maxBytes" | "writes"> {
  /** Alarm when more than that share of the disk is trimmed in that time. */
  readonly share?: { readonly ofDisk: number; readonly withinMs: number };
}

/** How often the guard lets go of what is too old, and renews its stamp. */
const EXPIRE_EVERY_MS = 2000;

export class Stack implements AsyncDisposable {
  readonly disk: Disk;
  readonly guest: RunningGuest;
  readonly #onAlarm: (alarm: Alarm) => void;
  #device: WritableDevice;
  #guard: OpenGuard | undefined;
  #erasing: Erasing | undefined;
  #grade: Graded | undefined;
  #expiry: NodeJS.Timeout | undefined;
  #expiring: Promise<unknown> = Promise.resolve();
  /** What was tried last has failed, and an alarm has said so. */
  #isFailing = false;

  private constructor(disk: Disk, device: WritableDevice, onAlarm: (alarm: Alarm) => void) {
    this.disk = disk;
    this.guest = new RunningGuest(disk);
    this.#device = device;
    this.#onAlarm = onAlarm;
  }

  /** @throws DiskError as opening, and where an image must not be written to (H17, H21, H33) */
  static async open(path: string, options: StackOptions, onAlarm: (alarm: Alarm) => void): Promise<Stack> {
    if (options.guard !== undefined && options.erase !== undefined) {
      throw new DiskError("usage", "what is erased cannot be taken back: either a guard or erasing");
    }
    if (options.readOnly) {
      const disk = await open(path, options.open);
      return new Stack(disk, new ReadOnly(live(disk).image), onAlarm).#add(options);
    }
    requireTestedHost(options.open);
    const disk = await openWritable(path, { ...options.open, withGuard: options.guard !== undefined });
    try {
      await requireSafe(disk, options.open);
      const isGuess = options.open.format === undefined && !options.open.window && beginsItsFile(disk.image);
      const bottom = new Borrowed(live(disk).image);
      const stack = new Stack(disk, isGuess ? new GuessedFormat(bottom) : bottom, onAlarm);
      if (options.guard) await stack.#addGuard(options.guard);
      return stack.#add(options);
    } catch (error) {
      await disk[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** The disk as clients get it. */
  get device(): WritableDevice {
    return this.#device;
  }

  /** What can be taken back, in the disk's bytes. */
  guarded(): ExtentSet {
    return this.#guard?.guard.guarded() ?? ExtentSet.EMPTY;
  }

  /** What its filters count. */
  counters(): {
    readonly guardedBytes: number;
    readonly guard: object | null;
    readonly erase: object | null;
  } {
    const guard = this.#guard?.guard.counters ?? null;
    const erasing = this.#erasing;
    const erase = erasing === undefined ? null : { ...erasing.counters, ...this.#grade };
    return { guardedBytes: guard?.guardedBytes ?? 0, guard, erase };
  }

  async #addGuard({ share, ...wish }: GuardWish): Promise<void> {
    this.#guard = await openGuard(this.disk, this.#device, {
      ...wish,
      elapsed: () => performance.now(),
      alarms: {
        critical: await this.guest.critical(),
        ...(share && { share }),
        stillUsed: (ranges) => this.guest.used(ranges),
      },
      onEvent: (event) => this.#onAlarm(alarmOf(event, Date.now())),
    });
    this.#device = this.#guard.guard;
    this.#expiry = setInterval(() => void (this.#expiring = this.#expire()), EXPIRE_EVERY_MS);
  }

  /** A host that was full may have room again: it is tried for as long as the disk is served. */
  async #expire(): Promise<void> {
    try {
      await this.#guard!.guard.expire();
      this.#isFailing = false;
    } catch (error) {
      if (!this.#isFailing) this.#tellFailure("guard-failed", "the guard gives nothing back", error);
      this.#isFailing = true;
    }
  }

  #tellFailure(code: string, what: string, error: unknown): void {
    const why = error instanceof Error ? error.message : String(error);
    this.#onAlarm({ at: Date.now(), code, message: `${what}: ${why}` });
  }

  #add({ erase: pattern, failures, delays, logLine }: StackOptions): this {
    if (pattern !== undefined) {
      const onFailure = (error: unknown, bytes: number): void =>
        this.#tellFailure("not-erased", `${bytes} bytes are neither erased nor given back`, error);
      this.#device = this.#erasing = new Erasing(this.#device, { pattern, onFailure });
      this.#grade = servedGrade(stackOf(this.disk.path));
    }
    this.guest.seeThrough(this.#device);
    if (failures) this.#device = new Failing(this.#device, failures.rules, failures.options);
    if (delays) this.#device = new Delayed(this.#device, delays);
    if (logLine) this.#device = new Logged(this.#device, logLine);
    return this;
  }

  /** Everything durable, files closed, locks released. */
  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#expiry);
    await this.#expiring;
    try {
      await this.#device[Symbol.asyncDispose]();
    } finally {
      await this.disk[Symbol.asyncDispose]();
      await this.#guard?.seal();
    }
  }
}

/** The guest's first bytes are those of the file: what it writes there, others take for a header (raw disks, fixed VHDs). */
function beginsItsFile(image: Image): boolean {
  const place = image.bytes > 0 ? image.locate?.(0, 1, "read") : undefined;
  return place?.at === 0 && place.file === image.files.get("");
}

/** The disk, its files open for as long as somebody writes to it. */
function live<D extends Disk | Disk<WritableImage>>(disk: D): D {
  for (let each: Image | undefined = disk.image; each !== undefined; each = each.parent) {
    for (const file of each.files.values()) if (file instanceof HostReader) file.isLive = true;
  }
  return disk;
}
