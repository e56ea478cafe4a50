/**
 * `ullage top SOCKET`: live counters of a served disk.
 */
import { existsSync } from "node:fs";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { size } from "../bytes/sizes.ts";
import { DiskError } from "../error.ts";
import type { Face } from "./terminal.ts";
import { notes } from "./survey.ts";
import { type Column, padEnd, printable, type Screen, table } from "./text.ts";

export interface TopFlags {
  readonly once?: boolean;
  readonly json?: boolean;
  readonly interval?: number;
}

interface Counted {
  readonly requests: number;
  readonly bytes: number;
  readonly errors: number;
}

interface ExportCounters extends Readonly<Record<(typeof SHOWN)[number], Counted>> {
  readonly name: string;
  readonly format: string;
  readonly virtualBytes: number;
  readonly hostBytes: number | null;
  readonly connections: number;
  readonly returnedBytes: number;
  readonly guardedBytes: number;
  readonly erase:
    | (Readonly<Record<"overwrittenBytes" | "waitingBytes" | "sharedBytes" | "compressedBytes", number>> & {
        readonly grade: string;
        readonly reasons: readonly string[];
      })
    | null;
  readonly latency: { readonly p50: number; readonly p99: number };
  readonly alarms: readonly { readonly at: number; readonly code: string; readonly message: string }[];
}

interface Counters {
  readonly pid: number;
  readonly connections: number;
  readonly memoryBytes: number;
  readonly exports: readonly ExportCounters[];
}

const SHOWN = ["read", "write", "trim", "zero", "flush"] as const;
const COLUMNS: readonly Column[] = [
  { title: "" },
  { title: "REQUESTS", align: "right" },
  { title: "BYTES", align: "right" },
  { title: "RATE", align: "right" },
  { title: "", align: "right" },
  { title: "" },
];
const INTERVAL_MS = 1000;
const ANSWER_MS = 10_000;
const ANSWER_LENGTH_MAX = 16 * 1024 * 1024;

/** What of an answer is shown: whoever listens there need not be a server of ours. */
type Shape = "number" | "string" | readonly [Shape] | { readonly [name: string]: Shape };

const COUNTED: Shape = { requests: "number", bytes: "number", errors: "number" };
const ANSWER: Shape = {
  pid: "number",
  connections: "number",
  memoryBytes: "number",
  exports: [
    {
      name: "string",
      format: "string",
      virtualBytes: "number",
      returnedBytes: "number",
      guardedBytes: "number",
      latency: { p50: "number", p99: "number" },
      alarms: [{ at: "number", message: "string" }],
      ...Object.fromEntries(SHOWN.map((kind) => [kind, COUNTED])),
    },
  ],
};
const ERASE: Shape = {
  overwrittenBytes: "number",
  waitingBytes: "number",
  sharedBytes: "number",
  compressedBytes: "number",
  grade: "string",
  reasons: ["string"],
};

export async function run(socket: string, flags: TopFlags, face: Face): Promise<number> {
  // Who names the disk's own socket means the one beside it.
  const path = existsSync(`${socket}.control`) ? `${socket}.control` : socket;
  let before: Counters | undefined;
  for (;;) {
    const now = await ask(path);
    if (face.json) face.out(JSON.stringify({ schema: 1, ...now }));
    else {
      const clear = face.interactive && flags.once !== true ? "\u001b[H\u001b[2J" : "";
      face.out(`${clear}${render(now, before, flags.interval ?? INTERVAL_MS, face.screen)}`);
    }
    if (flags.once === true) return 0;
    before = now;
    await sleep(flags.interval ?? INTERVAL_MS);
  }
}

