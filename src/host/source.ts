/**
 * Images on the host: the file that the user named, and those that it names in turn.
 *
 * The user's own path is followed wherever it leads, also to a block device. A name out of an image goes through
 * `policy.ts` and is opened without following links; what was opened must be what was looked at (H22).
 */
import {
  closeSync,
  constants,
  fstatSync,
  openSync,
  readlinkSync,
  realpathSync,
  statSync,
  unlinkSync,
} from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import type { HostFile, ReadableFile } from "../device/device.ts";
import type { Folder, Source } from "../device/source.ts";
import { DiskError } from "../error.ts";
import { hostError } from "./failure.ts";
import { HostReader } from "./file.ts";
import { LockedFile } from "./locked-file.ts";
import { HostFolder } from "./folder.ts";
import { filesIn } from "./listing.ts";
import { lockForWriting, needLocks } from "./lock.ts";
import { identityOf, notAnImage } from "./medium.ts";
import { type Locks, platform } from "./platform.ts";
import { type Policy, refusal, resolveName } from "./policy.ts";
import { loopDevicesOf } from "./users.ts";

/** A source that lies on the host. */
export interface HostSource extends Source {
  /** Absolute; of a file that an image named, the real path. */
  readonly path: string;
  openWritable(): Promise<HostFile>;
  create(): Promise<HostFile>;
  refer(name: string): Promise<HostSource>;
  siblings(): AsyncIterable<HostSource>;
}

const NOTHING_OUTSIDE: Policy = { outside: [] };

/** The image at `path`, as the user gave it. Nothing is opened yet. */
export function hostSource(path: string, policy: Policy = NOTHING_OUTSIDE): HostSource {
  return new PathSource({ name: path, path: resolve(path), policy });
}

/**
 * The image that is made at `path`, and will lie at `place`: a parent that is known by its identifier alone lies beside
 * that place, the files that the image is made of beside the draft.
 */
export function draftSource(path: string, place: string, policy: Policy = NOTHING_OUTSIDE): HostSource {
  return new PathSource({ name: path, path: resolve(path), policy, place: resolve(place) });
}

interface Origin {
  readonly name: string;
  readonly path: string;
  readonly policy: Policy;
  /** Set for a draft: where it will lie. */
  readonly place?: string;
  /** Set for a file that an image named: what it was when the policy allowed it, and the directory that began it. */
  readonly referred?: { readonly identity: string; readonly home: string };
}

// Windows has neither: there a path cannot be a FIFO.
const { O_NONBLOCK = 0, O_NOFOLLOW = 0, O_NOCTTY = 0 } = constants as Partial<typeof constants>;
/** A FIFO must not make us wait, a terminal must not become ours. */
const CALM = O_NONBLOCK | O_NOCTTY;

class PathSource implements HostSource {
  readonly name: string;
  readonly path: string;
  readonly #origin: Origin;

  constructor(origin: Origin) {
    this.#origin = origin;
    this.name = origin.name;
    this.path = origin.path;
  }

  get folder(): Folder | undefined {
    return this.#origin.referred === undefined && isFolder(this.path) ? this.#asFolder() : undefined;
  }

  async makeFolder(under: readonly string[]): Promise<Folder> {
    const folder = this.#asFolder();
    folder.make(under);
    return folder;
  }

