/**
 * `ullage convert IMAGE DESTINATION`: copies what the guest uses into a new image.
 */
import type { Converted, Proof } from "../disk.ts";
import { DiskError } from "../error.ts";
import { batch } from "./batch.ts";
import { openOptions, type ReadFlags } from "./options.ts";
import { amounts, type ProgressView, showing } from "./progress.ts";
import { duration, size } from "../bytes/sizes.ts";
import { notes } from "./survey.ts";
import { type Face, interruptible } from "./terminal.ts";
import { padEnd, printable, type Screen, wrap } from "./text.ts";

export interface ConvertFlags extends ReadFlags {
  readonly to?: string;
  readonly subformat?: string;
  readonly o?: Readonly<Record<string, string>>;
  readonly proof?: Proof;
  readonly includeFree?: boolean;
  readonly keepChain?: boolean;
  readonly force?: boolean;
  readonly verify?: boolean;
}

export async function run(
  path: string,
  destination: string,
  flags: ConvertFlags,
  face: Face,
): Promise<number> {
  const { convert } = await import("../disk.ts");
  using interruption = interruptible(face);
  const startedAt = performance.now();
  return await batch([path], face, {
    run: () =>
      showing(face, howFar, (progress) =>
        convert(path, destination, {
          ...openOptions(flags),
          ...(flags.to === undefined ? {} : { to: flags.to }),
          ...(flags.proof === undefined ? {} : { proof: flags.proof }),
          options: { ...flags.o, ...(flags.subformat === undefined ? {} : { subformat: flags.subformat }) },
          includeFree: flags.includeFree === true,
          keepChain: flags.keepChain === true,
          force: flags.force === true,
          verify: flags.verify === true,
          signal: interruption.signal,
          onProgress: progress.update,
        }),
      ),
    render: (result) => render(result, (performance.now() - startedAt) / 1000, face.screen),
    json: (result) => result,
  });
}

function howFar({ last }: ProgressView): DiskError {
  const far =
    last?.phase === "copying" ? `${amounts(last)} were copied, and are removed` : "nothing was made";
  return new DiskError("interrupted", `stopped: ${far}`, {
    hint: "the destination is as it was; the same command starts anew",
  });
}

export function render(result: Converted, seconds: number, screen: Screen): string {
  const stored = result.hostBytes === null ? "" : `, ${size(result.hostBytes)} on disk`;
  const shared = result.sharedBytes === 0 ? "" : `, ${size(result.sharedBytes)} shared with the source`;
  const rows = [
    [
      "copied",
      `${size(result.copiedBytes)} of ${size(result.virtualBytes)} in ${duration(seconds)}${shared}`,
    ],
    [result.format, `${size(result.fileBytes)} long${stored}`],
    ["compared", result.verified === true ? "every byte is the same" : "no; --verify reads both again"],
  ] as const;
  const width = Math.max(...rows.map(([label]) => label.length));
  return [
    ...wrap(
      "",
      `${printable(result.path, screen)} -> ${printable(result.destination, screen)}`,
      screen.columns,
    ),
    ...rows.flatMap(([label, text]) => wrap(` ${padEnd(label, width)}  `, text, screen.columns)),
    ...notes("note", result.notes, screen),
  ].join("\n");
}
