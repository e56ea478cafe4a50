/**
 * Small filesystems of the kernel, mounted for one test: an image file behind a loop device, or tmpfs.
 */
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { attempt, requires, requiresRoot, run } from "./tools.ts";

export type Mountable = "ext4" | "xfs" | "btrfs" | "tmpfs";

const MAKE: Readonly<Record<Exclude<Mountable, "tmpfs">, readonly string[]>> = {
  ext4: ["mke2fs", "-q", "-F", "-t", "ext4"],
  xfs: ["mkfs.xfs", "-q", "-f"],
  btrfs: ["mkfs.btrfs", "-q", "-f"],
};

/** mkfs.xfs makes nothing smaller. */
const MEBIBYTES_MIN = { ext4: 1, xfs: 300, btrfs: 1 };

/** A fresh mounted filesystem, unmounted when the test ends; undefined when the test was skipped. */
export function mounted(t: TestContext, filesystem: Mountable, mebibytes: number): string | undefined {
  if (!requiresRoot(t)) return undefined;
  if (filesystem !== "tmpfs" && !requires(t, MAKE[filesystem][0]!)) return undefined;
  const folder = mkdtempSync(join(tmpdir(), "ullage-"));
  const point = join(folder, "mount");
  mkdirSync(point);
  t.after(() => {
    attempt("umount", ["--lazy", point]);
    rmSync(folder, { recursive: true, force: true });
  });
  if (filesystem === "tmpfs") {
    run("mount", ["-t", "tmpfs", "-o", `size=${mebibytes}m`, "tmpfs", point]);
  } else {
    const image = join(folder, "image");
    writeFileSync(image, "");
    truncateSync(image, Math.max(mebibytes, MEBIBYTES_MIN[filesystem]) * 1024 * 1024);
    const [tool, ...options] = MAKE[filesystem];
    run(tool!, [...options, image]);
    run("mount", ["-o", "loop", image, point]);
  }
  return point;
}

/** A loop device on `image`, detached when the test ends; undefined when the test was skipped. */
export function attached(t: TestContext, image: string, ...options: readonly string[]): string | undefined {
  if (!requiresRoot(t) || !requires(t, "losetup")) return undefined;
  const device = run("losetup", ["--find", "--show", ...options, image]).trim();
  t.after(() => {
    // Once detached by the test, the device may be another's.
    const { stdout } = attempt("losetup", ["--associated", image]);
    if (stdout.startsWith(`${device}:`)) attempt("losetup", ["--detach", device]);
  });
  return device;
}
