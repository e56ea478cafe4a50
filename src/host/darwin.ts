/**
 * macOS, UNTESTED: nobody has run this. `fcntl` with F_PUNCHHOLE, SEEK_DATA and SEEK_HOLE, open-file-description locks,
 * by <sys/fcntl.h> of the SDK. `fcntl` is variadic, which passes arguments differently on Apple's arm64.
 *
 *   struct fpunchhole | flags u32 | reserved u32 | offset i64 | length i64 |
 *   struct flock      | start i64 | length i64 | pid i32 | type i16 | whence i16 |
 */
import { openSync } from "node:fs";
import type { Extent } from "../bytes/extents.ts";
import { nativeLibrary, SystemError, systemError } from "./native.ts";
import type { ExtentBatch, HostExtent, Platform } from "./platform.ts";

const F_OFD_SETLK = 90;
const F_OFD_GETLK = 92;
const F_PUNCHHOLE = 99;
const F_RDLCK = 1;
const F_UNLCK = 2;
const F_WRLCK = 3;
const SEEK_HOLE = 3;
const SEEK_DATA = 4;
const EXTENTS_MAX = 4096;

export function darwin(): Platform | undefined {
  const library = nativeLibrary();
  if (library === undefined) return undefined;
  const variadic = library.bind("int fcntl(int fd, int command, ...)");
  const lseek = library.bind("int64_t lseek(int fd, int64_t at, int whence)");
  const fcntl = (fd: number, command: number, argument: DataView) => {
    const result = variadic(fd, command, "void *", new Uint8Array(argument.buffer));
    if (result === -1) throw systemError("fcntl", library.errno());
  };
  const seek = (fd: number, at: number, whence: number) => {
    const result = Number(lseek(fd, at, whence));
    if (result === -1) throw systemError("lseek", library.errno());
    return result;
  };
  return {
    openForWriting: (path, flags) => openSync(path, flags),
    punch: (fd, range) => fcntl(fd, F_PUNCHHOLE, fpunchhole(range)),
    zeroRange: () => {
      throw new SystemError("fcntl", "ENOTSUP");
    },
    clone: () => {
      throw new SystemError("clonefile", "ENOTSUP");
    },
    extents: (fd, range) => seekExtents((at, whence) => seek(fd, at, whence), range),
    locks: {
      share: (fd, byte) => fcntl(fd, F_OFD_SETLK, flock(F_RDLCK, { start: byte, end: byte + 1 })),
      heldByOthers(fd, range) {
        const lock = flock(F_WRLCK, range);
        fcntl(fd, F_OFD_GETLK, lock);
        return lock.getInt16(20, true) !== F_UNLCK;
      },
    },
    settle: async () => {},
  };
}

function fpunchhole({ start, end }: Extent): DataView {
  const argument = new DataView(new ArrayBuffer(24));
  argument.setBigInt64(8, BigInt(start), true);
  argument.setBigInt64(16, BigInt(end - start), true);
  return argument;
}

function flock(type: number, { start, end }: Extent): DataView {
  const lock = new DataView(new ArrayBuffer(24));
  lock.setBigInt64(0, BigInt(start), true);
  lock.setBigInt64(8, end === Infinity ? 0n : BigInt(end - start), true);
  lock.setInt16(20, type, true);
  return lock;
}

function seekExtents(seek: (at: number, whence: number) => number, range: Extent): ExtentBatch | undefined {
  const extents: HostExtent[] = [];
  let at = range.start;
  try {
    while (at < range.end && extents.length < EXTENTS_MAX) {
      const start = seek(at, SEEK_DATA);
      if (start >= range.end) return { extents, end: range.end };
      at = Math.min(seek(start, SEEK_HOLE), range.end);
      extents.push({ start, end: at, unwritten: false, shared: false });
    }
    return { extents, end: at };
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    return error.code === "ENXIO" ? { extents, end: range.end } : undefined;
  }
}
