/**
 * Fuzzing of Parallels images: both versions, and a format extension whose checksum is set right.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Header } from "../../src/formats/parallels/header.ts";
import { parallels as format } from "../../src/formats/parallels.ts";
import { chunksOf, type FuzzTarget, type Sample, spotOf } from "../../src/testing/fuzz.ts";
import { SimulatedFile } from "../../src/testing/simulated-file.ts";
import { run } from "../../src/testing/tools.ts";
import { fuzzImage } from "./image.ts";

const VIRTUAL_BYTES = 1024 * 1024;
const CLUSTER_BYTES = 8192;

export const parallels: FuzzTarget = {
  name: "parallels",
  needs: ["qemu-img", "qemu-io"],

  async samples(folder) {
    const path = join(folder, "image.hds");
    run("qemu-img", ["create", "-q", "-f", "parallels", "-o", `cluster_size=${CLUSTER_BYTES}`, path, "1M"]);
    run("qemu-io", ["-f", "parallels", "-c", "write -P 17 900k 60k", "-c", "write -P 18 0 200k", path]);
    const bytes = new Uint8Array(readFileSync(path));
    run("rm", [path]);
    return [sampleOf("version 2", bytes), sampleOf("version 1", asVersion1(bytes)), withExtension(bytes)];
  },

  run(bytes, random) {
    return fuzzImage({ format, file: SimulatedFile.from(bytes), virtualBytes: VIRTUAL_BYTES }, random);
  },
};

function sampleOf(name: string, bytes: Uint8Array): Sample {
  const chunks = chunksOf(bytes, (chunk) => chunk.every((byte) => byte === chunk[0]));
  return { name, bytes, spots: [...chunks.map(() => spotOf(Header, 0)), ...chunks] };
}

function asVersion1(from: Uint8Array): Uint8Array {
  const bytes = from.slice();
  bytes.set(Buffer.from("WithoutFreeSpace"));
  const view = new DataView(bytes.buffer);
  for (let at = Header.bytes; at < Header.bytes + (VIRTUAL_BYTES / CLUSTER_BYTES) * 4; at += 4) {
    view.setUint32(at, view.getUint32(at, true) * (CLUSTER_BYTES / 512), true);
  }
  return bytes;
}

/** One dirty bitmap of one cluster, at the end of the file. */
function withExtension(from: Uint8Array): Sample {
  const at = from.length;
  const bytes = new Uint8Array(at + 2 * CLUSTER_BYTES);
  bytes.set(from);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(Header.at.ext_off, BigInt(at / 512), true);
  view.setBigUint64(at, 0xab23_4cef_23dc_ea87n, true);
  view.setBigUint64(at + 24, 0x2038_5fae_252c_b34an, true);
  view.setUint32(at + 40, 40, true);
  view.setBigUint64(at + 48, BigInt(VIRTUAL_BYTES / 512), true);
  view.setUint32(at + 72, 1, true);
  view.setUint32(at + 76, 1, true);
  view.setBigUint64(at + 80, BigInt((at + CLUSTER_BYTES) / 512), true);
  const fix = (mutant: Uint8Array): void => {
    if (mutant.length < at + CLUSTER_BYTES) return;
    mutant.set(
      createHash("md5")
        .update(mutant.subarray(at + 24, at + CLUSTER_BYTES))
        .digest(),
      at + 8,
    );
  };
  fix(bytes);
  return { ...sampleOf("dirty bitmap", bytes), spots: [spotOf(Header, 0), { at, bytes: 96 }], fix };
}
