/**
 * The straight way of one request: what is in memory is answered at once, what is not takes the long way; and pages of a
 * file go to the socket only where nobody else can get them.
 */
import assert from "node:assert/strict";
import { openSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { BlockDevice, Place } from "../device/device.ts";
import { Filter } from "../device/filter.ts";
import { DiskError } from "../error.ts";
import { HostReader } from "../host/file.ts";
import { MemoryClient, sessionOf } from "../testing/nbd-memory.ts";
import { requestBytes, Wire } from "../testing/nbd-wire.ts";
import { Random } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { scratch } from "../testing/tools.ts";
import { Inbox } from "./inbox.ts";
import { Outbox } from "./outbox.ts";
import { CMD, CMD_FLAG, ERRNO } from "./protocol.ts";
import { Budget, Transmission } from "./transmission.ts";

const KiB = 1024;

/** A disk whose halves lie in a file the other way round; counts what takes the long way. */
class Swapped extends Filter {
  readonly file: SimulatedFile;
  longReads = 0;
  longWrites = 0;

  constructor(file: SimulatedFile) {
    super(file);
    this.file = file;
  }

  override locate(at: number, bytes: number): Place {
    const half = this.file.bytes / 2;
    const there = at < half ? at + half : at - half;
    return {
      file: this.file,
      at: there,
      bytes: Math.min(bytes, at < half ? half - at : this.file.bytes - at),
    };
  }

  override async read(at: number, into: Uint8Array): Promise<void> {
    this.longReads++;
    await this.#pieces(at, into, (there, piece) => this.file.read(there, piece));
  }

  override async write(at: number, from: Uint8Array): Promise<void> {
    this.longWrites++;
    await this.#pieces(at, from, (there, piece) => this.file.write(there, piece));
  }

  async #pieces(at: number, all: Uint8Array, move: (at: number, piece: Uint8Array) => Promise<void>) {
    for (let done = 0; done < all.length;) {
      const { at: there, bytes } = this.locate(at + done, all.length - done);
      await move(there, all.subarray(done, done + bytes));
      done += bytes;
    }
  }
}

function swapped(): { disk: Swapped; content: Buffer } {
  const bytes = new Random(2).bytes(256 * KiB);
  const content = Buffer.concat([bytes.subarray(128 * KiB), bytes.subarray(0, 128 * KiB)]);
  return { disk: new Swapped(SimulatedFile.from(bytes)), content };
}

test("what lies in places that are in memory is answered before anything else is looked at", async () => {
  const { disk, content } = swapped();
  disk.file.atOnce = (bytes) => bytes;
  const client = new MemoryClient(sessionOf(disk));
  const data = new Random(3).bytes(40 * KiB);
  void client.ask({ command: CMD.WRITE, offset: 100 * KiB, data });
  const asked = client.ask({ command: CMD.READ, offset: 90 * KiB, bytes: 60 * KiB });
  assert.equal(client.wire.unanswered, 0, "both are answered already");
  content.set(data, 100 * KiB);
  assert.ok((await asked).data!.equals(content.subarray(90 * KiB, 150 * KiB)));
  assert.deepEqual([disk.longReads, disk.longWrites], [0, 0]);
});

test("H20: what is in memory in part, or not at all, takes the long way as a whole", async () => {
  for (const atOnce of [
    () => 0,
    (bytes: number) => bytes >> 1,
    (bytes: number) => (bytes > 30_000 ? bytes : 5),
  ]) {
    const { disk, content } = swapped();
    disk.file.atOnce = atOnce;
    const client = new MemoryClient(sessionOf(disk));
    const data = new Random(3).bytes(40 * KiB);
    const write = { command: CMD.WRITE, offset: 120 * KiB, data };
    assert.equal((await client.ask(write)).error, 0);
    content.set(data, 120 * KiB);
    const { data: found } = await client.ask({ command: CMD.READ, offset: 120 * KiB, bytes: 40 * KiB });
    assert.ok(found!.equals(content.subarray(120 * KiB, 160 * KiB)));
    assert.deepEqual([disk.longReads, disk.longWrites], [1, 1]);
  }
});

