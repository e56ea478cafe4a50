import { test } from "node:test";
import { writerCrashesAreSafe } from "../../testing/conformance/writer-crash.ts";
import {
  type Kind,
  KINDS,
  loadFolder,
  makeImage,
  openIn,
  parentsIn,
  sourceIn,
} from "../../testing/qcow2-kinds.ts";
import { Random, seeds } from "../../testing/seeds.ts";
import { requires, scratch } from "../../testing/tools.ts";
import { qcow2 } from "../qcow2.ts";

const IMAGE = "image.qcow2";

const CRASHED: readonly Kind[] = KINDS.filter(({ name }) => !name.startsWith("2 MiB"));

for (const kind of CRASHED) {
  test(`a crash leaves old or new sectors, and leaks at worst: ${kind.name}`, async (t) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    for (const seed of seeds(1)) {
      const folder = scratch(t);
      const random = new Random(seed);
      makeImage(folder, kind, random);
      const openers = {
        open: openIn,
        openWritable: (files: Parameters<typeof openIn>[0]) =>
          qcow2.openWritable!(sourceIn(files, IMAGE), parentsIn(files)),
      };
      await writerCrashesAreSafe(await loadFolder(folder), openers, random, `SEED=${seed}`);
    }
  });
}
