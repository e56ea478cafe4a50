/**
 * Passphrases for what is encrypted: those that were given, and then what somebody answers.
 */
import { argon2 } from "../host/argon2.ts";
import type { Keys } from "../volumes/volume.ts";
import type { OpenOptions } from "./results.ts";

/** Answers of one asker, so that a disk that is opened twice asks once. */
const answered = new WeakMap<object, Map<string, Uint8Array>>();

/** Undefined when there are none and nobody can be asked. */
export function keysOf({ keys = [], askKey }: Pick<OpenOptions, "keys" | "askKey">): Keys | undefined {
  if (keys.length === 0 && askKey === undefined) return undefined;
  const answers = (askKey && answered.get(askKey)) ?? new Map<string, Uint8Array>();
  if (askKey) answered.set(askKey, answers);
  const right = new Map<string, Uint8Array>();
  return {
    async *candidates(volume) {
      const first = right.get(volume) ?? answers.get(volume);
      const known = new Set([...(first ? [first] : []), ...keys, ...answers.values()]);
      yield* known;
      if (askKey === undefined || answers.has(volume)) return;
      const answer = await askKey(volume);
      if (answer === undefined) return;
      answers.set(volume, answer);
      yield answer;
    },
    fitted: (volume, key) => void right.set(volume, key),
    argon2,
  };
}
