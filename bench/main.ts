/**
 * npm run bench [-- SECTION…]: side by side with the peers that are installed, in one run, as ratios. Sections: survey,
 * reclaim, qcow2, holes, memory; all by default. Needs root for loop mounts, about 60 GiB of scratch space in
 * BENCH_DIR (default: ullage-bench in the temporary directory) and a quiet machine. When every section ran, the
 * tables replace docs/BENCHMARKS.md.
 */
import { rmSync, statSync, writeFileSync } from "node:fs";
import { cpus, tmpdir, totalmem } from "node:os";
import path from "node:path";
import { agedQcow2, agedRaw, holedRaw, sparseRaw } from "./disks.ts";
import { record } from "./floor.ts";
import { guestReadSeconds } from "./guest-read.ts";
import { installed, median, must, type Run, timed } from "./measure.ts";

const MIB = 2 ** 20;
const RUNS = 5;
const directory = process.env["BENCH_DIR"] ?? path.join(tmpdir(), "ullage-bench");
const ROOT = path.join(import.meta.dirname, "..");
/** What is published, not the sources. */
const ULLAGE = path.join(ROOT, "dist", "cli", "main.js");
const FLOOR = path.join(import.meta.dirname, "floor.ts");
const lines: string[] = [];

function say(line: string): void {
  lines.push(line);
  process.stdout.write(`${line}\n`);
}

const ullage = (...args: string[]): Run => timed(process.execPath, [ULLAGE, ...args]);

/** A fresh copy with its holes, on stable storage, so that no run pays for another's writes. */
function fresh(from: string): string {
  const to = path.join(directory, `run-${path.basename(from)}`);
  rmSync(to, { force: true });
  must("cp", ["--sparse=always", from, to]);
  must("sync", ["-f", to]);
  return to;
}

const hostBytes = (file: string): number => statSync(file).blocks * 512;

function head(title: string): void {
  say(`\n## ${title}\n`);
  say("| | time | against ullage | peak memory |");
  say("|---|---|---|---|");
}

function row(what: string, run: Run, against?: Run): void {
  const ratio = against ? `${(run.seconds / against.seconds).toFixed(1)} ×` : "";
  say(`| ${what} | ${run.seconds.toFixed(2)} s | ${ratio} | ${(run.peakBytes / MIB).toFixed(0)} MiB |`);
}

function peer(tool: string, what: string, against: Run, run: () => Run): void {
  if (installed(tool)) row(what, run(), against);
  else say(`| ${what} | not installed | | |`);
}

/** Without KVM, which not every machine has. */
const environment = { LIBGUESTFS_BACKEND: "direct", LIBGUESTFS_BACKEND_SETTINGS: "force_tcg" };
const sparsify = (file: string) => timed("virt-sparsify", ["--in-place", file], environment);

function surveySection(): void {
  const disk = agedRaw(directory);
  head("Survey of the aged 20 GiB disk, page cache warm");
  const raw = median(Array.from({ length: RUNS }, () => ullage("survey", "--json", disk)));
  row("ullage survey, raw", raw);
  const qcow2 = median(Array.from({ length: RUNS }, () => ullage("survey", "--json", agedQcow2(directory))));
  row("ullage survey, qcow2", qcow2, raw);
  peer("dumpe2fs", "dumpe2fs (bitmaps only)", raw, () =>
    median(Array.from({ length: RUNS }, () => timed("dumpe2fs", [disk]))),
  );
  peer("virt-sparsify", "virt-sparsify --in-place, the whole run", raw, () => sparsify(fresh(disk)));
}

/** @returns what ullage needed */
function reclaimRuns(disk: string): { run: Run; left: number } {
  let left = 0;
  const runs = [1, 2, 3].map(() => {
    const copy = fresh(disk);
    const run = ullage("reclaim", "--yes", "--proof", "full", "--json", copy);
    const report = JSON.parse(ullage("survey", "--json", copy).stdout).images[0];
    left = report.hostBytes - report.usedBytes - report.tableBytes;
    return run;
  });
  return { run: median(runs), left };
}

function sayLeft(left: number, disk: string): void {
  const { virtualBytes } = JSON.parse(ullage("info", "--json", disk).stdout).images[0];
  const share = ((100 * left) / virtualBytes).toFixed(3);
  say(
    `\nLeft over (host bytes less what the guest uses and the image's tables): ${left} bytes, ${share} % of the disk.`,
  );
}

