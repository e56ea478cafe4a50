import assert from "node:assert/strict";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { otherKernel } from "./other-kernel.ts";
import { scratch } from "./tools.ts";

test("a script in the other kernel sees the modules, the disks and the tools", async (t) => {
  const disk = join(scratch(t), "disk");
  writeFileSync(disk, "from the host".padEnd(1 << 20, "."));
  const printed = await otherKernel(t, {
    modules: ["hfsplus", "nls_utf8"],
    disks: [disk],
    tools: ["/usr/bin/env"],
    script: `
      grep -o hfsplus /proc/filesystems
      head -c 13 /dev/vda; echo
      printf 'from the guest' | dd of=/dev/vda conv=notrunc 2>/dev/null
      /usr/bin/env --version | head -n 1
      uname -r`,
  });
  if (printed === undefined) return;
  const lines = printed.split("\n");
  assert.deepEqual(lines.slice(0, 2), ["hfsplus", "from the host"]);
  assert.match(lines[2]!, /^env \(GNU coreutils\)/);
  assert.match(lines[3]!, /^\d+\.\d+/);
  assert.equal(readFileSync(disk, "latin1").slice(0, 14), "from the guest");
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

test("a power failure leaves what had reached the disk", async (t) => {
  const disk = join(scratch(t), "disk");
  writeFileSync(disk, "");
  truncateSync(disk, 1 << 20);
  const printed = await otherKernel(t, {
    modules: [],
    disks: [disk],
    powerFailsAt: "now",
    script: `
      printf written | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null
      exec 3</dev/vda # The cache is written back when nobody has the disk open any more.
      printf held | dd of=/dev/vda bs=4096 seek=1 conv=notrunc 2>/dev/null
      echo now; sleep 100`,
  });
  if (printed === undefined) return;
  assert.equal(printed, "now\n");
  const content = readFileSync(disk, "latin1");
  assert.equal(content.slice(0, 7), "written");
  assert.equal(content.slice(4096, 4100), "\0\0\0\0");
});
