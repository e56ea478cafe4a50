/**
 * LUKS volumes with content, made by cryptsetup (whose offline encryption needs no device mapper) and by qemu-img.
 */
import { createHash } from "node:crypto";
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { Luks1Layout } from "../volumes/luks/luks1.ts";
import { BINARY_BYTES, Luks2Layout } from "../volumes/luks/luks2.ts";
import { Random } from "./seeds.ts";
import { attempt, run, scratch } from "./tools.ts";

const MiB = 1024 * 1024;
/** Of each of the two copies of the headers made here. */
export const COPY_BYTES = 16 * 1024;

/** Cheap for a machine that trusts its test. */
export const PBKDF2 = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
/** Makes the header of LUKS2 small: 2 × 16 KiB and the slots. */
export const SMALL = ["--luks2-metadata-size", "16k", "--luks2-keyslots-size", "512k"];
/** cryptsetup moves the content by half of it. */
const REDUCE = 2 * MiB;

export const PASSPHRASE = "a passphrase, no newline";

export interface Encrypted {
  readonly path: string;
  /** What was encrypted. */
  readonly plain: Uint8Array;
}

/** A key file in `folder`. */
export function keyFile(folder: string, passphrase = PASSPHRASE): string {
  const path = join(folder, "key");
  writeFileSync(path, passphrase);
  return path;
}

/** Encrypts `plain` in place, behind a new LUKS2 header. */
export function encryptedByCryptsetup(
  t: TestContext,
  options: readonly string[],
  plain: Uint8Array = new Random(1).bytes(MiB + 4096),
): Encrypted {
  const folder = scratch(t);
  const path = join(folder, "luks2.img");
  const padded = new Uint8Array(plain.length + REDUCE);
  padded.set(plain);
  writeFileSync(path, padded);
  const sizes = [...SMALL, "--reduce-device-size", String(REDUCE)];
  const key = ["--key-file", keyFile(folder)];
  run("cryptsetup", ["-q", "reencrypt", "--encrypt", "--type", "luks2", ...sizes, ...key, ...options, path]);
  return { path, plain };
}

/** Path of what cryptsetup reads of a LUKS2 volume, without the device mapper. */
export function decryptedByCryptsetup(t: TestContext, path: string): string {
  const folder = scratch(t);
  const copy = join(folder, "copy");
  copyFileSync(path, copy);
  const words = ["-q", "reencrypt", "--decrypt", "--force-offline-reencrypt", "--key-file", keyFile(folder)];
  run("cryptsetup", [...words, "--header", join(folder, "header"), copy]);
  return copy;
}

/** A LUKS1 volume whose header QEMU made. @param options of `qemu-img convert -O luks -o` */
export function encryptedByQemu(
  t: TestContext,
  options: string,
  plain: Uint8Array = new Random(1).bytes(MiB + 512),
): Encrypted {
  const folder = scratch(t);
  const [rawPath, path] = [join(folder, "raw"), join(folder, "luks1.img")];
  writeFileSync(rawPath, plain);
  const all = `key-secret=key,iter-time=10,${options}`;
  const words = ["convert", "-f", "raw", "-O", "luks", ...qemuKey(folder), "-o", all, rawPath, path];
  // QEMU measures the host, and gives up where its clock is coarse.
  for (let tries = 0; tries < 5; tries++) {
    const { status, stderr } = attempt("qemu-img", words);
    if (status === 0) return { path, plain };
    if (!stderr.includes("accurate CPU usage")) throw new Error(stderr);
  }
  throw new Error("QEMU cannot measure this host");
}

/** A LUKS1 volume whose header cryptsetup made, with what QEMU wrote into it. */
export function filledByQemu(
  t: TestContext,
  options: readonly string[],
  plain: Uint8Array = new Random(1).bytes(MiB + 512),
): Encrypted {
  const folder = scratch(t);
  const [rawPath, path] = [join(folder, "raw"), join(folder, "luks1.img")];
  writeFileSync(rawPath, plain);
  writeFileSync(path, newHeader(t, ["--type", "luks1", ...options], 2 * MiB));
  const payloadAt = Luks1Layout.decode(readFileSync(path)).payloadSector * 512;
  run("truncate", ["-s", String(payloadAt + plain.length), path]);
  const target = `driver=luks,key-secret=key,file.filename=${path}`;
  run("qemu-img", ["convert", "-n", "-f", "raw", ...qemuKey(folder), "--target-image-opts", rawPath, target]);
  return { path, plain };
}

/** What QEMU reads of it. */
export function readByQemu(t: TestContext, path: string): Uint8Array {
  const folder = scratch(t);
  const out = join(folder, "out");
  const image = `driver=luks,key-secret=key,file.filename=${path}`;
  run("qemu-img", ["convert", "-O", "raw", ...qemuKey(folder), "--image-opts", image, out]);
  return new Uint8Array(readFileSync(out));
}

/** Writes one value all over a stretch of the volume. */
export function writeByQemu(
  t: TestContext,
  path: string,
  { at, bytes, value }: { readonly at: number; readonly bytes: number; readonly value: number },
): void {
  const image = `driver=luks,key-secret=key,file.filename=${path}`;
  const command = `write -P ${value} ${at} ${bytes}`;
  run("qemu-io", [...qemuKey(scratch(t)), "-c", command, "--image-opts", image]);
}

const qemuKey = (folder: string): string[] => ["--object", `secret,id=key,file=${keyFile(folder)}`];

/** An empty volume as `cryptsetup luksFormat` makes it. */
export function newHeader(t: TestContext, options: readonly string[], bytes = 4 * MiB): Uint8Array {
  const folder = scratch(t);
  const path = join(folder, "header.img");
  writeFileSync(path, new Uint8Array(bytes));
  const kdf = options.includes("--pbkdf") ? [] : PBKDF2;
  run("cryptsetup", ["-q", "luksFormat", "--key-file", keyFile(folder), ...kdf, ...options, path]);
  return new Uint8Array(readFileSync(path));
}

/** The JSON of the first copy. */
export function jsonOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.subarray(BINARY_BYTES, COPY_BYTES)).toString().split("\0")[0]!;
}

/** Changes the JSON of a LUKS2 header, in both copies. */
export function editJson(bytes: Uint8Array, change: (json: LuksJson) => unknown): Uint8Array {
  const out = bytes.slice();
  const value = JSON.parse(jsonOf(out)) as LuksJson;
  const text = change(value);
  const changed = Buffer.from(typeof text === "string" ? text : JSON.stringify(value));
  for (const at of [0, COPY_BYTES]) {
    out.fill(0, at + BINARY_BYTES, at + COPY_BYTES);
    out.set(changed, at + BINARY_BYTES);
    fixChecksum(out, at);
  }
  return out;
}

interface LuksJson {
  readonly keyslots: Record<string, Record<string, unknown> & { kdf: Record<string, unknown> }>;
  readonly segments: Record<string, Record<string, unknown>>;
  readonly digests: Record<string, Record<string, unknown>>;
  readonly config: Record<string, unknown>;
}

/** Sets the checksum of the copy at `at` right, by the hash that cryptsetup takes. */
export function fixChecksum(bytes: Uint8Array, at: number): void {
  const start = at + Luks2Layout.at.checksum;
  bytes.fill(0, start, start + 64);
  const copy = bytes.subarray(at, at + COPY_BYTES);
  bytes.set(createHash("sha256").update(copy).digest(), start);
}
