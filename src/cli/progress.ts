/**
 * How far the work is: a bar with bytes and time left on a terminal, now and then a plain line elsewhere.
 *
 *   ##################------------  11.5 of 19.1 GiB   4 s left   Ctrl-C is safe
 */
import type { SingleBar } from "cli-progress";
import type { Progress } from "../disk.ts";
import { duration, figure, size, unitOf } from "../bytes/sizes.ts";
import { failureOf } from "./failure.ts";
import type { Face } from "./terminal.ts";

const VERBS: Readonly<Record<Progress["phase"], string>> = {
  reading: "reading",
  hashing: "hashing",
  erasing: "erasing",
  returning: "returning",
  copying: "copying",
  verifying: "comparing",
  searching: "searching",
  restoring: "restoring",
};

/** Work that is done sooner shows nothing. */
const SILENT_MS = 400;
const LINE_EVERY_MS = 10_000;

/**
 * Does a work that shows how far it is.
 * @param howFar what is thrown where it was interrupted
 */
export async function showing<T>(
  face: Face,
  howFar: (progress: ProgressView) => Error,
  work: (progress: ProgressView) => Promise<T>,
): Promise<T> {
  const progress = new ProgressView(face);
  try {
    return await work(progress);
  } catch (error) {
    progress.stop();
    throw failureOf(error).kind === "interrupted" ? howFar(progress) : error;
  } finally {
    progress.stop();
  }
}

export class ProgressView {
  readonly #face: Face;
  #bar: SingleBar | undefined;
  #phase: Progress["phase"] | undefined;
  #startedAt = 0;
  #lineAt = 0;
  /** What was heard last, to say after an interruption how far it came. */
  last: Progress | undefined;

  constructor(face: Face) {
    this.#face = face;
  }

  readonly update = (progress: Progress): void => {
    const now = performance.now();
    if (progress.phase !== this.#phase) {
      this.stop();
      this.#phase = progress.phase;
      this.#startedAt = now;
      this.#lineAt = now + SILENT_MS;
    }
    this.last = progress;
    if (process.stderr.isTTY) void this.#draw(progress, now);
    else if (now >= this.#lineAt && !this.#face.json) {
      this.#lineAt = now + LINE_EVERY_MS;
      this.#face.note(` ${VERBS[progress.phase]}  ${amounts(progress)}`);
    }
  };

  /** Takes the bar away. */
  stop(): void {
    this.#bar?.stop();
    this.#bar = undefined;
    this.#phase = undefined;
  }

  async #draw(progress: Progress, now: number): Promise<void> {
    if (this.#bar !== undefined) return this.#bar.update(progress.doneBytes);
    if (now < this.#lineAt) return;
    this.#lineAt = Infinity;
    const startedAt = this.#startedAt;
    const { default: library } = await import("cli-progress");
    if (this.#phase !== progress.phase) return;
    this.#bar = new library.SingleBar({
      stream: process.stderr,
      clearOnComplete: true,
      hideCursor: true,
      gracefulExit: false,
      fps: 5,
      format: (_options, bar) =>
        barLine({
          progress: { ...progress, doneBytes: bar.value },
          seconds: (performance.now() - startedAt) / 1000,
          columns: Math.min(this.#face.screen.columns, process.stderr.columns),
        }),
    });
    this.#bar.start(progress.totalBytes, progress.doneBytes);
  }
}

const BAR_COLUMNS = 30;

export function barLine(state: { progress: Progress; seconds: number; columns: number }): string {
  const { progress, seconds, columns } = state;
  const part = progress.totalBytes === 0 ? 1 : Math.min(1, progress.doneBytes / progress.totalBytes);
  const filled = Math.round(part * BAR_COLUMNS);
  const bar = "#".repeat(filled) + "-".repeat(BAR_COLUMNS - filled);
  const left = part > 0.02 ? `   ${duration((seconds / part) * (1 - part))} left` : "";
  const isSafe = progress.phase === "returning" || progress.phase === "erasing";
  const words = isSafe ? "   Ctrl-C is safe" : `   ${VERBS[progress.phase]}`;
  return ` ${bar}  ${amounts(progress)}${left}${words}`.slice(0, columns - 1);
}

/** `11.5 of 19.1 GiB` */
export function amounts({ doneBytes, totalBytes }: Pick<Progress, "doneBytes" | "totalBytes">): string {
  return `${figure(doneBytes, unitOf(totalBytes))} of ${size(totalBytes)}`;
}
