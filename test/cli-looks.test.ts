/**
 * What people read, held against drawings: renderers are functions of results, so made-up results will do.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { ExtentSet } from "../src/bytes/extents.ts";
import { render as renderCheck } from "../src/cli/check.ts";
import { render as renderExplain } from "../src/cli/explain.ts";
import { cells, map, strip } from "../src/cli/picture.ts";
import { barLine } from "../src/cli/progress.ts";
import { renderDryRun, renderPlan, renderResult } from "../src/cli/reclaim.ts";
import { render as renderSurvey } from "../src/cli/survey.ts";
import type { Screen } from "../src/cli/text.ts";
import type { ByteClass, Reclaimed, Survey } from "../src/disk.ts";

const GiB = 2 ** 30;
const MiB = 2 ** 20;
const plain: Screen = { columns: 80, colour: false, unicode: false };

const regions = new Map<ByteClass, ExtentSet>([
  ["used", ExtentSet.of({ start: 0, end: 8 * GiB }, { start: 20 * GiB, end: 24.3 * GiB })],
  ["returnable", ExtentSet.of({ start: 8 * GiB, end: 20 * GiB }, { start: 24.3 * GiB, end: 31.4 * GiB })],
  ["hole", ExtentSet.of({ start: 31.4 * GiB, end: 40 * GiB })],
]);

const survey: Survey = {
  path: "disk.qcow2",
  format: "qcow2",
  summary: "64 KiB clusters, no snapshots",
  inUse: false,
  exact: true,
  virtualBytes: 40 * GiB,
  fileBytes: 31.6 * GiB,
  hostBytes: 31.5 * GiB,
  usedBytes: 12.3 * GiB,
  freeBytes: 27.7 * GiB,
  unknownBytes: 0,
  reclaimableBytes: 19.1 * GiB,
  packableBytes: 18.9 * GiB,
  tableBytes: 0.1 * GiB,
  unmapBytes: 18.9 * GiB,
  punchBytes: 0.2 * GiB,
  method: "punch",
  proof: "full",
  witnesses: [
    { witness: "filesystem", bytes: 19.1 * GiB },
    { witness: "mapping-table", bytes: 8.6 * GiB },
  ],
  worthless: [],
  volumes: [
    {
      name: "1",
      label: "EFI",
      start: MiB,
      bytes: 512 * MiB,
      filesystem: null,
      usedBytes: 512 * MiB,
      freeBytes: 0,
      leakedBytes: 0,
      state: "unknown",
      reason: { code: "unknown-content", message: "fat32 is not read yet", hint: "it counts as used" },
      witness: null,
      notes: [],
    },
    {
      name: "2",
      label: "root",
      start: 513 * MiB,
      bytes: 39 * GiB,
      filesystem: "ext4",
      usedBytes: 12.2 * GiB,
      freeBytes: 27.3 * GiB,
      leakedBytes: 8192,
      state: "clean",
      reason: null,
      witness: "bitmaps + inode walk",
      notes: [],
    },
  ],
  notes: [],
  regions,
  guard: null,
};

const reclaimed: Reclaimed = {
  path: "disk.qcow2",
  applied: true,
  method: "punch",
  beforeHostBytes: 31.5 * GiB,
  afterHostBytes: 12.4 * GiB,
  beforeFileBytes: 31.6 * GiB,
  afterFileBytes: 31.6 * GiB,
  predictedBytes: 19.1 * GiB,
  reclaimedBytes: 19.1 * GiB,
  unmappedBytes: 18.9 * GiB,
  punchedBytes: 0.2 * GiB,
  packedBytes: 0,
  hostFreeBefore: { mountPoint: "/srv", freeBytes: 4 * GiB },
  hostFreeAfter: { mountPoint: "/srv", freeBytes: 23.1 * GiB },
  verified: null,
  check: { errors: 0, leaks: 0 },
  notes: [],
  survey,
};

function draws(actual: string, expected: string): void {
  assert.equal(`\n${actual}\n`, expected);
}

test("a survey", () => {
  draws(
    renderSurvey(survey, plain, { map: false }),
    `
disk.qcow2   qcow2, 64 KiB clusters, no snapshots, not in use

 0  #############=====================#######============..............  40 GiB
    # used 12.3   = returnable 19.1   . never written or returned 8.6

 on disk     31.5 GiB  = 12.3 used + 19.1 returnable + 0.1 image tables
 free        27.7 GiB  = 19.1 said by the filesystems + 8.6 never written
 file size   31.6 GiB    guest sees 40 GiB    --pack makes it 18.9 GiB shorter

 VOLUME   FILESYSTEM       USED       FREE   STATE     WITNESS
 1 EFI    -             0.5 GiB          -   unknown
 2 root   ext4         12.2 GiB   27.3 GiB   clean     bitmaps + inode walk
 unknown   1: fat32 is not read yet (unknown-content)
 hint      1: it counts as used
 leaked    2: 8 KiB are marked used, but nothing reaches them: kept

 Nothing was changed.  Next: ullage reclaim disk.qcow2
`,
  );
});

test("figures of an image in use are approximate", () => {
  const text = renderSurvey({ ...survey, inUse: true, exact: false }, plain, { map: false });
  assert.match(text, /in use: figures approximate/);
  assert.match(text, /on disk +~31\.5 GiB {2}= ~12\.3 used \+ ~19\.1 returnable/);
  assert.match(text, /# used ~12\.3/);
});

test("every survey fits the width it is given", () => {
  for (const columns of [40, 60, 80, 132]) {
    const long = { ...survey, path: `a/${"very-".repeat(20)}long.qcow2`, notes: ["word ".repeat(40)] };
    const lines = renderSurvey(long, { ...plain, columns }, { map: true }).split("\n");
    for (const line of lines.filter((text) => !text.includes("very-"))) {
      assert.ok(line.length <= columns, `${line.length} > ${columns}: ${line}`);
    }
    assert.ok(strip(survey, { ...plain, columns }).length < columns);
  }
});

test("a cell shows what holds most of it", () => {
  const tiny = {
    virtualBytes: 16,
    exact: true,
    regions: new Map<ByteClass, ExtentSet>([
      ["used", ExtentSet.of({ start: 0, end: 3 }, { start: 8, end: 10 })],
      ["hole", ExtentSet.of({ start: 3, end: 8 }, { start: 10, end: 12 })],
    ]),
  };
  assert.deepEqual(cells(tiny, 4, 4), ["used", "hole", "used", "unknown"]);
});

test("the map names the offset of every row", () => {
  const small = {
    virtualBytes: 512 * MiB,
    exact: true,
    regions: new Map<ByteClass, ExtentSet>([
      ["used", ExtentSet.of({ start: 0, end: 64 * MiB })],
      ["returnable", ExtentSet.of({ start: 64 * MiB, end: 96 * MiB })],
      ["hole", ExtentSet.of({ start: 96 * MiB, end: 512 * MiB })],
    ]),
  };
  draws(
    map(small, { ...plain, columns: 40 }),
    `
       0  ################
  32 MiB  ################
  64 MiB  ================
  96 MiB  ................
 128 MiB  ................
 160 MiB  ................
 192 MiB  ................
 224 MiB  ................
 256 MiB  ................
 288 MiB  ................
 320 MiB  ................
 352 MiB  ................
 384 MiB  ................
 416 MiB  ................
 448 MiB  ................
 480 MiB  ................

    # used 64.0   = returnable 32.0
    . never written or returned 416.0
    one character is 2 MiB, drawn as
    what holds most of it
`,
  );
  assert.match(map(small, { ...plain, unicode: true }), /█{16}/);
});

test("a plan and its result", () => {
  draws(
    renderPlan(survey, plain, { locked: true }),
    `
disk.qcow2   qcow2 / ext4, not in use, locked by this process

 returns   19.1 GiB   (18.9 clusters unmapped, 0.2 holes inside clusters)
 keeps     every block that the guest uses, and all of 1 volume that is not
           trusted; nothing is moved
 proof     bitmap says free AND no inode reaches it; 0 disagreements
 needs     no spare space; safe to interrupt at any instant
 FINAL     files already deleted in the guest can no longer be undeleted
 note      your next incremental backup may grow
`,
  );
  draws(
    renderResult(reclaimed, plain),
    `
 disk.qcow2  31.5 -> 12.4 GiB    promised 19.1, returned 19.1
 checked     image clean; every used block still mapped as before
 /srv free   4.0 -> 23.1 GiB
`,
  );
  assert.match(renderResult({ ...reclaimed, verified: true }, plain), /hashed before and after: equal/);
  assert.match(renderResult({ ...reclaimed, applied: false }, plain), /Nothing was changed/);
  draws(
    renderResult(
      { ...reclaimed, method: "pack", afterFileBytes: 12.7 * GiB, packedBytes: 18.9 * GiB },
      plain,
    ),
    `
 disk.qcow2  31.6 -> 12.7 GiB    promised 18.9, returned 18.9
 on disk     31.5 -> 12.4 GiB
 checked     image clean; every used block still mapped as before
 /srv free   4.0 -> 23.1 GiB
`,
  );
  const refused = { code: "journal-dirty", message: "the journal is dirty", hint: "boot the guest" };
  const dirty = { ...survey.volumes[0]!, state: "refused" as const, reason: refused };
  draws(
    renderPlan({ ...survey, volumes: [dirty, survey.volumes[1]!] }, plain, { locked: false }).split(
      "\n\n",
    )[1]!,
    `
 returns   19.1 GiB   (18.9 clusters unmapped, 0.2 holes inside clusters)
 keeps     every block that the guest uses, and all of 1 volume that is not
           trusted; nothing is moved
 refused   1: the journal is dirty (journal-dirty)
 hint      1: boot the guest
 proof     bitmap says free AND no inode reaches it; 0 disagreements
 needs     no spare space; safe to interrupt at any instant
 FINAL     files already deleted in the guest can no longer be undeleted
 note      your next incremental backup may grow
`,
  );
  const empty = { ...survey, reclaimableBytes: 0 };
  assert.match(renderDryRun({ ...reclaimed, applied: false, survey: empty }, plain), /nothing to return/);
});

test("an explanation", () => {
  const explained = {
    path: "disk.qcow2",
    offsets: [
      {
        offset: 1512779776,
        class: "returnable" as const,
        witness: "bitmaps + inode walk",
        owner: null,
        ownerPath: null,
        fileOffset: 0x4c4f3000,
        trail: ["partition 2", 'ext4 "root"', "group 7", "block 238003"],
      },
    ],
  };
  draws(
    renderExplain(explained, plain),
    `
 offset 1512779776 (0x5a2b3000), sector 2954648
 partition 2, ext4 "root", group 7, block 238003
 FREE      bitmaps: free.  inode walk: no owner.  Both agree.
 in image  at file offset 0x4C4F3000, still on the host's disk
`,
  );
});

test("a check", () => {
  const findings = [
    { kind: "leak" as const, count: 3, message: "cluster 7 at 0x70000: refcount 1, found 0" },
  ];
  draws(
    renderCheck(
      { path: "a.qcow2", errors: 0, leaks: 3, repairedLeaks: 0, inUse: false, exact: true, findings },
      plain,
    ),
    `
a.qcow2   0 errors, 3 leaks
 leak      3 x cluster 7 at 0x70000: refcount 1, found 0
`,
  );
});

test("a progress bar", () => {
  const progress = { phase: "returning" as const, doneBytes: 11.5 * GiB, totalBytes: 19.1 * GiB };
  assert.equal(
    barLine({ progress, seconds: 6, columns: 80 }),
    " ##################------------  11.5 of 19.1 GiB   4 s left   Ctrl-C is safe",
  );
});

test("nothing that a guest wrote reaches the terminal as a command (H25)", () => {
  const evil = "\x1b[2Jroot\u202egnp.exe\x07\x9b31m";
  const volume = { ...survey.volumes[1]!, label: evil, notes: [evil], filesystem: evil, witness: evil };
  const reason = { code: evil, message: evil, hint: evil };
  const hostile: Survey = {
    ...survey,
    path: evil,
    summary: evil,
    notes: [evil],
    worthless: [],
    guard: null,
    volumes: [volume, { ...volume, state: "refused", reason }],
  };
  const shown = [
    renderSurvey(hostile, { ...plain, unicode: true }, { map: true }),
    renderPlan(hostile, { ...plain, unicode: true }, { locked: true }),
    renderResult({ ...reclaimed, path: evil, notes: [evil] }, { ...plain, unicode: true }),
    renderCheck(
      {
        path: evil,
        errors: 1,
        leaks: 0,
        repairedLeaks: 0,
        inUse: false,
        exact: true,
        findings: [{ kind: "error", count: 1, message: evil }],
      },
      { ...plain, unicode: true },
    ),
    renderExplain(
      {
        path: evil,
        offsets: [
          {
            offset: 0,
            class: "used",
            witness: evil,
            owner: evil,
            ownerPath: evil,
            fileOffset: 0,
            trail: [evil],
          },
        ],
        owners: [{ volume: evil, path: evil, name: evil, bytes: 1 }],
        reasons: [evil],
        file: { volume: evil, path: evil, bytes: 0, pieces: [] },
      },
      { ...plain, unicode: true },
    ),
  ];
  for (const text of shown) assert.doesNotMatch(text.replaceAll("\n", ""), /[\p{Cc}\p{Cf}]/u);
});
