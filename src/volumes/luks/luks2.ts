/**
 * LUKS2: two copies of a header, each a binary part of 4 KiB and JSON; the slots' areas; the ciphertext. Numbers of the
 * binary part are big-endian.
 *
 *   0                     hdr_size                  2 × hdr_size
 *   | binary | JSON …     | binary | JSON …         | areas of the key slots | ciphertext …
 *     LUKS\xba\xbe          SKUL\xba\xbe
 *
 * A change is written to the first copy, then to the second, with a sequence number that grows. Whichever copy is whole
 * and newer counts, as with cryptsetup. The second one alone, where even the magic of the first is gone, is not
 * looked for. Specification: "LUKS2 On-Disk Format Specification", version 1.1.4.
 */
import { ascii, raw, skip, struct, u16be, u64be } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { digest, hashNamed } from "./hash.ts";
import type { Header } from "./header.ts";
import { parseJson } from "./json.ts";
import { headerOf } from "./metadata.ts";

export const BINARY_BYTES = 4096;
const MAGIC = ["LUKS\xba\xbe", "SKUL\xba\xbe"] as const;
/** The lengths of a copy that the specification knows; 4 MiB is the greatest. */
const COPY_BYTES = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096].map((KiB) => KiB * 1024);
const CHECKSUM_BYTES = 64;

export const Luks2Layout = struct({
  magic: raw(6),
  version: u16be,
  copyBytes: u64be,
  sequence: u64be,
  label: ascii(48),
  checksumHash: ascii(32),
  salt: raw(64),
  uuid: ascii(40),
  subsystem: ascii(48),
  at: u64be,
  padding: skip(184),
  checksum: raw(CHECKSUM_BYTES),
});

interface Copy {
  readonly bytes: number;
  readonly jsonBytes: number;
  readonly sequence: number;
  readonly label: string;
  readonly uuid: string;
  readonly json: string;
}

/** @throws DiskError what is damaged or not known */
export async function readLuks2(device: BlockDevice): Promise<Header> {
  const first = await attempt(() => readCopy(device, 0));
  const second =
    first instanceof DiskError
      ? await findSecond(device)
      : await attempt(() => readCopy(device, first.bytes));
  const notes: string[] = [];
  if (first instanceof DiskError && second instanceof DiskError) throw first;
  for (const [name, copy] of Object.entries({ first, second })) {
    if (copy instanceof DiskError)
      notes.push(`the ${name} copy of the LUKS header is damaged: ${copy.message}`);
  }
  let newest = first instanceof DiskError ? (second as Copy) : first;
  if (!(first instanceof DiskError) && !(second instanceof DiskError)) {
    if (second.sequence > first.sequence) newest = second;
    if (second.sequence !== first.sequence) {
      notes.push(`the copies of the LUKS header differ in age (${first.sequence}, ${second.sequence})`);
    } else if (second.json !== first.json) {
      throw new DiskError("corrupt", "the copies of the LUKS header are of one age and differ");
    }
  }
  return headerOf(parseJson(newest.json), newest, device.bytes, notes);
}

async function attempt(read: () => Promise<Copy>): Promise<Copy | DiskError> {
  try {
    return await read();
  } catch (error) {
    if (error instanceof DiskError && error.kind !== "io" && error.kind !== "interrupted") return error;
    throw error;
  }
}

/** The second copy, where the first does not say where it lies. */
async function findSecond(device: BlockDevice): Promise<Copy | DiskError> {
  for (const at of COPY_BYTES) {
    const copy = await attempt(() => readCopy(device, at));
    if (!(copy instanceof DiskError)) return copy;
  }
  return new DiskError("corrupt", "it is nowhere");
}

async function readCopy(device: BlockDevice, at: number): Promise<Copy> {
  const what = `LUKS2 header at ${at}`;
  const damaged = (message: string): DiskError => new DiskError("corrupt", `${what}: ${message}`);
  if (at + BINARY_BYTES > device.bytes) throw damaged(`cut off at ${device.bytes}`);
  const binary = await readBytes(device, at, BINARY_BYTES);
  const header = Luks2Layout.decode(binary);
  const magic = Buffer.from(header.magic).toString("latin1");
  if (magic !== MAGIC[at === 0 ? 0 : 1] || header.version !== 2) {
    throw damaged(`magic ${JSON.stringify(magic)}, version ${header.version}`);
  }
  const { copyBytes } = header;
  if (!COPY_BYTES.includes(copyBytes) || header.at !== at || (at !== 0 && at !== copyBytes)) {
    throw damaged(`it says that it has ${copyBytes} bytes and lies at ${header.at}`);
  }
  if (at + copyBytes > device.bytes) throw damaged(`cut off at ${device.bytes}`);
  const json = await readBytes(device, at + BINARY_BYTES, copyBytes - BINARY_BYTES);
  const checksumAt = Luks2Layout.at.checksum;
  const stored = binary.slice(checksumAt, checksumAt + CHECKSUM_BYTES);
  binary.fill(0, checksumAt, checksumAt + CHECKSUM_BYTES);
  const computed = digest(hashNamed(header.checksumHash), binary, json);
  if (!computed.equals(stored.subarray(0, computed.length))) {
    throw damaged(`${header.checksumHash} is ${hex(stored)}…, computed ${hex(computed)}…`);
  }
  const end = json.indexOf(0);
  return {
    bytes: copyBytes,
    jsonBytes: json.length,
    sequence: header.sequence,
    label: header.label,
    uuid: header.uuid,
    json: Buffer.from(json.subarray(0, end < 0 ? json.length : end)).toString("utf8"),
  };
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes.subarray(0, 8)).toString("hex");
