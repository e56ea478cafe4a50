/**
 * The words and numbers of the command line, checked: what nobody knows is a usage error (exit 2), never ignored.
 */
import { isIP } from "node:net";
import { type Command, InvalidArgumentError, Option } from "commander";
import type { Allow, Also, Method, OpenOptions, Proof } from "../disk.ts";
import type { Address } from "../serve.ts";
import { parseBytes } from "../bytes/sizes.ts";

export interface ReadFlags {
  readonly json?: boolean;
  readonly format?: string;
  readonly allow?: Allow;
  readonly offset?: number;
  readonly length?: number;
  readonly with?: readonly string[];
  /** What the files hold. */
  readonly keyFile?: readonly Uint8Array[];
  readonly luksHeader?: readonly string[];
  readonly askKey?: OpenOptions["askKey"];
}

export interface JudgeFlags extends ReadFlags {
  readonly proof?: Proof;
  readonly also?: readonly Also[];
  readonly method?: Method;
  readonly pack?: boolean;
  readonly minHole?: number;
}

export interface WriteFlags {
  readonly dryRun?: boolean;
  readonly yes?: boolean;
}

/** In words of its own: the command line must not wait until all formats are loaded. */
const ALSO: readonly Also[] = ["zeros", "gaps", "swap", "pagefile", "hiberfil"];

const ALLOW: Readonly<Record<string, keyof Omit<Allow, "outside">>> = {
  replay: "replay",
  children: "children",
  preallocated: "preallocated",
  "shadow-loss": "shadowLoss",
  discards: "discards",
  "untested-host": "untestedHost",
  guard: "guard",
};
const ALLOW_WORDS = [...Object.keys(ALLOW), "outside=DIR"];

export function parseAlso(value: string, before: readonly Also[] = []): readonly Also[] {
  const words = value.split(",").map((word) => {
    const known = ALSO.find((also) => also === word);
    if (known === undefined) throw new InvalidArgumentError(`"${word}" is not one of ${ALSO.join(", ")}.`);
    return known;
  });
  return [...new Set([...before, ...words])];
}

export function parseAllow(value: string, before: Allow = {}): Allow {
  return value.split(",").reduce<Allow>((allow, word) => {
    const directory = /^outside=(.+)$/s.exec(word)?.[1];
    if (directory !== undefined) return { ...allow, outside: [...(allow.outside ?? []), directory] };
    if (!Object.hasOwn(ALLOW, word)) {
      throw new InvalidArgumentError(`"${word}" is not one of ${ALLOW_WORDS.join(", ")}.`);
    }
    return { ...allow, [ALLOW[word]!]: true };
  }, before);
}

export function parsePaths(value: string, before: readonly string[] = []): readonly string[] {
  return [...before, value];
}

export function parseSize(value: string): number {
  const bytes = parseBytes(value);
  if (bytes === undefined) throw new InvalidArgumentError("Write bytes like 4096, 0x1000, 64K, 1M or 1.5G.");
  return bytes;
}

export function parseOffset(value: string, before: readonly number[] = []): readonly number[] {
  return [...before, parseSize(value)];
}

const SECTOR_BYTES = 512;

export function parseSector(value: string, before: readonly number[] = []): readonly number[] {
  const sector = /^\d+$/.test(value) ? Number(value) * SECTOR_BYTES : NaN;
  if (!Number.isSafeInteger(sector)) throw new InvalidArgumentError("Write the number of a 512-byte sector.");
  return [...before, sector];
}

/** `HOST:PORT`, `[::1]:10809`; a port alone is the loopback's. */
export function parseAddress(value: string): Address {
  const [, bracketed, plain, digits] = /^(?:(?:\[([^\]]+)\]|([^:]*)):)?(\d+)$/.exec(value) ?? [];
  const port = Number(digits);
  const isWrong = bracketed !== undefined && isIP(bracketed) !== 6;
  if (isWrong || !Number.isInteger(port) || port > 65_535) {
    throw new InvalidArgumentError("Write HOST:PORT, such as 127.0.0.1:10809 or [::1]:10809.");
  }
  return { host: bracketed ?? (plain || "127.0.0.1"), port };
}

const UNITS_MS: Readonly<Record<string, number>> = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** `90s`, `10m`, `24h`, `7d`, in milliseconds. */
export function parseDuration(value: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?)([smhd])$/.exec(value) ?? [];
  if (number === undefined) throw new InvalidArgumentError("Write a time like 90s, 10m, 24h or 7d.");
  return Number(number) * UNITS_MS[unit!]!;
}

/** `25%/10m`. */
export function parseShare(value: string): { readonly ofDisk: number; readonly withinMs: number } {
  const [, percent, time] = /^(\d+(?:\.\d+)?)%\/(\w+)$/.exec(value) ?? [];
  const ofDisk = Number(percent) / 100;
  if (time === undefined || !(ofDisk > 0 && ofDisk <= 1)) {
    throw new InvalidArgumentError("Write a share of the disk and a time, like 25%/10m.");
  }
  return { ofDisk, withinMs: parseDuration(time) };
}

