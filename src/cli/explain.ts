/**
 * `ullage explain IMAGE [OFFSET...]`: who owns a byte, or which witness calls it free; without an offset, why the
 * image is so big; with `--path`, where a file of the guest lies.
 */
import type { ByteClass, Explained, ExplainedOffset, Owner } from "../disk.ts";
import { batch } from "./batch.ts";
import { openOptions, type ReadFlags } from "./options.ts";
import type { Proof } from "../disk.ts";
import { coloured, legend, strip } from "./picture.ts";
import { grouped, size } from "../bytes/sizes.ts";
import { labelled, surveyJson } from "./survey.ts";
import type { Face } from "./terminal.ts";
import { printable, type Screen, table, wrap } from "./text.ts";

export interface ExplainFlags extends ReadFlags {
  readonly proof?: Proof;
  readonly sector?: readonly number[];
  readonly path?: string;
}

export async function run(
  path: string,
  offsets: readonly number[],
  flags: ExplainFlags,
  face: Face,
): Promise<number> {
  const { explain } = await import("../disk.ts");
  const asked = [...offsets, ...(flags.sector ?? [])];
  return batch([path], face, {
    run: (image) =>
      explain(image, {
        ...openOptions(flags),
        ...(flags.proof === undefined ? {} : { proof: flags.proof }),
        ...(asked.length === 0 ? {} : { offsets: asked }),
        ...(flags.path === undefined ? {} : { file: flags.path }),
      }),
    render: (result) => render(result, face.screen),
    json: explainedJson,
  });
}

function explainedJson({ survey, ...contract }: Explained): object {
  return survey === undefined ? contract : { ...contract, survey: surveyJson(survey) };
}

export function render(explained: Explained, screen: Screen): string {
  const parts: string[][] = explained.offsets.map((offset) => renderOffset(offset, screen));
  if (explained.file !== undefined) parts.push(renderFile(explained.file, screen));
  if (explained.owners !== undefined || explained.reasons !== undefined)
    parts.push(renderWhole(explained, screen));
  return parts.map((lines) => lines.join("\n")).join("\n\n");
}

const VERDICTS: Readonly<Record<ByteClass, string>> = {
  used: "USED",
  metadata: "USED",
  returnable: "FREE",
  hole: "FREE",
  guarded: "GUARDED",
  worthless: "WORTHLESS",
  unknown: "UNKNOWN",
};

const SECTOR_BYTES = 512;

/** The trail from the outside in, the verdict with its witness, and where the byte lies in the image. */
function renderOffset(found: ExplainedOffset, screen: Screen): string[] {
  const sector = Math.floor(found.offset / SECTOR_BYTES);
  const place = `offset ${found.offset} (0x${found.offset.toString(16)}), sector ${sector}`;
  const free = found.class === "returnable" || found.class === "hole";
  const said = labelled(VERDICTS[found.class], printable(verdict(found), screen), screen);
  return [
    coloured(` ${place}`, "bold", screen),
    ...wrap(" ", found.trail.map((step) => printable(step, screen)).join(", "), screen.columns),
    ...said.map((line) => coloured(line, free ? "green" : "reset", screen)),
    ...labelled("in image", inImage(found), screen),
  ];
}

function verdict({ class: name, witness, owner, ownerPath }: ExplainedOffset): string {
  const witnesses = witness.split(" + ");
  const owned = [owner, ownerPath].filter((word) => word !== null).join(" ");
  switch (name) {
    case "returnable":
    case "hole":
      if (witnesses.length === 2) return `${witnesses[0]}: free.  ${witnesses[1]}: no owner.  Both agree.`;
      return name === "hole" ? `${witness}: nothing is stored for it.` : `${witness}: free.`;
    case "unknown":
      return "Nobody can vouch for it, so it counts as used.";
    default:
      return owned === "" ? `${witness}.` : `${witness}: ${owned}.`;
  }
}

function inImage({ fileOffset, class: name }: ExplainedOffset): string {
  if (fileOffset === null) return "nowhere: nothing is stored for this byte";
  const still = name === "returnable" ? ", still on the host's disk" : "";
  return `at file offset ${hexadecimal(fileOffset)}${still}`;
}

function hexadecimal(offset: number): string {
  return `0x${offset.toString(16).toUpperCase()}`;
}

function renderFile(file: NonNullable<Explained["file"]>, screen: Screen): string[] {
  const title = `${file.volume === "" ? "" : `${file.volume}:`}${file.path}`;
  const count = `${grouped(file.pieces.length)} piece${file.pieces.length === 1 ? "" : "s"}`;
  const rows = file.pieces.map((piece) => [
    String(piece.fileOffset),
    String(piece.bytes),
    String(piece.sector),
    piece.imageOffset === null ? "-" : hexadecimal(piece.imageOffset),
    piece.unwritten ? "allocated, not written" : "",
  ]);
  const heading = wrap(" ", `${printable(title, screen)}   ${size(file.bytes)} in ${count}`, screen.columns);
  if (rows.length === 0) return [...heading, " It has no blocks of its own."];
  const columns = [
    { title: "IN FILE", align: "right" },
    { title: "BYTES", align: "right" },
    { title: "SECTOR", align: "right" },
    { title: "IN IMAGE", align: "right" },
    { title: "" },
  ] as const;
  return [...heading, "", ...table(columns, rows)];
}

function renderWhole({ path, owners, reasons, survey }: Explained, screen: Screen): string[] {
  const picture = survey === undefined ? [] : [strip(survey, screen), ...legend(survey, screen), ""];
  return [
    printable(path, screen),
    "",
    ...picture,
    ...(owners === undefined || owners.length === 0 ? [] : [...ownersTable(owners, screen), ""]),
    ...(reasons ?? []).flatMap((reason) => wrap(" - ", printable(reason, screen), screen.columns)),
  ];
}

function ownersTable(owners: readonly Owner[], screen: Screen): string[] {
  return table(
    [{ title: "BYTES", align: "right" }, { title: "VOLUME" }, { title: "OWNER" }],
    owners.map((owner) => [
      size(owner.bytes),
      printable(owner.volume, screen),
      printable(owner.path ?? owner.name, screen),
    ]),
  );
}
