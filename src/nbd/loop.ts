/**
 * The loop that drives all straight lines of a server: plain system calls for as long as there is something to do.
 *
 *   poll ─→ lines that are ready: receive, do, send ─→ poll …      nothing else runs
 *     └─ a promise is pending, or a while has passed: the event loop has its turn
 *     └─ nothing happens: poll waits on a thread, and the event loop is free
 */
import type { PollSet, SocketCalls } from "../host/straight.ts";
import type { StraightLine } from "./line.ts";

/** So long the loop waits for the next request by itself. */
const WAIT_MS = 1;
/** The event loop has its turn at least so often: signals, timers, new connections. */
const TURN_MS = 5;
/** A promise that is pending for longer than so many turns waits for a disk: then the loop sleeps. */
const TURNS_MAX = 40;

export class StraightLoop {
  readonly #polls: PollSet;
  readonly #lines: StraightLine[] = [];
  #isRunning = false;
  #isAsleep = false;
  #isClosed = false;

  constructor(calls: SocketCalls) {
    this.#polls = calls.pollSet();
  }

  add(line: StraightLine): void {
    this.#lines.push(line);
    this.wake();
    if (!this.#isRunning) void this.#run();
  }

  /** A line has news. */
  wake = (): void => {
    if (this.#isAsleep) this.#polls.wake();
  };

  close(): void {
    this.#isClosed = true;
    if (!this.#isRunning) this.#polls.close();
  }

  async #run(): Promise<void> {
    this.#isRunning = true;
    let lastTurn = performance.now();
    let turns = 0;
    while (this.#lines.length > 0) {
      const isBusy = this.#lines.some((line) => line.pending > 0 || line.hasNews);
      const isReady = this.#poll(isBusy ? 0 : WAIT_MS);
      const now = performance.now();
      if (isReady && !isBusy && now - lastTurn < TURN_MS) continue;
      const hasNews = this.#lines.some((line) => line.hasNews);
      turns = isReady || hasNews ? 0 : turns + 1;
      if (turns > (isBusy ? TURNS_MAX : 0)) await this.#sleep();
      else await new Promise((resolve) => setImmediate(resolve));
      lastTurn = performance.now();
    }
    this.#isRunning = false;
    if (this.#isClosed) this.#polls.close();
  }

  /** Looks after the lines that are ready. @returns whether one was */
  #poll(milliseconds: number): boolean {
    const lines = this.#lines;
    this.#polls.set(lines);
    const ready = this.#polls.wait(milliseconds);
    let didSomething = false;
    for (let i = lines.length - 1; i >= 0; i--) {
      const line = lines[i]!;
      const isDue = line.hasNews || (ready > 0 && this.#polls.isReady(i));
      if (isDue || line.isStuck) line.step();
      didSomething ||= isDue;
      if (line.isClosed && line.pending === 0) lines.splice(i, 1);
    }
    return didSomething;
  }

  async #sleep(): Promise<void> {
    this.#polls.set(this.#lines);
    this.#isAsleep = true;
    await this.#polls.sleep();
    this.#isAsleep = false;
  }
}
