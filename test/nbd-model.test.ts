/**
 * Random lives of a served disk against a model of it (H9, H10, H14, H26, H28): the whole stack from the wire to the file,
 * many requests in flight, by the straight way and by the long one, on every format.
 *
 *   random questions ─→ wire ─→ Transmission ─→ format ─→ simulated files
 *          └─→ ShadowDisk ←─ answers                └─→ at the end: check, and all of it read anew
 *
 * `SEED=n` replays one seed, `OPERATIONS=n` makes each sitting so long: there are eight of a format.
 */
import { once } from "node:events";
import { describe, test } from "node:test";
import { Worker } from "node:worker_threads";
import { IMAGE_KINDS } from "../src/testing/nbd-images.ts";
import { seeds } from "../src/testing/seeds.ts";
import type { Lives } from "./nbd-model-worker.ts";

const OPERATIONS = Number(process.env["OPERATIONS"] ?? 6000);

describe("a random life reads as its model", { concurrency: 2 }, () => {
  for (const { name } of IMAGE_KINDS) {
    test(name, async (t) => {
      const workerData: Lives = { kind: name, seeds: seeds(2), operations: OPERATIONS };
      const worker = new Worker(new URL("./nbd-model-worker.ts", import.meta.url), { workerData });
      const [answered] = (await once(worker, "message")) as [Record<string, number>];
      t.diagnostic(JSON.stringify(answered));
    });
  }
});
