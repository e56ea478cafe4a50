/**
 * `ullage info IMAGE...` describes an image; `ullage create IMAGE BYTES` makes one.
 */
import type { Info } from "../disk.ts";
import { batch, type Work } from "./batch.ts";
import { openOptions, type ReadFlags } from "./options.ts";
import { size } from "../bytes/sizes.ts";
import type { Face } from "./terminal.ts";
import { padEnd, printable, type Screen, table, wrap } from "./text.ts";

export interface CreateFlags extends ReadFlags {
  readonly o?: Readonly<Record<string, string>>;
}

export async function runInfo(paths: readonly string[], flags: ReadFlags, face: Face): Promise<number> {
  const { info } = await import("../disk.ts");
  return batch(
    paths,
    face,
    described((path) => info(path, openOptions(flags, paths)), face),
  );
}

export async function runCreate(
  path: string,
  bytes: number,
  flags: CreateFlags,
  face: Face,
): Promise<number> {
  const { create } = await import("../disk.ts");
  const request = { format: "qcow2", ...openOptions(flags), virtualBytes: bytes };
  const options = flags.o === undefined ? {} : { options: flags.o };
  return batch(
    [path],
    face,
    described((name) => create({ ...request, ...options, path: name }), face),
  );
}

function described(run: (path: string) => Promise<Info>, face: Face): Work<Info> {
  return { run, render: (result) => render(result, face.screen), json: (result) => result };
}

export function render(info: Info, screen: Screen): string {
  const safe = (text: string): string => printable(text, screen);
  const host = info.hostBytes === null ? "" : `, ${size(info.hostBytes)} on disk`;
  const state = [info.inUse ? "in use" : "not in use", info.encrypted ? "encrypted" : ""].filter(Boolean);
  const facts: (readonly [string, string])[] = [
    ["guest sees", `${size(info.virtualBytes)} (${info.virtualBytes} bytes)`],
    ["file size", `${size(info.fileBytes)}${host}`],
    ["grain", `${size(info.grainBytes)}: what the mapping table can drop at once`],
    ...info.references.map(
      ({ role, name, format }) =>
        [role, `${safe(name)}${format === null ? "" : ` (${safe(format)})`}`] as const,
    ),
    ...Object.entries(info.details).map(([name, value]) => [safe(name), safe(String(value))] as const),
  ];
  const width = Math.max(...facts.map(([name]) => name.length));
  const lines = [
    `${safe(info.path)}   ${safe(info.format)}, ${state.join(", ")}`,
    "",
    ...facts.flatMap(([name, value]) => wrap(` ${padEnd(name, width)}  `, value, screen.columns)),
  ];
  if (info.snapshots.length > 0) {
    const rows = info.snapshots.map(({ id, name, bytes, stateBytes }) => [
      safe(id),
      size(bytes),
      stateBytes === 0 ? "" : size(stateBytes),
      safe(name),
    ]);
    const columns = [
      { title: "SNAPSHOT" },
      { title: "DISK", align: "right" },
      { title: "STATE", align: "right" },
      { title: "NAME" },
    ] as const;
    lines.push("", ...table(columns, rows));
  }
  if (info.volumes.length > 0) {
    const rows = info.volumes.map(({ name, label, start, bytes, filesystem }) => [
      safe(name === "" ? "whole disk" : name),
      String(start),
      size(bytes),
      safe(filesystem ?? "-"),
      safe(label),
    ]);
    const columns = [
      { title: "VOLUME" },
      { title: "START", align: "right" },
      { title: "SIZE", align: "right" },
      { title: "FILESYSTEM" },
      { title: "LABEL" },
    ] as const;
    lines.push("", ...table(columns, rows));
  }
  return lines.join("\n");
}
