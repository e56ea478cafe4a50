/**
 * `ullage reclaim IMAGE...`: shows the plan, asks, acts, and compares what was promised with what came back.
 */
import type { HostSpace, Reclaimed, Survey } from "../disk.ts";
import { DiskError } from "../error.ts";
import { batch } from "./batch.ts";
import { type JudgeFlags, surveyOptions, type WriteFlags } from "./options.ts";
import { amounts, type ProgressView, showing } from "./progress.ts";
import { coloured, map } from "./picture.ts";
import { ask, mayWrite } from "./prompt.ts";
import { figures, size, unitOf } from "../bytes/sizes.ts";
import { labelled, notes, reasonOf, surveyJson } from "./survey.ts";
import { type Face, interruptible } from "./terminal.ts";
import { columnsOf, padEnd, printable, type Screen, wrap } from "./text.ts";

export interface ReclaimFlags extends JudgeFlags, WriteFlags {
  readonly verify?: boolean;
}

export async function run(paths: readonly string[], flags: ReclaimFlags, face: Face): Promise<number> {
  mayWrite(flags, face);
  const { reclaim } = await import("../disk.ts");
  using interruption = interruptible(face);
  return await batch(paths, face, {
    async run(path) {
      interruption.signal.throwIfAborted();
      return await showing(face, howFar, async (progress) => {
        const result = await reclaim(path, {
          ...surveyOptions(flags, paths),
          dryRun: flags.dryRun === true,
          verify: flags.verify === true,
          signal: interruption.signal,
          onProgress: progress.update,
          confirm: (prospect, host) => {
            progress.stop();
            return confirmed(prospect, host, flags, face);
          },
        });
        requireTrust(result);
        return result;
      });
    },
    render: (result) =>
      flags.dryRun === true ? renderDryRun(result, face.screen) : renderResult(result, face.screen),
    json: reclaimedJson,
  });
}

/** @throws DiskError `refused` when nothing can come back because a volume is not trusted */
export function requireTrust({ applied, survey }: Reclaimed, otherBytes = 0): void {
  const refused = survey.volumes.find((volume) => volume.state === "refused");
  if (applied || promiseOf(survey) + otherBytes > 0 || !refused?.reason) return;
  const { code, message, hint } = refused.reason;
  const name = refused.name === "" ? "" : `volume ${refused.name}: `;
  throw new DiskError("refused", `${name}${message}`, { code, hint });
}

/** The result; of the survey behind it only what a dry run is asked for. */
export function reclaimedJson({ survey, ...contract }: Reclaimed): object {
  return contract.applied ? contract : { ...contract, survey: surveyJson(survey) };
}

function howFar({ last }: ProgressView): DiskError {
  const far = last?.phase === "returning" ? `${amounts(last)} returned` : "nothing was changed yet";
  return new DiskError("interrupted", `stopped at a safe point: ${far}`, {
    hint: "nothing is lost; the same command once more does the rest",
  });
}

async function confirmed(
  prospect: Survey,
  host: HostSpace,
  flags: ReclaimFlags,
  face: Face,
): Promise<boolean> {
  if (face.json) return true;
  face.out(`${renderPlan(prospect, face.screen, { locked: true })}\n`);
  if (flags.yes === true) return true;
  const question = `Return ${size(promiseOf(prospect))} to ${printable(host.mountPoint, face.screen)}?`;
  const yes = await ask(question, {
    m: { word: "map", show: () => face.out(`\n${map(prospect, face.screen)}\n`) },
    "?": { word: "why safe", show: () => face.out(`\n${whySafe(prospect, face.screen)}\n`) },
  });
  face.out("");
  return yes;
}

/** What the plan is for: space on the host, or a shorter file. */
function promiseOf({ method, packableBytes, reclaimableBytes }: Survey): number {
  return method === "pack" ? packableBytes : reclaimableBytes;
}

