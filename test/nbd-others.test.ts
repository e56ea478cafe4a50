/**
 * Our handshake beside those of qemu-nbd and nbdkit: the same options, reply by reply. Where we answer otherwise it stands
 * here, and in docs/LIVE.md.
 */
import assert from "node:assert/strict";
import { copyFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { OPT, REP } from "../src/nbd/protocol.ts";
import { NbdClient } from "../src/testing/nbd-client.ts";
import { contextData, infoData, text, u16, u32 } from "../src/testing/nbd-script.ts";
import { serving } from "../src/testing/serving.ts";
import { requires, scratch } from "../src/testing/tools.ts";

interface Probe {
  readonly code: number;
  readonly data?: Uint8Array;
  /** Replies are simple. */
  readonly isSimple?: true;
  /** What we say in the end, where it is something else than both others say. */
  readonly ours?: number;
}

const joined = (...parts: readonly Uint8Array[]): Buffer => Buffer.concat(parts);
const long = "x".repeat(4097);

const PROBES: Readonly<Record<string, Probe>> = {
  LIST: { code: OPT.LIST },
  "LIST with data": { code: OPT.LIST, data: Buffer.of(0) },
  "STARTTLS where there is none": { code: OPT.STARTTLS, ours: REP.ERR_UNSUP },
  EXTENDED_HEADERS: { code: OPT.EXTENDED_HEADERS },
  "option 0": { code: 0 },
  "PEEK_EXPORT, withdrawn": { code: 4 },
  "an unknown option": { code: 99, data: Buffer.alloc(20) },
  "INFO of everything": { code: OPT.INFO, data: infoData("", [0, 1, 2, 3, 9]) },
  "INFO without data": { code: OPT.INFO },
  "INFO without a count": { code: OPT.INFO, data: text("") },
  "INFO with too few requests": { code: OPT.INFO, data: joined(text(""), u16(3)) },
  "INFO with a NUL": { code: OPT.INFO, data: infoData("a\0b") },
  "INFO with a name past its end": { code: OPT.INFO, data: joined(u32(7), Buffer.from("abc"), u16(0)) },
  "INFO with a long name": { code: OPT.INFO, data: infoData(long), ours: REP.ERR_TOO_BIG },
  "GO with a long name": { code: OPT.GO, data: infoData(long), ours: REP.ERR_TOO_BIG },
  STRUCTURED_REPLY: { code: OPT.STRUCTURED_REPLY, isSimple: true },
  "STRUCTURED_REPLY with data": { code: OPT.STRUCTURED_REPLY, data: Buffer.of(1), isSimple: true },
  "contexts listed": { code: OPT.LIST_META_CONTEXT, data: contextData("") },
  "contexts listed, simple": { code: OPT.LIST_META_CONTEXT, data: contextData(""), isSimple: true },
  "contexts of base:": { code: OPT.LIST_META_CONTEXT, data: contextData("", ["base:"]) },
  "contexts of a stranger": { code: OPT.LIST_META_CONTEXT, data: contextData("", ["x-a:"]) },
  "contexts chosen": { code: OPT.SET_META_CONTEXT, data: contextData("", ["base:allocation"]) },
  "contexts chosen, simple": { code: OPT.SET_META_CONTEXT, data: contextData(""), isSimple: true },
  "none chosen": { code: OPT.SET_META_CONTEXT, data: contextData("", []) },
  "base: chosen": { code: OPT.SET_META_CONTEXT, data: contextData("", ["base:"]) },
  "unknown ones chosen": { code: OPT.SET_META_CONTEXT, data: contextData("", ["x-a:y", "base:y"]) },
  "fewer queries than said": { code: OPT.SET_META_CONTEXT, data: joined(text(""), u32(5)) },
  "a query past its end": { code: OPT.SET_META_CONTEXT, data: joined(text(""), u32(1), u32(9)) },
  "a query without a namespace": {
    code: OPT.SET_META_CONTEXT,
    data: contextData("", ["base"]),
    ours: REP.ERR_INVALID,
  },
  "bytes behind the last query": {
    code: OPT.SET_META_CONTEXT,
    data: joined(contextData("", ["base:allocation"]), u32(0)),
    ours: REP.ERR_INVALID,
  },
  ABORT: { code: OPT.ABORT },
  "ABORT with data": { code: OPT.ABORT, data: Buffer.alloc(5) },
};

/** The types of the replies; how many of a kind come before the last is each server's own affair. */
async function heard(path: string, { code, data, isSimple }: Probe): Promise<number[]> {
  await using client = await NbdClient.connect({ path });
  await client.greet();
  if (!isSimple) await client.option(OPT.STRUCTURED_REPLY);
  const types = (await client.option(code, data ?? new Uint8Array())).map(({ type }) => type);
  return types.filter((type, i) => type !== types[i - 1]);
}

test("each option is answered as qemu-nbd and nbdkit answer it, but for what is said", async (t) => {
  if (!requires(t, "qemu-nbd", "nbdkit")) return;
  const folder = scratch(t);
  const image = join(folder, "disk.raw");
  writeFileSync(image, Buffer.alloc(1024 * 1024, 7));
  const [theirs, kits] = ["theirs.raw", "kits.raw"].map((name) => join(folder, name)) as [string, string];
  for (const copy of [theirs, kits]) copyFileSync(image, copy);
  await using ullage = await serving(t, [image], { format: "raw" });
  await using qemu = await serving(t, [theirs], { server: "qemu-nbd", format: "raw" });
  await using nbdkit = await serving(t, [kits], { server: "nbdkit" });
  for (const [name, probe] of Object.entries(PROBES)) {
    const ours = await heard(ullage.socket, probe);
    const others = [await heard(qemu.socket, probe), await heard(nbdkit.socket, probe)];
    const isLikeOne = others.some((each) => each.join() === ours.join());
    const shown = `${name}: ${ours.join()}, not ${others.join(" or ")}`;
    if (probe.ours === undefined) assert.ok(isLikeOne, shown);
    else assert.deepEqual([ours, isLikeOne], [[probe.ours], false], shown);
  }
});
