/**
 * npm run bench [-- SECTION…]: side by side with the peers that are installed, in one run, as ratios. Sections: survey,
 * reclaim, qcow2, holes, memory, formats, guests, nbd; all by default. Needs root for loop mounts, about 60 GiB of scratch space in
 * BENCH_DIR (default: ullage-bench in the temporary directory) and a quiet machine. When every section ran, the
 * tables replace docs/BENCHMARKS.md.
 */
import { rmSync, writeFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import path from "node:path";
import { allocationOf } from "../src/disk/allocation.ts";
import { open, survey } from "../src/disk.ts";
import { agedQcow2, agedRaw, holedRaw, sparseRaw } from "./disks.ts";
import { record } from "./floor.ts";
import { formatsSection } from "./formats.ts";
import { guestReadSeconds } from "./guest-read.ts";
import { guestsSection } from "./guests.ts";
import { median, must, type Run, timed } from "./measure.ts";
import { nbdSection } from "./nbd.ts";
import {
  directory,
  fresh,
  goal,
  goals,
  head,
  hostBytes,
  lines,
  MIB,
  peer,
  ROOT,
  row,
  say,
  ullage,
} from "./report.ts";

const RUNS = 5;
const FLOOR = path.join(import.meta.dirname, "floor.ts");

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
  const slower = peer("virt-sparsify", "virt-sparsify --in-place, the whole run", raw, () =>
    sparsify(fresh(disk)),
  );
  goal("survey, raw", raw.seconds, { atMost: 0.25 }, "s");
  goal("survey, qcow2", qcow2.seconds, { atMost: 0.25 }, "s");
  goal("virt-sparsify against survey", slower ?? NaN, { atLeast: 100 }, "×");
}

/** What ullage needs, and what it leaves. */
async function reclaimRuns(disk: string): Promise<{ run: Run; left: number }> {
  let copy = "";
  const runs = [1, 2, 3].map(() => {
    copy = fresh(disk);
    return ullage("reclaim", "--yes", "--proof", "full", "--json", copy);
  });
  return { run: median(runs), left: await leftBytes(copy) };
}

/** Host bytes that neither hold what the guest uses nor the image's own tables. */
async function leftBytes(image: string): Promise<number> {
  await using disk = await open(image);
  const { hostBytes, tableBytes, regions } = await survey(disk);
  const { owned } = await allocationOf(disk.image);
  const used = regions.get("used")!.union(regions.get("metadata")!);
  return hostBytes! - tableBytes - owned.intersect(used).bytes;
}

function sayLeft(left: number, disk: string): void {
  const format = path.extname(disk).slice(1);
  const { virtualBytes } = JSON.parse(ullage("info", "--json", disk).stdout).images[0];
  const share = ((100 * left) / virtualBytes).toFixed(3);
  goal(`left over, ${format}`, (100 * left) / virtualBytes, { atMost: 0.1 }, "% of the disk");
  say(
    `\nLeft over (host bytes that hold neither what the guest uses nor the image's tables): ${left} bytes, ${share} % of the disk.`,
  );
}

async function reclaimSection(): Promise<void> {
  const disk = agedRaw(directory);
  head("Reclaim of the aged 20 GiB disk, raw, --proof full");
  const { run, left } = await reclaimRuns(disk);
  row("ullage reclaim", run);
  const recording = path.join(directory, "floor.json");
  await record(disk, recording);
  const floor = median(
    [1, 2, 3].map(() => timed(process.execPath, [FLOOR, "replay", fresh(disk), recording])),
  );
  row("floor: the same reads, checksums and punches from a finished plan", floor, run);
  const sparsified = peer("virt-sparsify", "virt-sparsify --in-place", run, () => sparsify(fresh(disk)));
  const zeroed = peer("zerofree", "zerofree (zeroes only; returns nothing by itself)", run, () =>
    timed("zerofree", [fresh(disk)]),
  );
  goal("reclaim against its floor", run.seconds / floor.seconds, { atMost: 1.5 }, "×");
  goal("virt-sparsify against reclaim", sparsified ?? NaN, { atLeast: 30 }, "×");
  goal("zerofree against reclaim", zeroed ?? NaN, { atLeast: 15 }, "×");
  goal("peak memory of reclaim", run.peakBytes / MIB, { atMost: 150 }, "MiB");
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

async function qcow2Section(): Promise<void> {
  const disk = agedQcow2(directory);
  head("Reclaim of the aged 20 GiB disk, qcow2, --proof full");
  const { run, left } = await reclaimRuns(disk);
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
  say("\nSmall holes cost neither the host's extents nor the guest's reads anything that shows here, so");
  say("`--min-hole` is one block of the host's filesystem by default.");
}

function memorySection(): void {
  head("Memory and time at the edges");
  row("survey, aged 20 GiB", ullage("survey", "--json", agedRaw(directory)));
  row("reclaim, aged 20 GiB", ullage("reclaim", "--yes", fresh(agedRaw(directory))));
  const edge = (what: string, disk: string) => {
    const runs = [ullage("survey", "--json", disk), ullage("reclaim", "--yes", disk)] as const;
    row(`survey, ${what}`, runs[0]);
    row(`reclaim, ${what}`, runs[1]);
    const peakBytes = Math.max(...runs.map((run) => run.peakBytes));
    goal(`peak memory, ${what}`, peakBytes / MIB, { atMost: 400 }, "MiB");
  };
  edge("16 TiB sparse ext4", sparseRaw(directory));
  edge("two million free extents", holedRaw(directory));
}

const SECTIONS: Readonly<Record<string, () => void | Promise<void>>> = {
  survey: surveySection,
  reclaim: reclaimSection,
  qcow2: qcow2Section,
  holes: holesSection,
  memory: memorySection,
  formats: formatsSection,
  guests: guestsSection,
  nbd: nbdSection,
};

const asked = process.argv.slice(2);
const chosen = asked.length > 0 ? asked : Object.keys(SECTIONS);
const date = new Date().toISOString().slice(0, 10);
say("# Benchmarks\n");
say(`${date}, ${cpus().length} × ${cpus()[0]?.model}, ${(totalmem() / 2 ** 30).toFixed(0)} GiB of memory, `);
say(
  `Linux ${must("uname", ["-r"]).split("-")[0]!.trim()}, Node ${process.version}. \`npm run bench\` makes this page. Median of several runs.`,
);
for (const name of chosen) {
  const section = SECTIONS[name];
  if (!section) throw new Error(`no section "${name}": ${Object.keys(SECTIONS).join(", ")}`);
  await section();
}
say("\n## Goals\n");
say("| | goal | here | |");
say("|---|---|---|---|");
for (const line of goals) say(line);
if (asked.length === 0) writeFileSync(path.join(ROOT, "docs", "BENCHMARKS.md"), `${lines.join("\n")}\n`);
