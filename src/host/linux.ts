/**
 * Linux: `fallocate` for holes, FIEMAP for extents, FICLONERANGE for reflinks, open-file-description locks, leases. Manual
 * pages fallocate(2), lseek(2), ioctl_ficlonerange(2), fcntl(2), fcntl_locking(2); FIEMAP:
 * Documentation/filesystems/fiemap.rst.
 *
 *   struct fiemap        | start u64 | length u64 | flags u32 | mapped u32 | count u32 | - | extent 0 | extent 1 | …
 *   struct fiemap_extent | logical u64 | physical u64 | length u64 | - u64 × 2 | flags u32 | - u32 × 3 |
 *   struct file_clone_range | source fd i64 | source start u64 | length u64 | start u64 |
 *   struct flock         | type u16 | whence u16 | - | start i64 | length i64 | pid i32 | - |
 */
import { openSync } from "node:fs";
import type { Extent } from "../bytes/extents.ts";
import { nativeLibrary, systemError, type NativeFunction, type NativeLibrary } from "./native.ts";
import type { ExtentBatch, HostExtent, Locks, Platform } from "./platform.ts";

export function linux(): Platform | undefined {
  const library = nativeLibrary();
  if (library === undefined) return undefined;
  const call = checked(library);
  const fallocate = call("int fallocate(int fd, int mode, int64_t at, int64_t bytes)");
  const syncfs = library.bind("int syncfs(int fd)");
  const fallocated = (fd: number, mode: number, { start, end }: Extent) => {
    fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, start, end - start);
  };
  const fiemap = fiemapCall(call);
  const lseek = call("int64_t lseek(int fd, int64_t at, int whence)");
  const seek = seekCall(lseek);
  return {
    openForWriting: (path, flags) => openSync(path, flags),
    punch: (fd, range) => fallocated(fd, FALLOC_FL_PUNCH_HOLE, range),
    zeroRange: (fd, range) => fallocated(fd, FALLOC_FL_ZERO_RANGE, range),
    clone: cloneCall(call),
    extents: (fd, range) => fiemap(fd, range) ?? seek(fd, range),
    dataExtents: seek,
    forget: forgetCall(library),
    journalsData: journalsDataCall(call),
    isHole: (fd, { start, end }) => ifKnown(() => (nextData(lseek, fd, start) ?? end) >= end) ?? false,
    locks: ofdLocks(call),
    settle: (fd) => new Promise((resolve) => syncfs.async(fd, () => resolve())),
  };
}

type Checked = (declaration: string) => (...args: Parameters<NativeFunction>) => number;

