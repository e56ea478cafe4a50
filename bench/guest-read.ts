/**
 * How long the guest's kernel takes to read every file of the disk: the cost of a host file in many pieces.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { must, timed } from "./measure.ts";

/** Seconds to read all files through a read-only loop mount, with the host's cache of the image dropped before. */
export function guestReadSeconds(image: string): number {
  const mountPoint = mkdtempSync(path.join(tmpdir(), "ullage-guest-"));
  must("sync", ["-f", image]);
  must("sh", ["-c", "echo 3 > /proc/sys/vm/drop_caches"]);
  must("mount", ["-o", "loop,ro,noload", image, mountPoint]);
  try {
    return timed("sh", ["-c", `tar -cf - -C "${mountPoint}" . | cat > /dev/null`]).seconds;
  } finally {
    must("umount", [mountPoint]);
    rmSync(mountPoint, { recursive: true });
  }
}
