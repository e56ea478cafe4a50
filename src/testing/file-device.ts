/**
 * A file of the host as a read-only device, for tests that hand a foreign tool's image to a reader.
 */
import { open } from "node:fs/promises";
import type { BlockDevice } from "../device/device.ts";
import { DiskError } from "../error.ts";

export async function fileDevice(path: string): Promise<BlockDevice> {
  const file = await open(path);
  const { size } = await file.stat();
  return {
    bytes: size,
    async read(at, into) {
      for (let done = 0; done < into.length;) {
        const { bytesRead } = await file.read(into, done, into.length - done, at + done);
        if (bytesRead === 0)
          throw new DiskError("io", `read of ${into.length} bytes at ${at} ends at ${size}`);
        done += bytesRead;
      }
    },
    async *map(range) {
      yield [{ ...range, kind: "data", shared: false, depth: 0 }];
    },
    async [Symbol.asyncDispose]() {
      await file.close();
    },
  };
}
