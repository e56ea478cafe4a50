/** Passphrases for tests, with Node's own Argon2. */
import { argon2 } from "node:crypto";
import { promisify } from "node:util";
import type { Keys } from "../volumes/volume.ts";

const derive = promisify(argon2);

export function keysOf(...passphrases: readonly (string | Uint8Array)[]): Keys {
  return {
    async *candidates() {
      for (const each of passphrases) yield Buffer.from(each as string);
    },
    fitted: () => {},
    argon2: (message, { type, lanes, memoryKiB, passes, salt }, tagLength) =>
      derive(type, { message, nonce: salt, parallelism: lanes, tagLength, memory: memoryKiB, passes }),
  };
}
