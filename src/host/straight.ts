/**
 * System calls of the straight way (docs/LIVE.md): none of them waits, and none makes an object.
 *
 *   file    preadv2(RWF_NOWAIT), pwrite     cachestat: how many pages of a range are in memory
 *   socket  recv, send, sendfile, poll      eventfd wakes a poll that waits on a thread
 *
 * Linux only; elsewhere there is no straight way. Manual pages readv(2), recv(2), send(2), sendfile(2), poll(2), eventfd(2);
 * cachestat: Documentation/admin-guide/mm of Linux 6.5, and its number in the table of system calls, which is the same on
 * all machines.
 *
 *   struct iovec            | base u64 | length u64 |
 *   struct pollfd           | fd i32 | events i16 | revents i16 |
 *   struct cachestat_range  | offset u64 | length u64 |
 *   struct cachestat        | cached u64 | dirty u64 | writeback u64 | evicted u64 | recently evicted u64 |
 */
import { constants } from "node:os";
import { addressOf, fixedMemory } from "./memory.ts";
import { type NativeLibrary, nativeLibrary, systemError } from "./native.ts";

/** The answer of a call that would have had to wait. */
export const WOULD_WAIT = -1;

export interface FileCalls {
  /** @returns bytes read, `WOULD_WAIT` where the first of them is not in memory; 0 at the end of the file */
  read(fd: number, at: number, into: Uint8Array, offset: number, bytes: number): number;
  /** @returns bytes written. @throws ENOSPC, EIO … */
  write(fd: number, at: number, from: Uint8Array, offset: number, bytes: number): number;
  /** Whether all pages of a range are in memory. Not knowing is no. */
  isCached(fd: number, at: number, bytes: number): boolean;
}

/** Sockets by their descriptors. All of them answer at once; a connection that broke off throws (ECONNRESET, EPIPE). */
export interface SocketCalls {
  /** Another descriptor of the same socket, closed on exec. */
  duplicate(fd: number): number;
  /** @returns bytes received, 0 at the end, or `WOULD_WAIT` */
  receive(fd: number, into: Uint8Array, offset: number, bytes: number): number;
  /** @param more true: something follows at once. @returns bytes taken, or `WOULD_WAIT` */
  send(fd: number, from: Uint8Array, offset: number, bytes: number, more: boolean): number;
  /** Pages of a file, without a copy. @returns bytes taken, or `WOULD_WAIT`; 0 where the file ends */
  sendFile(fd: number, file: number, at: number, bytes: number): number;
  /** A set of descriptors to wait for. */
  pollSet(): PollSet;
}

export interface PollSet {
  /** What to wait for, anew; not while somebody sleeps. */
  set(lines: readonly PolledLine[]): void;
  /** Waits so long at most. @returns how many are ready */
  wait(milliseconds: number): number;
  /** The same on a thread, until something is ready or `wake` is called. */
  sleep(): Promise<void>;
  wake(): void;
  /** Whether the descriptor at that place in `set` is ready, after `wait` or `sleep`. */
  isReady(index: number): boolean;
  close(): void;
}

export interface PolledLine {
  readonly fd: number;
  readonly wantsToReceive: boolean;
  readonly wantsToSend: boolean;
}

const RWF_NOWAIT = 8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_MORE = 0x8000;
const F_DUPFD_CLOEXEC = 1030;
const POLLIN = 1;
const POLLOUT = 4;
const EFD_CLOEXEC_NONBLOCK = 0o2004000;
const SYS_CACHESTAT = 451;
const PAGE_BYTES = 4096;

/** All of them mean: not now. A filesystem that knows no RWF_NOWAIT has to be waited for, too. */
const { EAGAIN, EINTR, EOPNOTSUPP } = constants.errno;

type Call = (...args: number[]) => number;

/** Binds functions whose arguments are numbers, and whose result is -1 when they fail. */
function binder(library: NativeLibrary): (declaration: string) => Call {
  return (declaration) => library.bind(declaration) as unknown as Call;
}

/** `WOULD_WAIT`, or the failure of a call thrown. */
function failed(library: NativeLibrary, name: string): number {
  const errno = library.errno();
  if (errno === EAGAIN || errno === EINTR || errno === EOPNOTSUPP) return WOULD_WAIT;
  throw systemError(name, errno);
}

let files: FileCalls | undefined | null = null;

/** Undefined where there is no straight way. */
export function fileCalls(): FileCalls | undefined {
  if (files === null) files = process.platform === "linux" ? makeFileCalls(nativeLibrary()) : undefined;
  return files;
}