test("of a long WRITE whole pages are written ahead, of nothing that will be refused, and each request counts its own", async () => {
  const { disk, content } = swapped();
  disk.file.atOnce = (bytes) => bytes;
  const wire = new Wire("structured");
  const inbox = new Inbox();
  const transmission = new Transmission(sessionOf(disk), new Outbox(), {
    watcher: { answered() {} },
    budget: new Budget(2 ** 20),
    sendsFiles: false,
    onNews() {},
  });
  const now = async (): Promise<Buffer> => {
    const bytes = Buffer.alloc(content.length);
    await disk.read(0, bytes);
    return bytes;
  };
  const say = (bytes: Uint8Array): void => {
    for (let at = 0; at < bytes.length; transmission.take(inbox)) at += inbox.add(bytes.subarray(at));
  };
  const data = new Random(3).bytes(100 * KiB);
  for (const offset of [1000, 130 * KiB]) {
    const request = requestBytes("structured", wire.name({ command: CMD.WRITE, offset, data }));
    say(request.subarray(0, 64 * KiB));
    const whole = Math.floor((offset + 64 * KiB - 28) / 4096) * 4096;
    content.set(data.subarray(0, whole - offset), offset);
    assert.ok((await now()).equals(content), "whole pages of what was there");
    say(request.subarray(64 * KiB));
    content.set(data, offset);
    assert.ok((await now()).equals(content));
  }
  const outside = { command: CMD.WRITE, offset: content.length - 64 * KiB, data };
  say(requestBytes("structured", wire.name(outside)).subarray(0, 64 * KiB));
  assert.ok((await now()).equals(content), "nothing of a request that will be refused");
});

test("H27: with FUA it is not enough that the host's memory has the bytes", async () => {
  const { disk } = swapped();
  disk.file.atOnce = (bytes) => bytes;
  disk.file.trace = [];
  const client = new MemoryClient(sessionOf(disk));
  const write = { command: CMD.WRITE, offset: 0, data: new Uint8Array(512), flags: CMD_FLAG.FUA };
  assert.equal((await client.ask(write)).error, 0);
  assert.deepEqual(
    disk.file.trace.map(({ op }) => op),
    ["write", "flush"],
  );
});

test("H20: a failure on the straight way is told", async () => {
  const { disk } = swapped();
  disk.file.atOnce = () => {
    throw new DiskError("io", "the host is full", { code: "no-space" });
  };
  const client = new MemoryClient(sessionOf(disk));
  const write = { command: CMD.WRITE, offset: 0, data: new Uint8Array(512) };
  assert.equal((await client.ask(write)).error, ERRNO.ENOSPC);
  assert.equal((await client.ask({ command: CMD.READ, offset: 0, bytes: 512 })).error, ERRNO.ENOSPC);
});

/** Asks a device over one real file for 128 KiB, and tells how the answer leaves. */
async function answered(t: TestContext, place: Partial<Place>, fileBytes: number) {
  const path = join(scratch(t), "file");
  const content = Buffer.alloc(512 * KiB, new Random(4).bytes(8 * KiB));
  writeFileSync(path, content.subarray(0, fileBytes));
  await using file = new HostReader(openSync(path, "r"), path);
  const device = {
    bytes: 512 * KiB,
    locate: (at: number, bytes: number): Place => ({ file, at, bytes, ...place }),
    read: async (at: number, into: Uint8Array) => into.set(content.subarray(at, at + into.length)),
  } as unknown as BlockDevice;
  const wire = new Wire("structured");
  const outbox = new Outbox();
  const inbox = new Inbox();
  const transmission = new Transmission(sessionOf(device, { readOnly: true }), outbox, {
    watcher: { answered() {} },
    budget: new Budget(2 ** 20),
    sendsFiles: true,
    onNews() {},
  });
  inbox.add(requestBytes("structured", wire.name({ command: CMD.READ, offset: 4096, bytes: 128 * KiB })));
  transmission.take(inbox);
  while (transmission.pending > 0) await new Promise((resolve) => setImmediate(resolve));
  let sentAsFile = 0;
  const heard: Uint8Array[] = [];
  outbox.flush({
    send: (from, offset, bytes) => heard.push(from.slice(offset, offset + bytes)) && bytes,
    sendFile: (fd, at, bytes) => {
      assert.equal(fd, file.fd);
      sentAsFile += bytes;
      return heard.push(content.subarray(at, at + bytes)) && bytes;
    },
  });
  const [reply] = wire.hear(Buffer.concat(heard));
  assert.ok(reply!.data!.equals(content.subarray(4096, 4096 + 128 * KiB)));
  return sentAsFile;
}

test("H14: pages of a file are sent only where they never become somebody else's", async (t) => {
  assert.equal(await answered(t, { isStable: true }, 512 * KiB), 128 * KiB);
  assert.equal(await answered(t, { isStable: false }, 512 * KiB), 0);
  assert.equal(await answered(t, {}, 512 * KiB), 0);
});

test("H14: what the file does not reach is not left to the kernel to send", async (t) => {
  assert.equal(await answered(t, { isStable: true }, 100 * KiB), 0);
});