  #asFolder(): HostFolder {
    return new HostFolder(this.path, {
      // The name leads nowhere outside, whatever the user allowed to images that are files.
      refer: (name) => hostSource(join(this.path, "image")).refer(name),
      make: (path, name) => new PathSource({ name, path, policy: NOTHING_OUTSIDE }).create(),
    });
  }

  async open(): Promise<ReadableFile> {
    const fd = this.#openSame((flags) => openSync(this.path, constants.O_RDONLY | flags));
    return orClose(fd, () => new HostReader(fd, this.name));
  }

  async openWritable(): Promise<HostFile> {
    const host = needLocks(platform(), this.name);
    // O_EXCL without O_CREAT: a mounted block device is busy (blkdiscard destroyed some before it asked, H16).
    const exclusive = this.#stat().isBlockDevice() ? constants.O_EXCL : 0;
    const isWritten = exclusive === 0 && this.#hasWriters(host.locks);
    const fd = this.#openSame((flags) =>
      host.openForWriting(this.path, constants.O_RDWR | exclusive | flags),
    );
    return orClose(fd, () => {
      lockForWriting(fd, this.name, host.locks);
      const file = new LockedFile(fd, this.name, host);
      refuseLoops(file);
      if (isWritten) throw writtenElsewhere(this.name);
      return file;
    });
  }

  /** Asked before we open it for writing ourselves. */
  #hasWriters(locks: Locks): boolean {
    const fd = this.#openSame((flags) => openSync(this.path, constants.O_RDONLY | flags));
    try {
      return locks.hasWriters?.(fd) ?? false;
    } finally {
      closeSync(fd);
    }
  }

  async create(): Promise<HostFile> {
    const host = needLocks(platform(), this.name);
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | O_NOFOLLOW;
    const fd = attempt(`${this.name}: create`, () => host.openForWriting(this.path, flags));
    return orClose(fd, () => {
      try {
        lockForWriting(fd, this.name, host.locks);
        return new LockedFile(fd, this.name, host);
      } catch (error) {
        unlinkSync(this.path);
        throw error;
      }
    });
  }

  async createBeside(name: string): Promise<HostFile> {
    if (name !== basename(name) || name === "" || name.includes("\0") || /^\.+$/.test(name)) {
      throw refusal(name, "it is no plain file name", undefined);
    }
    return new PathSource({
      name,
      path: join(dirname(this.path), name),
      policy: this.#origin.policy,
    }).create();
  }

  async refer(name: string): Promise<HostSource> {
    const { path, policy, referred } = this.#origin;
    const folder = dirname(path);
    const home = referred?.home ?? attempt(`${this.name}: directory`, () => realpathSync.native(folder));
    const found = resolveName(name, folder, home, policy);
    const identity = identityOf(found.stats);
    return new PathSource({ name, path: found.path, policy, referred: { identity, home } });
  }

  async *siblings(): AsyncIterable<HostSource> {
    const { place, policy } = this.#origin;
    if (place !== undefined) return yield* hostSource(place, policy).siblings();
    const stats = statSync(this.path, { bigint: true, throwIfNoEntry: false });
    const own = stats && identityOf(stats);
    for await (const name of filesIn(dirname(this.path))) {
      const sibling = await this.refer(name).catch(nothingIfRefused);
      if (sibling !== undefined && identityOf(statSync(sibling.path, { bigint: true })) !== own)
        yield sibling;
    }
  }

  /** Looks, opens, and looks again: a device is never opened by mistake, and nothing is swapped in between. */
  #openSame(open: (flags: number) => number): number {
    const { referred } = this.#origin;
    const before = this.#stat();
    if (!before.isFile() && !before.isBlockDevice()) throw notAnImage(this.name, before);
    if (referred !== undefined && identityOf(before) !== referred.identity) throw this.#swapped();
    const flags = referred === undefined ? CALM : CALM | O_NOFOLLOW;
    const fd = attempt(`${this.name}: open`, () => open(flags));
    return orClose(fd, () => {
      const identity = identityOf(fstatSync(fd, { bigint: true }));
      if (identity !== (referred?.identity ?? identityOf(before))) throw this.#swapped();
      if (referred !== undefined && pathOf(fd, this.path) !== this.path) throw this.#swapped();
      return fd;
    });
  }

  #stat() {
    return attempt(`${this.name}: open`, () => statSync(this.path, { bigint: true }));
  }

  #swapped(): DiskError {
    return refusal(this.name, "it was exchanged while it was being opened", undefined);
  }
}

/** A file that went away, or that the policy forbids, is nobody's parent. */
function nothingIfRefused(error: unknown): undefined {
  if (!(error instanceof DiskError)) throw error;
}

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}

/** The kernel's own word for where an open file lies; elsewhere, where its path leads now. */
function pathOf(fd: number, path: string): string {
  return process.platform === "linux" ? readlinkSync(`/proc/self/fd/${fd}`) : realpathSync.native(path);
}

/** A loop device writes to its file without any lock. */
function refuseLoops(file: LockedFile): void {
  const loops = file.medium.kind === "file" ? loopDevicesOf(file.medium.identity) : [];
  if (loops.length === 0) return;
  throw new DiskError("busy", `${file.path}: it is attached to ${loops.join(", ")}`, {
    code: "loop",
    hint: `unmount it, then losetup --detach ${loops[0]}`,
  });
}

/** A hypervisor that locks nothing, or a loop device that was attached in another container. */
function writtenElsewhere(name: string): DiskError {
  return new DiskError("busy", `${name}: another process has it open for writing`, {
    code: "open",
    hint: "shut the guest down; losetup --list and fuser name who uses it",
  });
}

function attempt<T>(doing: string, call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw hostError(error, doing);
  }
}

/** The result of `call`; where it fails, the descriptor is closed, and with it its locks. */
function orClose<T>(fd: number, call: () => T): T {
  try {
    return call();
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}
