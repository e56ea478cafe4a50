/**
 * `ullage check IMAGE...`: the image's own structures, counted as `qemu-img check` counts; `--repair leaks` gives
 * leaked clusters back.
 */
import type { Checked, CheckOptions } from "../disk.ts";
import { batch } from "./batch.ts";
import { EXIT } from "./failure.ts";
import { openOptions, type ReadFlags, type WriteFlags } from "./options.ts";
import { ask, mayWrite } from "./prompt.ts";
import { grouped } from "../bytes/sizes.ts";
import { labelled } from "./survey.ts";
import { type Face, interruptible } from "./terminal.ts";
import { printable, type Screen } from "./text.ts";

export interface CheckFlags extends ReadFlags, WriteFlags {
  readonly repair?: "leaks";
}

export async function run(paths: readonly string[], flags: CheckFlags, face: Face): Promise<number> {
  if (flags.repair !== undefined) mayWrite(flags, face);
  const { check } = await import("../disk.ts");
  using _ = flags.repair === undefined ? undefined : interruptible(face);
  let corrupt = false;
  const exit = await batch(paths, face, {
    run: (path) => check(path, { ...openOptions(flags), ...repairOptions(path, flags, face) }),
    render: (result) => render(result, face.screen),
    json(result) {
      corrupt ||= result.errors > 0 && result.exact;
      return result;
    },
  });
  return exit === 0 && corrupt ? EXIT.corrupt : exit;
}

function repairOptions(
  path: string,
  flags: CheckFlags,
  face: Face,
): Pick<CheckOptions, "repair" | "confirm"> {
  if (flags.repair === undefined || flags.dryRun === true) return {};
  return {
    repair: flags.repair,
    async confirm(findings) {
      if (flags.yes === true) return true;
      const leaks = findings.filter(({ kind }) => kind === "leak").reduce((sum, { count }) => sum + count, 0);
      return ask(`Give ${grouped(leaks)} leaked clusters of ${printable(path, face.screen)} back?`);
    },
  };
}

export function render(checked: Checked, screen: Screen): string {
  const { errors, leaks, repairedLeaks } = checked;
  const counted = (count: number, word: string): string =>
    `${grouped(count)} ${word}${count === 1 ? "" : "s"}`;
  const repaired = repairedLeaks > 0 ? `, ${counted(repairedLeaks, "leak")} repaired` : "";
  const verdict =
    errors + leaks === 0 && repairedLeaks === 0
      ? "clean"
      : `${counted(errors, "error")}, ${counted(leaks, "leak")}${repaired}`;
  const shown = checked.findings.flatMap(({ kind, count, message }) =>
    labelled(kind, `${count > 1 ? `${grouped(count)} x ` : ""}${printable(message, screen)}`, screen),
  );
  return [`${printable(checked.path, screen)}   ${verdict}`, ...shown].join("\n");
}
