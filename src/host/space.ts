/**
 * The host's filesystem under a path: its kind, where it is mounted, and how much room it has.
 */
import { closeSync, constants, openSync, readFileSync, realpathSync, statfsSync } from "node:fs";
import { hostError } from "./failure.ts";
import { platform } from "./platform.ts";

export interface HostSpace {
  /** What `df` calls available, in bytes. */
  readonly freeBytes: number;
  /** As the kernel calls it: `ext4`, `xfs`, `nfs4`; `unknown` where nothing tells. */
  readonly filesystem: string;
  /** Where it is mounted. */
  readonly mount: string;
}

export async function hostFree(path: string): Promise<HostSpace> {
  try {
    const real = realpathSync.native(path);
    const { bavail, bsize } = statfsSync(real);
    const { filesystem, mount } = mountOf(real);
    return { freeBytes: bavail * bsize, filesystem, mount };
  } catch (error) {
    throw hostError(error, `${path}: free space`);
  }
}

/** Returns when the filesystem has settled its accounts; some report freed space late (H35). Advice: never fails. */
export async function settle(path: string): Promise<void> {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
  } catch {
    return;
  }
  try {
    await platform()?.settle(fd);
  } finally {
    closeSync(fd);
  }
}

interface Mount extends Pick<HostSpace, "filesystem" | "mount"> {
  /** Those of the filesystem itself. */
  readonly options: readonly string[];
}

/** `36 35 98:0 / /mnt\040point rw - ext4 /dev/sda1 rw`: the longest mount point, and the last of its name, wins. */
export function mountOf(path: string): Mount {
  let best: Mount = { filesystem: "unknown", mount: "", options: [] };
  for (const line of mountTable()) {
    const [mounted, source] = line.split(" - ");
    const [filesystem, , words = ""] = source?.split(" ") ?? [];
    const mount = mounted!.split(" ")[4]?.replace(/\\([0-7]{3})/g, (_, octal: string) => {
      return String.fromCharCode(Number.parseInt(octal, 8));
    });
    if (mount === undefined || filesystem === undefined || mount.length < best.mount.length) continue;
    if (path === mount || path.startsWith(mount === "/" ? "/" : `${mount}/`)) {
      best = { filesystem, mount, options: words.split(",") };
    }
  }
  return best.mount === "" ? { ...best, mount: "/" } : best;
}

function mountTable(): string[] {
  try {
    return readFileSync("/proc/self/mountinfo", "utf8").split("\n");
  } catch {
    return [];
  }
}
