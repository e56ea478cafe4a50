/**
 * npm run formats: writes docs/FORMATS.md, the table of what each image format can do, from the formats themselves.
 */
import { writeFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { FORMATS } from "../src/formats/all.ts";
import type { ImageFormat } from "../src/formats/format.ts";

export const FORMATS_PAGE = path.join(import.meta.dirname, "..", "docs", "FORMATS.md");

const COLUMNS = [
  "format",
  "read",
  "write",
  "create",
  "discard",
  "reclaim",
  "sub-block",
  "pack",
  "check",
  "snapshots, chain",
];

/** The page, as it is committed. */
export function formatsPage(): string {
  const yes = (can: unknown): string => (can ? "yes" : "–");
  const row = (format: ImageFormat): string[] => {
    const { name, about } = format;
    const writes = yes("openWritable" in format);
    const packs = yes("openWritable" in format && about.packs);
    const layers = about.layers === "" ? "–" : about.layers;
    return [
      name,
      "yes",
      writes,
      yes("create" in format),
      writes,
      writes,
      writes,
      packs,
      about.checks,
      layers,
    ];
  };
  const line = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
  return [
    "# Image formats",
    "",
    "`npm run formats` makes this page from the formats themselves. Discard frees what a writer no longer wants, reclaim",
    "what the guest freed; sub-block: free ranges inside blocks that stay come back too. Fixed, flat and raw images have",
    "no blocks to drop: theirs is punching. What each keeps, and why, stands in [BLOCKS.md](BLOCKS.md),",
    "[QCOW2.md](QCOW2.md) and [LIMITS.md](LIMITS.md).",
    "",
    line(COLUMNS),
    line(COLUMNS.map(() => "---")),
    ...FORMATS.map((format) => line(row(format))),
    "",
    "| format | kinds |",
    "| --- | --- |",
    ...FORMATS.map(({ name, about }) => line([name, about.kinds])),
    "",
  ].join("\n");
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) writeFileSync(FORMATS_PAGE, formatsPage());
