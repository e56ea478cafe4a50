import assert from "node:assert/strict";
import { test } from "node:test";
import { DiskError } from "../error.ts";
import { argon2, type Argon2Costs, argon2OfNode, argon2OfWasm } from "./argon2.ts";

const costs = (rest: Partial<Argon2Costs>): Argon2Costs => ({
  type: "argon2id",
  passes: 3,
  memoryKiB: 256,
  lanes: 4,
  salt: Buffer.from("a salt of sixteen"),
  ...rest,
});

test("Node's Argon2 and that of WebAssembly agree", async () => {
  for (const each of [
    costs({}),
    costs({ type: "argon2i", lanes: 1 }),
    costs({ passes: 1, memoryKiB: 4099 }),
  ]) {
    for (const [passphrase, bytes] of [
      ["short", 32],
      ["any byte\0\xff", 64],
      ["long".repeat(100), 100],
    ] as const) {
      const message = Buffer.from(passphrase, "latin1");
      const found = await argon2OfNode(message, each, bytes);
      assert.equal(found.length, bytes);
      assert.deepEqual(Buffer.from(await argon2OfWasm(message, each, bytes)), found);
    }
  }
});

test("what no memory suffices for is no bug", async () => {
  const greedy = argon2(Buffer.from("x"), costs({ passes: 1, memoryKiB: 0xffff_ffff }), 32);
  await assert.rejects(greedy, (error) => error instanceof DiskError && error.kind === "unsupported");
});
