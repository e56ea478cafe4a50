/**
 * The command as scripts and people meet it: exit codes, the JSON contract, refusals to ask where nobody sits, the
 * question on a real terminal. Each test runs the binary.
 */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  copyFileSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";
import { FORMATS } from "../src/formats/all.ts";
import { type Dialogue, onTerminal } from "../src/testing/terminal.ts";
import { requires, run } from "../src/testing/tools.ts";
import { DELETED_BYTES, DISK_BYTES, DISK_TOOLS, makeDisk } from "./small-disk.ts";

const BINARY = path.resolve(import.meta.dirname, "../bin/ullage.js");

/** Nothing here takes longer, even on a busy machine. */
const TIMEOUT_MS = 60_000;

let directory = "";
before(() => void (directory = mkdtempSync(path.join(tmpdir(), "ullage-cli-"))));
after(() => rmSync(directory, { recursive: true, force: true }));

interface Ran {
  readonly exit: number | null;
  readonly out: string;
  readonly err: string;
}

function ullage(...words: string[]): Ran {
  const { status, stdout, stderr } = spawnSync(process.execPath, [BINARY, ...words], {
    timeout: TIMEOUT_MS,
    cwd: directory,
    encoding: "utf8",
    env: { PATH: process.env["PATH"], LANG: "C.UTF-8" },
  });
  return { exit: status, out: stdout, err: stderr };
}

function json(...words: string[]): { exit: number | null; images: Record<string, unknown>[] } {
  const { exit, out } = ullage(...words, "--json");
  const { schema, images } = JSON.parse(out) as { schema: number; images: Record<string, unknown>[] };
  assert.equal(schema, 1);
  return { exit, images };
}

test("usage errors exit 2 with a hint, whatever is wrong", () => {
  writeFileSync(path.join(directory, "some.raw"), "");
  const wrong = [
    [],
    ["frobnicate"],
    ["survey"],
    ["survey", "--frobnicate", "some.raw"],
    ["survey", "--also", "swop", "some.raw"],
    ["survey", "--allow", "everything", "some.raw"],
    ["survey", "--min-hole", "big", "some.raw"],
    ["survey", "--proof", "faith", "some.raw"],
    ["reclaim", "--pack", "--method", "punch", "some.raw"],
    ["check", "--repair", "all", "some.raw"],
    ["create", "new.qcow2"],
    ["create", "new.qcow2", "-5"],
    ["convert", "some.raw"],
    ["convert", "some.raw", "copy.unknown"],
    ["convert", "some.raw", "copy.raw", "--to", "unknown"],
    ["convert", "some.raw", "some.raw"],
    ["info", "some.raw", "--offset", "1"],
    ["explain", "some.raw", "--sector", "x"],
    ["serve", "some.raw"],
    ["serve", "some.raw", "--socket", "a.sock", "--listen", "127.0.0.1:0"],
    ["serve", "some.raw", "--socket", "a.sock", "--guard-for", "1h"],
    ["serve", "some.raw", "--socket", "a.sock", "--guard-for", "soon", "--guard-max", "1G"],
    ["serve", "some.raw", "--socket", "a.sock", "--tls-cert", "some.pem"],
    ["serve", "some.raw", "--socket", "a.sock", "--delay", "soon"],
    ["serve", "some.raw", "--listen", "nowhere"],
  ];
  for (const words of wrong) {
    const { exit, out, err } = ullage(...words);
    assert.equal(exit, 2, `${words.join(" ")}: ${err}`);
    assert.equal(out, "", words.join(" "));
    assert.match(err, /hint: |Usage: /, words.join(" "));
  }
});

test("help and version are no errors", () => {
  const { version } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
  assert.deepEqual(ullage("--version"), { exit: 0, out: `${version}\n`, err: "" });
  const { exit, out } = ullage("--help");
  assert.equal(exit, 0);
  for (const command of [
    "survey",
    "reclaim",
    "explain",
    "check",
    "create",
    "convert",
    "info",
    "serve",
    "top",
    "undo",
    "erase",
  ])
    assert.match(out, RegExp(command));
  for (const command of ["create", "convert"]) {
    const text = ullage(command, "--help").out;
    for (const format of FORMATS.filter((each) => each.create !== undefined)) {
      assert.match(text, RegExp(`\\b${format.name}\\b`), `${command} --help names ${format.name}`);
    }
  }
  for (const later of ["watch", "web"]) assert.doesNotMatch(out, RegExp(`^ +${later}`, "m"));
});

test("a command that writes never asks where nobody sits", (t) => {
  if (!requires(t, ...DISK_TOOLS)) return;
  makeDisk(directory, "unasked.qcow2");
  const untouched = readFileSync(path.join(directory, "unasked.qcow2"));
  for (const words of [
    ["reclaim", "unasked.qcow2"],
    ["reclaim", "--json", "unasked.qcow2"],
    ["check", "--repair", "leaks", "unasked.qcow2"],
  ]) {
    const { exit, out, err } = ullage(...words);
    assert.equal(exit, 2, err);
    assert.equal(out, "");
    assert.match(err, /--yes.*--dry-run/s);
  }
  assert.equal(ullage("reclaim", "--dry-run", "unasked.qcow2").exit, 0);
  assert.deepEqual(readFileSync(path.join(directory, "unasked.qcow2")), untouched);
});

