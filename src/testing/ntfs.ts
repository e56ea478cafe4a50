/**
 * ntfsprogs, ntfs-3g and partclone as makers and judges of NTFS volumes.
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { ExtentBuilder, type ExtentSet } from "../bytes/extents.ts";
import { attempt, run } from "./tools.ts";

export const NTFS_TOOLS = ["mkntfs", "ntfs-3g", "ntfsinfo", "ntfsresize", "partclone.ntfs", "mount"] as const;

/** Makes an empty volume of `bytes` bytes. */
export function makeNtfs(path: string, bytes: number, ...options: readonly string[]): string {
  rmSync(path, { force: true });
  writeFileSync(path, "");
  run("truncate", ["-s", String(bytes), path]);
  run("mkntfs", ["-F", "-Q", "-q", ...options, path]);
  return path;
}

/** Runs a shell script inside the mounted volume; when it returns, all is written. @returns what it printed */
export function inNtfs(
  path: string,
  script: string,
  options = "compression,streams_interface=windows",
): string {
  const point = `${path}.mount`;
  mkdirSync(point, { recursive: true });
  return run("sh", ["-c", MOUNTED, "sh", path, point, options, script]);
}

const MOUNTED = `
ntfs-3g -o "no_detach,$3" "$1" "$2" > /dev/null 2>&1 &
driver=$!
until mountpoint -q "$2"; do kill -0 $driver || exit 90; sleep 0.02; done
(cd "$2" && sh -ec "$4")
status=$?
umount "$2" && wait $driver || exit 91
exit $status
`;

/** Runs a shell script inside the mounted volume, and kills the driver when `seconds` are over. */
export function killedInNtfs(path: string, script: string, seconds: number): void {
  const point = `${path}.mount`;
  mkdirSync(point, { recursive: true });
  run("sh", ["-c", KILLED, "sh", path, point, String(seconds), script]);
}

const KILLED = `
ntfs-3g -o "no_detach,compression,streams_interface=windows" "$1" "$2" > /dev/null 2>&1 &
driver=$!
until mountpoint -q "$2"; do kill -0 $driver || exit 90; sleep 0.02; done
(cd "$2" && sh -ec "$4") > /dev/null 2>&1 &
life=$!
sleep "$3"
kill -9 $driver
wait $life $driver 2> /dev/null
umount --lazy "$2"
`;

/** The free clusters of partclone's own reading of the map, in bytes. */
export function partcloneFree(path: string): ExtentSet {
  const log = `${path}.domain`;
  run("partclone.ntfs", ["-D", "-L", "/dev/null", "-s", path, "-o", log]);
  const free = new ExtentBuilder();
  for (const [, at, bytes] of readFileSync(log, "utf8").matchAll(/^(0x\w+)\s+(0x\w+)\s+\?$/gm)) {
    free.add(Number(at), Number(at) + Number(bytes));
  }
  rmSync(log);
  return free.build();
}

/** How many clusters ntfsinfo counts as free. */
export function ntfsinfoFree(path: string): number {
  return Number(/Free Clusters: (\d+)/.exec(run("ntfsinfo", ["-m", path]))![1]);
}

/** What ntfsresize says when it compares the map with all run lists; undefined when it finds nothing. */
export function ntfsresizeComplaint(path: string): string | undefined {
  const { status, stdout, stderr } = attempt("ntfsresize", ["--info", "--no-action", "-f", path]);
  return status === 0 ? undefined : (stdout + stderr).replaceAll(path, "image");
}

/** A life with all that makes a map interesting. */
export const NTFS_LIFE = `
  mkdir many deep deep/er small
  for i in $(seq 300); do head -c $((i * 60)) /dev/urandom > many/file-with-a-rather-long-name-$i; done
  for i in $(seq 1 2 300); do rm many/file-with-a-rather-long-name-$i; done
  for i in $(seq 150); do ln many/file-with-a-rather-long-name-2 small/another-name-of-the-same-file-$i; done
  head -c 3000000 /dev/urandom > deep/er/large
  head -c 70000 /dev/urandom > deep/er/large:stream
  head -c 100 /dev/urandom > deep/er/large:little
  truncate -s 20M sparse
  for i in 0 3 9 2000; do dd if=/dev/urandom of=sparse bs=4k count=2 seek=$i conv=notrunc status=none; done
  mkdir packed
  setfattr -h -v 0x00000800 -n system.ntfs_attrib_be packed
  yes ullage | head -c 900000 > packed/text
  head -c 200000 /dev/urandom > packed/noise
  ln -s deep/er/large link
`;
