/** What only clients of a served disk notice: durability, the clean stop, locks. */
import type { Mutation } from "./mutations.ts";

export const OF_CLIENTS: readonly Mutation[] = [
  {
    hazard: "H27",
    guard: "a FLUSH makes the tables of a qcow2 image durable",
    file: "src/formats/qcow2/write.ts",
    from: "return this.#exclusive(() => this.#commit());",
    to: "return Promise.resolve();",
    tests: ["test/nbd-lives.test.ts"],
    only: "^ullage qcow2: what a killed",
  },
  {
    hazard: "H27",
    guard: "a server that is told to stop finishes what it has taken up",
    file: "src/nbd/server.ts",
    from: "await Promise.all(lines.map((line) => line.finish()));",
    to: "lines.forEach((line) => line.close());",
    tests: ["test/nbd-words.test.ts"],
    only: "under way",
  },
  {
    hazard: "H28",
    guard: "data that is there is not called zeros",
    file: "src/nbd/contexts.ts",
    from: "STATE.ZERO;\n  return 0;",
    to: "STATE.ZERO;\n  return STATE.ZERO;",
    tests: ["test/nbd-clients.test.ts"],
    only: "^H28",
  },
];
