import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { otherKernel } from "./other-kernel.ts";
import { scratch } from "./tools.ts";

test("a script has modules, disks and tools, until the power fails", async (t) => {
  const disk = join(scratch(t), "disk, with a comma");
  writeFileSync(disk, "from the host".padEnd(1 << 20, "."));
  const printed = await otherKernel(t, {
    modules: ["hfsplus", "nls_utf8"],
    disks: [disk],
    tools: ["numfmt"],
    powerFailsAt: "now",
    script: `
      grep -o hfsplus /proc/filesystems
      head -c 13 /dev/vda; echo
      numfmt --version | head -n 1
      printf written | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null
      exec 3</dev/vda # The cache is written back when nobody has the disk open any more.
      printf held | dd of=/dev/vda bs=4096 seek=1 conv=notrunc 2>/dev/null
      echo now; sleep 100`,
  });
  if (printed === undefined) return;
  const lines = printed.split("\n");
  assert.deepEqual(lines.slice(0, 2), ["hfsplus", "from the host"]);
  assert.match(lines[2]!, /^numfmt \(GNU coreutils\)/);
  assert.deepEqual(lines.slice(3), ["now", ""]);
  const content = readFileSync(disk, "latin1");
  assert.equal(content.slice(0, 7), "written");
  assert.equal(content.slice(4096, 4100), "....");
});

test("a script that fails says so, with what it printed", async (t) => {
  const failing = otherKernel(t, { modules: [], disks: [], script: "echo before; false; echo after" });
  const error = await failing.then(
    (printed) => printed,
    (thrown: Error) => thrown,
  );
  if (error === undefined) return;
  assert.ok(error instanceof Error);
  assert.match(error.message, /ended with 1\nbefore\n/);
});
