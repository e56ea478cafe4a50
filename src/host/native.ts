/**
 * The one file that loads koffi, and only when the first system call is wanted: it costs about 10 ms, which a reader
 * that never maps a file need not pay.
 *
 * Calls are synchronous, because koffi's asynchronous calls lose `errno` (measured with 3.3.4: -1, then 0). Who calls
 * in a loop lets the event loop have its turn between two calls (`turns.ts`).
 */
import { createRequire } from "node:module";
import { getSystemErrorName } from "node:util";

type Argument = number | bigint | string | Uint8Array | null;

/** A C function. Results past 2^53 - 1 come as bigint. */
export type NativeFunction = ((...args: Argument[]) => number | bigint) & {
  /** Runs on a thread. Its `errno` is lost. */
  async(...args: [...Argument[], (error: unknown, result: number | bigint) => void]): void;
};

export interface NativeLibrary {
  /** @param declaration in C, such as `int fsync(int fd)` */
  bind(declaration: string): NativeFunction;
  /** `errno` of the last call. */
  errno(): number;
}

/** What koffi offers, as far as it is used here. */
interface Koffi {
  load(path: string | null): { func(declaration: string): NativeFunction };
  errno(): number;
  address(memory: Uint8Array): bigint;
}

let loaded: Koffi | undefined;

/** The address of memory that does not move. Only where `nativeLibrary` gave something. */
export function nativeAddress(memory: Uint8Array): number {
  return Number(loaded!.address(memory));
}

/** Offsets pass as one 64-bit register; on 32-bit machines `off_t` differs. */
const ARCHITECTURES = new Set(["x64", "arm64", "riscv64", "loong64", "ppc64"]);

/**
 * A library of the system, `null` for what the process itself has loaded (libc). Undefined where koffi is missing.
 */
export function nativeLibrary(path: string | null = null): NativeLibrary | undefined {
  if (!ARCHITECTURES.has(process.arch)) return undefined;
  let koffi: Koffi;
  try {
    koffi = createRequire(import.meta.url)("koffi") as Koffi;
  } catch {
    return undefined;
  }
  loaded = koffi;
  const library = koffi.load(path);
  return { bind: (declaration) => library.func(declaration), errno: () => koffi.errno() };
}

/** A failed system call, in the shape of Node's own: `code` is `ENOSPC`, `EIO`, and so on. */
export class SystemError extends Error {
  override readonly name = "SystemError";
  readonly code: string;
  readonly syscall: string;

  constructor(syscall: string, code: string) {
    super(`${code}: ${syscall}`);
    this.syscall = syscall;
    this.code = code;
  }
}

/** The error of a call that returned -1. */
export function systemError(syscall: string, errno: number): SystemError {
  return new SystemError(syscall, getSystemErrorName(-errno));
}
