/**
 * A served disk: fio's nbd engine against ullage, nbdkit and qemu-nbd in turns, the page cache warm. Each has a copy of the
 * same disk; figures are medians of the turns, ratios are made within a turn.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { installed, must } from "./measure.ts";
import { directory, goal, MIB, ROOT, say } from "./report.ts";

const DISK_BYTES = 1024 * MIB;
const TURNS = 3;
const SECONDS = 1.5;

interface Server {
  readonly name: string;
  readonly format: "raw" | "qcow2";
  /** Command line, given image and socket. */
  command(image: string, socket: string): readonly string[];
}

const ULLAGE = path.join(ROOT, "dist", "cli", "main.js");
const ullage = (format: "raw" | "qcow2"): Server => ({
  name: "ullage",
  format,
  command: (image, socket) => [
    process.execPath,
    ULLAGE,
    "serve",
    image,
    "--socket",
    socket,
    "--format",
    format,
  ],
});
const nbdkit = (name: string, ...flags: string[]): Server => ({
  name,
  format: "raw",
  command: (image, socket) => ["nbdkit", "-f", ...flags, "-U", socket, "file", image],
});
const qemu = (format: "raw" | "qcow2"): Server => ({
  name: "qemu-nbd",
  format,
  command: (image, socket) => [
    "qemu-nbd",
    "--persistent",
    "--shared=8",
    "--cache=writeback",
    "--discard=unmap",
    `--format=${format}`,
    `--socket=${socket}`,
    image,
  ],
});

const RAW = [ullage("raw"), nbdkit("nbdkit"), nbdkit("nbdkit -t 1", "-t", "1"), qemu("raw")];
const QCOW2 = [ullage("qcow2"), qemu("qcow2")];

interface Load {
  readonly name: string;
  readonly fio: readonly string[];
  /** Which of fio's figures: requests or bytes a second. */
  readonly unit: "k/s" | "MiB/s";
  readonly kind: "read" | "write" | "trim";
  /** At least so many times as fast as nbdkit. */
  readonly goal: number;
}

const load = (name: string, rw: string, bs: string, depth: number, goalRatio: number): Load => ({
  name,
  fio: [`--rw=${rw}`, `--bs=${bs}`, `--iodepth=${depth}`],
  unit: bs === "1m" ? "MiB/s" : "k/s",
  kind: rw.includes("read") ? "read" : rw.includes("trim") ? "trim" : "write",
  goal: goalRatio,
});

const LOADS: readonly Load[] = [
  load("4 KiB random read, depth 1", "randread", "4k", 1, 1.2),
  load("4 KiB random read, depth 32", "randread", "4k", 32, 1.2),
  load("4 KiB random write, depth 1", "randwrite", "4k", 1, 1.2),
  load("4 KiB random write, depth 32", "randwrite", "4k", 32, 1.2),
  load("64 KiB random read, depth 8", "randread", "64k", 8, 1.2),
  load("64 KiB random write, depth 8", "randwrite", "64k", 8, 1.2),
  load("1 MiB sequential read, depth 8", "read", "1m", 8, 1.2),
  load("1 MiB sequential write, depth 8", "write", "1m", 8, 1),
  load("64 KiB TRIM, depth 8", "randtrim", "64k", 8, 1.2),
];

/** Peak memory of a server in bytes, by name. */
const memory = new Map<string, number>();

export async function nbdSection(): Promise<void> {
  mkdirSync(directory, { recursive: true });
  const noise = path.join(directory, "nbd-noise.raw");
  if (!existsSync(noise)) {
    must("dd", ["if=/dev/urandom", `of=${noise}`, "bs=1M", `count=${DISK_BYTES / MIB}`, "status=none"]);
  }
  say("\n## A served disk: fio's nbd engine, raw, 1 GiB, page cache warm\n");
  await compare(RAW, noise, (turn, { goal: least }) => {
    const kit = Math.max(turn.get("nbdkit") ?? 0, turn.get("nbdkit -t 1") ?? 0);
    return [
      { peer: "nbdkit, the better one", ratio: turn.get("ullage")! / kit, least },
      { peer: "qemu-nbd", ratio: turn.get("ullage")! / (turn.get("qemu-nbd") ?? 0), least: 2 },
    ];
  });
  say("\n## A served disk: qcow2, all clusters allocated\n");
  await compare(QCOW2, noise, (turn) => [
    { peer: "qemu-nbd", ratio: turn.get("ullage")! / (turn.get("qemu-nbd") ?? 0), least: 1.5 },
  ]);
  await statusTable();
  goal("peak memory of ullage serve", memory.get("ullage")! / MIB, { atMost: 150 }, "MiB");
}

type Figures = ReadonlyMap<string, number>;
type Judge = (turn: Figures, load: Load) => { peer: string; ratio: number; least: number }[];

