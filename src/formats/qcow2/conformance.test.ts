/**
 * The suite of all image formats, over images that QEMU made. `qcow2.test.ts` reads every kind of them; these stand
 * for the ways in which clusters are held: above a parent, by snapshots, compressed, in part, in another file.
 */
import { dirname } from "node:path";
import { conformance } from "../../testing/conformance.ts";
import { judgedByQemu } from "../../testing/foreign-image.ts";
import { guestBytes } from "../../testing/qemu.ts";
import { KINDS, loadFolder, makeImage, parentsIn } from "../../testing/qcow2-kinds.ts";
import { requires, run, scratch } from "../../testing/tools.ts";
import { qcow2 } from "../qcow2.ts";

const CHOSEN = [
  "v2",
  "512 B, 1-bit refcounts",
  "v2, 512 B, parent",
  "64 KiB, parent, snapshots, zlib",
  "subclusters, parent",
  "data file",
];

conformance(
  qcow2,
  KINDS.filter(({ name }) => CHOSEN.includes(name)).map((kind) => ({
    name: kind.name,
    seeds: 1,
    canBlank: kind.backing === undefined && !kind.snapshots && !kind.compressed,
    async make(t, random) {
      if (!requires(t, "qemu-img", "qemu-io")) return undefined;
      const path = makeImage(scratch(t), kind, random);
      const content = guestBytes(path);
      run("rm", [`${path}.active.raw`]);
      // QEMU was told an absolute path; the suite's files lie in one folder and know bare names.
      if (kind.dataFile) run("qemu-img", ["amend", "-f", "qcow2", "-o", "data_file=image.data", path]);
      // QEMU looks for the data file in the folder that it was started in.
      const judge = kind.dataFile ? undefined : judgedByQemu(t, "qcow2", "image.qcow2");
      return {
        files: await loadFolder(dirname(path)),
        image: "image.qcow2",
        content,
        ...(judge && { judge }),
      };
    },
    openParent: parentsIn,
  })),
);
