/**
 * A `Source` over simulated files: one flat folder, with names as an image would write them.
 */
import type { Source } from "../device/source.ts";
import { DiskError } from "../error.ts";
import { SimulatedFile } from "./simulated-file.ts";

/** The file `name` of `files`; files that the image refers to or creates are looked up and added there too. */
export function simulatedSource(files: Map<string, SimulatedFile>, name: string): Source {
  const existing = (): SimulatedFile => {
    const file = files.get(name);
    if (!file) throw new DiskError("io", `${name}: no such file`);
    return file;
  };
  return {
    name,
    open: async () => existing().readable(),
    async openWritable() {
      const file = existing();
      if (file.locked) throw new DiskError("busy", `${name} is locked by another process`);
      file.locked = true;
      return file;
    },
    async create() {
      if (files.has(name)) throw new DiskError("usage", `${name} exists already`);
      const file = new SimulatedFile(0, { name });
      file.locked = true;
      files.set(name, file);
      return file;
    },
    refer: async (other) => {
      if (other.includes("/")) {
        throw new DiskError("refused", `${other} lies outside the image's folder`, { code: "outside" });
      }
      return simulatedSource(files, other);
    },
    async *siblings() {
      for (const other of [...files.keys()].sort()) {
        if (other !== name && !other.includes("/")) yield simulatedSource(files, other);
      }
    },
  };
}

/** The source of one file alone. */
export function sourceOf(file: SimulatedFile): Source {
  return simulatedSource(new Map([[file.name, file]]), file.name);
}
