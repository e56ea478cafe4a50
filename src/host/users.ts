/**
 * Who uses an image without QEMU's locks, and who holds locks on it: questions to Linux's /proc and /sys. Elsewhere,
 * and where they are hidden, the answer is "nobody known".
 *
 *   /sys/block/loop3/loop/backing_file   a file behind a loop device
 *   /sys/dev/block/8:0/holders           device mapper, md
 *   /proc/self/mountinfo, /proc/swaps    mounted, swapped to
 *   /proc/PID/fdinfo/FD                  `lock: 1: OFDLCK ADVISORY READ -1 fe:00:1234 101 101`
 */
import { fstatSync, readdirSync, readFileSync, statSync } from "node:fs";
import { deviceNumber, identityAt } from "./medium.ts";

/** The loop devices that a file stands behind: `/dev/loop3`. They lock nothing. */
export function loopDevicesOf(identity: string): string[] {
  const behind = (name: string) => {
    const file = firstLine(`/sys/block/${name}/loop/backing_file`);
    return file !== undefined && identityAt(file) === identity;
  };
  return entries("/sys/block")
    .filter((name) => name.startsWith("loop") && behind(name))
    .map((name) => `/dev/${name}`);
}

/** Who uses a block device, or a partition of it: mount points, swap, device mapper. */
export function deviceUsersOf(rdev: bigint): string[] {
  const folder = `/sys/dev/block/${deviceNumber(rdev)}`;
  const partitions = entries(folder).filter((name) => firstLine(`${folder}/${name}/partition`) !== undefined);
  const numbers = [deviceNumber(rdev)];
  for (const name of partitions) numbers.push(firstLine(`${folder}/${name}/dev`) ?? "");
  const holders = [folder, ...partitions.map((name) => `${folder}/${name}`)].flatMap((part) =>
    entries(`${part}/holders`),
  );
  return [...holders, ...mountsOf(new Set(numbers)), ...swapsOn(new Set(numbers))];
}

/** `36 35 98:0 / /mnt rw,noatime - ext4 /dev/sda1 rw`. Btrfs shows a number of its own: then the source is asked. */
function mountsOf(numbers: ReadonlySet<string>): string[] {
  return lines("/proc/self/mountinfo").flatMap((line) => {
    const [mount, source] = line.split(" - ");
    const [, , number, , point] = mount!.split(" ");
    const device = source?.split(" ")[1];
    const found = numbers.has(number!) || (device?.startsWith("/") && numbers.has(numberAt(device) ?? "-"));
    return found ? [`mounted at ${point}`] : [];
  });
}

function swapsOn(numbers: ReadonlySet<string>): string[] {
  const swaps = lines("/proc/swaps").map((line) => line.split(/\s/)[0]!);
  return swaps
    .filter((path) => path.startsWith("/") && numbers.has(numberAt(path) ?? "-"))
    .map(() => "used as swap");
}

/** How many processes are asked for their locks at most. */
const PROCESSES_MAX = 4096;

/** The processes that hold locks on an open file: `qemu-nbd (process 4711)`. Only those that we may look into. */
export function holdersOf(fd: number): string[] {
  const inode = `:${fstatSync(fd).ino} `;
  const pids = entries("/proc").filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid);
  return pids
    .slice(-PROCESSES_MAX)
    .filter((pid) => holdsLock(pid, inode))
    .map((pid) => `${firstLine(`/proc/${pid}/comm`) ?? "a process"} (process ${pid})`);
}

function holdsLock(pid: string, inode: string): boolean {
  return entries(`/proc/${pid}/fdinfo`).some((fd) =>
    lines(`/proc/${pid}/fdinfo/${fd}`).some((line) => line.startsWith("lock:") && line.includes(inode)),
  );
}

function numberAt(path: string): string | undefined {
  try {
    const stats = statSync(path, { bigint: true });
    return stats.isBlockDevice() ? deviceNumber(stats.rdev) : undefined;
  } catch {
    return undefined;
  }
}

function entries(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function lines(path: string): string[] {
  try {
    return readFileSync(path, "utf8").split("\n");
  } catch {
    return [];
  }
}

function firstLine(path: string): string | undefined {
  return lines(path)[0];
}
