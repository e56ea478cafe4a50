/**
 * `ullage top` at the socket of somebody who is no server of ours, or means harm.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { DiskError } from "../error.ts";
import { scratch } from "../testing/tools.ts";
import type { Face } from "./terminal.ts";
import { run } from "./top.ts";

const COUNTED = { requests: 1, bytes: 2, errors: 3 };
const DISK = {
  name: "disk",
  format: "raw",
  virtualBytes: 4096,
  hostBytes: null,
  connections: 0,
  returnedBytes: 0,
  guardedBytes: 0,
  ...Object.fromEntries(["read", "write", "trim", "zero", "flush"].map((kind) => [kind, COUNTED])),
  erase: null,
  latency: { p50: 1, p99: 2 },
  alarms: [],
};
const ANSWER = { pid: 1, connections: 0, memoryBytes: 0, exports: [DISK] };

async function shown(t: TestContext, answer: string): Promise<string> {
  const path = join(scratch(t), "socket");
  const server = createServer((socket) =>
    socket.on("error", () => {}).on("data", () => socket.write(answer)),
  );
  await once(server.listen(path), "listening");
  t.after(() => server.close());
  let text = "";
  const face: Face = {
    json: false,
    screen: { columns: 80, colour: false, unicode: false },
    interactive: false,
    out: (line) => void (text += line),
    note: () => {},
  };
  await run(path, { once: true }, face);
  return text;
}

test("an answer of ours is shown", async (t) => {
  assert.match(await shown(t, `${JSON.stringify(ANSWER)}\n`), /disk {3}raw, 4 KiB/);
});

test("an answer that is none says that nobody serves there", async (t) => {
  const wrong = [
    "HTTP/1.1 400 Bad Request\n",
    "null\n",
    "[]\n",
    JSON.stringify({ ...ANSWER, exports: {} }),
    JSON.stringify({ ...ANSWER, pid: "\u001b[2J" }),
    JSON.stringify({ ...ANSWER, exports: [{ ...DISK, read: null }] }),
    JSON.stringify({ ...ANSWER, exports: [{ ...DISK, latency: { p50: "\u001b[2J", p99: 1 } }] }),
    JSON.stringify({ ...ANSWER, exports: [{ ...DISK, erase: {} }] }),
    JSON.stringify({ ...ANSWER, exports: [{ ...DISK, alarms: [1] }] }),
    "x".repeat(20 * 1024 * 1024),
  ];
  for (const answer of wrong) {
    await assert.rejects(
      shown(t, `${answer}\n`),
      (error) => error instanceof DiskError && error.code === "not-found",
      answer.slice(0, 200),
    );
  }
});

test("nothing of an answer reaches the terminal as a command to it", async (t) => {
  const evil = "\u001b]0;evil\u0007\u009b2J";
  const erase = {
    overwrittenBytes: 0,
    waitingBytes: 0,
    sharedBytes: 0,
    compressedBytes: 0,
    grade: evil,
    reasons: [evil],
  };
  const disk = { ...DISK, name: evil, format: evil, erase, alarms: [{ at: 1e300, code: "", message: evil }] };
  const text = await shown(t, `${JSON.stringify({ ...ANSWER, exports: [disk] })}\n`);
  assert.doesNotMatch(text.replaceAll("\n", ""), /\p{Control}/u);
  assert.match(text, /evil/);
});
