/**
 * A `Source` over simulated files: one flat folder, with names as an image would write them. A bundle's files have
 * names such as `disk.sparsebundle/bands/1f`, and the bundle is there when one of them is.
 */
import type { Folder, Source } from "../device/source.ts";
import { DiskError } from "../error.ts";
import { SimulatedFile } from "./simulated-file.ts";

/** The file `name` of `files`; files that the image refers to or creates are looked up and added there too. */
export function simulatedSource(files: Map<string, SimulatedFile>, name: string): Source {
  const existing = (): SimulatedFile => {
    const file = files.get(name);
    if (!file) throw new DiskError("io", `${name}: no such file`, { code: "not-found" });
    return file;
  };
  const create = async (made: string): Promise<SimulatedFile> => {
    if (files.has(made)) throw new DiskError("usage", `${made} exists already`);
    const file = new SimulatedFile(0, { name: made });
    file.locked = true;
    files.set(made, file);
    return file;
  };
  return {
    name,
    ...(isFolder(files, name) && { folder: simulatedFolder(files, name) }),
    open: async () => existing().readable(),
    async openWritable() {
      const file = existing();
      if (file.locked) throw new DiskError("busy", `${name} is locked by another process`);
      file.locked = true;
      return file;
    },
    create: () => create(name),
    createBeside: (other) => create(other),
    async makeFolder() {
      if (isFolder(files, name)) throw new DiskError("usage", `${name} exists already`);
      return simulatedFolder(files, name);
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

const isFolder = (files: Map<string, SimulatedFile>, name: string): boolean =>
  [...files.keys()].some((path) => path.startsWith(`${name}/`));

/** A folder, whether or not it has files yet. */
function simulatedFolder(files: Map<string, SimulatedFile>, name: string): Folder {
  return {
    async list(under) {
      const prefix = under === "" ? `${name}/` : `${name}/${under}/`;
      const below = [...files.keys()].filter((path) => path.startsWith(prefix));
      return below
        .map((path) => path.slice(prefix.length))
        .filter((path) => !path.includes("/"))
        .sort();
    },
    file: (path) => simulatedSource(files, `${name}/${path}`),
    async remove(path) {
      if (!files.delete(`${name}/${path}`)) throw new DiskError("io", `${path}: no such file`);
    },
  };
}

/** The source of one file alone. */
export function sourceOf(file: SimulatedFile): Source {
  return simulatedSource(new Map([[file.name, file]]), file.name);
}