function makeFileCalls(library: NativeLibrary | undefined): FileCalls | undefined {
  if (library === undefined) return undefined;
  const bind = binder(library);
  const preadv2 = bind("intptr_t preadv2(int fd, uintptr_t vectors, int count, int64_t at, int flags)");
  const pwrite = bind("intptr_t pwrite(int fd, uintptr_t from, size_t bytes, int64_t at)");
  const syscall = bind("long syscall(long number, long fd, uintptr_t range, uintptr_t into, long flags)");
  const vector = new BigUint64Array(fixedMemory(16).buffer);
  const words = new Uint32Array(vector.buffer);
  const vectorAt = addressOf(new Uint8Array(vector.buffer));
  const stat = new BigUint64Array(fixedMemory(56).buffer);
  const statAt = addressOf(new Uint8Array(stat.buffer));
  let knowsCache = true;
  return {
    read(fd, at, into, offset, bytes) {
      const address = addressOf(into) + offset;
      words[0] = address % 2 ** 32;
      words[1] = address / 2 ** 32;
      words[2] = bytes;
      const got = preadv2(fd, vectorAt, 1, at, RWF_NOWAIT);
      return got >= 0 ? got : failed(library, "preadv2");
    },
    write(fd, at, from, offset, bytes) {
      const put = pwrite(fd, addressOf(from) + offset, bytes, at);
      return put >= 0 ? put : failed(library, "pwrite");
    },
    isCached(fd, at, bytes) {
      if (!knowsCache) return false;
      const first = Math.floor(at / PAGE_BYTES);
      const pages = Math.ceil((at + bytes) / PAGE_BYTES) - first;
      stat[0] = BigInt(first * PAGE_BYTES);
      stat[1] = BigInt(pages * PAGE_BYTES);
      if (syscall(SYS_CACHESTAT, fd, statAt, statAt + 16, 0) !== 0) {
        knowsCache = false;
        return false;
      }
      return Number(stat[2]) >= pages;
    },
  };
}

/** Undefined where there is no straight way. */
export function socketCalls(): SocketCalls | undefined {
  const library = process.platform === "linux" ? nativeLibrary() : undefined;
  if (library === undefined) return undefined;
  const bind = binder(library);
  const fcntl = bind("int fcntl(int fd, int command, long argument)");
  const recv = bind("intptr_t recv(int fd, uintptr_t into, size_t bytes, int flags)");
  const send = bind("intptr_t send(int fd, uintptr_t from, size_t bytes, int flags)");
  const sendfile = bind("intptr_t sendfile(int socket, int file, uintptr_t at, size_t bytes)");
  const offset = new BigInt64Array(fixedMemory(8).buffer);
  const offsetAt = addressOf(new Uint8Array(offset.buffer));
  return {
    duplicate(fd) {
      const copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
      return copy >= 0 ? copy : failed(library, "fcntl");
    },
    receive(fd, into, from, bytes) {
      const got = recv(fd, addressOf(into) + from, bytes, MSG_DONTWAIT);
      return got >= 0 ? got : failed(library, "recv");
    },
    send(fd, from, start, bytes, more) {
      const flags = MSG_DONTWAIT | MSG_NOSIGNAL | (more ? MSG_MORE : 0);
      const put = send(fd, addressOf(from) + start, bytes, flags);
      return put >= 0 ? put : failed(library, "send");
    },
    sendFile(fd, file, at, bytes) {
      offset[0] = BigInt(at);
      const put = sendfile(fd, file, offsetAt, bytes);
      return put >= 0 ? put : failed(library, "sendfile");
    },
    pollSet: () => new LinuxPollSet(library),
  };
}

class LinuxPollSet implements PollSet {
  readonly #library: NativeLibrary;
  readonly #poll;
  readonly #write: Call;
  readonly #read: Call;
  readonly #wakeup: number;
  readonly #eight = fixedMemory(8);
  /** The first descriptor is the one that wakes. */
  #table = new DataView(fixedMemory(8 * 16).buffer);
  #address = addressOf(new Uint8Array(this.#table.buffer));
  #count = 1;

  constructor(library: NativeLibrary) {
    this.#library = library;
    this.#poll = library.bind("int poll(uintptr_t table, unsigned long count, int milliseconds)");
    const bind = binder(library);
    this.#write = bind("intptr_t write(int fd, uintptr_t from, size_t bytes)");
    this.#read = bind("intptr_t read(int fd, uintptr_t into, size_t bytes)");
    this.#wakeup = bind("int eventfd(unsigned int value, int flags)")(0, EFD_CLOEXEC_NONBLOCK);
    if (this.#wakeup < 0) throw systemError("eventfd", library.errno());
    this.#eight[0] = 1;
  }

  set(lines: readonly PolledLine[]): void {
    this.#count = lines.length + 1;
    if (this.#table.byteLength < this.#count * 8) {
      this.#table = new DataView(fixedMemory(this.#count * 16).buffer);
      this.#address = addressOf(new Uint8Array(this.#table.buffer));
    }
    this.#entry(0, this.#wakeup, POLLIN);
    lines.forEach(({ fd, wantsToReceive, wantsToSend }, i) => {
      this.#entry(i + 1, fd, (wantsToReceive ? POLLIN : 0) | (wantsToSend ? POLLOUT : 0));
    });
  }

  #entry(index: number, fd: number, events: number): void {
    this.#table.setInt32(index * 8, fd, true);
    this.#table.setInt32(index * 8 + 4, events, true);
  }

  wait(milliseconds: number): number {
    const ready = Number(this.#poll(this.#address, this.#count, milliseconds));
    // A signal came: whoever waits looks around.
    return ready >= 0 ? ready : Math.max(0, failed(this.#library, "poll"));
  }

  async sleep(): Promise<void> {
    await new Promise<void>((resolve) => this.#poll.async(this.#address, this.#count, -1, () => resolve()));
    this.#read(this.#wakeup, addressOf(this.#eight), 8);
    this.#eight[0] = 1;
  }

  wake(): void {
    this.#write(this.#wakeup, addressOf(this.#eight), 8);
  }

  isReady(index: number): boolean {
    return this.#table.getInt16((index + 1) * 8 + 6, true) !== 0;
  }

  close(): void {
    this.#library.bind("int close(int fd)")(this.#wakeup);
  }
}
