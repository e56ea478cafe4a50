/**
 * The judge against a table written from the specification (doc/proto.md: Command flags, Request types, Error values):
 * every command with every set of flags, for every kind of range, export and session.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { type Dialect } from "../testing/nbd-wire.ts";
import { sessionOf } from "../testing/nbd-memory.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import type { Session } from "./export.ts";
import { judge } from "./request.ts";

const [EPERM, EINVAL, ENOSPC] = [1, 22, 28];
const [READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS] = [0, 1, 3, 4, 5, 6, 7];
const [FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN] = [1, 2, 4, 8, 16, 32];
const DISK = 1024 * 1024;

const file = new SimulatedFile(DISK);
const context = { name: "base:allocation", status: () => Promise.resolve([]) };

function session(dialect: Dialect, more: Parameters<typeof sessionOf>[1] = {}): Session {
  return sessionOf(file, { dialect, contexts: dialect === "simple" ? [] : [context], ...more });
}

function told(to: Session, command: number, flags: number, offset: number, bytes: number): number {
  return judge(
    { command, flags, offset, bytes, cookieHigh: 0, cookieLow: 0, offsetHigh: 0, offsetLow: 0 },
    to,
  );
}

/** Which flags the specification lets a command have. FUA is accepted with every command, even if ignored. */
function mayHave(command: number, dialect: Dialect): number {
  switch (command) {
    case READ:
      return FUA | (dialect === "simple" ? 0 : DF);
    case WRITE:
      return FUA | (dialect === "extended" ? PAYLOAD_LEN : 0);
    case ZEROES:
      return FUA | NO_HOLE | FAST_ZERO;
    case STATUS:
      return FUA | REQ_ONE;
    default:
      return FUA;
  }
}

test("H29: every command with every set of flags: what is not documented for it is EINVAL", () => {
  for (const dialect of ["simple", "structured", "extended"] as const) {
    const to = session(dialect);
    for (const command of [READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS]) {
      const [offset, bytes] = command === FLUSH ? [0, 0] : [4096, 512];
      for (let flags = 0; flags < 128; flags++) {
        const isAllowed = (flags & ~mayHave(command, dialect)) === 0;
        const isPossible = isAllowed && !(command === STATUS && dialect === "simple");
        const found = told(to, command, flags, offset, bytes);
        assert.equal(found, isPossible ? 0 : EINVAL, `${dialect}: command ${command}, flags ${flags}`);
      }
      assert.equal(told(to, command, 1 << 15, offset, bytes), EINVAL);
    }
  }
});

test("H29: a command that nobody knows is EINVAL, and so is RESIZE", () => {
  for (const command of [8, 9, 255, 65535])
    assert.equal(told(session("structured"), command, 0, 0, 512), EINVAL);
});

test("H29: a range that does not lie inside: ENOSPC where it would write, EINVAL elsewhere", () => {
  const outside: readonly (readonly [number, number])[] = [
    [DISK, 1],
    [DISK - 511, 512],
    [0, DISK + 1],
    [DISK + 512, 0],
    [2 ** 63, 512],
    // Their sum wraps around 2^64.
    [2 ** 64 - 512, 1024],
    [2 ** 64 - 2048, 2048],
    [1, 2 ** 64 - 2048],
    [512, 2 ** 53],
  ];
  const inside: readonly (readonly [number, number])[] = [
    [0, DISK],
    [DISK - 1, 1],
    [0, 1],
    [DISK - 512, 512],
  ];
  const empty: readonly (readonly [number, number])[] = [
    [0, 0],
    [DISK, 0],
    [77, 0],
  ];
  for (const dialect of ["structured", "extended"] as const) {
    const to = session(dialect);
    for (const command of [READ, WRITE, TRIM, CACHE, ZEROES, STATUS]) {
      const error = command === WRITE || command === ZEROES ? ENOSPC : EINVAL;
      for (const [offset, bytes] of outside) {
        assert.equal(told(to, command, 0, offset, bytes), error, `${command}: ${offset}+${bytes}`);
      }
      for (const [offset, bytes] of inside) assert.equal(told(to, command, 0, offset, bytes), 0);
      for (const [offset, bytes] of empty) {
        assert.equal(told(to, command, 0, offset, bytes), command === STATUS ? EINVAL : 0);
      }
    }
  }
});

test("H29: FLUSH has neither offset nor length", () => {
  const to = session("structured");
  assert.equal(told(to, FLUSH, 0, 0, 0), 0);
  assert.equal(told(to, FLUSH, 0, 512, 0), EINVAL);
  assert.equal(told(to, FLUSH, 0, 0, 512), EINVAL);
});

test("H29: read-only: what writes is EPERM, wherever it would; all else is as before", () => {
  const to = session("structured", { readOnly: true });
  for (const command of [WRITE, TRIM, ZEROES]) {
    assert.equal(told(to, command, 0, 0, 512), EPERM);
    assert.equal(told(to, command, FUA, 0, 0), EPERM);
    assert.equal(told(to, command, 0, DISK, 512), EPERM);
  }
  for (const command of [READ, CACHE, STATUS]) {
    assert.equal(told(to, command, 0, 0, 512), 0);
    assert.equal(told(to, command, 0, DISK, 512), EINVAL);
  }
  assert.equal(told(to, FLUSH, 0, 0, 0), 0);
});

test("H29: a range off the minimum block size is EINVAL", () => {
  const to = session("structured", { minimum: 512 });
  for (const command of [READ, WRITE, TRIM, CACHE, ZEROES, STATUS]) {
    assert.equal(told(to, command, 0, 512, 1024), 0);
    assert.equal(told(to, command, 0, 511, 512), EINVAL);
    assert.equal(told(to, command, 0, 512, 513), EINVAL);
  }
});

test("H29: a READ longer than the maximum is EINVAL, but never one of 64 KiB; TRIM and zeros may be longer", () => {
  const to = session("structured", { maximum: 128 * 1024 });
  assert.equal(told(to, READ, 0, 0, 128 * 1024), 0);
  assert.equal(told(to, READ, 0, 0, 128 * 1024 + 1), EINVAL);
  for (const command of [TRIM, ZEROES, CACHE, STATUS]) assert.equal(told(to, command, 0, 0, DISK), 0);
  const narrow = session("structured", { maximum: 4096 });
  assert.equal(told(narrow, READ, DF, 0, 65536), 0, "unfragmented reads of 64 KiB have to work");
});

test("H29: BLOCK_STATUS without a context that was agreed on is EINVAL", () => {
  assert.equal(told(session("structured", { contexts: [] }), STATUS, 0, 0, 512), EINVAL);
  assert.equal(told(session("structured"), STATUS, 0, 0, 512), 0);
});
