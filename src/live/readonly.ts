/**
 * Read-only: nothing reaches the disk that would change it. For clients that write although they were told not to.
 */
import type { BlockDevice, Place, WritableDevice } from "../device/device.ts";
import { Filter } from "../device/filter.ts";
import { DiskError } from "../error.ts";

export class ReadOnly extends Filter {
  /** @param below may be one that cannot be written to at all */
  constructor(below: BlockDevice) {
    super(below as WritableDevice);
  }

  override locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    return access === "write" ? undefined : super.locate(at, bytes, access);
  }

  override write(): Promise<void> {
    return refused();
  }

  override zero(): Promise<void> {
    return refused();
  }

  override discard(): Promise<void> {
    return refused();
  }

  override async flush(): Promise<void> {}

  /** The disk is somebody else's to close. */
  override async [Symbol.asyncDispose](): Promise<void> {}
}

function refused(): Promise<never> {
  return Promise.reject(new DiskError("refused", "the disk is read-only", { code: "read-only" }));
}
