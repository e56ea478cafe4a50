/**
 * Fuzzing of the transmission phase: a stream of requests of every kind, mutated, and cut anywhere, into the stack over a
 * qcow2 image (H24, H29, H31).
 *
 * Whatever it says: the connection goes on or ends by a `ProtocolBreach`, nothing hangs, what is held is bounded and given back,
 * and the image stays whole.
 */
import { allocation } from "../../src/nbd/contexts.ts";
import { assert } from "../../src/error.ts";
import { Inbox } from "../../src/nbd/inbox.ts";
import { Outbox } from "../../src/nbd/outbox.ts";
import { CMD, CMD_FLAG, ProtocolBreach } from "../../src/nbd/protocol.ts";
import { Budget, Transmission } from "../../src/nbd/transmission.ts";
import type { FuzzTarget, Sample, Spot } from "../../src/testing/fuzz.ts";
import { IMAGE_KINDS, makeKind, openKind, readKind } from "../../src/testing/nbd-images.ts";
import { sessionOf } from "../../src/testing/nbd-memory.ts";
import { type Asked, type Dialect, requestBytes } from "../../src/testing/nbd-wire.ts";
import { Random } from "../../src/testing/seeds.ts";

const KIND = IMAGE_KINDS.find(({ name }) => name === "qcow2, v3, 4 KiB")!;
const BUDGET_BYTES = 4 * 1024 * 1024;
const DIALECTS: readonly Dialect[] = ["simple", "structured", "extended"];
/** What a client that sends so little can make the server say: each request is answered with a READ of the whole disk. */
const REPLY_BYTES_MAX = 64 * 1024 * 1024;

export const nbdTransmission: FuzzTarget = {
  name: "nbd-transmission",
  needs: [],
  samples: () => Promise.resolve(DIALECTS.map(sampleOf)),
  run,
};

function sampleOf(dialect: Dialect): Sample {
  const random = new Random(1);
  const parts: Buffer[] = [];
  const spots: Spot[] = [];
  let at = 0;
  for (let i = 0; i < 40; i++) {
    const bytes = requestBytes(dialect, someRequest(random, BigInt(i)));
    const widths = dialect === "extended" ? [4, 2, 2, 8, 8, 8] : [4, 2, 2, 8, 8, 4];
    let field = 0;
    const fields = widths.map((width) => ({ at: (field += width) - width, bytes: width }));
    spots.push({ at, bytes: field, fields: fields.slice(1) });
    parts.push(bytes);
    at += bytes.length;
  }
  return { name: dialect, bytes: Buffer.concat(parts), spots };
}

function someRequest(random: Random, cookie: bigint): Asked {
  const command = random.pick([
    CMD.READ,
    CMD.WRITE,
    CMD.TRIM,
    CMD.FLUSH,
    CMD.CACHE,
    CMD.WRITE_ZEROES,
    CMD.BLOCK_STATUS,
  ]);
  const flags = random.oneIn(4) ? CMD_FLAG.FUA : 0;
  if (command === CMD.FLUSH) return { command, flags, cookie };
  const offset = random.below(KIND.virtualBytes - 20_000);
  const bytes = random.below(20_000);
  const data = command === CMD.WRITE ? random.bytes(bytes) : undefined;
  return { command, flags, cookie, offset, bytes, ...(data && { data }) };
}

async function run(stream: Uint8Array, random: Random, { name }: Sample): Promise<string> {
  const { files } = await makeKind(KIND, random);
  if (random.oneIn(2)) for (const file of files.values()) file.atOnce = (bytes) => bytes;
  const image = await openKind(KIND, files);
  const dialect = name as Dialect;
  const contexts = dialect === "simple" ? [] : [allocation(image)];
  const readOnly = random.oneIn(8);
  const budget = new Budget(BUDGET_BYTES);
  const outbox = new Outbox();
  const inbox = new Inbox();
  const transmission = new Transmission(sessionOf(image, { dialect, contexts, readOnly }), outbox, {
    watcher: { answered() {} },
    budget,
    sendsFiles: false,
    onNews() {},
  });
  let saidBytes = 0;
  const sink = {
    send: (_: Uint8Array, _offset: number, bytes: number) => {
      const taken = random.oneIn(3) ? random.below(bytes + 1) : bytes;
      saidBytes += taken;
      return taken;
    },
  };
  let word = "went on";
  let at = 0;
  try {
    for (let turns = 0; ; turns++) {
      assert(turns < 100_000, "it comes to an end");
      const isSent = outbox.flush(sink);
      const isStuck = isSent && transmission.take(inbox);
      assert(budget.left > -BUDGET_BYTES, "what a client holds is bounded");
      if (!isStuck && isSent && at < stream.length && !transmission.isOver) {
        at += inbox.add(stream.subarray(at, at + 1 + random.below(random.pick([5, 60, 9000]))));
      } else if (transmission.pending === 0 && outbox.isEmpty && !isStuck) break;
      await (random.oneIn(2) ? Promise.resolve() : new Promise((resolve) => setImmediate(resolve)));
    }
    if (transmission.isOver) word = "said goodbye";
  } catch (error) {
    if (!(error instanceof ProtocolBreach)) throw error;
    word = "broke the protocol";
  }
  while (transmission.pending > 0) await new Promise((resolve) => setImmediate(resolve));
  transmission.abandon();
  assert(budget.left === BUDGET_BYTES, "nothing is held at the end");
  assert(saidBytes < REPLY_BYTES_MAX, "answers of moderate length");
  await image[Symbol.asyncDispose]();
  await using survivor = await readKind(KIND, files);
  for await (const { kind, message } of survivor.check()) assert(false, `${kind}: ${message}`);
  return word;
}
