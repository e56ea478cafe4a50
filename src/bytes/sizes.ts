/**
 * Byte counts for people: read from the command line, and shown in KiB, MiB and GiB.
 */

const UNITS = [
  { name: "GiB", bytes: 2 ** 30 },
  { name: "MiB", bytes: 2 ** 20 },
  { name: "KiB", bytes: 2 ** 10 },
  { name: "bytes", bytes: 1 },
] as const;
export type Unit = (typeof UNITS)[number];

/** The largest unit of which `bytes` holds at least one. */
export function unitOf(bytes: number): Unit {
  return UNITS.find((unit) => bytes >= unit.bytes) ?? UNITS[3];
}

/** The figure alone: `12.3`. */
export function figure(bytes: number, unit: Unit): string {
  return grouped(bytes / unit.bytes, unit.bytes === 1 ? 0 : 1);
}

/** Figures for one line that names `unit` elsewhere; where one would round to nothing, all name their own. */
export function figures(amounts: readonly number[], unit: Unit): string[] {
  const own = amounts.some((bytes) => roundsToNothing(bytes, unit));
  return amounts.map((bytes) => (own ? size(bytes) : figure(bytes, unit)));
}

/** `12.3 GiB`, in this unit even where another would be shorter: for columns of a table. */
export function sizeIn(bytes: number, unit: Unit): string {
  return roundsToNothing(bytes, unit) ? size(bytes) : `${figure(bytes, unit)} ${unit.name}`;
}

/** `12.3 GiB`; whole numbers of a unit lose their `.0`. */
export function size(bytes: number): string {
  const unit = unitOf(bytes);
  const decimals = bytes % unit.bytes === 0 ? 0 : 1;
  return `${grouped(bytes / unit.bytes, decimals)} ${unit.name}`;
}

function roundsToNothing(bytes: number, unit: Unit): boolean {
  return bytes > 0 && unit.bytes > 1 && bytes < unit.bytes / 20;
}

/** `1,234,567.8`. Not by `toLocaleString`: that loads 70 ms of locales. */
export function grouped(value: number, decimals = 0): string {
  return value.toFixed(decimals).replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

const FACTORS: Readonly<Record<string, number>> = { "": 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 };

/** `4096`, `0x1000`, `64K`, `4KiB`, `1.5G`; undefined for anything else, also past 2^53 - 1. */
export function parseBytes(text: string): number | undefined {
  const hexadecimal = /^0x[0-9a-f]{1,14}$/i.test(text);
  const match = /^(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?$/i.exec(text);
  if (!hexadecimal && match === null) return undefined;
  const bytes = hexadecimal ? Number(text) : Number(match![1]) * FACTORS[match![2]!.toLowerCase()]!;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** `9 s`, `3 min`, `2 h` */
export function duration(seconds: number): string {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}
