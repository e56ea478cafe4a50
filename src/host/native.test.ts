import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { scratch } from "../testing/tools.ts";
import { hostSource } from "./source.ts";

/** Runs a script that imports from here, in a process of its own, and returns what it logs as JSON. */
async function elsewhere(script: string): Promise<unknown> {
  const imports = ["source", "inuse", "probe"].map(
    (name) => `import * as ${name} from ${JSON.stringify(import.meta.resolve(`./${name}.ts`))};`,
  );
  const args = ["--input-type=module", "--eval", imports.join("\n") + script];
  const { stdout } = await promisify(execFile)(process.execPath, args);
  return JSON.parse(stdout);
}

const WITHOUT_KOFFI = `
  import { registerHooks } from "node:module";
  registerHooks({ resolve(name, context, next) {
    if (name === "koffi") throw new Error("koffi is not installed");
    return next(name, context);
  } });`;

test("a reader that only reads does not load koffi", async (t) => {
  const path = join(scratch(t), "a");
  writeFileSync(path, "content");
  const loaded = await elsewhere(`
    import { createRequire } from "node:module";
    const { cache } = createRequire(process.cwd() + "/x.js");
    const loaded = () => Object.keys(cache).some((file) => file.includes("koffi"));
    await using file = await source.hostSource(${JSON.stringify(path)}).open();
    await file.read(0, new Uint8Array(7));
    await file.stat();
    const before = loaded();
    for await (const batch of file.map({ start: 0, end: 7 })) batch;
    console.log(JSON.stringify([before, loaded()]));`);
  assert.deepEqual(loaded, [false, true]);
});

test("without koffi everything is data, nothing is punched, and nothing is written (H16)", async (t) => {
  const folder = scratch(t);
  const path = join(folder, "a");
  writeFileSync(path, "content");
  const ask = `${WITHOUT_KOFFI}
    const image = source.hostSource(${JSON.stringify(path)});
    await using file = await image.open();
    const runs = [];
    for await (const batch of file.map({ start: 1, end: 7 })) runs.push(...batch);
    const failure = (promise) => promise.then(() => "done", ({ kind, code }) => kind + " " + code);
    console.log(JSON.stringify({
      map: runs.map(({ start, end, kind }) => [start, end, kind]),
      write: await failure(image.openWritable()),
      create: await failure(source.hostSource(${JSON.stringify(`${path}2`)}).create()),
      holes: (await probe.probeHoles(${JSON.stringify(folder)})).holes,
      inUse: await inuse.inUse(${JSON.stringify(path)}),
    }));`;
  const expected = {
    map: [[1, 7, "data"]],
    write: "refused no-lock",
    create: "refused no-lock",
    holes: false,
  };
  assert.deepEqual(await elsewhere(ask), { ...expected, inUse: false });
  await using writer = await hostSource(path).openWritable();
  assert.deepEqual(await elsewhere(ask), { ...expected, inUse: true });
  assert.equal(writer.bytes, 7);
});