async function compare(all: readonly Server[], noise: string, judge: Judge): Promise<void> {
  const servers = all.filter(({ name }) => name === "ullage" || installed(name.split(" ")[0]!));
  say(`| | ${servers.map(({ name }) => name).join(" | ")} | against |`);
  say(`|---|${servers.map(() => "---|").join("")}---|`);
  const images = new Map(servers.map((server) => [server, imageFor(server, noise)]));
  for (const each of LOADS) {
    const turns: Figures[] = [];
    for (let i = 0; i < TURNS; i++) {
      const turn = new Map<string, number>();
      for (const server of servers) turn.set(server.name, await measured(server, images.get(server)!, each));
      turns.push(turn);
    }
    const shown = servers.map(({ name }) => middle(turns.map((turn) => turn.get(name)!)).toFixed(1));
    const verdicts = turns.map((turn) => judge(turn, each));
    const ratios = verdicts[0]!.map(({ peer, least }, i) => {
      const ratio = middle(verdicts.map((verdict) => verdict[i]!.ratio));
      goal(`${servers[0]!.format}, ${each.name}, against ${peer}`, ratio, { atLeast: least }, "×");
      return `${ratio.toFixed(2)} × ${peer}`;
    });
    say(`| ${each.name}, ${each.unit} | ${shown.join(" | ")} | ${ratios.join("; ")} |`);
  }
  for (const image of images.values()) rmSync(image);
}

function middle(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
}

function imageFor({ name, format }: Server, noise: string): string {
  const image = path.join(directory, `nbd-${name.replaceAll(" ", "")}.${format}`);
  rmSync(image, { force: true });
  must("qemu-img", ["convert", "-f", "raw", "-O", format, noise, image]);
  must("sync", ["-f", image]);
  return image;
}

/** One run of fio against a server of its own. */
async function measured(server: Server, image: string, { fio, kind, unit }: Load): Promise<number> {
  // Every run finds the disk's pages in memory and none of them waiting to be written.
  must("sync", ["-f", image]);
  must("dd", [`if=${image}`, "of=/dev/null", "bs=4M", "status=none"]);
  return await serving(server, image, (socket) => {
    const target = [`--uri=nbd+unix:///?socket=${socket}`, `--size=${DISK_BYTES}`];
    const time = ["--time_based", `--runtime=${SECONDS * 1000}ms`, "--ramp_time=0.5"];
    const out = must("fio", [
      "--name=x",
      "--ioengine=nbd",
      "--output-format=json",
      ...target,
      ...time,
      ...fio,
    ]);
    const { jobs } = JSON.parse(out.slice(out.indexOf("{"))) as { jobs: Record<string, Figure>[] };
    const { iops, bw } = jobs[0]![kind]!;
    return unit === "MiB/s" ? bw / 1024 : iops / 1000;
  });
}

interface Figure {
  readonly iops: number;
  /** KiB a second. */
  readonly bw: number;
}

async function serving<T>(server: Server, image: string, work: (socket: string) => T): Promise<T> {
  const socket = path.join(directory, "nbd.sock");
  rmSync(socket, { force: true });
  const [command, ...args] = server.command(image, socket);
  const child = spawn(command!, args, { stdio: "ignore" });
  try {
    while (!existsSync(socket)) await sleep(20);
    await sleep(200);
    return work(socket);
  } finally {
    note(server.name, child);
    child.kill();
    await new Promise((resolve) => child.on("close", resolve));
  }
}

function note(name: string, { pid }: ChildProcess): void {
  const [, kibibytes] = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
  memory.set(name, Math.max(memory.get(name) ?? 0, Number(kibibytes) * 1024));
}

const EXTENTS = 131_072;

/** A raw disk of alternating blocks and holes: what BLOCK_STATUS costs. */
async function statusTable(): Promise<void> {
  if (!installed("nbdinfo")) return;
  const holed = path.join(directory, "nbd-holed.raw");
  must("node", ["-e", HOLED, holed, String(EXTENTS)]);
  say(`\n## BLOCK_STATUS of a raw disk of ${EXTENTS} extents: nbdinfo --map\n`);
  say("| | time | against ullage |");
  say("|---|---|---|");
  const times = new Map<string, number>();
  for (const server of RAW.filter(({ name }) => name === "ullage" || installed(name.split(" ")[0]!))) {
    const runs: number[] = [];
    for (let i = 0; i < TURNS; i++) {
      const took = await serving(server, holed, (socket) => {
        const start = performance.now();
        must("nbdinfo", ["--map", `nbd+unix:///?socket=${socket}`]);
        return performance.now() - start;
      });
      runs.push(took);
    }
    times.set(server.name, middle(runs));
    const ratio = middle(runs) / times.get("ullage")!;
    say(`| ${server.name} | ${middle(runs).toFixed(0)} ms | ${ratio.toFixed(1)} × |`);
  }
  rmSync(holed);
  const against = (name: string): number => (times.get(name) ?? NaN) / times.get("ullage")!;
  goal("BLOCK_STATUS, raw, against nbdkit", against("nbdkit"), { atLeast: 1.2 }, "×");
  goal("BLOCK_STATUS, raw, against qemu-nbd", against("qemu-nbd"), { atLeast: 2 }, "×");
}

/** Every second block of 4 KiB is written. */
const HOLED = `
const fs = require("node:fs");
const [path, count] = process.argv.slice(1);
const fd = fs.openSync(path, "w");
const block = Buffer.alloc(4096, 1);
for (let i = 0; i < count; i += 2) fs.writeSync(fd, block, 0, 4096, i * 4096);
fs.ftruncateSync(fd, count * 4096);
fs.fsyncSync(fd);
`;