export function renderPlan(survey: Survey, screen: Screen, { locked }: { locked: boolean }): string {
  const systems = [...new Set(survey.volumes.flatMap(({ filesystem }) => filesystem ?? []))];
  const stack = [survey.format, ...systems].map((word) => printable(word, screen)).join(" / ");
  const path = printable(survey.path, screen);
  const about = survey.exact ? "" : "~";
  const packs = survey.method === "pack";
  const refused = survey.volumes.filter((volume) => volume.state !== "clean").length;
  const final = "files already deleted in the guest can no longer be undeleted";
  return [
    ...wrap(
      `${path}   `,
      `${stack}, ${survey.inUse ? "in use" : "not in use"}${locked ? ", locked by this process" : ""}`,
      screen.columns,
    ),
    "",
    ...labelled("returns", `${about}${size(promiseOf(survey))}${means(survey)}`, screen),
    ...labelled("keeps", keeps(packs, refused), screen),
    ...survey.volumes
      .filter(({ state }) => state === "refused")
      .flatMap((volume) => reasonOf(volume, screen)),
    ...labelled("proof", proofOf(survey), screen),
    ...labelled("needs", "no spare space; safe to interrupt at any instant", screen),
    ...labelled("FINAL", final, screen).map((line) => coloured(line, "bold", screen)),
    ...notes("note", [...survey.notes, "your next incremental backup may grow"], screen),
  ].join("\n");
}

/** `   (18.9 clusters unmapped, 0.2 holes inside clusters)` */
function means({ method, format, unmapBytes, punchBytes }: Survey): string {
  if (method === "pack")
    return "   (files are cut behind the last block that stays; it may move forward first)";
  const unit = unitOf(unmapBytes + punchBytes);
  const ways = [
    { bytes: unmapBytes, words: "clusters unmapped" },
    { bytes: punchBytes, words: format === "raw" ? "holes punched" : "holes inside clusters" },
  ].filter(({ bytes }) => bytes > 0);
  if (ways.length === 0) return "";
  if (ways.length === 1) return `   (${ways[0]!.words})`;
  const each = figures(
    ways.map(({ bytes }) => bytes),
    unit,
  );
  return `   (${ways.map(({ words }, i) => `${each[i]} ${words}`).join(", ")})`;
}

function keeps(packs: boolean, refused: number): string {
  const volumes = refused === 1 ? "1 volume that is not trusted" : `${refused} volumes that are not trusted`;
  const all = refused === 0 ? "" : `, and all of ${volumes}`;
  return `every block that the guest uses${all}${packs ? "; used clusters move" : "; nothing is moved"}`;
}

function proofOf(survey: Survey): string {
  const says = new Set(survey.witnesses.filter(({ bytes }) => bytes > 0).map(({ witness }) => witness));
  const filesystem =
    survey.proof === "full"
      ? "bitmap says free AND no inode reaches it; 0 disagreements"
      : "bitmap says free, its checksum is right; inodes were not walked (--proof bitmap)";
  const sentences = [
    says.has("filesystem") ? filesystem : "",
    says.has("zeros") ? "read as zeros, byte by byte, under the lock" : "",
    says.has("swap") || says.has("pagefile") || says.has("hiberfil")
      ? "swap and the like, on a guest whose filesystems all say that it was shut down"
      : "",
    says.has("gaps") ? "no volume, table or boot loader lies there" : "",
  ].filter((sentence) => sentence !== "");
  return sentences.length === 0 ? "the image's own table maps nothing there" : sentences.join("; or ");
}

export function whySafe(survey: Survey, screen: Screen): string {
  const sentences = [
    survey.proof === "full"
      ? "A block is given away only if the allocation bitmap calls it free and a walk over every inode and all metadata does not reach it. If the two disagree anywhere, the whole volume stays as it is."
      : "A block is given away only if the allocation bitmap calls it free, and only where the bitmap is intact. --proof full also walks every inode.",
    "Whatever ullage does not understand completely counts as used: unknown filesystems, unknown features, a journal that was not replayed, encrypted volumes.",
    "The image is locked: no other program can write to it meanwhile, and its own tables were checked.",
    "The order of the writes alone keeps it whole: the entry is dropped and flushed before the hole is punched, and the cluster can be used again only after that. A power cut at any instant leaves an image that every tool opens; at worst some space is not returned yet.",
    "Returned blocks read as zeros or as before, never as anything else.",
  ];
  return sentences.flatMap((sentence) => wrap("  ", printable(sentence, screen), screen.columns)).join("\n");
}

