import assert from "node:assert/strict";
import { test } from "node:test";
import { Random, seeds } from "../testing/seeds.ts";
import { Inbox } from "./inbox.ts";

const HEADER = 28;
const KiB = 1024;
const MiB = 1024 * KiB;

/** Takes whole messages, each a length in four bytes and so many bytes, as `Transmission` takes requests. */
function takeAll(inbox: Inbox, heard: Buffer[]): void {
  for (;;) {
    const bytesAtHand = inbox.end - inbox.start;
    if (bytesAtHand < HEADER) return inbox.need(HEADER);
    const whole = HEADER + inbox.view.getUint32(inbox.start);
    if (bytesAtHand < whole) return inbox.need(whole);
    heard.push(Buffer.from(inbox.bytes.subarray(inbox.start, inbox.start + whole)));
    inbox.start += whole;
  }
}

function message(payload: Uint8Array): Buffer {
  const head = Buffer.alloc(HEADER, 0xab);
  head.writeUInt32BE(payload.length);
  return Buffer.concat([head, payload]);
}

test("requests of any length come out as they came in, wherever they were cut", () => {
  for (const seed of seeds(3)) {
    const random = new Random(seed);
    const said = Array.from({ length: 40 }, () =>
      message(random.bytes(random.below(random.pick([1, 100, 100, 20 * KiB, 300 * KiB, 5 * MiB])))),
    );
    const stream = Buffer.concat(said);
    const inbox = new Inbox();
    const heard: Buffer[] = [];
    for (let at = 0; at < stream.length;) {
      const cut = 1 + random.below(random.pick([30, 5000, 200 * KiB]));
      const added = inbox.add(stream.subarray(at, at + cut));
      assert.ok(added > 0, "there is always room for more");
      at += added;
      takeAll(inbox, heard);
    }
    assert.equal(heard.length, said.length);
    for (const [i, each] of said.entries()) assert.ok(each.equals(heard[i]!), `SEED=${seed}: request ${i}`);
    assert.equal(inbox.end - inbox.start, 0);
  }
});

test("of a long request just the rest is received", () => {
  const inbox = new Inbox();
  inbox.add(message(Buffer.alloc(MiB)).subarray(0, HEADER));
  takeAll(inbox, []);
  assert.ok(inbox.bytes.length >= HEADER + MiB);
  assert.ok(inbox.room() <= MiB, "what follows it would have to be moved");
});

test("the memory of a giant is given back; that of large requests is kept", () => {
  const inbox = new Inbox();
  const small = inbox.bytes.length;
  const say = (bytes: number): void => {
    const said = message(Buffer.alloc(bytes, 7));
    const heard: Buffer[] = [];
    for (let at = 0; at < said.length;) {
      at += inbox.add(said.subarray(at));
      takeAll(inbox, heard);
    }
    assert.ok(heard[0]!.equals(said));
  };
  say(3 * MiB);
  assert.ok(inbox.bytes.length >= 3 * MiB && inbox.bytes.length < 4 * MiB);
  const kept = inbox.bytes;
  say(2 * MiB);
  assert.equal(inbox.bytes, kept);
  say(32 * MiB);
  assert.equal(inbox.bytes.length, small);
});

test("a cut request is moved to the front where the room is short", () => {
  const inbox = new Inbox();
  const front = inbox.start;
  const first = message(Buffer.alloc(inbox.bytes.length - front - HEADER - 100, 1));
  for (let at = 0; at < first.length;) at += inbox.add(first.subarray(at));
  const second = message(Buffer.alloc(1000, 2));
  inbox.add(second.subarray(0, 100));
  const heard: Buffer[] = [];
  takeAll(inbox, heard);
  assert.equal(inbox.bytes.length - inbox.end, 0, "the buffer is full");
  assert.ok(inbox.room() > 60 * KiB);
  assert.equal(inbox.start, front);
  inbox.add(second.subarray(100));
  takeAll(inbox, heard);
  assert.ok(heard[1]!.equals(second));
});
