/**
 * Partition tables as sfdisk reads them, and loop devices to make them on.
 */
import { existsSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, type TestContext } from "node:test";
import type { Extent } from "../bytes/extents.ts";
import { run, scratch } from "./tools.ts";

interface ForeignPartition {
  readonly number: number;
  readonly start: number;
  readonly end: number;
  /** Type GUID in upper case, or type byte in hexadecimal. */
  readonly type: string;
  readonly label: string;
}

type VolumeExtent = Pick<ForeignPartition, "number" | "start" | "end" | "label">;

interface SfdiskTable {
  readonly partitiontable: {
    readonly sectorsize: number;
    readonly partitions?: readonly {
      readonly node: string;
      readonly start: number;
      readonly size: number;
      readonly type: string;
      readonly name?: string;
    }[];
  };
}

/** What `volumeExtents` should give for the table that `sfdisk --json` lists, less containers. */
export function expectedExtents(path: string): VolumeExtent[] {
  return sfdiskPartitions(path)
    .filter(({ type }) => !EXTENDED_TYPES.includes(type))
    .map(({ number, start, end, label }) => ({ number, start, end, label }));
}

const EXTENDED_TYPES = ["5", "f", "85"];

/** The partitions of a disk image or device as `sfdisk --json` lists them, in bytes. */
function sfdiskPartitions(path: string): ForeignPartition[] {
  const { partitiontable: table } = JSON.parse(run("sfdisk", ["--json", path])) as SfdiskTable;
  return (table.partitions ?? []).map(({ node, start, size, type, name }) => ({
    number: Number(/\d+$/.exec(node)![0]),
    start: start * table.sectorsize,
    end: (start + size) * table.sectorsize,
    type,
    label: name ?? "",
  }));
}

/** A new sparse file of `bytes` bytes. */
export function blankDisk(t: TestContext, bytes: number): string {
  const path = join(scratch(t), "disk.img");
  writeFileSync(path, "");
  truncateSync(path, bytes);
  return path;
}

/**
 * A disk that is slow to make: made with the first call, copied by every call. To be called at the top of a test file.
 * @param make writes the disk and returns its path
 */
export function madeOnce(make: (t: TestContext) => string): (t: TestContext) => string {
  const folder = mkdtempSync(join(tmpdir(), "ullage-"));
  after(() => rmSync(folder, { recursive: true }));
  const original = join(folder, "disk.img");
  return (t) => {
    if (!existsSync(original)) copySparse(make(t), original);
    const copy = join(scratch(t), "disk.img");
    copySparse(original, copy);
    return copy;
  };
}

function copySparse(from: string, to: string): void {
  run("cp", ["--sparse=always", from, to]);
}

/** Attaches a file to a loop device until `use` is done. */
export function withLoop<T>(path: string, sectorBytes: number, use: (device: string) => T): T {
  const device = run("losetup", ["--find", "--show", "--sector-size", `${sectorBytes}`, path]).trim();
  try {
    return use(device);
  } finally {
    run("losetup", ["--detach", device]);
  }
}

/** What of a table of volumes is compared. */
interface Volumes {
  readonly volumes: readonly {
    readonly name: string;
    readonly label: string;
    readonly device: { readonly bytes: number };
    places(range: Extent): Iterable<{ readonly at: number; readonly bytes: number }>;
  }[];
}

/** Number, start and end of every volume, to compare with `expectedExtents`. */
export function volumeExtents(table: Volumes): VolumeExtent[] {
  return table.volumes.map((volume) => {
    const [place] = volume.places({ start: 0, end: volume.device.bytes });
    const { at, bytes } = place!;
    return { number: Number(volume.name), start: at, end: at + bytes, label: volume.label };
  });
}
