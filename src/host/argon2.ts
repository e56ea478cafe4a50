/**
 * Argon2, by which LUKS2 makes keys of passphrases: Node's own since 24.7, else WebAssembly (`hash-wasm`), which cannot
 * have 2 GiB of memory.
 */
import * as crypto from "node:crypto";
import { DiskError } from "../error.ts";

export interface Argon2Costs {
  readonly type: "argon2i" | "argon2id";
  readonly passes: number;
  readonly memoryKiB: number;
  readonly lanes: number;
  readonly salt: Uint8Array;
}

type Argon2 = (passphrase: Uint8Array, costs: Argon2Costs, bytes: number) => Promise<Uint8Array>;

/** @throws DiskError `unsupported` where there is too little memory */
export const argon2: Argon2 = async (passphrase, costs, bytes) => {
  const isNodes = "argon2" in crypto;
  try {
    return await (isNodes ? argon2OfNode : argon2OfWasm)(passphrase, costs, bytes);
  } catch (cause) {
    throw new DiskError(
      "unsupported",
      `Argon2 with ${costs.memoryKiB} KiB of memory failed: ${String(cause)}`,
      {
        code: "argon2-failed",
        hint: isNodes ? "run it where there is more memory" : "use Node 24.7 or newer",
        cause,
      },
    );
  }
};

export const argon2OfNode: Argon2 = (message, { type, passes, memoryKiB, lanes, salt }, tagLength) =>
  new Promise((resolve, reject) => {
    const parameters = { message, nonce: salt, parallelism: lanes, tagLength, memory: memoryKiB, passes };
    crypto.argon2(type, parameters, (error, key) => (error ? reject(error) : resolve(key)));
  });

export const argon2OfWasm: Argon2 = async (
  password,
  { type, passes, memoryKiB, lanes, salt },
  hashLength,
) => {
  const wasm = await import("hash-wasm");
  return wasm[type]({
    password,
    salt,
    parallelism: lanes,
    iterations: passes,
    memorySize: memoryKiB,
    hashLength,
    outputType: "binary",
  });
};
