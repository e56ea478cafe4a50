/**
 * A served image as clients see it: its exports, and its meter.
 *
 *   stack ────────────── export NAME, and "" for the first image
 *     └── snapshots ──── export NAME@SNAPSHOT, read-only
 */
import { basename } from "node:path";
import type { BlockDevice } from "../device/device.ts";
import { sizesOf } from "../disk/survey.ts";
import { LockedFile } from "../host/locked-file.ts";
import { type Alarm, type Kind, KINDS, Meter } from "../live/meter.ts";
import { allocation, allocationDepth } from "../nbd/contexts.ts";
import type { Export, MetaContext } from "../nbd/export.ts";
import { CMD, REQUEST_BYTES_MAX } from "../nbd/protocol.ts";
import type { Watcher } from "../nbd/transmission.ts";
import { Stack, type StackOptions } from "./stack.ts";
import { UsageContext } from "./usage.ts";

export interface ServedOptions extends StackOptions {
  /** Export the snapshots too. */
  readonly snapshots: boolean;
  readonly log: (message: string) => void;
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
  readonly name: string;
  readonly meter: Meter;
  readonly watcher: Watcher;
  readonly exports: readonly Export[];
  readonly #stack: Stack;

  private constructor(stack: Stack, exports: readonly Export[], meter: Meter) {
    this.name = basename(stack.disk.path);
    this.exports = exports;
    this.meter = meter;
    this.#stack = stack;
    this.watcher = {
      answered(command, bytes, milliseconds, error) {
        const kind = KIND_OF[command];
        if (kind !== undefined) meter.count(kind, bytes, milliseconds, error !== 0);
      },
    };
  }

  /** @throws DiskError as `Stack.open` */
  static async open(path: string, options: ServedOptions): Promise<ServedImage> {
    const meter = new Meter();
    const onAlarm = (alarm: Alarm): void => {
      meter.alarm(alarm);
      options.log(`ALARM ${basename(path)}: ${alarm.message}`);
    };
    const stack = await Stack.open(path, options, onAlarm);
    try {
      const exports = [mainExport(stack, options)];
      if (options.snapshots) exports.push(...(await snapshotExports(stack)));
      return new ServedImage(stack, exports, meter);
    } catch (error) {
      await stack[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** As JSON for `top`. */
  async counters(): Promise<object> {
    const { disk } = this.#stack;
    const { fileBytes, hostBytes } = await sizesOf(disk.image);
    const { kinds, latency, alarms, connections } = this.meter;
    return {
      name: this.name,
      path: disk.path,
      format: disk.image.format,
      virtualBytes: disk.image.bytes,
      fileBytes,
      hostBytes,
      connections,
      ...Object.fromEntries(KINDS.map((kind) => [kind, kinds[kind]])),
      returnedBytes: this.#returnedBytes(),
      ...this.#stack.counters(),
      latency: { buckets: latency, p50: this.meter.percentile(0.5), p99: this.meter.percentile(0.99) },
      alarms,
    };
  }

  #returnedBytes(): number {
    let bytes = 0;
    for (const file of this.#stack.disk.image.files.values()) {
      if (file instanceof LockedFile) bytes += file.returnedBytes;
    }
    return bytes;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack[Symbol.asyncDispose]();
  }
}

function mainExport(stack: Stack, { readOnly }: ServedOptions): Export {
  const { device, disk, guest } = stack;
  const usage = new UsageContext(guest, () => stack.guarded());
  const common = offer(basename(disk.path), `${disk.image.format}, ${disk.image.summary}`, device, [usage]);
  return readOnly ? { ...common, isReadOnly: true, device } : { ...common, isReadOnly: false, device };
}

async function snapshotExports({ disk }: Stack): Promise<Export[]> {
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
