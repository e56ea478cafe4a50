/**
 * Fuzzing of VHDX: dynamic and fixed disks by QEMU, a waiting log, a child above its parent. Half of the mutants have
 * their checksums set right, so that they get past the headers, the region table and the log.
 */
import { readFileSync } from "node:fs";
import { viewOf } from "../../src/bytes/struct.ts";
import {
  checksumOf,
  DataDescriptor,
  FileParameters,
  HEADER_BYTES,
  HEADERS_AT,
  HeaderStruct,
  LOG_SECTOR_BYTES,
  LogEntryHeader,
  METADATA_TABLE_BYTES,
  MetadataTableEntry,
  MetadataTableHeader,
  MIB,
  REGION_TABLE_BYTES,
  REGION_TABLES_AT,
  RegionTableEntry,
  RegionTableHeader,
} from "../../src/formats/vhdx/structures.ts";
import { vhdx as format } from "../../src/formats/vhdx.ts";
import { chunksOf, type FuzzTarget, type Sample, type Spot, spotOf } from "../../src/testing/fuzz.ts";
import { Random } from "../../src/testing/seeds.ts";
import { SimulatedFile } from "../../src/testing/simulated-file.ts";
import { simulatedSource } from "../../src/testing/simulated-source.ts";
import { run } from "../../src/testing/tools.ts";
import { makeDifferencing, makeVhdx } from "../../src/testing/vhdx-kinds.ts";
import { dirtyVhdx } from "../../src/testing/vhdx-log.ts";
import { fuzzImage } from "./image.ts";

const VIRTUAL_BYTES = 4 * MIB;
const LOG_AT = MIB;

/** The parent of the child among the samples. */
let parent: SimulatedFile | undefined;

export const vhdx: FuzzTarget = {
  name: "vhdx",
  needs: ["qemu-img", "qemu-io"],

  async samples(folder) {
    const byQemu = (name: string, options: Readonly<Record<string, string>>): Sample => {
      const path = makeVhdx(folder, options, new Random(1), VIRTUAL_BYTES);
      const bytes = new Uint8Array(readFileSync(path));
      run("rm", [path]);
      return sampleOf(name, bytes);
    };
    const { files } = await makeDifferencing(new Random(1), 512);
    parent = files.get("parent.vhdx")!;
    return [
      byQemu("dynamic", { block_size: "1M" }),
      byQemu("fixed", { block_size: "1M", subformat: "fixed" }),
      sampleOf("waiting log", (await dirtyVhdx()).file.peek()),
      sampleOf("child", files.get("child.vhdx")!.peek()),
    ];
  },

  run(bytes, random) {
    const openParent = () =>
      format.open(simulatedSource(new Map([["parent.vhdx", parent!.fork()]]), "parent.vhdx"), neverParent);
    const mutant = { format, file: SimulatedFile.from(bytes), virtualBytes: VIRTUAL_BYTES, openParent };
    return fuzzImage({ ...mutant, freeSectorsMax: 4096, mustReplay: true }, random);
  },
};

function neverParent(): never {
  throw new Error("the parent has none");
}

function sampleOf(name: string, bytes: Uint8Array): Sample {
  const regions = [0, 1].map((i) => RegionTableEntry.decode(bytes, regionEntryAt(0, i)));
  const spots: Spot[] = REGION_TABLES_AT.flatMap((at, copy) => [
    spotOf(RegionTableHeader, at),
    ...regions.map((_, i) => spotOf(RegionTableEntry, regionEntryAt(copy, i))),
  ]);
  const metadataAt = regions.find(({ length, fileOffset }) =>
    isMetadata(bytes, fileOffset, length),
  )!.fileOffset;
  for (let i = 0; i < 6; i++) {
    spots.push(
      spotOf(MetadataTableEntry, metadataAt + MetadataTableHeader.bytes + i * MetadataTableEntry.bytes),
    );
  }
  spots.push(spotOf(FileParameters, metadataAt + METADATA_TABLE_BYTES));
  for (const at of HEADERS_AT) for (let i = 0; i < 5; i++) spots.push(spotOf(HeaderStruct, at));
  if (isEntry(bytes, LOG_AT)) {
    for (let i = 0; i < 10; i++) spots.push(spotOf(LogEntryHeader, LOG_AT));
    for (let i = 0; i < 5; i++) spots.push(spotOf(DataDescriptor, LOG_AT + LogEntryHeader.bytes));
  }
  const tables = bytes.subarray(
    0,
    regions.reduce((end, { fileOffset }) => Math.max(end, fileOffset + MIB), 0),
  );
  spots.push(...chunksOf(tables, (chunk) => chunk.every((byte) => byte === chunk[0])));
  return { name, bytes, spots, fix };
}

function regionEntryAt(copy: number, index: number): number {
  return REGION_TABLES_AT[copy]! + RegionTableHeader.bytes + index * RegionTableEntry.bytes;
}

function isMetadata(bytes: Uint8Array, at: number, length: number): boolean {
  return length > 0 && MetadataTableHeader.decode(bytes, at).signature === "metadata";
}

function isEntry(bytes: Uint8Array, at: number): boolean {
  return Buffer.from(bytes.buffer, bytes.byteOffset + at, 4).toString("latin1") === "loge";
}

/** Sets the checksums of headers, region tables and log entries right. */
function fix(bytes: Uint8Array): void {
  const sealAt = (at: number, length: number): void => {
    if (at + length <= bytes.length)
      viewOf(bytes).setUint32(at + 4, checksumOf(bytes, at, at + length), true);
  };
  for (
    let at = LOG_AT;
    at < LOG_AT + MIB && at + LogEntryHeader.bytes <= bytes.length;
    at += LOG_SECTOR_BYTES
  ) {
    if (isEntry(bytes, at))
      sealAt(at, Math.max(LogEntryHeader.bytes, LogEntryHeader.decode(bytes, at).entryLength));
  }
  for (const at of HEADERS_AT) sealAt(at, HEADER_BYTES);
  for (const at of REGION_TABLES_AT) sealAt(at, REGION_TABLE_BYTES);
}