/** Binds functions that return -1 and set `errno`; interrupted calls go on. */
function checked(library: NativeLibrary): Checked {
  return (declaration) => {
    const name = /(\w+)\(/.exec(declaration)![1]!;
    const bound = library.bind(declaration);
    return (...args) => {
      for (;;) {
        const result = Number(bound(...args));
        if (result !== -1) return result;
        const error = systemError(name, library.errno());
        if (error.code !== "EINTR") throw error;
      }
    };
  };
}

const FALLOC_FL_KEEP_SIZE = 0x01;
const FALLOC_FL_PUNCH_HOLE = 0x02;
const FALLOC_FL_ZERO_RANGE = 0x10;

/** What a filesystem answers that knows nothing of a call: then the next best is asked. */
const UNKNOWN_CALL = new Set(["ENOTSUP", "ENOTTY", "ENOSYS", "EINVAL", "EBADR", "EPERM", "EACCES"]);

type ExtentCall = (fd: number, range: Extent) => ExtentBatch | undefined;

/** The answer of `ask`, or undefined where the filesystem does not know the question. */
function ifKnown<T>(ask: () => T): T | undefined {
  try {
    return ask();
  } catch (error) {
    if (error instanceof Error && "code" in error && UNKNOWN_CALL.has(String(error.code))) return undefined;
    throw error;
  }
}

const FS_IOC_FIEMAP = 0xc020660b;
const FIEMAP_BYTES = 32;
const FIEMAP_EXTENT_BYTES = 56;
const FIEMAP_FLAG_SYNC = 0x1;
const FIEMAP_EXTENT_LAST = 0x1;
const FIEMAP_EXTENT_UNWRITTEN = 0x800;
const FIEMAP_EXTENT_SHARED = 0x2000;
/** UNKNOWN, DELALLOC, ENCODED, DATA_ENCRYPTED, NOT_ALIGNED, DATA_INLINE, DATA_TAIL: not byte for byte at that place. */
const FIEMAP_EXTENT_ELSEWHERE = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400;
const EXTENTS_MAX = 4096;

/** SYNC settles delayed allocation first, so that what is missing in the answer is a hole (H8). */
function fiemapCall(call: Checked): ExtentCall {
  const ioctl = call("int ioctl(int fd, unsigned long request, void *argument)");
  const buffer = new Uint8Array(FIEMAP_BYTES + EXTENTS_MAX * FIEMAP_EXTENT_BYTES);
  const view = new DataView(buffer.buffer);
  return (fd, range) =>
    ifKnown(() => {
      buffer.fill(0, 0, FIEMAP_BYTES);
      view.setBigUint64(0, BigInt(range.start), true);
      view.setBigUint64(8, BigInt(range.end - range.start), true);
      view.setUint32(16, FIEMAP_FLAG_SYNC, true);
      view.setUint32(24, EXTENTS_MAX, true);
      ioctl(fd, FS_IOC_FIEMAP, buffer);
      return fiemapExtents(view, range);
    });
}

function fiemapExtents(view: DataView, range: Extent): ExtentBatch {
  const u64 = (at: number) => view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
  const count = view.getUint32(20, true);
  const extents: HostExtent[] = [];
  let known = range.start;
  let last = count < EXTENTS_MAX;
  for (let i = 0; i < count; i++) {
    const at = FIEMAP_BYTES + i * FIEMAP_EXTENT_BYTES;
    const logical = u64(at);
    const flags = view.getUint32(at + 40, true);
    const start = Math.max(logical, known);
    const end = Math.min(logical + u64(at + 16), range.end);
    if ((flags & FIEMAP_EXTENT_LAST) !== 0) last = true;
    if (start >= end) continue;
    const unwritten = (flags & FIEMAP_EXTENT_UNWRITTEN) !== 0;
    const isPlain = (flags & FIEMAP_EXTENT_ELSEWHERE) === 0;
    const physical = isPlain ? u64(at + 8) + start - logical : undefined;
    extents.push({ start, end, unwritten, shared: (flags & FIEMAP_EXTENT_SHARED) !== 0, physical });
    known = end;
  }
  // A full batch that tells nothing new would be asked for again and again.
  return { extents, end: last || known === range.start ? range.end : known };
}

const POSIX_FADV_DONTNEED = 4;

/** Returns its error instead of setting `errno`; what is advice is not asked after. */
function forgetCall(library: NativeLibrary): (fd: number) => void {
  const advise = library.bind("int posix_fadvise(int fd, int64_t at, int64_t bytes, int advice)");
  return (fd) => void advise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

const FS_IOC_GETFLAGS = 0x80086601;
const FS_JOURNAL_DATA_FL = 0x4000;

function journalsDataCall(call: Checked): (fd: number) => boolean | undefined {
  const ioctl = call("int ioctl(int fd, unsigned long request, void *argument)");
  return (fd) =>
    ifKnown(() => {
      const flags = new DataView(new ArrayBuffer(8));
      ioctl(fd, FS_IOC_GETFLAGS, new Uint8Array(flags.buffer));
      return (flags.getUint32(0, true) & FS_JOURNAL_DATA_FL) !== 0;
    });
}

const FICLONERANGE = 0x4020940d;

function cloneCall(call: Checked): NonNullable<Platform["clone"]> {
  const ioctl = call("int ioctl(int fd, unsigned long request, void *argument)");
  return (from, { start, end }, to, at) => {
    const range = new BigInt64Array([from, start, end - start, at].map(BigInt));
    ioctl(to, FICLONERANGE, new Uint8Array(range.buffer));
  };
}

const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/** For tmpfs, ZFS, NFS 4.2. Moves the file's position: all other access is positional. */
function seekCall(lseek: ReturnType<Checked>): ExtentCall {
  return (fd, range) =>
    ifKnown(() => {
      const extents: HostExtent[] = [];
      let at = range.start;
      while (at < range.end && extents.length < EXTENTS_MAX) {
        const start = nextData(lseek, fd, at);
        if (start === undefined || start >= range.end) return { extents, end: range.end };
        at = Math.min(lseek(fd, start, SEEK_HOLE), range.end);
        extents.push({ start, end: at, unwritten: false, shared: false });
      }
      return { extents, end: at };
    });
}

/** ENXIO says that only a hole follows. */
function nextData(lseek: ReturnType<Checked>, fd: number, at: number): number | undefined {
  try {
    return lseek(fd, at, SEEK_DATA);
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENXIO") return undefined;
    throw error;
  }
}

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_SETSIG = 10;
const F_SETLEASE = 1024;
/** Tells of a lease that somebody wants broken; by itself it does nothing, where SIGIO would end us. */
const SIGURG = 23;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;

function ofdLocks(call: Checked): Locks {
  const fcntl = call("int fcntl(int fd, int command, void *lock)");
  const fcntlWith = call("int fcntl(int fd, int command, long argument)");
  const flock = (type: number, start: number, end: number) => {
    const lock = new DataView(new ArrayBuffer(32));
    lock.setUint16(0, type, true);
    lock.setBigInt64(8, BigInt(start), true);
    lock.setBigInt64(16, end === Infinity ? 0n : BigInt(end - start), true);
    return lock;
  };
  return {
    share(fd, byte) {
      fcntl(fd, F_OFD_SETLK, new Uint8Array(flock(F_RDLCK, byte, byte + 1).buffer));
    },
    heldByOthers(fd, { start, end }) {
      const lock = flock(F_WRLCK, start, end);
      fcntl(fd, F_OFD_GETLK, new Uint8Array(lock.buffer));
      return lock.getUint16(0, true) !== F_UNLCK;
    },
    /** A lease for reading is granted only where nobody writes. It is given back at once. */
    hasWriters(fd) {
      try {
        fcntlWith(fd, F_SETSIG, SIGURG);
        fcntlWith(fd, F_SETLEASE, F_RDLCK);
        fcntlWith(fd, F_SETLEASE, F_UNLCK);
        return false;
      } catch (error) {
        if (error instanceof Error && "code" in error && error.code === "EAGAIN") return true;
        return undefined; // Another user's file, or a filesystem without leases.
      }
    },
  };
}