const SURVEY_KEYS =
  "path format inUse exact virtualBytes fileBytes hostBytes usedBytes freeBytes unknownBytes reclaimableBytes packableBytes method witnesses volumes".split(
    " ",
  );
const VOLUME_KEYS = "name start bytes filesystem usedBytes freeBytes state reason".split(" ");
const RECLAIM_KEYS =
  "path applied method beforeHostBytes afterHostBytes beforeFileBytes afterFileBytes predictedBytes reclaimedBytes unmappedBytes punchedBytes".split(
    " ",
  );

function has(object: unknown, keys: readonly string[]): void {
  for (const key of keys) assert.ok(key in (object as object), `"${key}" is part of the contract`);
}

test("the JSON contract, from survey to reclaim", (t) => {
  if (!requires(t, ...DISK_TOOLS)) return;
  makeDisk(directory, "contract.qcow2");
  const surveyed = json("survey", "contract.qcow2");
  assert.equal(surveyed.exit, 0);
  const survey = surveyed.images[0] as Record<string, number> & { volumes: object[] };
  has(survey, SURVEY_KEYS);
  has(survey.volumes[0], VOLUME_KEYS);
  assert.equal(survey["usedBytes"]! + survey["freeBytes"]! + survey["unknownBytes"]!, survey["virtualBytes"]);
  assert.equal(survey["virtualBytes"], DISK_BYTES);
  const { reclaimableBytes } = survey;
  assert.ok(
    reclaimableBytes! > 0.95 * DELETED_BYTES && reclaimableBytes! < 1.05 * DELETED_BYTES,
    `${reclaimableBytes}`,
  );

  const explained = json("explain", "contract.qcow2", "1024").images[0]!;
  has((explained["offsets"] as object[])[0], "offset class witness owner ownerPath fileOffset".split(" "));

  const reclaimed = json("reclaim", "--yes", "contract.qcow2");
  assert.equal(reclaimed.exit, 0);
  const result = reclaimed.images[0] as Record<string, number>;
  has(result, RECLAIM_KEYS);
  assert.equal(result["applied"] as unknown, true);
  const hostBytes = statSync(path.join(directory, "contract.qcow2")).blocks * 512;
  assert.equal(result["afterHostBytes"], hostBytes);
  assert.equal(result["beforeHostBytes"]! - result["afterHostBytes"]!, result["reclaimedBytes"]);

  has(json("check", "contract.qcow2").images[0], ["path", "errors", "leaks"]);
  const again = json("reclaim", "--yes", "contract.qcow2");
  assert.equal(again.exit, 0, "nothing to do is no failure");
  assert.equal(again.images[0]!["applied"], false);
});

test("a batch goes on after a failure; the exit code is the first failure's", (t) => {
  if (!requires(t, ...DISK_TOOLS)) return;
  makeDisk(directory, "good.qcow2");
  copyFileSync(path.join(directory, "good.qcow2"), path.join(directory, "cut.qcow2"));
  truncateSync(path.join(directory, "cut.qcow2"), 300);
  // A neighbour that cannot be understood may be a child, and would stop every later reclaim.
  t.after(() => rmSync(path.join(directory, "cut.qcow2")));
  const { exit, images } = json("survey", "cut.qcow2", "good.qcow2", "absent.qcow2");
  assert.equal(images.length, 3);
  assert.equal((images[0]!["error"] as { kind: string }).kind, "corrupt");
  has(images[0]!["error"], ["kind", "message", "hint"]);
  assert.equal(images[1]!["format"], "qcow2");
  assert.equal(images[2]!["path"], "absent.qcow2");
  has(images[2]!["error"], ["kind", "message", "hint"]);
  assert.equal(exit, 3);
  const text = ullage("survey", "cut.qcow2", "good.qcow2");
  assert.equal(text.exit, 3);
  assert.match(text.err, /cut\.qcow2: corrupt: /);
  assert.match(text.out, /^good\.qcow2 {3}qcow2/);
});

test("an image that is busy, unsafe or unknown has its own exit code", (t) => {
  if (!requires(t, ...DISK_TOOLS)) return;
  makeDisk(directory, "parent.qcow2");
  const [base, child] = ["parent.qcow2", "child.qcow2"].map((name) => path.join(directory, name)) as [
    string,
    string,
  ];
  run("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, child]);
  const parent = ullage("reclaim", "--yes", "parent.qcow2");
  assert.equal(parent.exit, 5, parent.err);
  assert.match(parent.err, /hint: /);

  const dirty = makeDisk(directory, "dirty.qcow2");
  run("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", dirty, `${dirty}.raw`]);
  run("debugfs", ["-w", "-R", "feature needs_recovery", `${dirty}.raw`]);
  const refused = ullage("reclaim", "--yes", "dirty.qcow2.raw");
  assert.equal(refused.exit, 5, refused.err);
  assert.match(refused.err, /journal.*hint: /s);
  assert.equal(ullage("survey", "dirty.qcow2.raw").exit, 0);

  const unknown = readFileSync(path.join(directory, "parent.qcow2"));
  unknown[72] = 0x80;
  writeFileSync(path.join(directory, "unknown.qcow2"), unknown);
  t.after(() => rmSync(path.join(directory, "unknown.qcow2")));
  assert.equal(ullage("survey", "unknown.qcow2").exit, 4);
});

