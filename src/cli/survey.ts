/**
 * `ullage survey IMAGE...`: what is used, free and returnable, and who says so. Changes nothing.
 */
import type { Survey, VolumeReport, Witness } from "../disk.ts";
import { batch } from "./batch.ts";
import { type JudgeFlags, surveyOptions } from "./options.ts";
import { coloured, legend, map, strip } from "./picture.ts";
import { figures, size, sizeIn, unitOf } from "../bytes/sizes.ts";
import type { Face } from "./terminal.ts";
import { columnsOf, cut, padEnd, printable, type Screen, table, wrap } from "./text.ts";

export interface SurveyFlags extends JudgeFlags {
  readonly map?: boolean;
}

export async function run(paths: readonly string[], flags: SurveyFlags, face: Face): Promise<number> {
  const { survey } = await import("../disk.ts");
  return batch(paths, face, {
    run: (path) => survey(path, surveyOptions(flags, paths)),
    render: (result) => render(result, face.screen, { map: flags.map === true }),
    json: surveyJson,
  });
}

/** The survey without what is meant for pictures. */
export function surveyJson(survey: Survey): Omit<Survey, "regions"> {
  const { regions: _, ...contract } = survey;
  return contract;
}

export function render(survey: Survey, screen: Screen, { map: whole }: { map: boolean }): string {
  const picture = whole ? [map(survey, screen)] : [strip(survey, screen), ...legend(survey, screen)];
  return [
    ...heading(survey, screen),
    "",
    ...(survey.virtualBytes === 0 ? [] : [...picture, ""]),
    ...sums(survey, screen),
    "",
    ...volumes(survey, screen),
    ...spaced(guard(survey, screen)),
    ...spaced(worthless(survey, screen)),
    ...spaced(notes("note", survey.notes, screen)),
    ...next(survey, screen),
  ].join("\n");
}

/** `disk.qcow2   qcow2, 64 KiB clusters, no snapshots, not in use` */
function heading(survey: Survey, screen: Screen): string[] {
  const use = survey.inUse ? "in use: figures approximate" : "not in use";
  const words = [survey.format, printable(survey.summary, screen), use]
    .filter((word) => word !== "")
    .join(", ");
  const path = printable(survey.path, screen);
  const first = `${path}   `;
  return first.length > screen.columns / 2
    ? [path, ...wrap("  ", words, screen.columns)]
    : wrap(first, words, screen.columns);
}

/** Of what stands before a remark. */
const LABEL_COLUMNS = 10;

const WITNESSES: Readonly<Record<Witness, string>> = {
  guarded: "guarded",
  filesystem: "said by the filesystems",
  zeros: "read as zeros",
  gaps: "between partitions",
  swap: "swap",
  pagefile: "page files",
  hiberfil: "hibernation files",
  "mapping-table": "never written",
};

function sums(survey: Survey, screen: Screen): string[] {
  const about = survey.exact ? "" : "~";
  const label = (text: string): string => ` ${padEnd(text, LABEL_COLUMNS + 2)}`;
  const sum = (total: number, parts: readonly { bytes: number; words: string }[]): string => {
    const present = parts.filter((part) => part.bytes > 0);
    const each = figures(
      present.map(({ bytes }) => bytes),
      unitOf(total),
    );
    const shown = present.map(({ words }, i) => `${about}${each[i]} ${words}`);
    return `${about}${size(total)}${shown.length === 0 ? "" : `  = ${shown.join(" + ")}`}`;
  };
  const lines: string[] = [];
  if (survey.hostBytes !== null) {
    // Tables that were never written are not on the host's disk.
    const stored = Math.max(0, survey.hostBytes - survey.reclaimableBytes);
    const tables = Math.min(survey.tableBytes, stored);
    const guarded = Math.min(survey.guard?.maskedBytes ?? 0, stored - tables);
    const kept = stored - tables - guarded;
    const parts = [
      { bytes: kept, words: survey.unknownBytes === 0 ? "used" : "kept" },
      { bytes: survey.reclaimableBytes, words: "returnable" },
      { bytes: guarded, words: "guarded" },
      { bytes: tables, words: "image tables" },
    ];
    lines.push(...wrap(label("on disk"), sum(survey.hostBytes, parts), screen.columns));
  }
  const free = survey.witnesses.map(({ witness, bytes }) => ({ bytes, words: WITNESSES[witness] }));
  lines.push(...wrap(label("free"), sum(survey.freeBytes, free), screen.columns));
  const shorter =
    survey.packableBytes > 0 ? `    --pack makes it ${about}${size(survey.packableBytes)} shorter` : "";
  const sizes = `${size(survey.fileBytes)}    guest sees ${size(survey.virtualBytes)}${shorter}`;
  lines.push(...wrap(label("file size"), sizes, screen.columns));
  return lines;
}

const NAME_COLUMNS_MIN = 12;