async function reclaimSection(): Promise<void> {
  const disk = agedRaw(directory);
  head("Reclaim of the aged 20 GiB disk, raw, --proof full");
  const { run, left } = reclaimRuns(disk);
  row("ullage reclaim", run);
  const recording = path.join(directory, "floor.json");
  await record(disk, recording);
  const floor = median(
    [1, 2, 3].map(() => timed(process.execPath, [FLOOR, "replay", fresh(disk), recording])),
  );
  row("floor: the same reads, checksums and punches from a finished plan", floor, run);
  peer("virt-sparsify", "virt-sparsify --in-place", run, () => sparsify(fresh(disk)));
  peer("zerofree", "zerofree (zeroes only; returns nothing by itself)", run, () =>
    timed("zerofree", [fresh(disk)]),
  );
  const copy = path.join(directory, "copy.raw");
  peer("e2image", "e2image -ra (a copy)", run, () => {
    rmSync(copy, { force: true });
    return timed("e2image", ["-ra", disk, copy]);
  });
  peer("qemu-img", "qemu-img convert -O raw (a copy; frees only zeros)", run, () =>
    timed("qemu-img", ["convert", "-f", "raw", "-O", "raw", disk, copy]),
  );
  rmSync(copy, { force: true });
  sayLeft(left, disk);
}

function qcow2Section(): void {
  const disk = agedQcow2(directory);
  head("Reclaim of the aged 20 GiB disk, qcow2, --proof full");
  const { run, left } = reclaimRuns(disk);
  row("ullage reclaim", run);
  peer("virt-sparsify", "virt-sparsify --in-place", run, () => sparsify(fresh(disk)));
  sayLeft(left, disk);
}

/** What many small holes cost, by the smallest hole that is punched. */
function holesSection(): void {
  say("\n## What small holes cost: the aged disk, raw\n");
  say("| smallest hole | returned | host extents | reading all files in the guest's filesystem |");
  say("|---|---|---|---|");
  const disk = agedRaw(directory);
  const tell = (what: string, copy: string, before: number) => {
    const extents = /(\d+) extents? found/.exec(must("filefrag", [copy]))?.[1];
    const seconds = guestReadSeconds(copy);
    say(
      `| ${what} | ${((before - hostBytes(copy)) / MIB).toFixed(1)} MiB | ${extents} | ${seconds.toFixed(2)} s |`,
    );
  };
  const untouched = fresh(disk);
  tell("(before)", untouched, hostBytes(untouched));
  for (const smallest of ["4K", "16K", "64K", "256K", "1M"]) {
    const copy = fresh(disk);
    const before = hostBytes(copy);
    ullage("reclaim", "--yes", "--min-hole", smallest, copy);
    tell(smallest, copy, before);
  }
}

function memorySection(): void {
  head("Memory and time at the edges");
  row("survey, aged 20 GiB", ullage("survey", "--json", agedRaw(directory)));
  row("reclaim, aged 20 GiB", ullage("reclaim", "--yes", fresh(agedRaw(directory))));
  row("survey, 16 TiB sparse ext4", ullage("survey", "--json", sparseRaw(directory)));
  row("reclaim, 16 TiB sparse ext4", ullage("reclaim", "--yes", sparseRaw(directory)));
  row("survey, two million free extents", ullage("survey", "--json", holedRaw(directory)));
  row("reclaim, two million free extents", ullage("reclaim", "--yes", holedRaw(directory)));
}

const SECTIONS: Readonly<Record<string, () => void | Promise<void>>> = {
  survey: surveySection,
  reclaim: reclaimSection,
  qcow2: qcow2Section,
  holes: holesSection,
  memory: memorySection,
};

const asked = process.argv.slice(2);
const chosen = asked.length > 0 ? asked : Object.keys(SECTIONS);
const date = new Date().toISOString().slice(0, 10);
say("# Benchmarks\n");
say(`${date}, ${cpus().length} × ${cpus()[0]?.model}, ${(totalmem() / 2 ** 30).toFixed(0)} GiB of memory, `);
say(
  `Linux ${must("uname", ["-r"]).trim()}, Node ${process.version}. \`npm run bench\` makes this page. Median of several runs.`,
);
for (const name of chosen) {
  const section = SECTIONS[name];
  if (!section) throw new Error(`no section "${name}": ${Object.keys(SECTIONS).join(", ")}`);
  await section();
}
if (asked.length === 0) writeFileSync(path.join(ROOT, "docs", "BENCHMARKS.md"), `${lines.join("\n")}\n`);
