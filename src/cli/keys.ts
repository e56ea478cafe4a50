/**
 * Keys of encrypted volumes: `--key-file`, `--luks-header`, and the question at a terminal.
 */
import { readFileSync, statSync } from "node:fs";
import { type Command, InvalidArgumentError } from "commander";
import { parsePaths, type ReadFlags } from "./options.ts";
import { answerOf } from "./prompt.ts";
import type { Face } from "./terminal.ts";

/** As much as cryptsetup takes. */
const KEY_BYTES_MAX = 8 * 1024 * 1024;
const STDIN = 0;

export function addKeyOptions(command: Command): Command {
  return command
    .option(
      "--key-file <file>",
      "holds the passphrase of an encrypted volume, all of it; - is stdin",
      parseKey,
    )
    .option("--luks-header <file>", "the LUKS header of a disk that has none of its own", parsePaths);
}

/** The whole file, as cryptsetup takes it: a line end at its end belongs to the passphrase. */
export function parseKey(file: string, before: readonly Uint8Array[] = []): readonly Uint8Array[] {
  let key: Uint8Array;
  try {
    const isLong = file !== "-" && statSync(file).size > KEY_BYTES_MAX;
    key = isLong ? new Uint8Array(KEY_BYTES_MAX + 1) : readFileSync(file === "-" ? STDIN : file);
  } catch (cause) {
    throw new InvalidArgumentError(`It cannot be read: ${(cause as Error).message}.`);
  }
  if (key.length === 0) throw new InvalidArgumentError("It is empty.");
  if (key.length > KEY_BYTES_MAX) throw new InvalidArgumentError(`It is longer than ${KEY_BYTES_MAX} bytes.`);
  return [...before, key];
}

/** `flags`, with somebody to ask for passphrases where there is a terminal. */
export function asking<F extends ReadFlags>(flags: F, face: Face): F {
  return face.interactive ? { ...flags, askKey } : flags;
}

/** The same function for all images of a call, so that one answer serves all. */
async function askKey(volume: string): Promise<Uint8Array | undefined> {
  const { password } = await import("@inquirer/prompts");
  const message = `Passphrase of ${volume}:`;
  const answer = await answerOf(password({ message, theme: { prefix: "" } }));
  return answer === "" ? undefined : Buffer.from(answer);
}
