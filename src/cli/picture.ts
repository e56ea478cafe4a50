/**
 * Pictures of a disk: the strip of one line, the map of many, and the legend of both.
 *
 *   0  ####==####..====  40 GiB          one character stands for the class that holds most of its bytes
 */
import { styleText } from "node:util";
import type { ByteClass, Survey } from "../disk.ts";
import { columnsOf, type Screen, wrap } from "./text.ts";
import { figures, size, type Unit, unitOf } from "../bytes/sizes.ts";

type Colour = Parameters<typeof styleText>[0];
interface Look {
  readonly ascii: string;
  readonly block: string;
  readonly colour: Colour;
  readonly words: string;
}

/** In the order in which a tie is decided: what the guest may still need comes first. */
const LOOKS: Readonly<Record<ByteClass, Look>> = {
  used: { ascii: "#", block: "█", colour: "blue", words: "used" },
  metadata: { ascii: "+", block: "▓", colour: "cyan", words: "filesystem structures" },
  unknown: { ascii: "?", block: "?", colour: "yellow", words: "unknown, counts as used" },
  worthless: { ascii: "~", block: "▒", colour: "magenta", words: "worthless after a shutdown" },
  guarded: { ascii: "g", block: "◇", colour: "red", words: "guarded" },
  returnable: { ascii: "=", block: "░", colour: "green", words: "returnable" },
  hole: { ascii: ".", block: "·", colour: "gray", words: "never written or returned" },
};
const CLASSES_BY_WEIGHT = Object.keys(LOOKS) as ByteClass[];

type Pictured = Pick<Survey, "regions" | "virtualBytes" | "exact">;

/** The class of each of `count` cells of `cellBytes`: the one that holds most of it. */
export function cells(survey: Pictured, count: number, cellBytes: number): ByteClass[] {
  const most = new Float64Array(count);
  const winners = Array.from({ length: count }, (): ByteClass => "unknown");
  for (const name of CLASSES_BY_WEIGHT) {
    const held = new Float64Array(count);
    const set = survey.regions.get(name);
    for (let i = 0; i < (set?.count ?? 0); i++) {
      const end = set!.end(i);
      let at = set!.start(i);
      for (let cell = Math.floor(at / cellBytes); cell < count && at < end; cell++) {
        const next = Math.min(end, (cell + 1) * cellBytes);
        held[cell]! += next - at;
        at = next;
      }
    }
    for (let cell = 0; cell < count; cell++) {
      if (held[cell]! <= most[cell]!) continue;
      most[cell] = held[cell]!;
      winners[cell] = name;
    }
  }
  return winners;
}

type Glyphs = "ascii" | "block";

function drawn(classes: readonly ByteClass[], screen: Screen, glyphs: Glyphs): string {
  let text = "";
  for (let start = 0, end = 0; start < classes.length; start = end) {
    while (end < classes.length && classes[end] === classes[start]) end++;
    const look = LOOKS[classes[start]!];
    text += coloured(look[glyphs].repeat(end - start), look.colour, screen);
  }
  return text;
}

export function coloured(text: string, colour: Colour, screen: Pick<Screen, "colour">): string {
  return screen.colour ? styleText(colour, text, { validateStream: false }) : text;
}

/** ` 0  ####==..  40 GiB` */
export function strip(survey: Pictured, screen: Screen): string {
  const label = size(survey.virtualBytes);
  const count = Math.max(8, screen.columns - " 0  ".length - "  ".length - label.length - 1);
  const classes = cells(survey, count, Math.max(1, survey.virtualBytes / count));
  return ` 0  ${drawn(classes, screen, "ascii")}  ${label}`;
}

/** The classes that occur, with their bytes. */
export function legend(survey: Pictured, screen: Screen, glyphs: Glyphs = "ascii"): string[] {
  const unit = unitOf(survey.virtualBytes);
  const about = survey.exact ? "" : "~";
  const present = CLASSES_BY_WEIGHT.map((name) => ({
    name,
    bytes: survey.regions.get(name)?.bytes ?? 0,
  })).filter(({ bytes }) => bytes > 0);
  const shown = figures(
    present.map(({ bytes }) => bytes),
    unit,
  );
  const entries = present.map(({ name }, i) => {
    const look = LOOKS[name];
    return { mark: look[glyphs], colour: look.colour, words: `${look.words} ${about}${shown[i]}` };
  });
  const lines: string[] = [];
  let line = "";
  let columns = 0;
  for (const { mark, colour, words } of entries) {
    const plain = `   ${mark} ${words}`;
    if (columns > 0 && columns + columnsOf(plain) > screen.columns - 1) {
      lines.push(line);
      line = "";
      columns = 0;
    }
    line += `${columns === 0 ? "    " : "   "}${coloured(mark, colour, screen)} ${words}`;
    columns += columnsOf(plain) + (columns === 0 ? 1 : 0);
  }
  return line === "" ? lines : [...lines, line];
}

const ROWS_MAX = 24;
const CELL_BYTES_MIN = 4096;

/** The whole disk, a row for every so many cells, with the offset at which each row starts. */
export function map(survey: Pictured, screen: Screen): string {
  const glyphs = screen.unicode ? "block" : "ascii";
  const perRow = [128, 64, 32].find((cellsOfRow) => cellsOfRow + 14 <= screen.columns) ?? 16;
  const cellBytes = Math.max(
    CELL_BYTES_MIN,
    2 ** Math.ceil(Math.log2(survey.virtualBytes / (perRow * ROWS_MAX))),
  );
  const count = Math.ceil(survey.virtualBytes / cellBytes);
  const classes = cells(survey, count, cellBytes);
  const starts = Array.from({ length: Math.ceil(count / perRow) }, (_, row) => row * perRow);
  const unit = unitOf(perRow * cellBytes);
  const labels = starts.map((start) => rowLabel(start * cellBytes, unit));
  const width = Math.max(...labels.map((label) => label.length), 1);
  const rows = starts.map(
    (start, row) =>
      ` ${labels[row]!.padStart(width)}  ${drawn(classes.slice(start, start + perRow), screen, glyphs)}`,
  );
  const scale = `one character is ${size(cellBytes)}, drawn as what holds most of it`;
  return [...rows, "", ...legend(survey, screen, glyphs), ...wrap("    ", scale, screen.columns)].join("\n");
}

function rowLabel(at: number, unit: Unit): string {
  return at === 0 ? "0" : `${Number((at / unit.bytes).toFixed(2))} ${unit.name}`;
}
