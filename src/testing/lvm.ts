/**
 * LVM's own commands, without the kernel's device mapper: metadata is written, nothing is activated.
 */
import assert from "node:assert/strict";
import type { TestContext } from "node:test";
import { readBytes } from "../device/device.ts";
import { lvmCrc } from "../volumes/lvm/label.ts";
import { Header, Slot } from "../volumes/lvm/metadata-area.ts";
import { blankDisk, withLoop } from "./partitions.ts";
import type { SimulatedFile } from "./simulated-file.ts";
import { run, scratch } from "./tools.ts";

/** Runs commands that see nothing but `devices`. */
export function runLvm(
  t: TestContext,
  devices: readonly string[],
  commands: readonly (readonly string[])[],
): void {
  const accept = devices.map((device) => `"a|^${device}$|"`).join(",");
  const config =
    `devices { filter=[${accept},"r|.*|"] use_devicesfile=0 hints="none" } backup { backup=0 archive=0 } ` +
    `global { locking_dir="${scratch(t)}" use_lvmpolld=0 } activation { udev_sync=0 udev_rules=0 monitoring=0 }`;
  for (const [tool, ...args] of commands) run(tool!, ["--driverloaded", "n", "--config", config, ...args]);
}

/** A command that makes a logical volume and touches nothing on it. */
export function lvcreate(...options: readonly string[]): readonly string[] {
  return ["lvcreate", "-an", "-Zn", "-Wn", ...options];
}

type Commands = readonly (readonly string[])[];

/** Runs LVM's commands, one phase after the other, on loop devices over new files, and returns the files. */
export function lvmDisks(
  t: TestContext,
  sizes: readonly number[],
  ...phases: ((devices: readonly string[]) => Commands)[]
): string[] {
  const paths = sizes.map((bytes) => blankDisk(t, bytes));
  const within = (rest: readonly string[], devices: readonly string[]): void => {
    const [path, ...others] = rest;
    if (path !== undefined) return withLoop(path, 512, (device) => within(others, [...devices, device]));
    for (const commands of phases) runLvm(t, devices, commands(devices));
  };
  within(paths, []);
  return paths;
}

/** Replaces the committed text of the first metadata area, with CRCs that fit. */
export async function editLvmText(
  disk: SimulatedFile,
  change: (text: string) => string,
  areaAt = 4096,
): Promise<void> {
  const header = await readBytes(disk, areaAt, 512);
  const slot = Slot.decode(header, Header.bytes);
  const text = Buffer.from(await readBytes(disk, areaAt + slot.offset, slot.bytes)).toString("utf8");
  const changed = Buffer.from(change(text));
  assert.notEqual(changed.toString(), text);
  await disk.write(areaAt + slot.offset, changed);
  Slot.encode({ bytes: changed.length, crc: lvmCrc(changed) }, header, Header.bytes);
  Header.encode({ crc: lvmCrc(header.subarray(4)) }, header);
  await disk.write(areaAt, header);
}

/** The text of a logical volume of one segment. */
export function logical(
  name: string,
  visible: boolean,
  extents: number,
  segment: string,
  rest: string[] = [],
): string {
  const id = Buffer.from(name).toString("hex").padEnd(32, "0").slice(-32);
  const uuid = id.replace(/^(.{6})(.{4})(.{4})(.{4})(.{4})(.{4})(.{6})$/, "$1-$2-$3-$4-$5-$6-$7");
  const status = visible ? '"READ", "WRITE", "VISIBLE"' : '"READ", "WRITE"';
  return `${name} { id = "${uuid}" status = [${status}] flags = [] segment_count = 1
    segment1 { start_extent = 0 extent_count = ${extents} ${segment} ${rest.join(" ")} } }`;
}
