/**
 * Guests' filesystems of 1 TiB with a million files: the free map and the whole proof, against reading and checksumming
 * the same metadata, and against the tools that know the filesystem.
 */
import { rmSync } from "node:fs";
import path from "node:path";
import { crowdedRaw, type Crowded } from "./disks.ts";
import { record } from "./floor.ts";
import { median, type Run, timed } from "./measure.ts";
import { directory, goal, head, MIB, peer, row, ullage } from "./report.ts";

const RUNS = 3;
const FLOOR = path.join(import.meta.dirname, "floor.ts");
const times = (run: () => Run): Run => median(Array.from({ length: RUNS }, run));

/** What a peer writes, where it must write something. */
const OUTPUT = path.join(directory, "peer.out");

const partclone = (filesystem: Crowded) =>
  `partclone.${filesystem} -D -F -L /dev/null -o ${OUTPUT} -s`.split(" ");

/** What else can tell what is free, by its command line; the disk comes last. */
const PEERS: Readonly<Record<Crowded, readonly (readonly string[])[]>> = {
  ntfs: [["ntfsclone", "--metadata", "--force", "--overwrite", OUTPUT], partclone("ntfs")],
  xfs: [["xfs_db", "-r", "-c", "freesp", "-f"], partclone("xfs")],
  btrfs: [partclone("btrfs")],
};

export async function guestsSection(): Promise<void> {
  for (const filesystem of ["ntfs", "xfs", "btrfs"] as const) {
    const disk = crowdedRaw(directory, filesystem);
    head(`${filesystem} of 1 TiB with a million files, page cache warm`);
    const map = times(() => ullage("survey", "--json", "--proof", "bitmap", disk));
    row("ullage survey --proof bitmap: the free map", map);
    const recording = path.join(directory, "floor.json");
    await record(disk, recording, "bitmap");
    const floor = times(() => timed(process.execPath, [FLOOR, "reread", disk, recording]));
    row("floor: the same reads, checksummed", floor, map);
    const full = times(() => ullage("survey", "--json", "--proof", "full", disk));
    row("ullage survey --proof full: map and walk", full, map);
    goal(`free map against its floor, ${filesystem}`, map.seconds / floor.seconds, { atMost: 2 }, "×");
    goal(`--proof full of a million files, ${filesystem}`, full.seconds, { atMost: 5 }, "s");
    goal(`peak memory, ${filesystem}`, full.peakBytes / MIB, { atMost: 400 }, "MiB");
    for (const [tool, ...words] of PEERS[filesystem]) {
      const ratio = peer(tool!, `${tool} ${words[0]}`, map, () =>
        times(() => {
          rmSync(OUTPUT, { force: true });
          return timed(tool!, [...words, disk]);
        }),
      );
      rmSync(OUTPUT, { force: true });
      if (ratio !== undefined) goal(`${tool} against the free map`, ratio, { atLeast: 1 }, "×");
    }
  }
}