/** @throws DiskError `io` when nobody answers there */
async function ask(path: string): Promise<Counters> {
  const text = await new Promise<string>((resolve, reject) => {
    const socket = connect(path, () => socket.write("counters\n"));
    let answer = "";
    socket.setEncoding("utf8").on("data", (chunk: string) => {
      answer += chunk;
      if (answer.length > ANSWER_LENGTH_MAX) socket.destroy(new Error("an answer without end"));
      if (answer.endsWith("\n")) socket.end(() => resolve(answer));
    });
    socket.setTimeout(ANSWER_MS, () => socket.destroy(new Error("no answer")));
    socket.on("error", (error) => reject(notServed(path, error)));
    socket.on("close", () => reject(notServed(path, undefined)));
  });
  const answer = parsed(text);
  if (!isCounters(answer)) throw notServed(path, undefined);
  return answer;
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function isCounters(answer: unknown): answer is Counters {
  if (!fits(answer, ANSWER)) return false;
  return (answer as Counters).exports.every(
    ({ hostBytes, erase }) =>
      (hostBytes === null || fits(hostBytes, "number")) && (erase === null || fits(erase, ERASE)),
  );
}

function fits(value: unknown, shape: Shape): boolean {
  if (typeof shape === "string") return typeof value === shape;
  if (typeof value !== "object" || value === null) return false;
  if (isList(shape)) return Array.isArray(value) && value.every((each) => fits(each, shape[0]));
  return Object.entries(shape).every(([name, each]) => fits(Reflect.get(value, name), each));
}

function isList(shape: Shape): shape is readonly [Shape] {
  return Array.isArray(shape);
}

function notServed(path: string, cause: unknown): DiskError {
  return new DiskError("io", `${path}: no server answers there`, {
    code: "not-found",
    hint: "name the socket of a running ullage serve",
    cause,
  });
}

function render(now: Counters, before: Counters | undefined, interval: number, screen: Screen): string {
  const head = `server ${now.pid}   ${now.connections} connections, ${size(now.memoryBytes)} memory`;
  return [
    head,
    ...now.exports.flatMap((each, i) => ["", ...rows(each, before?.exports[i], interval, screen)]),
  ].join("\n");
}

function rows(
  now: ExportCounters,
  before: ExportCounters | undefined,
  interval: number,
  screen: Screen,
): string[] {
  const { hostBytes, latency } = now;
  const onDisk = hostBytes === null ? "" : `, ${size(hostBytes)} on disk`;
  const perSecond = (kind: (typeof SHOWN)[number], what: keyof Counted): number =>
    before === undefined ? 0 : ((now[kind][what] - before[kind][what]) * 1000) / interval;
  const cells = SHOWN.map((kind) => [
    kind,
    `${now[kind].requests}`,
    size(now[kind].bytes),
    before === undefined ? "" : `${Math.round(perSecond(kind, "requests"))}/s`,
    before === undefined ? "" : `${size(perSecond(kind, "bytes"))}/s`,
    now[kind].errors === 0 ? "" : `${now[kind].errors} errors`,
  ]);
  return [
    `${printable(now.name, screen)}   ${printable(now.format, screen)}, ${size(now.virtualBytes)}${onDisk}`,
    ...table(COLUMNS, cells),
    `${padEnd("latency", 10)}half below ${latency.p50} us, 99 % below ${latency.p99} us`,
    `${padEnd("returned", 10)}${size(now.returnedBytes)}`,
    ...(now.guardedBytes > 0 ? [`${padEnd("guarded", 10)}${size(now.guardedBytes)}`] : []),
    ...erased(now.erase, screen),
    ...now.alarms.slice(-5).map(({ at, message }) => `ALARM     ${clock(at)} ${printable(message, screen)}`),
  ];
}

function erased(erase: ExportCounters["erase"], screen: Screen): string[] {
  if (erase === null) return [];
  const { overwrittenBytes, waitingBytes, sharedBytes, compressedBytes, grade, reasons } = erase;
  const spared = sharedBytes + compressedBytes;
  const left = spared > 0 ? `, ${size(spared)} shared or compressed and not erased` : "";
  const figures = `${size(overwrittenBytes)}, ${size(waitingBytes)} waiting${left}; grade "${printable(grade, screen)}"`;
  return [`${padEnd("erased", 10)}${figures}`, ...notes("note", reasons, screen)];
}

function clock(at: number): string {
  const date = new Date(at);
  return Number.isNaN(date.getTime()) ? "at no time" : date.toISOString().slice(11, 19);
}
