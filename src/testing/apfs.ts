/**
 * APFS containers for tests: made by mkapfs, filled by the Linux driver in another kernel, judged by partclone.
 *
 * The driver (linux-apfs-rw, the package `apfs-dkms`) writes only when it is told to, and takes snapshots by an ioctl
 * that no tool of Debian's knows; a small program is compiled for it.
 */
import { closeSync, existsSync, fstatSync, openSync, readdirSync, readSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { ExtentBuilder, type ExtentSet } from "../bytes/extents.ts";
import { viewOf } from "../bytes/struct.ts";
import { checked } from "../device/checked.ts";
import type { BlockDevice } from "../device/device.ts";
import { assert } from "../error.ts";
import { fletcher64, hasValidChecksum } from "../filesystems/apfs/objects.ts";
import { otherKernel } from "./other-kernel.ts";
import { requires, run } from "./tools.ts";

/** mkapfs makes nothing below 512 MiB, and partclone misreads a last chunk that is not whole: chunks are of 128 MiB. */
export const CONTAINER_BYTES = 640 * 2 ** 20;

export const BLOCK_BYTES = 4096;
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

/** The blocks that partclone's map calls unused, in bytes. */
export function partcloneFree(image: string): ExtentSet {
  const map = `${image}.map`;
  run("partclone.apfs", ["--domain", "--source", image, "--overwrite", map, "--logfile", `${image}.log`]);
  const free = new ExtentBuilder();
  const lines = run("cat", [map]).matchAll(/^(0x[0-9A-F]+) +(0x[0-9A-F]+) +\?$/gm);
  for (const [, start, bytes] of lines) free.add(Number(start), Number(start) + Number(bytes));
  return free.build();
}

/** The blocks of a container that are not all zero, by number. */
export class ContainerBlocks {
  readonly bytes: number;
  readonly blocks = new Map<number, Uint8Array>();

  constructor(image: string) {
    const file = openSync(image, "r");
    this.bytes = fstatSync(file).size;
    const zeros = Buffer.alloc(BLOCK_BYTES);
    const piece = Buffer.alloc(256 * BLOCK_BYTES);
    for (let at = 0; at < Math.min(this.bytes, READ_BYTES_MAX); at += piece.length) {
      const length = readSync(file, piece, 0, piece.length, at);
      for (let from = 0; from + BLOCK_BYTES <= length; from += BLOCK_BYTES) {
        const block = piece.subarray(from, from + BLOCK_BYTES);
        if (!zeros.equals(block)) this.blocks.set((at + from) / BLOCK_BYTES, new Uint8Array(block));
      }
    }
    closeSync(file);
  }

  /** The youngest valid object of a type, as its block and its place in it. */
  youngest(type: number, subtype = 0): number {
    const found = [...this.blocks].filter(([, bytes]) => {
      const view = viewOf(bytes);
      return (view.getUint32(24, true) & 0xffff) === type && view.getUint32(28, true) === subtype;
    });
    const valid = found.filter(([block, bytes]) => block !== 0 && hasValidChecksum(bytes));
    valid.sort(([, a], [, b]) => Number(viewOf(b).getBigUint64(16, true) - viewOf(a).getBigUint64(16, true)));
    assert(valid.length > 0, `no object of type ${type}`);
    return valid[0]![0];
  }

  /** A device on which some blocks are changed, their checksums set anew. */
  changed(changes: Readonly<Record<number, (view: DataView) => void>>): BlockDevice {
    const changed = new Map(this.blocks);
    for (const [block, change] of Object.entries(changes)) {
      const bytes = (this.blocks.get(Number(block)) ?? new Uint8Array(BLOCK_BYTES)).slice();
      change(viewOf(bytes));
      changed.set(Number(block), reseal(bytes));
    }
    return blocksDevice(changed, this.bytes);
  }
}

/** Sets the checksum of what looks like an object; a bitmap or a bare block stays as it is. */
export function reseal(bytes: Uint8Array): Uint8Array {
  const view = viewOf(bytes);
  const type = view.getUint32(24, true);
  if ((type & 0xffff) === 0 || (type & 0xffff) > 0x20 || (type & 0x07ff0000) !== 0) return bytes;
  const [low, high] = fletcher64(bytes);
  view.setUint32(0, low, true);
  view.setUint32(4, high, true);
  return bytes;
}

/** A device of blocks; those that are missing are zeros. */
export function blocksDevice(blocks: ReadonlyMap<number, Uint8Array>, bytes: number): BlockDevice {
  return checked({
    bytes,
    read(at, into) {
      into.fill(0);
      for (let block = Math.floor(at / BLOCK_BYTES); block * BLOCK_BYTES < at + into.length; block++) {
        const content = blocks.get(block);
        const start = Math.max(at, block * BLOCK_BYTES);
        const end = Math.min(at + into.length, (block + 1) * BLOCK_BYTES);
        if (content)
          into.set(content.subarray(start - block * BLOCK_BYTES, end - block * BLOCK_BYTES), start - at);
      }
      return Promise.resolve();
    },
    async *map(range) {
      yield [{ ...range, kind: "data", shared: false, depth: 0 }];
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  });
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
