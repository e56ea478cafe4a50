import assert from "node:assert/strict";
import { test } from "node:test";
import { Random, seeds } from "../testing/seeds.ts";
import { Outbox, type Sink } from "./outbox.ts";

const KiB = 1024;

/** Takes as many bytes as it is told; remembers them, and that the file was sent as such. */
class Taking implements Sink {
  readonly heard: Buffer[] = [];
  readonly more: boolean[] = [];
  room = 0;
  readonly #file: Uint8Array;

  constructor(file: Uint8Array = new Uint8Array()) {
    this.#file = file;
  }

  send(from: Uint8Array, offset: number, bytes: number, more: boolean): number {
    const taken = Math.min(bytes, this.room);
    if (taken === 0) return -1;
    this.more.push(more);
    return this.#take(from.slice(offset, offset + taken));
  }

  sendFile(fd: number, at: number, bytes: number): number {
    assert.equal(fd, 42);
    const taken = Math.min(bytes, this.room);
    if (taken === 0) return -1;
    return this.#take(this.#file.slice(at, at + taken));
  }

  #take(bytes: Uint8Array): number {
    this.heard.push(Buffer.from(bytes));
    this.room -= bytes.length;
    return bytes.length;
  }

  get text(): string {
    return Buffer.concat(this.heard).toString();
  }
}

const bytesOf = (text: string): Uint8Array => new Uint8Array(Buffer.from(text));

function straight(outbox: Outbox, text: string): void {
  const at = outbox.reserve(text.length);
  assert.ok(at >= 0);
  outbox.bytes.set(bytesOf(text), at);
  outbox.commit(text.length);
}

test("whatever the sink takes at a time, each reply goes out once and in one piece", () => {
  const file = bytesOf("0123456789abcdef");
  for (let step = 1; step <= 12; step++) {
    const outbox = new Outbox();
    const sink = new Taking(file);
    straight(outbox, "<one>");
    outbox.push({ head: bytesOf("<two:"), body: bytesOf("body>") });
    outbox.push({ head: bytesOf("<three:"), file: { fd: 42, at: 3, bytes: 7 } });
    outbox.push({ head: bytesOf("<four>") });
    for (let i = 0; ; i++) {
      assert.ok(i < 100, "it comes to an end");
      sink.room = step;
      if (outbox.flush(sink)) break;
      assert.ok(!outbox.isEmpty);
      // Others join while a reply is on its way.
      if (i === 2) straight(outbox, "<five>");
    }
    assert.ok(outbox.isEmpty);
    const replies = ["<one>", "<two:body>", "<three:3456789", "<four>", ...(step < 12 ? ["<five>"] : [])];
    const found = replies.filter((reply) => sink.text.split(reply).length === 2);
    assert.deepEqual(found, replies, `${step} bytes at a time: ${sink.text}`);
    assert.equal(sink.text.length, replies.join("").length);
  }
});

test("a part that was begun comes to its end before anything of the straight lane", () => {
  const outbox = new Outbox();
  const sink = new Taking();
  outbox.push({ head: bytesOf("head "), body: bytesOf("body ") });
  sink.room = 7;
  assert.equal(outbox.flush(sink), false);
  straight(outbox, "straight");
  sink.room = 100;
  assert.equal(outbox.flush(sink), true);
  assert.equal(sink.text, "head body straight");
  assert.deepEqual(sink.more, [true, false, false, false], "a head says that its body follows");
});

test("a straight lane that was sent in part goes on where it was, with what joined it", () => {
  const outbox = new Outbox();
  const sink = new Taking();
  straight(outbox, "abcdef");
  sink.room = 2;
  assert.equal(outbox.flush(sink), false);
  straight(outbox, "ghi");
  sink.room = 100;
  assert.equal(outbox.flush(sink), true);
  straight(outbox, "jkl");
  assert.equal(outbox.flush(sink), true);
  assert.equal(sink.text, "abcdefghijkl");
});

test("the straight lane is bounded: what does not fit is refused, and a long reply grows it once", () => {
  const outbox = new Outbox();
  assert.equal(outbox.reserve(64 * KiB), 0);
  assert.ok(!outbox.isFull, "what is reserved and not committed does not count");
  straight(outbox, "x");
  assert.equal(outbox.reserve(outbox.bytes.length), -1);
  const sink = new Taking();
  sink.room = 1;
  assert.equal(outbox.flush(sink), true);
  assert.equal(outbox.reserve(2 * 1024 * KiB), 0);
  assert.equal(outbox.reserve(3 * 1024 * KiB), -1);
  assert.ok(outbox.bytes.length < 3 * 1024 * KiB);
  outbox.commit(200 * KiB);
  assert.ok(outbox.isFull);
});

test("many parts fill it", () => {
  const outbox = new Outbox();
  let parts = 0;
  for (; !outbox.isFull; parts++) outbox.push({ head: bytesOf("x") });
  assert.ok(parts <= 64);
});

test("random traffic arrives whole", () => {
  for (const seed of seeds(10)) {
    const random = new Random(seed);
    const outbox = new Outbox();
    const sink = new Taking();
    const said: string[] = [];
    for (let i = 0; i < 300; i++) {
      const text = `<${i}:${"x".repeat(random.below(60))}>`;
      if (random.oneIn(2)) straight(outbox, text);
      else {
        const cut = 1 + random.below(text.length - 1);
        outbox.push({ head: bytesOf(text.slice(0, cut)), body: bytesOf(text.slice(cut)) });
      }
      said.push(text);
      sink.room = random.below(90);
      outbox.flush(sink);
    }
    sink.room = Infinity;
    assert.ok(outbox.flush(sink));
    assert.deepEqual(sink.text.split(/(?<=>)/).sort(), said.sort(), `SEED=${seed}`);
  }
});
