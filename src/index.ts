/**
 * Ullage as a library.
 *
 * ```ts
 * import { explain, reclaim, survey } from "ullage";
 *
 * const before = await survey("disk.qcow2");
 * console.log(before.reclaimableBytes, before.volumes);
 * const done = await reclaim("disk.qcow2", { dryRun: true });
 * const [owner] = (await explain("disk.qcow2", { offsets: [1 << 20] })).offsets;
 * ```
 *
 * - `survey`, `plan`, `explain`, `info` and `check` only read; they take no lock and work on an image in use.
 * - `reclaim`, `erase`, `create` and `check` with `repair` write, under a lock. Without `confirm` nobody is asked.
 * - `convert` makes a copy of what is used, and only reads its source.
 * - `open` gives the guest's disk as a device with its volumes, for programs that read the bytes themselves; `slice`,
 *   `overlay`, `cache`, `traced` and `checked` stack on any device.
 * - All failures that an image, a host or a caller can cause are a `DiskError` with a `kind`.
 */
export * from "./disk.ts";
export { DiskError, type ErrorDetails, type ErrorKind, type Refusal } from "./error.ts";
export { type Extent, ExtentBuilder, ExtentSet } from "./bytes/extents.ts";
export type { BlockDevice, Run } from "./device/device.ts";
export { cache } from "./device/cache.ts";
export { checked } from "./device/checked.ts";
export { overlay } from "./device/overlay.ts";
export { slice } from "./device/slice.ts";
export { traced } from "./device/traced.ts";
