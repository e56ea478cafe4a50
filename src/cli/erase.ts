/**
 * `ullage erase IMAGE...`: overwrites everything that is free, gives it back, and says what that proves.
 */
import type { Erased, EraseIntent, HostSpace, Survey } from "../disk.ts";
import { DiskError } from "../error.ts";
import { size } from "../bytes/sizes.ts";
import { batch } from "./batch.ts";
import { type JudgeFlags, surveyOptions, type WriteFlags } from "./options.ts";
import { map } from "./picture.ts";
import { amounts, type ProgressView, showing } from "./progress.ts";
import { ask, mayWrite } from "./prompt.ts";
import { reclaimedJson, renderPlan, renderResult, requireTrust, whySafe } from "./reclaim.ts";
import { labelled, notes } from "./survey.ts";
import { type Face, interruptible } from "./terminal.ts";
import { printable, type Screen, wrap } from "./text.ts";

export interface EraseFlags extends JudgeFlags, WriteFlags {
  readonly pattern?: "random" | "zeros";
  readonly verify?: boolean;
}

export async function run(paths: readonly string[], flags: EraseFlags, face: Face): Promise<number> {
  mayWrite(flags, face);
  const { erase } = await import("../disk.ts");
  using interruption = interruptible(face);
  return await batch<Erased>(paths, face, {
    async run(path) {
      interruption.signal.throwIfAborted();
      return await showing(face, howFar, async (progress) => {
        const result = await erase(path, {
          ...surveyOptions(flags, paths),
          ...(flags.pattern && { pattern: flags.pattern }),
          dryRun: flags.dryRun === true,
          verify: flags.verify === true,
          signal: interruption.signal,
          onProgress: progress.update,
          confirm: (prospect, host, intent) => {
            progress.stop();
            return confirmed({ prospect, host, intent }, flags, face);
          },
        });
        requireTrust(result, result.erasedBytes);
        return result;
      });
    },
    render: (result) => render(result, flags, face.screen),
    json: reclaimedJson,
  });
}

function howFar({ last }: ProgressView): DiskError {
  const done =
    last?.phase === "erasing"
      ? `${amounts(last)} overwritten, nothing returned`
      : last?.phase === "returning"
        ? `all is overwritten, ${amounts(last)} returned`
        : "nothing was erased yet";
  return new DiskError("interrupted", `stopped at a safe point: ${done}`, {
    hint: "nothing is lost; the same command once more does the rest",
  });
}

interface Question {
  readonly prospect: Survey;
  readonly host: HostSpace;
  readonly intent: EraseIntent;
}

async function confirmed(
  { prospect, host, intent }: Question,
  flags: EraseFlags,
  face: Face,
): Promise<boolean> {
  if (face.json) return true;
  face.out(`${renderPlan(prospect, face.screen, { locked: true })}\n${intended(intent, face.screen)}\n`);
  if (flags.yes === true) return true;
  const place = printable(host.mountPoint, face.screen);
  const yes = await ask(`Overwrite ${size(intent.bytes)} and return it to ${place}?`, {
    m: { word: "map", show: () => face.out(`\n${map(prospect, face.screen)}\n`) },
    "?": { word: "why safe", show: () => face.out(`\n${whySafe(prospect, face.screen)}\n`) },
  });
  face.out("");
  return yes;
}

const PATTERN_WORDS = { random: "random bytes", zeros: "zeros" } as const;

function intended({ pattern, bytes, grade, reasons }: EraseIntent, screen: Screen): string {
  return [
    ...labelled("erases", `${size(bytes)}, with ${PATTERN_WORDS[pattern]}, before it is returned`, screen),
    ...labelled("grade", `at best "${grade}"`, screen),
    ...notes("note", reasons, screen),
  ].join("\n");
}

export function render(result: Erased, flags: EraseFlags, screen: Screen): string {
  const { applied, erasedBytes, survey, grade, bestGrade, reasons } = result;
  if (flags.dryRun === true && erasedBytes > 0) {
    const intent = { pattern: result.pattern, bytes: erasedBytes, grade: bestGrade, reasons };
    const plan = `${renderPlan(survey, screen, { locked: false })}\n${intended(intent, screen)}`;
    return `${plan}\n\n Nothing was changed: this was a dry run.`;
  }
  if (!applied) {
    if (survey.reclaimableBytes > 0) return " Nothing was changed.";
    const text = `${printable(result.path, screen)}: nothing to erase; nothing was changed.`;
    return wrap(" ", text, screen.columns).join("\n");
  }
  const rows = [
    ["erased", `${size(erasedBytes)}, with ${PATTERN_WORDS[result.pattern]}`],
    ["grade", `"${grade}"`],
    ["verified", verified(result)],
  ] as const;
  return [renderResult(result, screen, rows), ...notes("note", [...reasons, ...left(result)], screen)].join(
    "\n",
  );
}

function verified({ canaries, samples }: Erased): string {
  const zero = "all of it reads as zeros";
  if (canaries === null || samples === null) return zero;
  const elsewhere =
    samples.found === 0
      ? `none of ${samples.taken} samples of the old content`
      : `of ${samples.taken} samples of the old content, ${samples.found} elsewhere: in a file that is still there, or a journal`;
  return `${zero}; of ${canaries.planted} canaries none is found; ${elsewhere}`;
}

function left({ sharedBytes, compressedBytes }: Erased): string[] {
  const why = "a snapshot, a reflink or a backing image holds it as well";
  return [
    ...(sharedBytes > 0 ? [`${size(sharedBytes)} of free space is not erased: ${why}`] : []),
    ...(compressedBytes > 0
      ? [`${size(compressedBytes)} of free space is compressed: of its clusters only whole blocks are erased`]
      : []),
  ];
}
