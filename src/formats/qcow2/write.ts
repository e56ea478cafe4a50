/**
 * Writing to the active disk of an image.
 */
import type { Extent } from "../../bytes/extents.ts";
import type { BlockDevice, HostFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { Qcow2Context } from "./context.ts";

/** What `WritableDevice` asks for, over one open image. Reads go through `Qcow2Disk` and see every change at once. */
export class Qcow2Writer {
  readonly #context: Qcow2Context<HostFile>;
  readonly #disk: BlockDevice;

  /** @param disk the active disk as the guest reads it */
  constructor(context: Qcow2Context<HostFile>, disk: BlockDevice) {
    this.#context = context;
    this.#disk = disk;
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.#refuse(`write of ${from.length} bytes at ${at}`);
  }

  zero(range: Extent): Promise<void> {
    return this.#refuse(`zeros at ${range.start}`);
  }

  discard(range: Extent): Promise<void> {
    return this.#refuse(`discard at ${range.start}`);
  }

  flush(): Promise<void> {
    return this.#context.file.flush();
  }

  /** Makes everything durable; to be called before the files are closed. */
  close(): Promise<void> {
    return Promise.resolve();
  }

  #refuse(what: string): Promise<never> {
    return Promise.reject(new DiskError("unsupported", `${what} on a disk of ${this.#disk.bytes} bytes`));
  }
}
