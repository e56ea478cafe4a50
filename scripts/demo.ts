/**
 * `npm run demo`: surveys and reclaims a copy of the sample disk, and shows the commands as one would type them.
 */
import { spawnSync } from "node:child_process";
import { copyFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";

const root = path.resolve(import.meta.dirname, "..");
const folder = mkdtempSync(path.join(tmpdir(), "ullage-demo-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
copyFileSync(path.join(root, "samples/sample.qcow2"), path.join(folder, "sample.qcow2"));

for (const words of [
  ["survey", "sample.qcow2"],
  ["reclaim", "--yes", "--verify", "sample.qcow2"],
  ["check", "sample.qcow2"],
]) {
  process.stdout.write(`\n$ ullage ${words.join(" ")}\n`);
  const { status } = spawnSync(process.execPath, [path.join(root, "bin/ullage.js"), ...words], {
    cwd: folder,
    stdio: "inherit",
  });
  if (status !== 0) process.exit(status ?? 1);
}
