/**
 * `ullage undo IMAGE`: what a guard still holds, and how to have it back.
 */
import type { Burst, Undone, UndoOptions } from "../disk.ts";
import { DiskError } from "../error.ts";
import { size } from "../bytes/sizes.ts";
import { batch } from "./batch.ts";
import { openOptions, type ReadFlags, type WriteFlags } from "./options.ts";
import { amounts, type ProgressView, showing } from "./progress.ts";
import { ask, mayWrite } from "./prompt.ts";
import { labelled } from "./survey.ts";
import { type Face, interruptible } from "./terminal.ts";
import { printable, type Screen, wrap } from "./text.ts";

export interface UndoFlags extends ReadFlags, WriteFlags {
  readonly since?: number;
  readonly last?: boolean;
  readonly to?: string;
  readonly overWrites?: boolean;
  readonly forget?: boolean;
}

export async function run(path: string, flags: UndoFlags, face: Face): Promise<number> {
  const isChosen = flags.since !== undefined || flags.last === true || flags.forget === true;
  if (isChosen) mayWrite(flags, face);
  const { undo } = await import("../disk.ts");
  using interruption = interruptible(face);
  return await batch([path], face, {
    run: (file) =>
      showing(face, howFar, (progress) =>
        undo(file, {
          ...optionsOf(flags),
          signal: interruption.signal,
          onProgress: progress.update,
          confirm: (plan) => confirmed(plan, flags, face),
        }),
      ),
    render: (result) => render(result, flags, face.screen),
    json: (result) => result,
  });
}

function optionsOf(flags: UndoFlags): UndoOptions {
  const { since, last, to, overWrites, forget, dryRun } = flags;
  return {
    ...openOptions(flags),
    ...(since !== undefined && { since }),
    ...(last !== undefined && { last }),
    ...(to !== undefined && { to }),
    ...(overWrites !== undefined && { overWrites }),
    ...(forget !== undefined && { forget }),
    ...(dryRun !== undefined && { dryRun }),
  };
}

async function confirmed(plan: Undone, flags: UndoFlags, face: Face): Promise<boolean> {
  if (face.json) return true;
  face.out(`${renderPlan(plan, flags, face.screen)}\n`);
  if (flags.yes === true) return true;
  return await ask(
    flags.forget === true
      ? `Give up ${size(plan.guardedBytes)} for good?`
      : `Bring ${size(plan.restoredBytes)} back?`,
  );
}

function howFar({ last }: ProgressView): DiskError {
  const far = last === undefined ? "nothing was changed yet" : `${amounts(last)} are back`;
  return new DiskError("interrupted", `stopped at a safe point: ${far}`, {
    hint: "nothing is lost; the same command once more brings back the rest",
  });
}

const BURSTS_SHOWN = 20;

export function renderPlan(plan: Undone, flags: UndoFlags, screen: Screen): string {
  const doubt =
    plan.doubt === null
      ? []
      : labelled("warning", `${printable(plan.doubt, screen)}: what comes back may be wrong`, screen);
  return [
    ...wrap(`${printable(plan.path, screen)}   `, `a guard holds ${size(plan.guardedBytes)}`, screen.columns),
    "",
    ...bursts(plan.bursts, screen),
    ...doubt,
    ...(flags.forget === true ? forgets(screen) : chosen(plan, screen)),
  ].join("\n");
}

function bursts(all: readonly Burst[], screen: Screen): string[] {
  const shown = all.slice(-BURSTS_SHOWN);
  const earlier = all.length - shown.length;
  return [
    ...(earlier === 0 ? [] : labelled("earlier", `${earlier} more`, screen)),
    ...shown.flatMap(({ from, trimBytes, zeroBytes, writeBytes }) =>
      labelled(
        clock(from),
        [
          { bytes: trimBytes, words: "trimmed" },
          { bytes: zeroBytes, words: "zeroed" },
          { bytes: writeBytes, words: "written over" },
        ]
          .filter(({ bytes }) => bytes > 0)
          .map(({ bytes, words }) => `${size(bytes)} ${words}`)
          .join(", "),
        screen,
      ),
    ),
  ];
}

/** In the zone of whoever reads it; with the day where it was not today. */
function clock(iso: string): string {
  const time = new Date(iso);
  const two = (part: number): string => String(part).padStart(2, "0");
  const hour = `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
  if (time.toDateString() === new Date().toDateString()) return hour;
  return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} ${hour}`;
}

function forgets(screen: Screen): string[] {
  return ["", ...labelled("FINAL", "nothing of it can be taken back afterwards", screen)];
}

function chosen(plan: Undone, screen: Screen): string[] {
  if (plan.since === null) return [];
  const where = plan.destination === null ? "the image" : printable(plan.destination, screen);
  const written =
    plan.writtenBytes === 0
      ? []
      : labelled(
          "stays",
          `${size(plan.writtenBytes)} that were written since (--over-writes brings back what they held)`,
          screen,
        );
  return [
    "",
    ...labelled(
      "undo",
      `${size(plan.restoredBytes)} come back into ${where}: everything since ${clock(plan.since)}`,
      screen,
    ),
    ...written,
  ];
}

export function render(result: Undone, flags: UndoFlags, screen: Screen): string {
  const line = (text: string): string => wrap(" ", text, screen.columns).join("\n");
  if (result.forgotten) return line(`${size(result.guardedBytes)} were given up: nothing is guarded now.`);
  if (result.applied) {
    const into =
      result.destination === null
        ? ""
        : ` It shows as long as the image below stays as it is: ${printable(result.destination, screen)}`;
    return line(`${size(result.restoredBytes)} are back.${into}`);
  }
  if (flags.dryRun !== true && result.since !== null && result.restoredBytes > 0)
    return line("Nothing was changed.");
  const why =
    result.since === null && flags.forget !== true
      ? "Nothing was changed.  Next: ullage undo --since 10:42, or --last"
      : result.restoredBytes === 0 && flags.forget !== true
        ? "There is nothing to bring back; nothing was changed."
        : "Nothing was changed: this was a dry run.";
  return `${renderPlan(result, flags, screen)}\n\n${line(why)}`;
}
