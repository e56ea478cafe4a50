/**
 * The loop that drives all straight lines of a server: plain system calls for as long as there is something to do.
 *
 *   poll ─→ lines that are ready: receive, do, send ─→ poll …      nothing else runs
 *     └─ a promise is pending, or a while has passed: the event loop has its turn
 *     └─ nothing happens: poll waits on a thread, and the event loop is free
 *     └─ promises wait for a disk: the threads may all wait with them, so the loop dozes, and looks around by itself
 */
import type { PollSet, SocketCalls } from "../host/straight.ts";
import type { StraightLine } from "./line.ts";

/** So long the loop looks for the next request again and again: to be woken takes longer than most requests do. */
const LOOK_MS = 0.1;
/** So long it waits for it by itself. */
const WAIT_MS = 1;
/** The event loop has its turn at least so often: signals, timers, new connections. */
const TURN_MS = 5;
/** A promise that is pending for longer than so many turns waits for a disk. */
const TURNS_MAX = 40;
const DOZE_MS_MAX = 5;

export class StraightLoop {
  readonly #polls: PollSet;
  readonly #lines: StraightLine[] = [];
  #isRunning = false;
  /** Wakes the loop, where it sleeps or dozes. */
  #rouse: (() => void) | undefined;
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
    this.#rouse?.();
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
      const isReady = this.#poll(isBusy);
      const now = performance.now();
      if (isReady && !isBusy && now - lastTurn < TURN_MS) continue;
      const hasNews = this.#lines.some((line) => line.hasNews);
      turns = isReady || hasNews ? 0 : turns + 1;
      if (turns > 0 && !isBusy) await this.#sleep();
      else if (turns > TURNS_MAX) await this.#doze(Math.min(turns - TURNS_MAX, DOZE_MS_MAX));
      else await new Promise((resolve) => setImmediate(resolve));
      lastTurn = performance.now();
    }
    this.#isRunning = false;
    if (this.#isClosed) this.#polls.close();
  }

  /** Looks after the lines that are ready. @returns whether one was */
  #poll(isBusy: boolean): boolean {
    const lines = this.#lines;
    this.#polls.set(lines);
    const ready = isBusy ? this.#polls.wait(0) : this.#await();
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

  #await(): number {
    const until = performance.now() + LOOK_MS;
    do {
      const ready = this.#polls.wait(0);
      if (ready > 0) return ready;
    } while (performance.now() < until);
    return this.#polls.wait(WAIT_MS);
  }

  async #sleep(): Promise<void> {
    this.#polls.set(this.#lines);
    this.#rouse = () => this.#polls.wake();
    await this.#polls.sleep();
    this.#rouse = undefined;
  }

  async #doze(milliseconds: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#rouse = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#rouse = undefined;
  }
}
