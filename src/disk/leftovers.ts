/**
 * What a guest keeps though it could do without: caches, downloaded updates, trash, temporary files. Somebody might miss
 * it, so it is only told, with the command by which the guest itself cleans up.
 */
import type { FileSystem } from "../filesystems/filesystem.ts";
import { type Layout, regionsOf, startOf } from "./layout.ts";
import type { WorthlessReport } from "./results.ts";

interface Leftover {
  readonly kind: string;
  /** `*` stands for any one name. */
  readonly folders: readonly string[];
  readonly command: string;
}

/** A folder of `/var` or `/home` is looked for at the root of a volume, too: both are often volumes of their own. */
const LEFTOVERS: readonly Leftover[] = [
  { kind: "package cache", folders: ["/var/cache/apt/archives"], command: "apt-get clean" },
  {
    kind: "package cache",
    folders: ["/var/cache/dnf", "/var/cache/libdnf5", "/var/cache/yum", "/var/cache/PackageKit"],
    command: "dnf clean all",
  },
  { kind: "package cache", folders: ["/var/cache/pacman/pkg"], command: "pacman -Scc" },
  { kind: "package cache", folders: ["/var/cache/zypp"], command: "zypper clean --all" },
  { kind: "containers", folders: ["/var/lib/docker", "/var/lib/containers"], command: "docker system prune" },
  { kind: "system log", folders: ["/var/log/journal"], command: "journalctl --vacuum-size=100M" },
  {
    kind: "update downloads",
    folders: ["/Windows/SoftwareDistribution/Download"],
    command: "cleanmgr",
  },
  { kind: "previous Windows", folders: ["/Windows.old"], command: "cleanmgr" },
  {
    kind: "trash",
    folders: ["/$Recycle.Bin", "/RECYCLER"],
    command: "Clear-RecycleBin",
  },
  {
    kind: "trash",
    folders: ["/home/*/.local/share/Trash", "/root/.local/share/Trash", "/Users/*/.Trash", "/.Trashes"],
    command: "empty the trash",
  },
  {
    kind: "thumbnails",
    folders: ["/home/*/.cache/thumbnails", "/Users/*/AppData/Local/Microsoft/Windows/Explorer"],
    command: "delete the folder's content",
  },
  {
    kind: "temporary files",
    folders: ["/tmp", "/var/tmp", "/Windows/Temp", "/Users/*/AppData/Local/Temp", "/private/tmp"],
    command: "delete the folder's content",
  },
];

/** Subvolumes in which distributions put their root, on Btrfs. */
const SUBVOLUMES = ["/@", "/@rootfs", "/root"];
/** Names looked at in one folder and below: enough for all but containers, and nothing against the walk. */
const NAMES_MAX = 1000;
const DEPTH_MAX = 32;
const TOLD_BYTES_MIN = 1 << 20;
/** More folders than a machine has users: then it is no `/home`. */
const USERS_MAX = 100;

/** The largest first. @throws DiskError `io` */
export async function leftoversOn(layout: Layout): Promise<WorthlessReport[]> {
  const reports: WorthlessReport[] = [];
  for (const region of regionsOf(layout)) {
    if (region.content.kind !== "filesystem" || startOf(region) === undefined) continue;
    const { filesystem } = region.content;
    if (filesystem.refusal || filesystem.scratch) continue;
    for (const { kind, folders, command } of LEFTOVERS) {
      for (const path of await existing(filesystem, folders)) {
        const budget = { names: NAMES_MAX };
        const bytes = await bytesBelow(filesystem, path, budget);
        if (bytes < TOLD_BYTES_MIN) continue;
        const isPartial = budget.names < 0;
        reports.push({ kind, volume: region.name, path, bytes, isPartial, also: null, command, kept: null });
      }
    }
  }
  return reports.sort((a, b) => b.bytes - a.bytes);
}

/** Paths at which a guest's `/` may lie in its filesystem. */
export function rootsOf({ name }: FileSystem): readonly string[] {
  return name === "btrfs" ? ["", ...SUBVOLUMES] : [""];
}

async function existing(filesystem: FileSystem, folders: readonly string[]): Promise<string[]> {
  const patterns = folders.flatMap((folder) => {
    const alone = /^\/(?:var|home)(\/.+)$/.exec(folder)?.[1];
    return alone === undefined || alone === "/tmp" ? [folder] : [folder, alone];
  });
  const paths = new Set<string>();
  for (const root of rootsOf(filesystem)) {
    for (const pattern of patterns)
      for (const path of await expand(filesystem, root + pattern)) paths.add(path);
  }
  return [...paths];
}

/** Folders that `pattern` matches. */
async function expand(filesystem: FileSystem, pattern: string): Promise<string[]> {
  const star = pattern.indexOf("*");
  if (star < 0) return (await filesystem.find(pattern)) === undefined ? [] : [pattern];
  const outer = pattern.slice(0, star);
  const found: string[] = [];
  const folders = ((await filesystem.list(outer, NAMES_MAX)) ?? []).filter(
    ({ kind }) => kind === "directory",
  );
  if (folders.length > USERS_MAX) return [];
  for (const { name } of folders) {
    const path = outer + name + pattern.slice(star + 1);
    if ((await filesystem.find(path)) !== undefined) found.push(path);
  }
  return found;
}

async function bytesBelow(
  filesystem: FileSystem,
  path: string,
  budget: { names: number },
  depth = 0,
): Promise<number> {
  let bytes = 0;
  for (const { name, kind, allocatedBytes } of (await filesystem.list(path, budget.names + 1)) ?? []) {
    if (--budget.names < 0) return bytes;
    bytes += allocatedBytes;
    if (kind === "directory" && depth < DEPTH_MAX) {
      bytes += await bytesBelow(filesystem, `${path}/${name}`, budget, depth + 1);
    }
  }
  return bytes;
}
