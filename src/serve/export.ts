/**
 * One served image: opened and judged, the filters over it, its meter, and the exports that clients see.
 *
 *   image ── guessed ── erase ── error ── delay ── log ── export NAME, and ""
 *     └── snapshots ──────────────────────────────────── export NAME@SNAPSHOT, read-only
 */
import { basename } from "node:path";
import { ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice, WritableDevice } from "../device/device.ts";
import { Borrowed } from "../device/filter.ts";
import { openWritable, open, type Disk } from "../disk/open.ts";
import type { OpenOptions } from "../disk/results.ts";
import { requireSafe } from "../disk/safe.ts";
import { requireTestedHost, sizesOf } from "../disk/survey.ts";
import type { Image, WritableImage } from "../formats/format.ts";
import { HostReader } from "../host/file.ts";
import { LockedFile } from "../host/locked-file.ts";
import { Delayed, type Delays } from "../live/delay.ts";
import { Erasing } from "../live/erase.ts";
import { Failing, type FailureRules } from "../live/error.ts";
import { Logged } from "../live/log.ts";
import { type Kind, KINDS, Meter } from "../live/meter.ts";
import type { PatternName } from "../live/pattern.ts";
import { ReadOnly } from "../live/readonly.ts";
import type { Export, MetaContext } from "../nbd/export.ts";
import { allocation, allocationDepth } from "../nbd/contexts.ts";
import { CMD, REQUEST_BYTES_MAX } from "../nbd/protocol.ts";
import type { Watcher } from "../nbd/transmission.ts";
import { GuessedRaw } from "./guessed.ts";
import { UsageContext } from "./usage.ts";

/** What is put over an image, and how it is opened. */
export interface ServedOptions {
  readonly open: OpenOptions;
  readonly readOnly: boolean;
  readonly snapshots: boolean;
  /** What is freed is overwritten with this first. */
  readonly erase?: PatternName;
  readonly delays?: Delays;
  readonly failures?: FailureRules;
  readonly logLine?: (line: string) => void;
}

const KIND_OF: Readonly<Record<number, Kind>> = {
  [CMD.READ]: "read",
  [CMD.WRITE]: "write",
  [CMD.FLUSH]: "flush",
  [CMD.TRIM]: "trim",
  [CMD.WRITE_ZEROES]: "zero",
  [CMD.CACHE]: "cache",
  [CMD.BLOCK_STATUS]: "status",
};

const PREFERRED_BYTES = 4096;

export class ServedImage implements AsyncDisposable {
  readonly path: string;
  readonly name: string;
  readonly meter = new Meter();
  readonly watcher: Watcher;
  readonly exports: readonly Export[];
  readonly #disk: Disk;
  readonly #device: WritableDevice;

  private constructor(disk: Disk, device: WritableDevice, exports: readonly Export[]) {
    this.path = disk.path;
    this.name = basename(disk.path);
    this.#disk = disk;
    this.#device = device;
    this.exports = exports;
    this.watcher = {
      answered: (command, bytes, milliseconds, error) => {
        const kind = KIND_OF[command];
        if (kind !== undefined) this.meter.count(kind, bytes, milliseconds, error !== 0);
      },
    };
  }

  /** @throws DiskError as `openWritable`, and where an image must not be written to (H17, H21, H33) */
  static async open(path: string, options: ServedOptions): Promise<ServedImage> {
    if (!options.readOnly) requireTestedHost(options.open);
    const disk = options.readOnly ? await open(path, options.open) : await openWritable(path, options.open);
    try {
      if (!options.readOnly) await requireSafe(disk, options.open);
      for (const file of filesOf(disk.image)) if (file instanceof HostReader) file.isLive = true;
      const device = filtered(disk, options);
      const exports = [mainExport(disk, device, options)];
      if (options.snapshots) exports.push(...(await snapshotExports(disk)));
      return new ServedImage(disk, device, exports);
    } catch (error) {
      await disk[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** As JSON for `top`. */
  async counters(): Promise<object> {
    const { fileBytes, hostBytes } = await sizesOf(this.#disk.image);
    const { kinds, latency, alarms, connections } = this.meter;
    return {
      name: this.name,
      path: this.path,
      format: this.#disk.image.format,
      virtualBytes: this.#disk.image.bytes,
      fileBytes,
      hostBytes,
      connections,
      ...Object.fromEntries(KINDS.map((kind) => [kind, kinds[kind]])),
      returnedBytes: this.#returnedBytes(),
      guardedBytes: 0,
      latency: { buckets: latency, p50: this.meter.percentile(0.5), p99: this.meter.percentile(0.99) },
      alarms,
    };
  }

  #returnedBytes(): number {
    let bytes = 0;
    for (const file of this.#disk.image.files.values()) {
      if (file instanceof LockedFile) bytes += file.returnedBytes;
    }
    return bytes;
  }

  /** Everything durable, files closed, locks released. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#device[Symbol.asyncDispose]();
    } finally {
      await this.#disk[Symbol.asyncDispose]();
    }
  }
}

function* filesOf(image: Image): Generator<BlockDevice> {
  for (let each: Image | undefined = image; each !== undefined; each = each.parent)
    yield* each.files.values();
}

function filtered(disk: Disk | Disk<WritableImage>, options: ServedOptions): WritableDevice {
  let device: WritableDevice = isWritable(disk.image) ? new Borrowed(disk.image) : new ReadOnly(disk.image);
  if (disk.image.format === "raw" && options.open.format === undefined && !options.open.window)
    device = new GuessedRaw(device);
  if (options.erase !== undefined) device = new Erasing(device, { pattern: options.erase });
  if (options.failures) device = new Failing(device, options.failures, {});
  if (options.delays) device = new Delayed(device, options.delays);
  if (options.logLine) device = new Logged(device, options.logLine);
  return device;
}

function isWritable(image: Image | WritableImage): image is WritableImage {
  return "write" in image;
}

function mainExport(disk: Disk, device: WritableDevice, { readOnly }: ServedOptions): Export {
  const usage = new UsageContext(disk, () => ExtentSet.EMPTY);
  const common = offer(basename(disk.path), `${disk.image.format}, ${disk.image.summary}`, device, [usage]);
  return readOnly ? { ...common, isReadOnly: true, device } : { ...common, isReadOnly: false, device };
}

async function snapshotExports(disk: Disk): Promise<Export[]> {
  const exports: Export[] = [];
  for (const snapshot of await disk.image.snapshots()) {
    const device = await snapshot.open();
    const label = snapshot.name === "" ? snapshot.id : snapshot.name;
    const name = `${basename(disk.path)}@${label}`;
    exports.push({ ...offer(name, `snapshot ${label}`, device, []), isReadOnly: true, device });
  }
  return exports;
}

function offer(name: string, description: string, device: BlockDevice, more: readonly MetaContext[]) {
  return {
    name,
    description,
    blocks: { minimum: 1, preferred: PREFERRED_BYTES, maximum: REQUEST_BYTES_MAX },
    // All connections share one device in one process, which holds no write back (H27).
    canMultiConn: true,
    contexts: [allocation(device), allocationDepth(device), ...more],
  };
}