export function renderDryRun(result: Reclaimed, screen: Screen): string {
  if (promiseOf(result.survey) === 0) return nothing(result, screen);
  const plan = renderPlan(result.survey, screen, { locked: false });
  return `${plan}\n\n Nothing was changed: this was a dry run.`;
}

function nothing({ path, survey }: Reclaimed, screen: Screen): string {
  const unknown = survey.volumes.some((volume) => volume.state !== "clean");
  const why = unknown ? " What is unknown counts as used: ullage survey says why." : "";
  const text = `${printable(path, screen)}: nothing to return; nothing was changed.${why}`;
  return wrap(" ", text, screen.columns).join("\n");
}

/** @param more rows for what else was done */
export function renderResult(
  result: Reclaimed,
  screen: Screen,
  more: readonly (readonly [string, string])[] = [],
): string {
  if (!result.applied) {
    return promiseOf(result.survey) === 0 ? nothing(result, screen) : " Nothing was changed.";
  }
  const rows: (readonly [string, string])[] = [
    [printable(result.path, screen), outcome(result)],
    ["checked", checked(result)],
  ];
  if (result.method === "pack" && result.beforeHostBytes !== null && result.afterHostBytes !== null) {
    rows.splice(1, 0, ["on disk", change(result.beforeHostBytes, result.afterHostBytes)]);
  }
  const { hostFreeBefore: before, hostFreeAfter: after } = result;
  rows.push([`${printable(after.mountPoint, screen)} free`, change(before.freeBytes, after.freeBytes)]);
  rows.push(...more);
  const width = Math.min(
    Math.max(...rows.map(([label]) => columnsOf(label))),
    Math.floor(screen.columns / 2),
  );
  return [
    ...rows.flatMap(([label, text]) => wrap(` ${padEnd(label, width)}  `, text, screen.columns)),
    ...notes("note", result.notes, screen),
  ].join("\n");
}

/** `31.5 -> 12.4 GiB    promised 19.1, returned 19.1`: of the file's length where that is what was promised. */
function outcome(result: Reclaimed): string {
  const packs = result.method === "pack";
  const [before, after] = packs
    ? [result.beforeFileBytes, result.afterFileBytes]
    : [result.beforeHostBytes, result.afterHostBytes];
  const both = packs
    ? [result.survey.packableBytes, result.packedBytes]
    : [result.predictedBytes, result.reclaimedBytes];
  const [promised, returned] = before === null ? both.map(size) : figures(both, unitOf(before));
  const sizes = before === null || after === null ? "" : `${change(before, after)}    `;
  return `${sizes}promised ${promised}, returned ${returned}`;
}

/** `31.5 -> 12.4 GiB` */
function change(before: number, after: number): string {
  const unit = unitOf(Math.max(before, after));
  const [from, to] = figures([before, after], unit);
  return to!.endsWith(unit.name) || from!.endsWith(unit.name)
    ? `${from} -> ${to}`
    : `${from} -> ${to} ${unit.name}`;
}

/** The mapping of what is used is compared after every run; its bytes with `--verify`. */
function checked({ check, verified }: Reclaimed): string {
  const found = check === null ? 0 : check.errors + check.leaks;
  const image = found === 0 ? "image clean" : `image has ${check!.errors} errors and ${check!.leaks} leaks`;
  const used =
    verified === true
      ? "every used byte hashed before and after: equal"
      : "every used block still mapped as before";
  return `${image}; ${used}`;
}
