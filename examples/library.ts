/**
 * Ullage as a library: how much would come back from a disk, from which volume, and who owns its first used byte.
 *
 *   node --conditions=ullage-source examples/library.ts disk.qcow2
 *
 * A program that installed the package needs no `--conditions`; here it makes `ullage` mean the sources beside it.
 */
import { DiskError, explain, reclaim, survey } from "ullage";

const [image] = process.argv.slice(2);
if (image === undefined) throw new Error("usage: library.ts IMAGE");

const print = (text: string): void => void process.stdout.write(`${text}\n`);

try {
  const { virtualBytes, reclaimableBytes, exact, volumes, regions } = await survey(image);
  print(`${reclaimableBytes} of ${virtualBytes} bytes can be returned${exact ? "" : ", more or less"}`);
  for (const { name, filesystem, freeBytes, state } of volumes) {
    print(`volume "${name}": ${filesystem ?? "unknown"}, ${freeBytes} bytes free, ${state}`);
  }

  // Regions are sets of extents: sorted, disjoint, quick to join and to intersect.
  const used = regions.get("used");
  if (used !== undefined && used.count > 0) {
    const { offsets } = await explain(image, { offsets: [used.start(0)] });
    print(`first used byte: ${offsets[0]!.trail.join(", ")}`);
  }

  // A dry run goes through everything that a reclaim would refuse, and writes nothing.
  const { predictedBytes, applied } = await reclaim(image, { dryRun: true });
  print(`a reclaim would return ${predictedBytes} bytes (applied: ${applied})`);
} catch (error) {
  if (!(error instanceof DiskError)) throw error;
  print(`${error.kind}: ${error.message}${error.hint === undefined ? "" : ` (${error.hint})`}`);
  process.exitCode = 1;
}
