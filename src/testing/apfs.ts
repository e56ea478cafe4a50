/**
 * APFS containers for tests: made by mkapfs, filled by the Linux driver in another kernel.
 *
 * The driver (linux-apfs-rw, the package `apfs-dkms`) writes only when it is told to, and takes snapshots by an ioctl
 * that no tool of Debian's knows; a small program is compiled for it.
 */
import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { viewOf } from "../bytes/struct.ts";
import type { BlockDevice } from "../device/device.ts";
import { assert } from "../error.ts";
import { fletcher64, hasValidChecksum } from "../filesystems/apfs/objects.ts";
import { otherKernel } from "./other-kernel.ts";
import { requires, run } from "./tools.ts";
import { blocksDevice, type Blocks, changedBlocks, type Changes, readBlocks } from "./volume-blocks.ts";

/** mkapfs makes nothing below 512 MiB, and partclone misreads a last chunk that is not whole: chunks are of 128 MiB. */
export const CONTAINER_BYTES = 640 * 2 ** 20;

/** What mkapfs writes lies in front. */
const READ_BYTES_MAX = 128 * 2 ** 20;

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

/** The blocks of a container that are not all zero, by number. */
export class ContainerBlocks {
  readonly bytes: number;
  readonly blocks: Blocks;

  constructor(image: string) {
    const { bytes, blocks } = readBlocks(image, READ_BYTES_MAX);
    this.bytes = bytes;
    this.blocks = blocks;
  }

  /** The block of the youngest valid object of a type. */
  youngest(type: number, subtype = 0): number {
    const found = [...this.blocks].filter(([block, bytes]) => {
      const view = viewOf(bytes);
      const isWanted = (view.getUint32(24, true) & 0xffff) === type && view.getUint32(28, true) === subtype;
      return isWanted && block !== 0 && hasValidChecksum(bytes);
    });
    found.sort(([, a], [, b]) => Number(viewOf(b).getBigUint64(16, true) - viewOf(a).getBigUint64(16, true)));
    assert(found.length > 0, `no object of type ${type}`);
    return found[0]![0];
  }

  /** A device on which some blocks are changed, their checksums set anew. */
  changed(changes: Changes): BlockDevice {
    return blocksDevice(changedBlocks(this.blocks, changes, reseal), this.bytes);
  }
}

/** Sets the checksum of what looks like an object; a bitmap or a bare block stays as it is. */
export function reseal(bytes: Uint8Array): void {
  const view = viewOf(bytes);
  const type = view.getUint32(24, true);
  if ((type & 0xffff) === 0 || (type & 0xffff) > 0x20 || (type & 0x07ff0000) !== 0) return;
  const [low, high] = fletcher64(bytes);
  view.setUint32(0, low, true);
  view.setUint32(4, high, true);
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

function hasDriver(t: TestContext): boolean {
  const found = existsSync("/lib/modules")
    ? readdirSync("/lib/modules").filter((version) =>
        existsSync(`/lib/modules/${version}/updates/dkms/apfs.ko`),
      )
    : [];
  if (found.length > 0) return true;
  const message = "needs the driver of the package apfs-dkms";
  if (process.env["CI"] === "true") throw new Error(message);
  t.skip(message);
  return false;
}

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
  if (!requires(t, "gcc") || !hasDriver(t)) return undefined;
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
