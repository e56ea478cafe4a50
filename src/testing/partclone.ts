/** partclone as a judge: its map of a filesystem, as it writes it for ddrescue. */
import { readFileSync } from "node:fs";
import { ExtentBuilder, type ExtentSet } from "../bytes/extents.ts";
import { run } from "./tools.ts";

/** What `partclone.NAME` calls unused, in bytes. */
export function partcloneFree(name: string, image: string): ExtentSet {
  const map = `${image}.map`;
  const log = `${image}.log`;
  run(`partclone.${name}`, ["--domain", "--source", image, "--overwrite", map, "--logfile", log]);
  const free = new ExtentBuilder();
  const lines = readFileSync(map, "utf8").matchAll(/^(0x[0-9A-F]+) +(0x[0-9A-F]+) +\?$/gm);
  for (const [, start, bytes] of lines) free.add(Number(start), Number(start) + Number(bytes));
  return free.build();
}
