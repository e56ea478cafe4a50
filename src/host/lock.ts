/**
 * Locks on the bytes that QEMU uses, so that QEMU and Ullage keep each other out (H16).
 *
 *   byte 100 + i   shared lock: I use permission i        i = 0 consistent read, 1 write,
 *   byte 200 + i   shared lock: nobody else may use i         2 write unchanged, 3 resize
 *
 * All locks are shared; a conflict is found by asking whether somebody else holds the opposite byte: first take, then
 * ask, so that of two who come at once at most one goes on. Locks belong to the open file and end with it.
 *
 * Outside these bytes nobody of QEMU's locks anything: a lock there is a stranger's (libvirt's virtlockd holds byte 0)
 * and counts as in use. Loop devices, mounts and some hypervisors lock nothing: `users.ts` asks the kernel for the first
 * two, and before it opens an image for writing, `source.ts` asks whether anybody else has.
 */
import { readFileSync } from "node:fs";
import type { Extent } from "../bytes/extents.ts";
import { DiskError } from "../error.ts";
import { codeOf, hostError } from "./failure.ts";
import { holdersOf } from "./users.ts";
import type { Locks, Platform } from "./platform.ts";

const USED = 100;
const UNSHARED = 200;

const WRITE = 1;
const WRITE_UNCHANGED = 2;
const RESIZE = 3;
const CONSISTENT_READ = 0;

/** What our writer does, and what it lets nobody else do. Forced readers (`qemu-img info -U`) stay possible. */
const OUR_USE = [CONSISTENT_READ, WRITE, RESIZE];
const OUR_CLAIM = [WRITE, WRITE_UNCHANGED, RESIZE];

/** Bytes that only strangers lock. QEMU before 6.2 had a fifth permission at 104 and 204. */
const STRANGERS: readonly Extent[] = [
  { start: 0, end: USED },
  { start: 300, end: Infinity },
];

/** What tells a reader that figures may change under it: writers and strangers. */
const WRITERS: readonly Extent[] = [byteOf(USED + WRITE), byteOf(USED + RESIZE), ...STRANGERS];

function byteOf(at: number): Extent {
  return { start: at, end: at + 1 };
}

/** Without koffi nothing can be locked, and so nothing is written. @throws DiskError `refused` */
export function needLocks(host: Platform | undefined, path: string): Platform {
  if (host !== undefined) return host;
  throw new DiskError(
    "refused",
    `${path}: not opened for writing: this host offers no locks to Node without koffi`,
    {
      code: "no-lock",
      hint: "install again on this machine, so that koffi has its binary for it",
    },
  );
}

/**
 * Locks a file for writing until its descriptor is closed.
 * @throws DiskError `busy` when somebody holds it, `refused` when the filesystem has no locks
 */
export function lockForWriting(fd: number, path: string, locks: Locks): void {
  try {
    for (const i of OUR_USE) locks.share(fd, USED + i);
    for (const i of OUR_CLAIM) locks.share(fd, UNSHARED + i);
    const opposite = [...OUR_USE.map((i) => UNSHARED + i), ...OUR_CLAIM.map((i) => USED + i)];
    for (const range of [...opposite.map(byteOf), ...STRANGERS]) {
      if (locks.heldByOthers(fd, range)) throw busy(fd, path, range);
    }
  } catch (error) {
    if (error instanceof DiskError) throw error;
    if (codeOf(error) === "EAGAIN" || codeOf(error) === "EACCES") throw busy(fd, path, byteOf(USED));
    if (!NO_LOCKS.has(codeOf(error) ?? "")) throw hostError(error, `${path}: lock`);
    throw new DiskError(
      "refused",
      `${path}: not opened for writing: its filesystem has no locks (${codeOf(error)})`,
      {
        code: "no-lock",
        hint: "work on a local filesystem, or mount this one with locks",
        cause: error,
      },
    );
  }
}

const NO_LOCKS = new Set(["ENOLCK", "ENOTSUP", "EINVAL", "ENOSYS"]);

function busy(fd: number, path: string, { start }: Extent): DiskError {
  const how =
    start >= UNSHARED && start < STRANGERS[1]!.start
      ? "reads it and lets nobody change it"
      : start >= USED && start < UNSHARED
        ? "writes to it"
        : "has locked it";
  const who = holdersOf(fd).join(", ") || "another process";
  return new DiskError("busy", `${path}: ${who} ${how} (lock at byte ${start})`, {
    code: "locked",
    hint: "shut the guest down, or end the process that uses the image",
  });
}

/** Whether somebody else may be writing to an open file. Takes no lock. */
export function lockedByWriter(fd: number, identity: string, locks: Locks | undefined): boolean {
  if (locks === undefined) return inKernelTable(identity);
  try {
    return WRITERS.some((range) => locks.heldByOthers(fd, range));
  } catch (error) {
    if (codeOf(error) === undefined) throw error;
    return false; // A filesystem without locks has no holders.
  }
}

/**
 * The same question without native calls: `1: OFDLCK ADVISORY READ -1 fe:00:1234 101 101`. The device number there is
 * the filesystem's, which on Btrfs is not the file's own: inode numbers alone are compared, and err towards "in use".
 */
function inKernelTable(identity: string): boolean {
  const inode = identity.split(":").at(-1);
  let table: string;
  try {
    table = readFileSync("/proc/locks", "latin1");
  } catch {
    return false;
  }
  return table.split("\n").some((line) => {
    const [, , , , , file, start, end] = line.trim().split(/\s+/);
    if (file?.split(":").at(-1) !== inode) return false;
    const held = { start: Number(start), end: end === "EOF" ? Infinity : Number(end) + 1 };
    return WRITERS.some((range) => held.start < range.end && range.start < held.end);
  });
}
