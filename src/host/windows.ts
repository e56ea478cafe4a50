/**
 * Windows, UNTESTED: nobody has run this. A file is locked by opening it without sharing; a hole is
 * FSCTL_SET_ZERO_DATA on a file that is sparse already. The sparse flag is never set (H18: WSL disables sparse VHDs).
 *
 *   FILE_ZERO_DATA_INFORMATION | FileOffset i64 | BeyondFinalZero i64 |
 */
import { constants } from "node:fs";
import { nativeLibrary, SystemError, type NativeFunction } from "./native.ts";
import type { Platform } from "./platform.ts";

const GENERIC_READ_WRITE = 0xc0000000;
const CREATE_NEW = 1;
const OPEN_EXISTING = 3;
const FILE_ATTRIBUTE_NORMAL = 0x80;
const FILE_ATTRIBUTE_SPARSE_FILE = 0x200;
const FILE_BASIC_INFO_BYTES = 40;
const FSCTL_SET_ZERO_DATA = 0x980c8;
const INVALID_HANDLE_VALUE = -1;

/** Windows error codes that Node's users know by another name. */
const CODES: Readonly<Record<number, string>> = {
  1: "ENOTSUP",
  2: "ENOENT",
  3: "ENOENT",
  5: "EACCES",
  32: "EBUSY",
  33: "EBUSY",
  80: "EEXIST",
  112: "ENOSPC",
};

export function windows(): Platform | undefined {
  const kernel = nativeLibrary("kernel32.dll");
  const node = nativeLibrary();
  if (kernel === undefined || node === undefined) return undefined;
  const lastError = kernel.bind("uint32_t GetLastError()");
  const fail = (call: string) => new SystemError(call, CODES[Number(lastError())] ?? "EIO");
  const createFile = kernel.bind(
    "int64_t CreateFileW(str16 path, uint32_t access, uint32_t share, void *security, uint32_t how, uint32_t flags, int64_t template)",
  );
  const information = kernel.bind(
    "int GetFileInformationByHandleEx(int64_t file, int class, void *into, uint32_t bytes)",
  );
  const control = kernel.bind(
    "int DeviceIoControl(int64_t file, uint32_t code, void *in, uint32_t inBytes, void *out, uint32_t outBytes, void *returned, void *overlapped)",
  );
  // libuv's own descriptors: those of another C runtime would mean nothing to Node.
  const descriptorOf = node.bind("int uv_open_osfhandle(int64_t handle)");
  const handleOf = node.bind("int64_t uv_get_osfhandle(int fd)");
  return {
    openForWriting(path, flags) {
      const how = (flags & constants.O_EXCL) !== 0 ? CREATE_NEW : OPEN_EXISTING;
      const handle = createFile(path, GENERIC_READ_WRITE, 0, null, how, FILE_ATTRIBUTE_NORMAL, 0);
      if (Number(handle) === INVALID_HANDLE_VALUE) throw fail("CreateFile");
      return Number(descriptorOf(handle));
    },
    punch(fd, range) {
      const handle = handleOf(fd);
      if (!isSparse(information, handle)) throw new SystemError("FSCTL_SET_ZERO_DATA", "ENOTSUP");
      const zero = new DataView(new ArrayBuffer(16));
      zero.setBigInt64(0, BigInt(range.start), true);
      zero.setBigInt64(8, BigInt(range.end), true);
      const returned = new Uint8Array(4);
      const argument = new Uint8Array(zero.buffer);
      const done = control(handle, FSCTL_SET_ZERO_DATA, argument, 16, null, 0, returned, null);
      if (Number(done) === 0) throw fail("FSCTL_SET_ZERO_DATA");
    },
    zeroRange: () => {
      throw new SystemError("FSCTL_SET_ZERO_DATA", "ENOTSUP");
    },
    clone: () => {
      throw new SystemError("FSCTL_DUPLICATE_EXTENTS", "ENOTSUP");
    },
    extents: () => undefined,
    // Opening without sharing has locked the file already.
    locks: { share: () => {}, heldByOthers: () => false },
    settle: async () => {},
  };
}

function isSparse(information: NativeFunction, handle: number | bigint): boolean {
  const basic = new DataView(new ArrayBuffer(FILE_BASIC_INFO_BYTES));
  if (Number(information(handle, 0, new Uint8Array(basic.buffer), FILE_BASIC_INFO_BYTES)) === 0) return false;
  return (basic.getUint32(32, true) & FILE_ATTRIBUTE_SPARSE_FILE) !== 0;
}
