/**
 * The question before anything is written. It is asked on a terminal only; elsewhere `--yes` or `--dry-run` must say.
 */
import { DiskError } from "../error.ts";
import type { WriteFlags } from "./options.ts";
import type { Face } from "./terminal.ts";

/** @throws DiskError `usage` when nobody could answer and no flag says what to do */
export function mayWrite(flags: WriteFlags, face: Face): void {
  if (flags.yes === true || flags.dryRun === true || face.interactive) return;
  const why = face.json ? "with --json nobody is asked" : "there is no terminal to ask on";
  throw new DiskError("usage", `this command writes, and ${why}`, {
    hint: "add --yes to do it, or --dry-run to see what it would do",
  });
}

/** A further answer: it shows something, and the question is asked again. */
export interface Aside {
  readonly word: string;
  show(): void;
}

/**
 * The answer to a question of the prompts library.
 * @throws DiskError `interrupted` on Ctrl-C, and when the terminal goes away
 */
export async function answerTo<T>(ask: (context: { signal: AbortSignal }) => Promise<T>): Promise<T> {
  const hangUp = new AbortController();
  const stop = (): void => hangUp.abort();
  // Nothing is left to wait for but an answer that cannot come.
  process.once("beforeExit", stop);
  try {
    return await ask({ signal: hangUp.signal });
  } catch (cause) {
    throw new DiskError("interrupted", "nothing was changed", { cause });
  } finally {
    process.off("beforeExit", stop);
  }
}

/** True for yes only. @throws DiskError `interrupted` */
export async function ask(question: string, asides: Readonly<Record<string, Aside>> = {}): Promise<boolean> {
  const { input } = await import("@inquirer/prompts");
  const others = Object.entries(asides).map(([key, { word }]) => `, ${key}=${word}`);
  const message = `${question} [y/N${others.join("")}]`;
  for (;;) {
    const text = await answerTo((context) => input({ message, theme: { prefix: "" } }, context));
    const answer = text.trim().toLowerCase();
    const aside = Object.hasOwn(asides, answer) ? asides[answer] : undefined;
    if (aside === undefined) return answer === "y" || answer === "yes";
    aside.show();
  }
}
