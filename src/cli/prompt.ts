/**
 * The question before anything is written. It is asked on a terminal only; elsewhere `--yes` or `--dry-run` must say.
 */
import { DiskError } from "../error.ts";
import { EXIT } from "./failure.ts";
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
 * The answer to a question of the prompts library. A terminal that goes away ends the program: nothing was changed yet.
 * @throws DiskError `interrupted` on Ctrl-C
 */
export async function answerOf<T>(question: Promise<T>): Promise<T> {
  const hangUp = (): never => process.exit(EXIT.interrupted);
  process.once("beforeExit", hangUp);
  try {
    return await question;
  } catch (cause) {
    throw new DiskError("interrupted", "nothing was changed", { cause });
  } finally {
    process.off("beforeExit", hangUp);
  }
}

/** True for yes only. @throws DiskError `interrupted` */
export async function ask(question: string, asides: Readonly<Record<string, Aside>> = {}): Promise<boolean> {
  const { input } = await import("@inquirer/prompts");
  const others = Object.entries(asides).map(([key, { word }]) => `, ${key}=${word}`);
  const message = `${question} [y/N${others.join("")}]`;
  for (;;) {
    const text = await answerOf(input({ message, theme: { prefix: "" } }));
    const answer = text.trim().toLowerCase();
    const aside = Object.hasOwn(asides, answer) ? asides[answer] : undefined;
    if (aside === undefined) return answer === "y" || answer === "yes";
    aside.show();
  }
}
