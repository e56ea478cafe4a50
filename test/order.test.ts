/**
 * H12 as an order: once a plan has made a cluster allocatable, none of its later steps touches it. Whoever allocates it
 * in that moment, as QEMU did with its very next write, keeps what he wrote.
 */
import assert from "node:assert/strict";
import test from "node:test";
import { ExtentBuilder, ExtentSet } from "../src/bytes/extents.ts";
import { openContext } from "../src/formats/qcow2/context.ts";
import { readRefcount } from "../src/formats/qcow2/refcounts.ts";
import { execute } from "../src/reclaim/execute.ts";
import type { Step } from "../src/reclaim/plan.ts";
import type { SimulatedFile } from "../src/testing/simulated-file.ts";
import { requires, scratch } from "../src/testing/tools.ts";
import { crashScenarios } from "./crash-scenarios.ts";
import { openWriter, planned } from "./crash-walk.ts";

/** File ranges of the clusters that anybody may allocate now. */
async function allocatable(file: SimulatedFile): Promise<ExtentSet> {
  const { header, refcounts } = await openContext(file.fork(), () => assert.fail("no data file"));
  const free = new ExtentBuilder();
  for (let cluster = 0; cluster * header.clusterBytes < file.bytes; cluster++) {
    const block = await refcounts.block(Math.floor(cluster / refcounts.blockEntries));
    const stated = block ? readRefcount(block.view, refcounts.order, cluster % refcounts.blockEntries) : 0;
    if (stated === 0) free.add(cluster * header.clusterBytes, (cluster + 1) * header.clusterBytes);
  }
  return free.build();
}

function touched(step: Step) {
  if (step.op === "patch") return { start: step.at, end: step.at + step.after.length };
  if (step.op === "copy") return { start: step.to, end: step.to + step.from.end - step.from.start };
  return step.op === "truncate" ? { start: step.bytes, end: step.bytes } : step.range;
}

test("H12: what a plan has released it never touches again", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  for await (const scenario of crashScenarios(scratch(t))) {
    if (scenario.format !== "qcow2" || scenario.deed !== "punch") continue;
    await t.test(scenario.name, async () => {
      await using image = await openWriter(scenario, scenario.files);
      const file = scenario.files.get("disk")!;
      const before = await allocatable(file);
      const { plan } = await planned(image, scenario.deed);
      let punches = 0;
      for await (const batch of plan.batches()) {
        const released = (await allocatable(file)).subtract(before);
        for (const step of batch) {
          assert.ok(!released.touches(touched(step)), `${step.op} at ${touched(step).start} comes too late`);
          if (step.op === "punch") punches++;
        }
        await execute({ ...plan, batches: () => only(batch) }, image.files);
      }
      assert.ok(punches > 0, "something was punched");
      assert.ok((await allocatable(file)).subtract(before).bytes > 0 || scenario.name.startsWith("v2 above"));
    });
  }
});

async function* only(batch: readonly Step[]): AsyncGenerator<readonly Step[]> {
  yield batch;
}
