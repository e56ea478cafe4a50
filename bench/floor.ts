/**
 * The floor: a program that already has the plan. It reads and checksums the same metadata, issues the same punches
 * and flushes once; nothing can be faster without reading less or punching less.
 *
 *   record   runs the real survey over a recording device and writes down reads and punches
 *   replay   FILE RECORD: does just those, in a process of its own
 *   reread   FILE RECORD: only the reads
 */
import { closeSync, constants, openSync, readFileSync, readSync, writeFileSync } from "node:fs";
import { crc32c } from "../src/bytes/checksum.ts";
import { ExtentBuilder } from "../src/bytes/extents.ts";
import type { ReadableFile } from "../src/device/device.ts";
import { Disk, open } from "../src/disk/open.ts";
import { plan } from "../src/disk/survey.ts";
import type { Proof } from "../src/disk/results.ts";
import type { Image } from "../src/formats/format.ts";
import { hostSource } from "../src/host/source.ts";

interface Recording {
  readonly reads: readonly (readonly [at: number, bytes: number])[];
  readonly punches: readonly (readonly [start: number, end: number])[];
}

/** Records a reclaim of a raw image. */
export async function record(image: string, into: string, proof: Proof = "full"): Promise<void> {
  await using disk = await open(image, { format: "raw" });
  const reads = new ExtentBuilder();
  const watched = new Proxy(disk.image, {
    get(target, name) {
      if (name === "read") {
        return (at: number, buffer: Uint8Array) => {
          reads.add(at, at + buffer.length);
          return target.read(at, buffer);
        };
      }
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  }) as Image;
  const prospect = await plan(new Disk(image, watched, disk.source, false, { format: "raw" }), { proof });
  const punches: [number, number][] = [];
  for await (const batch of prospect.plan.batches()) {
    for (const step of batch) if (step.op === "punch") punches.push([step.range.start, step.range.end]);
  }
  const recording: Recording = {
    reads: [...reads.build()].map(({ start, end }) => [start, end - start]),
    punches,
  };
  writeFileSync(into, JSON.stringify(recording));
}

async function replay(image: string, from: string): Promise<void> {
  const { reads, punches } = JSON.parse(readFileSync(from, "utf8")) as Recording;
  const checksum = checksumOf(image, reads);
  const file = await hostSource(image, { outside: [] }).openWritable!();
  for (const [start, end] of punches) await file.punch({ start, end });
  await file.flush();
  await (file satisfies ReadableFile)[Symbol.asyncDispose]();
  process.stdout.write(`${reads.length} reads, ${punches.length} punches, checksum ${checksum}\n`);
}

/** The reads alone: what finding out costs at least. */
function reread(image: string, from: string): void {
  const { reads } = JSON.parse(readFileSync(from, "utf8")) as Recording;
  process.stdout.write(`${reads.length} reads, checksum ${checksumOf(image, reads)}\n`);
}

function checksumOf(image: string, reads: Recording["reads"]): number {
  const handle = openSync(image, constants.O_RDONLY);
  const buffer = new Uint8Array(1 << 20);
  let checksum = 0;
  for (const [start, bytes] of reads) {
    for (let at = start; at < start + bytes; at += buffer.length) {
      const part = buffer.subarray(0, Math.min(buffer.length, start + bytes - at));
      readSync(handle, part, 0, part.length, at);
      checksum = crc32c(checksum, part);
    }
  }
  closeSync(handle);
  return checksum;
}

const [mode, image, recording] = process.argv.slice(2);
if (import.meta.main && mode === "replay") await replay(image!, recording!);
if (import.meta.main && mode === "reread") reread(image!, recording!);
