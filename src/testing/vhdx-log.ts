/**
 * VHDX logs as Hyper-V would write them, for tests; QEMU empties its own whenever it closes a file.
 */
import assert from "node:assert/strict";
import { readBytes } from "../device/device.ts";
import { encodeHeader, readHeaders } from "../formats/vhdx/header.ts";
import {
  DataDescriptor,
  HEADERS_AT,
  LogEntryHeader,
  MIB,
  seal,
  ZeroDescriptor,
} from "../formats/vhdx/structures.ts";
import { Random } from "./seeds.ts";
import type { SimulatedFile } from "./simulated-file.ts";
import { createVhdx } from "./vhdx-kinds.ts";

/** The LogGuid of the logs that are made here. */
export const LOG_GUID = "01234567-89ab-cdef-0123-456789abcdef";
const SECTOR = 4096;

export interface EntryOptions {
  readonly sequence: number;
  /** Offset in the log. */
  readonly tail: number;
  /** Sectors to write, each filled with a byte. */
  readonly data?: readonly { readonly at: number; readonly fill: number }[];
  readonly zeros?: readonly { readonly at: number; readonly bytes: number }[];
  readonly guid?: string;
  readonly flushed?: number;
  readonly last?: number;
}

/** An entry as Hyper-V would write it. */
export function logEntry({
  sequence,
  tail,
  data = [],
  zeros = [],
  guid = LOG_GUID,
  flushed = 0,
  last = 0,
}: EntryOptions): Uint8Array {
  const count = data.length + zeros.length;
  const head = Math.ceil((LogEntryHeader.bytes + count * ZeroDescriptor.bytes) / SECTOR) * SECTOR;
  const entry = new Uint8Array(head + data.length * SECTOR);
  const header = {
    signature: "loge",
    entryLength: entry.length,
    tail,
    sequenceNumber: BigInt(sequence),
    descriptorCount: count,
    logGuid: guid,
    flushedFileOffset: BigInt(flushed),
    lastFileOffset: BigInt(last),
  };
  LogEntryHeader.encode(header, entry);
  let at = LogEntryHeader.bytes;
  for (const [i, { at: fileOffset, fill }] of data.entries()) {
    const bytes = new Uint8Array(SECTOR).fill(fill);
    const descriptor = {
      signature: "desc",
      trailingBytes: bytes.slice(-4),
      leadingBytes: bytes.slice(0, 8),
      fileOffset: BigInt(fileOffset),
      sequenceNumber: BigInt(sequence),
    };
    DataDescriptor.encode(descriptor, entry, at);
    const view = new DataView(bytes.buffer);
    bytes.set(Buffer.from("data"));
    view.setUint32(4, 0, true);
    view.setUint32(SECTOR - 4, sequence, true);
    entry.set(bytes, head + i * SECTOR);
    at += DataDescriptor.bytes;
  }
  for (const { at: fileOffset, bytes } of zeros) {
    const descriptor = { signature: "zero", zeroLength: BigInt(bytes), fileOffset: BigInt(fileOffset) };
    ZeroDescriptor.encode({ ...descriptor, sequenceNumber: BigInt(sequence) }, entry, at);
    at += ZeroDescriptor.bytes;
  }
  seal(entry);
  return entry;
}

/** Places the log of an image that was made by ourselves: block 1 is cleared in the BAT, and the file grows. */
export async function dirtyVhdx(): Promise<{ readonly file: SimulatedFile; readonly random: Random }> {
  const random = new Random(1);
  const files = new Map<string, SimulatedFile>();
  const data = random.bytes(2 * MIB);
  await createVhdx(files, "disk.vhdx", { block_size: "1M" }, (image) => image.write(0, data));
  const file = files.get("disk.vhdx")!.fork();
  const { current, index } = await readHeaders(file);
  const bat = await readBytes(file, 2 * MIB, SECTOR);
  const zeros = [{ at: 2 * MIB, bytes: SECTOR }];
  const entry = logEntry({ sequence: 5, tail: 0, zeros, flushed: file.bytes, last: file.bytes + MIB });
  await file.write(MIB, entry);
  await file.write(HEADERS_AT[index], encodeHeader({ ...current, logGuid: LOG_GUID }));
  assert.ok(bat.some((byte) => byte !== 0));
  return { file, random };
}