export function parseCount(value: string): number {
  const count = /^\d+$/.test(value) ? Number(value) : 0;
  if (!Number.isSafeInteger(count) || count === 0) throw new InvalidArgumentError("Write a whole number.");
  return count;
}

/** `10:42`, `10:42:05` today or yesterday, or any time of ISO 8601. @returns milliseconds since 1970 */
export function parseMoment(value: string): number {
  const [, hours, minutes, seconds = "0"] = /^(\d{1,2}):(\d{2})(?::(\d{2}))?$/.exec(value) ?? [];
  const now = new Date();
  if (hours === undefined) {
    const time = /^\d{4}-\d{2}-\d{2}/.test(value) ? Date.parse(value) : NaN;
    if (!Number.isNaN(time)) return time;
  } else if (Number(hours) < 24 && Number(minutes) < 60 && Number(seconds) < 60) {
    const time = new Date(now);
    time.setHours(Number(hours), Number(minutes), Number(seconds), 0);
    if (time > now) time.setDate(time.getDate() - 1);
    return time.getTime();
  }
  throw new InvalidArgumentError("Write a time like 10:42, 10:42:05 or 2026-11-26T10:42.");
}

/** `-o cluster_size=64K,compat=1.1`, repeated. */
export function parseKeyValues(
  value: string,
  before: Readonly<Record<string, string>> = {},
): Readonly<Record<string, string>> {
  const pairs = value.split(",").map((pair) => {
    const equals = pair.indexOf("=");
    if (equals < 1) throw new InvalidArgumentError(`"${pair}" is not KEY=VALUE.`);
    return [pair.slice(0, equals), pair.slice(equals + 1)] as const;
  });
  return { ...before, ...Object.fromEntries(pairs) };
}

/** @param format what `--format` means to the command */
export function addReadOptions(
  command: Command,
  format = "take the image for this format instead of looking at its content",
): Command {
  return command
    .option("--format <format>", format)
    .option(
      "--with <image>",
      "another disk of the same guest, to complete volumes on several disks",
      parsePaths,
    )
    .option("--allow <words>", `lift a named refusal: ${ALLOW_WORDS.join(", ")}`, parseAllow)
    .option("--json", "one JSON document on stdout, and nothing else there");
}

/** For commands that look at a disk, or change one. */
export function addWindowOptions(command: Command): Command {
  return command
    .option("--offset <bytes>", "the disk is raw, and begins here in the file", parseSize)
    .option("--length <bytes>", "the disk is raw, and so long; default: to the end of the file", parseSize);
}

export function addProofOption(command: Command): Command {
  return command.addOption(
    new Option(
      "--proof <proof>",
      "what must say that a block is free: full = bitmaps and inode walk",
    ).choices(["full", "bitmap"]),
  );
}

export function addAlsoOption(command: Command): Command {
  return command.option("--also <words>", `count as free as well: ${ALSO.join(", ")}`, parseAlso);
}

export function addJudgeOptions(command: Command): Command {
  return addAlsoOption(addProofOption(command))
    .addOption(new Option("--method <method>", "how space comes back").choices(["auto", "punch", "pack"]))
    .addOption(new Option("--pack", "short for --method pack").conflicts("method"))
    .option("--min-hole <bytes>", "leave holes smaller than this", parseSize);
}

export function addWriteOptions(command: Command): Command {
  return command
    .option("--dry-run", "show what would be done, and change nothing")
    .option("-y, --yes", "do not ask");
}

/**
 * Options of the library from the flags that read.
 * @param others images of the same call: they may be disks of the same guest (H36)
 */
export function openOptions(flags: ReadFlags, others: readonly string[] = []): OpenOptions {
  const { format, allow, offset, length, keyFile: keys, luksHeader: luksHeaders, askKey } = flags;
  const companions = flags.with ?? [];
  const isPart = offset !== undefined || length !== undefined;
  return {
    ...(format === undefined ? {} : { format }),
    ...(allow === undefined ? {} : { allow }),
    ...(companions.length === 0 ? {} : { companions }),
    ...(others.length === 0 ? {} : { candidates: others }),
    ...(isPart ? { window: { offset: offset ?? 0, bytes: length } } : {}),
    ...(keys && { keys }),
    ...(askKey && { askKey }),
    ...(luksHeaders && { luksHeaders }),
  };
}

/** Options of the library from the flags that judge. */
export function surveyOptions(
  flags: JudgeFlags,
  others: readonly string[] = [],
): ReturnType<typeof openOptions> & {
  proof?: Proof;
  also?: readonly Also[];
  method?: Method;
  minHoleBytes?: number;
} {
  const method = flags.pack === true ? "pack" : flags.method;
  return {
    ...openOptions(flags, others),
    ...(flags.proof === undefined ? {} : { proof: flags.proof }),
    ...(flags.also === undefined ? {} : { also: flags.also }),
    ...(method === undefined ? {} : { method }),
    ...(flags.minHole === undefined ? {} : { minHoleBytes: flags.minHole }),
  };
}
