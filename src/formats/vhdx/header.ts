/**
 * The two headers: one is current, the other may be overwritten. What is the image's as a whole stands here: who wrote
 * last (`FileWriteGuid`), what the guest sees (`DataWriteGuid`, by which children know their parent), the log.
 *
 *   header 1   sequence 7, checksum right    ─→ current
 *   header 2   sequence 6, or torn           ─→ the next change is written here, as sequence 8; then the other as 9
 *
 * Specification: [MS-VHDX] 2.2.2.
 */
import { randomUUID } from "node:crypto";
import type { Decoded } from "../../bytes/struct.ts";
import { type BlockDevice, type HostFile, readBytes } from "../../device/device.ts";
import { readPadded } from "../../device/padded.ts";
import { DiskError } from "../../error.ts";
import { differences } from "../../reclaim/differences.ts";
import type { Step } from "../../reclaim/plan.ts";
import {
  checksumOf,
  corrupt,
  HEADER_BYTES,
  HEADERS_AT,
  HeaderStruct,
  MIB,
  NO_GUID,
  seal,
  SIGNATURE,
} from "./structures.ts";

export type Header = Decoded<typeof HeaderStruct.fields>;

export interface Headers {
  readonly current: Header;
  /** Index in `HEADERS_AT` of the current header. */
  readonly index: 0 | 1;
}

const SEQUENCE_MAX = (1n << 64n) - 1n;

export async function hasSignature(file: BlockDevice): Promise<boolean> {
  const found = new Uint8Array(SIGNATURE.length);
  await readPadded(file, 0, found);
  return Buffer.from(found).toString("latin1") === SIGNATURE;
}

/** @throws DiskError `corrupt` where no header is current, `unsupported` for another version */
export async function readHeaders(file: BlockDevice): Promise<Headers> {
  if (!(await hasSignature(file))) throw corrupt("file type identifier", 0, "something else", SIGNATURE);
  const first = await readHeader(file, 0);
  const second = await readHeader(file, 1);
  if (!first && !second) {
    throw corrupt(
      "headers",
      HEADERS_AT[0],
      "no valid one of two",
      "a signature and a checksum that are right",
    );
  }
  const headers: Headers =
    !second || (first && first.header.sequenceNumber > second.header.sequenceNumber)
      ? { current: first!.header, index: 0 }
      : { current: second.header, index: 1 };
  if (first && second && first.header.sequenceNumber === second.header.sequenceNumber) {
    // Disk2vhd writes the same header twice: then it is no matter which of them is current.
    if (Buffer.compare(first.bytes, second.bytes) !== 0) {
      throw corrupt(
        "headers",
        HEADERS_AT[0],
        "two different ones of the same SequenceNumber",
        "one current header",
      );
    }
  }
  mustBeKnown(headers);
  return headers;
}

async function readHeader(
  file: BlockDevice,
  index: 0 | 1,
): Promise<{ readonly header: Header; readonly bytes: Uint8Array } | undefined> {
  const bytes = await headerBytes(file, index);
  try {
    const header = HeaderStruct.decode(bytes);
    return header.signature === "head" && header.checksum === checksumOf(bytes)
      ? { header, bytes }
      : undefined;
  } catch (error) {
    // A LogOffset past 2^53 is nobody's checksum.
    if (error instanceof DiskError) return undefined;
    throw error;
  }
}

/** Places of headers that a writer left torn, or that were damaged: the other one serves. */
export async function damagedHeaders(file: BlockDevice): Promise<readonly number[]> {
  const whole = [await readHeader(file, 0), await readHeader(file, 1)];
  return HEADERS_AT.filter((_, index) => whole[index] === undefined);
}

async function headerBytes(file: BlockDevice, index: 0 | 1): Promise<Uint8Array> {
  const bytes = new Uint8Array(HEADER_BYTES);
  await readPadded(file, HEADERS_AT[index], bytes);
  return bytes;
}

function mustBeKnown({ current, index }: Headers): void {
  const at = HEADERS_AT[index];
  if (current.version !== 1)
    throw new DiskError("unsupported", `VHDX version ${current.version}, expected 1`);
  if (current.logGuid !== NO_GUID && current.logVersion !== 0) {
    throw new DiskError("unsupported", `a log of version ${current.logVersion} waits, expected version 0`, {
      hint: "attach the disk once where it was written",
    });
  }
  if (current.logLength % MIB !== 0) throw corrupt("LogLength of header", at, current.logLength, "whole MiB");
  if (current.logOffset % MIB !== 0 || (current.logLength > 0 && current.logOffset < MIB)) {
    throw corrupt("LogOffset of header", at, current.logOffset, "whole MiB behind the header section");
  }
}

/** What a change of the headers may set. */
export type HeaderChange = Partial<Pick<Header, "fileWriteGuid" | "dataWriteGuid" | "logGuid">>;

/** The headers after a change to the one that is not current. */
function changed({ current, index }: Headers, change: HeaderChange): Headers {
  if (current.sequenceNumber === SEQUENCE_MAX)
    throw new DiskError("unsupported", "SequenceNumber is at its end");
  return {
    current: { ...current, ...change, sequenceNumber: current.sequenceNumber + 1n },
    index: index === 0 ? 1 : 0,
  };
}

/** A header as it lies in the file. */
export function encodeHeader(header: Header): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES);
  HeaderStruct.encode(header, bytes);
  seal(bytes);
  return bytes;
}

/** Changes both headers, one after the other, each durably. @returns the headers as they are now */
export async function updateHeaders(
  file: HostFile,
  headers: Headers,
  change: HeaderChange,
): Promise<Headers> {
  let now = headers;
  for (let pass = 0; pass < 2; pass++) {
    now = changed(now, change);
    await file.write(HEADERS_AT[now.index], encodeHeader(now.current));
    await file.flush();
  }
  return now;
}

/** The same as steps of a plan: two batches, so that one header is whole whatever happens. */
export async function* headerSteps(
  file: BlockDevice,
  headers: Headers,
  change: HeaderChange,
): AsyncGenerator<readonly Step[]> {
  let now = headers;
  for (let pass = 0; pass < 2; pass++) {
    now = changed(now, change);
    const at = HEADERS_AT[now.index];
    yield [...differences("", at, await readBytes(file, at, HEADER_BYTES), encodeHeader(now.current))];
  }
}

/** New identifiers, for a session that changes the file, and for one that changes what the guest reads. */
export function newWriteGuid(): HeaderChange {
  return { fileWriteGuid: randomUUID() };
}

export function newDataGuid(): HeaderChange {
  return { fileWriteGuid: randomUUID(), dataWriteGuid: randomUUID() };
}