function volumes(survey: Survey, screen: Screen): string[] {
  if (survey.volumes.length === 0) return [];
  const about = survey.exact ? "" : "~";
  const unit = unitOf(Math.max(...survey.volumes.map((volume) => volume.bytes)));
  const lines = (nameColumns: number): string[] =>
    table(
      [
        { title: "VOLUME" },
        { title: "FILESYSTEM" },
        { title: "USED", align: "right" },
        { title: "FREE", align: "right" },
        { title: "STATE" },
        { title: "WITNESS" },
      ],
      survey.volumes.map((volume) => [
        cut(nameOf(volume, screen), nameColumns),
        volume.filesystem === null ? "-" : printable(volume.filesystem, screen),
        about + sizeIn(volume.usedBytes, unit),
        volume.state === "clean" ? about + sizeIn(volume.freeBytes, unit) : "-",
        volume.state,
        volume.witness === null ? "" : printable(volume.witness, screen),
      ]),
    );
  // Long names give way, so that a line of the table stays a line.
  const tooWide = Math.max(...lines(NAME_COLUMNS_MIN).map(columnsOf)) - NAME_COLUMNS_MIN;
  const shown = lines(Math.max(NAME_COLUMNS_MIN, screen.columns - tooWide));
  return [
    ...shown.map((line) => cut(line, screen.columns)),
    ...survey.volumes.flatMap((volume) => remarks(volume, screen)),
    "",
  ];
}

/** What a stopped guest could do without: what `--also` clears, and what the guest itself can clean up. */
function worthless(survey: Survey, screen: Screen): string[] {
  return survey.worthless.flatMap(({ kind, volume, path, bytes, isPartial, also, command, kept }) => {
    const where = printable([volume, path].filter((word) => word !== "").join(":"), screen);
    const way =
      kept !== null ? `kept: ${kept}` : also !== null ? `--also ${also}` : `in the guest: ${command}`;
    return labelled(
      "worthless",
      `${isPartial ? "over " : ""}${size(bytes)} ${kind}, ${where} (${printable(way, screen)})`,
      screen,
    );
  });
}

/** What can be taken back, or why nobody knows. */
function guard({ guard: held }: Survey, screen: Screen): string[] {
  if (held === null) return [];
  const text =
    held.doubt === null
      ? `${size(held.guardedBytes)} that were trimmed or written over can be taken back: ullage undo`
      : `a guard lies beside the image, but ${printable(held.doubt, screen)}: nothing is masked (ullage undo)`;
  return labelled("guarded", text, screen);
}

/** `2 root`; a disk without a partition table has no number to show. */
function nameOf({ name, label }: Pick<VolumeReport, "name" | "label">, screen: Screen): string {
  const words = [name, label].filter((word) => word !== "").join(" ");
  return printable(words === "" ? "whole disk" : words, screen);
}

function remarks(volume: VolumeReport, screen: Screen): string[] {
  const name = prefixOf(volume, screen);
  const lines = reasonOf(volume, screen);
  if (volume.leakedBytes > 0) {
    const text = `${name}${size(volume.leakedBytes)} are marked used, but nothing reaches them: kept`;
    lines.push(...labelled("leaked", text, screen));
  }
  return [
    ...lines,
    ...volume.notes.flatMap((note) => labelled("note", name + printable(note, screen), screen)),
  ];
}

/** Why a volume is not trusted, and what to do about it. */
export function reasonOf(volume: VolumeReport, screen: Screen): string[] {
  if (volume.reason === null) return [];
  const name = prefixOf(volume, screen);
  const { code, message, hint } = volume.reason;
  const text = `${name}${printable(message, screen)} (${printable(code, screen)})`;
  const colour = volume.state === "refused" ? "yellow" : "gray";
  const lines = labelled(volume.state, text, screen).map((line) => coloured(line, colour, screen));
  return hint === "" ? lines : [...lines, ...labelled("hint", name + printable(hint, screen), screen)];
}

function prefixOf({ name }: VolumeReport, screen: Screen): string {
  return name === "" ? "" : `${printable(name, screen)}: `;
}

/** ` note        text, wrapped and indented` */
export function labelled(label: string, text: string, screen: Screen): string[] {
  return wrap(` ${padEnd(label, LABEL_COLUMNS - 1)} `, text, screen.columns);
}

export function notes(label: string, texts: readonly string[], screen: Screen): string[] {
  return texts.flatMap((text) => labelled(label, printable(text, screen), screen));
}

function spaced(lines: readonly string[]): readonly string[] {
  return lines.length === 0 ? [] : [...lines, ""];
}

function next(survey: Survey, screen: Screen): string[] {
  const path = shellWord(survey.path);
  if (survey.reclaimableBytes > 0) {
    return wrap(" ", `Nothing was changed.  Next: ullage reclaim ${printable(path, screen)}`, screen.columns);
  }
  const stored = survey.regions.get("returnable")?.bytes ?? 0;
  const why =
    survey.unknownBytes > 0
      ? "  What is refused or unknown counts as used."
      : stored > 0
        ? `  The ${size(stored)} still stored lie in pieces smaller than the host's blocks.`
        : "";
  return wrap(" ", `Nothing was changed, and nothing can be returned.${why}`, screen.columns);
}

function shellWord(path: string): string {
  return /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", `'\\''`)}'`;
}
