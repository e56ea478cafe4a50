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

/** True for yes only. @throws DiskError `interrupted` on Ctrl-C */
export async function ask(question: string, asides: Readonly<Record<string, Aside>> = {}): Promise<boolean> {
  const { input } = await import("@inquirer/prompts");
  const others = Object.entries(asides).map(([key, { word }]) => `, ${key}=${word}`);
  const message = `${question} [y/N${others.join("")}]`;
  for (;;) {
    const answer = await input({ message, theme: { prefix: "" } }).then(
      (text) => text.trim().toLowerCase(),
      (error: unknown) => {
        throw new DiskError("interrupted", "nothing was changed", { cause: error });
      },
    );
    const aside = Object.hasOwn(asides, answer) ? asides[answer] : undefined;
    if (aside === undefined) return answer === "y" || answer === "yes";
    aside.show();
  }
}
