/**
 * Parallels bundles: a descriptor as Parallels writes it, around images that QEMU made.
 */
import { join } from "node:path";
import { randomWrites, writeCommand } from "./qemu.ts";
import type { Random } from "./seeds.ts";
import { SimulatedFile } from "./simulated-file.ts";
import { run } from "./tools.ts";

export const NAME = "disk.hdd";
export const CLUSTER_BYTES = 16_384;
export const NONE = "{00000000-0000-0000-0000-000000000000}";
export const TOP = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
export const guid = (n: number) => `{0000000${n}-0000-4000-8000-000000000000}`;

export interface Shape {
  /** Length of each storage. */
  readonly storages: readonly number[];
  /** From the top to the root. */
  readonly shots: readonly string[];
  /** The root is a plain file. */
  readonly isPlain?: boolean;
}

export function descriptorOf({ storages, shots, isPlain }: Shape): string {
  const fileOf = (storage: number, shot: string) => `${NAME}.${storage}.${shot}.hds`;
  let at = 0;
  const parts = storages.map((bytes, storage) => {
    const start = at;
    at += bytes / 512;
    const images = shots.map((shot, i) => {
      const type = isPlain && i === shots.length - 1 ? "Plain" : "Compressed";
      return `<Image><GUID>${shot}</GUID><Type>${type}</Type><File>${fileOf(storage, shot)}</File></Image>`;
    });
    return `<Storage><Start>${start}</Start><End>${at}</End><Blocksize>${CLUSTER_BYTES / 512}</Blocksize>${images.join("")}</Storage>`;
  });
  const list = shots.map(
    (shot, i) => `<Shot><GUID>${shot}</GUID><ParentGUID>${shots[i + 1] ?? NONE}</ParentGUID></Shot>`,
  );
  return (
    `<?xml version="1.0" encoding="UTF-8"?>\n<Parallels_disk_image Version="1.0"><Disk_Parameters>` +
    `<Disk_size>${at}</Disk_size><Padding>0</Padding></Disk_Parameters><StorageData>${parts.join("")}</StorageData>` +
    `<Snapshots>${list.join("")}</Snapshots></Parallels_disk_image>\n`
  );
}

export const withText = (text: string) =>
  SimulatedFile.from(Buffer.from(text), { name: `${NAME}/DiskDescriptor.xml` });

/** A bundle whose images QEMU made; what each snapshot reads is known from what was written. */
export async function makeBundle(folder: string, shape: Shape, random: Random) {
  const files = new Map([[`${NAME}/DiskDescriptor.xml`, withText(descriptorOf(shape))]]);
  const contents: Buffer[][] = shape.shots.map(() => []);
  for (const [storage, bytes] of shape.storages.entries()) {
    let content = Buffer.alloc(bytes);
    for (const [i, shot] of [...shape.shots.entries()].reverse()) {
      const format = shape.isPlain && i === shape.shots.length - 1 ? "raw" : "parallels";
      const name = `${NAME}.${storage}.${shot}.hds`;
      const path = join(folder, name);
      const options = format === "raw" ? [] : ["-o", `cluster_size=${CLUSTER_BYTES}`];
      run("qemu-img", ["create", "-q", "-f", format, ...options, path, String(bytes)]);
      content = Buffer.from(content);
      const writes = randomWrites(random, { count: 5, virtualBytes: bytes, grainBytes: 2048 });
      // Whole clusters: QEMU knows nothing of the layer below, where the rest would come from.
      const whole = writes.map(({ start, end, pattern }) => ({
        start: Math.floor(start / CLUSTER_BYTES) * CLUSTER_BYTES,
        end: Math.min(bytes, Math.ceil(end / CLUSTER_BYTES) * CLUSTER_BYTES),
        pattern,
      }));
      const commands = whole.flatMap((write) => ["-c", writeCommand(write)]);
      run("qemu-io", ["-t", "unsafe", "-f", format, ...commands, path]);
      for (const { start, end, pattern } of whole) content.fill(pattern, start, end);
      contents[i]!.push(content);
      files.set(`${NAME}/${name}`, await SimulatedFile.load(path, { name: `${NAME}/${name}` }));
    }
  }
  return { files, contents: contents.map((parts) => Buffer.concat(parts)) };
}