test("an image that QEMU holds is surveyed, with approximate figures, and not written: exit 6", async (t) => {
  if (!requires(t, ...DISK_TOOLS, "qemu-io")) return;
  const image = makeDisk(directory, "held.qcow2");
  const holder = spawn("qemu-io", [image], { stdio: ["pipe", "pipe", "ignore"] });
  t.after(() => holder.kill());
  await once(holder.stdout, "data");
  const survey = json("survey", "held.qcow2");
  assert.equal(survey.exit, 0);
  assert.equal(survey.images[0]!["inUse"], true);
  assert.equal(survey.images[0]!["exact"], false);
  const { exit, images } = json("reclaim", "--yes", "held.qcow2");
  assert.equal(exit, 6);
  assert.equal((images[0]!["error"] as { kind: string }).kind, "busy");
});

test("Ctrl-C stops at a safe point, says how far it came, and a second run completes", async (t) => {
  if (!requires(t, ...DISK_TOOLS)) return;
  const image = makeDisk(directory, "stopped.qcow2");
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    const child = spawn(process.execPath, [
      BINARY,
      "reclaim",
      "--yes",
      "--verify",
      image,
      image,
      image,
      image,
    ]);
    let err = "";
    child.stderr.on("data", (chunk: Buffer) => (err += chunk.toString()));
    const closed = once(child, "close") as Promise<[number | null]>;
    await Promise.race([once(child.stdout, "data"), closed]);
    child.kill(signal);
    const [exit] = await closed;
    assert.equal(exit, 130, err);
    assert.match(err, /stopping at the next safe point/);
  }
  assert.equal(ullage("reclaim", "--yes", "stopped.qcow2").exit, 0);
  assert.equal(json("check", "stopped.qcow2").images[0]!["errors"], 0);
});

test("colour only on a terminal, and nothing but text elsewhere", (t) => {
  if (!requires(t, ...DISK_TOOLS)) return;
  makeDisk(directory, "plain.qcow2");
  const { out, exit } = ullage("plain.qcow2");
  assert.equal(exit, 0);
  assert.ok(!out.includes("\x1b"));
  assert.match(out, /Nothing was changed\. {2}Next: ullage reclaim plain\.qcow2/);
  const [first] = out.split("\n");
  assert.match(first!, /^plain\.qcow2 {3}qcow2, .*not in use$/);
});

const typed = (words: readonly string[], dialogue?: Dialogue, env?: Readonly<Record<string, string>>) =>
  onTerminal([process.execPath, BINARY, ...words], dialogue, { directory, ...(env && { env }) });

const PROMPT = /why safe\]/;

test("on a terminal it asks: m shows the map, ? says why it is safe, and only y acts", async (t) => {
  if (!requires(t, ...DISK_TOOLS, "script")) return;
  const image = makeDisk(directory, "asked.qcow2");
  const before = readFileSync(image);
  const no = await typed(
    ["reclaim", "asked.qcow2"],
    [
      [PROMPT, "m\r"],
      [/one character is[^]*why safe\]/, "?\r"],
      [/power cut[^]*why safe\]/, "\r"],
    ],
  );
  assert.match(no.out, /Nothing was changed/);
  assert.equal(no.exit, 0);
  assert.deepEqual(readFileSync(image), before);

  const interrupted = await typed(["reclaim", "asked.qcow2"], [[PROMPT, "\x03"]]);
  assert.equal(interrupted.exit, 130, interrupted.out);
  assert.deepEqual(readFileSync(image), before);

  const yes = await typed(["reclaim", "asked.qcow2"], [[PROMPT, "y\r"]]);
  assert.equal(yes.exit, 0, yes.out);
  assert.match(yes.out, /promised .* returned/);
});

test("a terminal gets colour, unless NO_COLOR says otherwise", async (t) => {
  if (!requires(t, ...DISK_TOOLS, "script")) return;
  makeDisk(directory, "colour.qcow2");
  const coloured = await typed(["survey", "colour.qcow2"]);
  assert.ok(coloured.out.includes("\x1b["), coloured.out);
  const plain = await typed(["survey", "colour.qcow2"], [], { NO_COLOR: "1" });
  assert.ok(!plain.out.includes("\x1b["), plain.out);
});

test("a reader that goes away is no failure", (t) => {
  if (!requires(t, ...DISK_TOOLS)) return;
  makeDisk(directory, "piped.qcow2");
  const line = `'${process.execPath}' '${BINARY}' survey --map piped.qcow2 piped.qcow2 | true; echo "\${PIPESTATUS[0]}"`;
  const { stdout, stderr } = spawnSync("bash", ["-c", line], { cwd: directory, encoding: "utf8" });
  assert.equal(stdout, "0\n");
  assert.equal(stderr, "");
});
