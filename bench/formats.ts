/**
 * Every image format: convert against `qemu-img convert`, in turns; survey and reclaim against the same disk as qcow2;
 * and a VHDX of 2 TiB.
 */
import { rmSync } from "node:fs";
import path from "node:path";
import { agedIn, agedQcow2, agedRaw, fullRaw, hugeVhdx } from "./disks.ts";
import { median, must, type Run, timed } from "./measure.ts";
import { directory, fresh, goal, head, MIB, row, ullage } from "./report.ts";

const RUNS = 3;
/** A copy is written to the disk, which takes its time; each is made so often, in turns. */
const COPIES = 2;

/** What both make: our name, QEMU's, and the options that give the same kind of image. */
const MADE = [
  { format: "raw", qemu: "raw" },
  { format: "qcow2", qemu: "qcow2" },
  { format: "vhdx", qemu: "vhdx" },
  { format: "vhd", qemu: "vpc" },
  { format: "vdi", qemu: "vdi" },
  { format: "vmdk", qemu: "vmdk" },
  { format: "vmdk", qemu: "vmdk", subformat: "streamOptimized" },
  { format: "parallels", qemu: "parallels" },
] as const;

/** As long as qcow2 takes, times so much. */
const SAME_DISK = 1.3;

const times = (run: () => Run): Run => median(Array.from({ length: RUNS }, run));

export function formatsSection(): void {
  convertSection("the aged 20 GiB disk, which holds freed data", agedRaw(directory), 1.5);
  convertSection("1 GiB of noise, nothing free", fullRaw(directory), 1);
  sameDiskSection();
  head("Survey of a 2 TiB VHDX, blocks of 32 MiB");
  const huge = times(() => ullage("survey", "--json", hugeVhdx(directory)));
  row("ullage survey", huge);
  goal("survey, 2 TiB VHDX", huge.seconds, { atMost: 1 }, "s");
}

function convertSection(what: string, disk: string, atLeast: number): void {
  head(`Convert of ${what}`);
  for (const each of MADE) {
    const subformat = "subformat" in each ? each.subformat : undefined;
    const name = subformat ?? each.format;
    const how = subformat === undefined ? [] : ["-o", `subformat=${subformat}`];
    const copy = path.join(directory, `copy.${each.format}`);
    const ours: Run[] = [];
    const theirs: Run[] = [];
    for (let i = 0; i < COPIES; i++) {
      ours.push(
        made(copy, () => ullage("convert", "--json", disk, copy, ...convertWords(each.format, subformat))),
      );
      theirs.push(made(copy, () => qemuImg(copy, ["-f", "raw", "-O", each.qemu, ...how, disk, copy])));
    }
    const [run, peer] = [median(ours), median(theirs)];
    row(`ullage convert to ${name}`, run);
    row(`qemu-img convert to ${name}, and sync`, peer, run);
    goal(`qemu-img against convert to ${name}, ${what}`, peer.seconds / run.seconds, { atLeast }, "×");
    goal(`peak memory, convert to ${name}`, run.peakBytes / MIB, { atMost: 150 }, "MiB");
  }
}

/** Both end with the copy on stable storage: ullage flushes before it renames, qemu-img by itself does not wait. */
const qemuImg = (copy: string, words: readonly string[]): Run =>
  timed("sh", ["-c", 'qemu-img convert "$@" && sync "$0"', copy, ...words]);

const convertWords = (format: string, subformat: string | undefined): string[] =>
  subformat === undefined ? ["--to", format] : ["--to", format, "--subformat", subformat];

/** One run that makes `copy`, which is gone and settled before the next. */
function made(copy: string, run: () => Run): Run {
  const done = run();
  must("sync", ["-f", directory]);
  rmSync(copy, { force: true });
  return done;
}

function sameDiskSection(): void {
  head("The aged 20 GiB disk in other formats: survey, and reclaim with --proof full");
  const survey = (disk: string) => times(() => ullage("survey", "--json", disk));
  const reclaim = (disk: string) =>
    times(() => {
      const copy = fresh(disk);
      return ullage("reclaim", "--yes", "--proof", "full", "--json", copy);
    });
  const base = agedQcow2(directory);
  const [surveyed, reclaimed] = [survey(base), reclaim(base)];
  row("survey, qcow2", surveyed);
  row("reclaim, qcow2", reclaimed);
  for (const qemu of ["vhdx", "vdi", "vmdk"]) {
    const disk = agedIn(directory, { qemu });
    const [s, r] = [survey(disk), reclaim(disk)];
    row(`survey, ${qemu}`, s, surveyed);
    row(`reclaim, ${qemu}`, r, reclaimed);
    goal(`survey, ${qemu}, against qcow2`, s.seconds / surveyed.seconds, { atMost: SAME_DISK }, "×");
    goal(`reclaim, ${qemu}, against qcow2`, r.seconds / reclaimed.seconds, { atMost: SAME_DISK }, "×");
  }
}
