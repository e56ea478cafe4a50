/**
 * APFS containers for tests: made by mkapfs, filled by the Linux driver in another kernel, judged by partclone.
 *
 * The driver (linux-apfs-rw, the package `apfs-dkms`) writes only when it is told to, and takes snapshots by an ioctl
 * that no tool of Debian's knows; a small program is compiled for it.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { ExtentBuilder, type ExtentSet } from "../bytes/extents.ts";
import { otherKernel } from "./other-kernel.ts";
import { requires, run } from "./tools.ts";

/** mkapfs makes nothing smaller. */
export const CONTAINER_BYTES = 600 * 2 ** 20;

export function makeContainer(
  folder: string,
  options: readonly string[] = [],
  bytes = CONTAINER_BYTES,
): string {
  const image = join(folder, `apfs-${options.join("")}-${bytes}.img`);
  run("truncate", ["-s", `${bytes}`, image]);
  run("mkapfs", [...options, image]);
  return image;
}

/** The blocks that partclone's map calls unused, in bytes. */
export function partcloneFree(image: string): ExtentSet {
  const map = `${image}.map`;
  run("partclone.apfs", ["--domain", "--source", image, "--overwrite", map, "--logfile", `${image}.log`]);
  const free = new ExtentBuilder();
  const lines = run("cat", [map]).matchAll(/^(0x[0-9A-F]+) +(0x[0-9A-F]+) +\?$/gm);
  for (const [, start, bytes] of lines) free.add(Number(start), Number(start) + Number(bytes));
  return free.build();
}

const TAKE_SNAPSHOT = `
#include <fcntl.h>
#include <string.h>
#include <stdio.h>
#include <sys/ioctl.h>
struct snapshot_name { char name[256]; };
int main(int count, char **words) {
  struct snapshot_name name = { { 0 } };
  int folder = open(words[1], O_RDONLY);
  strncpy(name.name, words[2], sizeof name.name - 1);
  if (folder < 0 || ioctl(folder, _IOW('@', 0x85, struct snapshot_name), &name) < 0) return perror(words[2]), 1;
  return 0;
}
`;

/**
 * Runs `script` in a kernel that has the driver; the first of `disks` is /dev/vda. `snapshot FOLDER NAME` takes a
 * snapshot of what is mounted there. Undefined when the test was skipped.
 */
export async function inAppleKernel(
  t: TestContext,
  folder: string,
  disks: readonly string[],
  script: string,
  powerFailsAt?: string,
): Promise<string | undefined> {
  if (!requires(t, "gcc")) return undefined;
  const program = join(folder, "snapshot");
  writeFileSync(`${program}.c`, TAKE_SNAPSHOT);
  run("gcc", ["-static", "-o", program, `${program}.c`]);
  run("truncate", ["-s", "%4096", program]);
  const last = `/dev/vd${String.fromCharCode("a".charCodeAt(0) + disks.length)}`;
  return otherKernel(t, {
    modules: ["crc32c_generic", "apfs"],
    disks: [...disks, program],
    script: `cat ${last} > /bin/snapshot; chmod +x /bin/snapshot\n${script}`,
    ...(powerFailsAt !== undefined && { powerFailsAt }),
  });
}
