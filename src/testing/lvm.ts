/**
 * LVM's own commands, without the kernel's device mapper: metadata is written, nothing is activated.
 */
import type { TestContext } from "node:test";
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
