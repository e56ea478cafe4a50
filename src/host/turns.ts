/**
 * Turns for the event loop. Reads, writes and punches are synchronous system calls, which are fastest; a loop of them
 * would keep timers, signals (Ctrl-C) and the progress bar waiting, because a resolved promise is no turn.
 */
const TURN_MS = 20;

let lastTurn = performance.now();

/** A promise to await when the last turn is long ago. */
export function turn(): Promise<void> | undefined {
  if (performance.now() - lastTurn < TURN_MS) return undefined;
  return new Promise((resolve) => {
    setImmediate(() => {
      lastTurn = performance.now();
      resolve();
    });
  });
}
