/** What a served disk must outlive: its clients' ends, its own messages, guests that would make an image of a raw disk. */
import type { Mutation } from "./mutations.ts";

export const OF_LIVE_REVIEW: readonly Mutation[] = [
  {
    hazard: "H21",
    guard: "zeros at the ends of a guessed raw disk are judged as writes are",
    file: "src/serve/guessed.ts",
    from: "await disk.zero({ start, end: Math.min(end, Math.max(start, EDGE_BYTES)) });",
    to: "",
    tests: ["src/serve/guessed.test.ts"],
  },
  {
    hazard: "H21",
    guard: "changes at the ends of a guessed raw disk are judged one after the other",
    file: "src/serve/guessed.ts",
    from: "const done = this.#last.then(async () => {",
    to: "const done = Promise.resolve().then(async () => {",
    tests: ["src/serve/guessed.test.ts"],
  },
  {
    hazard: "H31",
    guard: "a request waits for others only while something of its own will wake it",
    file: "src/nbd/transmission.ts",
    from: "return this.pending === 0 || (wasFull && !this.isFull);",
    to: "return wasFull && !this.isFull;",
    tests: ["src/nbd/server.test.ts"],
    only: "nothing pending",
  },
  {
    hazard: "H31",
    guard: "who said ABORT holds no socket",
    file: "src/nbd/server.ts",
    from: "socket.destroySoon();",
    to: "socket.end();",
    tests: ["src/nbd/server.test.ts"],
    only: "ABORT",
  },
  {
    hazard: "H31",
    guard: "counters that cannot be had take no disk away",
    file: "src/serve/control.ts",
    from: "      this.#log(`counters: ${error instanceof Error ? error.message : String(error)}`);\n      return undefined;",
    to: "      setImmediate(() => void Promise.reject(error));\n      return undefined;",
    tests: ["src/serve/server.test.ts"],
    only: "counters that",
  },
  {
    hazard: "H21",
    guard: "a fixed VHD that was guessed becomes no other image",
    file: "src/serve/stack.ts",
    from: 'return place?.at === 0 && place.file === image.files.get("");',
    to: 'return image.format === "raw" && place !== undefined;',
    tests: ["test/serve-cli.test.ts"],
    only: "H21",
  },
];
