/**
 * Partition tables as sfdisk reads them, and loop devices to make them on.
 */
import { truncateSync } from "node:fs";
import { join } from "node:path";
import type { TestContext } from "node:test";
import type { VolumeTable } from "../volumes/volume.ts";
import { run, scratch } from "./tools.ts";

export interface ForeignPartition {
  readonly number: number;
  readonly start: number;
  readonly end: number;
  /** Type GUID in upper case, or type byte in hexadecimal. */
  readonly type: string;
  readonly label: string;
}

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

/** The partitions of a disk image or device as `sfdisk --json` lists them, in bytes. */
export function sfdiskPartitions(path: string): ForeignPartition[] {
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
  run("touch", [path]);
  truncateSync(path, bytes);
  return path;
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

/** Number, start and end of every volume, to compare with `sfdiskPartitions`. */
export function volumeExtents(
  table: VolumeTable,
): Pick<ForeignPartition, "number" | "start" | "end" | "label">[] {
  return table.volumes.map((volume) => {
    const [place] = volume.places({ start: 0, end: volume.device.bytes });
    const { at, bytes } = place!;
    return { number: Number(volume.name), start: at, end: at + bytes, label: volume.label };
  });
}
