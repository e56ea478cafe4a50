/**
 * Shapes of containers that mkapfs does not make, put together from what it makes.
 */
import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { ExtentSet } from "../src/bytes/extents.ts";
import { viewOf } from "../src/bytes/struct.ts";
import { prove } from "../src/reclaim/prove.ts";
import { ContainerBlocks, makeContainer } from "../src/testing/apfs.ts";
import { FILE, withFile } from "../src/testing/apfs-file.ts";
import type { Changes } from "../src/testing/volume-blocks.ts";
import { requires, scratch } from "../src/testing/tools.ts";
import { apfs } from "../src/filesystems/apfs.ts";
import { TYPE } from "../src/filesystems/apfs/objects.ts";
import { SuperblockLayout } from "../src/filesystems/apfs/superblock.ts";
import { VolumeLayout } from "../src/filesystems/apfs/volume.ts";

const SPARE = 30_000;
const DATA_AT = 56;
const INFO_BYTES = 40;

let made: ContainerBlocks | undefined;

function container(t: TestContext): ContainerBlocks | undefined {
  if (!requires(t, "mkapfs")) return undefined;
  return (made ??= new ContainerBlocks(makeContainer(scratch(t))));
}

const open = (base: ContainerBlocks, changes: Parameters<ContainerBlocks["changed"]>[0]) =>
  apfs.open([base.changed(changes)], { replay: false });

/** The block of an object map's tree that maps objects of a type. */
function mapOf(base: ContainerBlocks, type: number, subtype: number): number {
  const target = BigInt(base.youngest(type, subtype));
  const found = [...base.blocks].find(([block, bytes]) => {
    const view = viewOf(bytes);
    const isMap =
      view.getUint32(24, true) % 65536 === TYPE.treeRoot && view.getUint32(28, true) === TYPE.objectMap;
    return block > 0 && isMap && view.getBigUint64(valueOf(view, 0) + 8, true) === target;
  });
  return found![0];
}

/** Where the value of a record of fixed length lies in a root. */
const valueOf = (view: DataView, record: number): number =>
  view.byteLength - INFO_BYTES - view.getUint16(DATA_AT + record * 4 + 2, true);

test("an encrypted volume: its tree is not read, its blocks are kept", async (t) => {
  const base = container(t);
  if (base === undefined) return;
  const plain = await prove(await open(base, {}), "full");
  const tree = base.youngest(TYPE.treeRoot, TYPE.fileTree);
  const filesystem = await open(base, {
    [base.youngest(TYPE.volumeSuperblock)]: (view) => {
      view.setBigUint64(VolumeLayout.at.flags, 8n, true);
    },
    [mapOf(base, TYPE.treeRoot, TYPE.fileTree)]: (view) => {
      view.setUint32(valueOf(view, 0), 4, true);
    },
    [tree]: (view) => {
      for (let at = 0; at < view.byteLength; at += 4) view.setUint32(at, 0xdeadbeef ^ (at * 31), true);
    },
  });
  const { free, refusal } = await prove(filesystem, "full");
  assert.equal(refusal, undefined);
  assert.deepEqual(filesystem.notes, ["volume untitled is encrypted"]);
  assert.deepEqual([...free[0]!], [...plain.free[0]!]);
  assert.ok(!free[0]!.has(tree * 4096));
  assert.equal(await filesystem.find("/any"), undefined);
  assert.equal(await filesystem.list("/"), undefined);
});

test("chunk-info blocks behind address blocks, as containers of many terabytes have", async (t) => {
  const base = container(t);
  if (base === undefined) return;
  const plain = await prove(await open(base, {}), "full");
  const manager = base.youngest(TYPE.spaceManager);
  const managerView = viewOf(base.blocks.get(manager)!);
  const [addressesAt, pool] = [managerView.getUint32(80, true), Number(managerView.getBigUint64(176, true))];
  const info = managerView.getBigUint64(addressesAt, true);
  const addresses = pool + 15;
  const change = (index: number) =>
    open(base, {
      [manager]: (view) => {
        view.setUint32(68, 1, true);
        view.setBigUint64(addressesAt, BigInt(addresses), true);
      },
      [addresses]: (view) => {
        view.setBigUint64(8, BigInt(addresses), true);
        view.setBigUint64(16, 1n, true);
        view.setUint32(24, 0x40000000 + TYPE.chunkInfoAddresses, true);
        view.setUint32(32, index, true);
        view.setUint32(36, 1, true);
        view.setBigUint64(40, info, true);
      },
    });
  const { free, refusal } = await prove(await change(0), "full");
  assert.equal(refusal, undefined);
  assert.deepEqual([...free[0]!], [...plain.free[0]!]);
  const wrong = await prove(await change(1), "full");
  assert.match(wrong.refusal!.message, /address block 0/);
});

test("a block in the free queue that is marked free already", async (t) => {
  const base = container(t);
  if (base === undefined) return;
  const manager = base.youngest(TYPE.spaceManager);
  const tree = viewOf(base.blocks.get(manager)!).getBigUint64(240 + 8, true);
  const [node] = [...base.blocks].find(([block, bytes]) => {
    const isQueue = viewOf(bytes).getUint32(28, true) === TYPE.freeQueue;
    return block > 0 && isQueue && viewOf(bytes).getBigUint64(8, true) === tree;
  })!;
  const queue = (start: number, counted: number) =>
    open(base, {
      [manager]: (view) => view.setBigUint64(240, BigInt(counted), true),
      [node]: (view) => {
        view.setUint32(36, 1, true);
        view.setUint16(DATA_AT, 0, true);
        view.setUint16(DATA_AT + 2, 0xffff, true);
        const keys = DATA_AT + view.getUint16(42, true);
        view.setBigUint64(keys, 1n, true);
        view.setBigUint64(keys + 8, BigInt(start), true);
        view.setBigUint64(view.byteLength - 16, 1n, true);
      },
    });
  assert.match((await prove(await queue(SPARE, 1), "full")).refusal!.message, /30000 is marked free already/);
  assert.match((await prove(await queue(SPARE, 2), "full")).refusal!.message, /1 blocks found, 2 expected/);
  const reached = base.youngest(TYPE.treeRoot, TYPE.fileTree);
  assert.match((await prove(await queue(reached, 1), "full")).refusal!.message, /belongs to another owner/);
});

test("two volumes: paths begin with their names, and what both claim refuses", async (t) => {
  const base = container(t);
  if (base === undefined) return;
  const map = mapOf(base, TYPE.volumeSuperblock, 0);
  const newest = base.youngest(TYPE.containerSuperblock);
  const volume = base.blocks.get(base.youngest(TYPE.volumeSuperblock))!;
  const filesystem = await open(base, {
    [newest]: (view) => view.setBigUint64(SuperblockLayout.at.volumes + 8, 1090n, true),
    [SPARE]: (view) => {
      new Uint8Array(view.buffer).set(volume);
      view.setBigUint64(8, 1090n, true);
      new Uint8Array(view.buffer).set(Buffer.from("Other/One\0"), VolumeLayout.at.volumeName);
    },
    [map]: (view) => {
      view.setUint32(36, 2, true);
      const [keys, value] = [DATA_AT + view.getUint16(42, true), valueOf(view, 0)];
      view.setUint16(DATA_AT + 4, 16, true);
      view.setUint16(DATA_AT + 6, 32, true);
      view.setBigUint64(keys + 16, 1090n, true);
      view.setBigUint64(keys + 24, view.getBigUint64(keys + 8, true), true);
      view.setUint32(value - 16, 0, true);
      view.setUint32(value - 12, 4096, true);
      view.setBigUint64(value - 8, BigInt(SPARE), true);
      view.setBigUint64(view.byteLength - 16, 2n, true);
    },
  });
  assert.equal(filesystem.refusal, undefined);
  assert.equal(filesystem.label, "untitled, Other/One");
  assert.deepEqual(
    (await filesystem.list("/"))!.map(({ name }) => name),
    ["untitled", "Other\\x2fOne"],
  );
  assert.deepEqual(await filesystem.list("/untitled"), []);
  assert.deepEqual(await filesystem.list("/Other\\x2fOne"), []);
  assert.equal(await filesystem.list("/third"), undefined);
  assert.match((await prove(filesystem, "full")).refusal!.message, /belongs to another owner too/);
});

test("a file: found, owned, and refused where its extent and the extent records do not agree", async (t) => {
  const base = container(t);
  if (base === undefined) return;
  const changes = withFile(base);
  const filesystem = await open(base, changes);
  const { free, refusal } = await prove(filesystem, "full");
  assert.equal(refusal, undefined);
  assert.ok(!free[0]!.touches({ start: FILE.start * 4096, end: (FILE.start + FILE.blocks) * 4096 }));
  const extents = [{ fileOffset: 0, at: FILE.start * 4096, bytes: FILE.blocks * 4096, unwritten: false }];
  assert.deepEqual(await filesystem.find("/MADE.txt"), {
    owner: FILE.id,
    kind: "file",
    bytes: FILE.blocks * 4096,
    extents,
  });
  assert.equal((await filesystem.describe(FILE.id)).path, "/made.txt");
  const listed = [{ name: "made.txt", kind: "file", allocatedBytes: FILE.blocks * 4096 }];
  assert.deepEqual(await filesystem.list("/"), listed);

  const wordOf = (tree: number, wanted: number): Changes => {
    const block = base.youngest(TYPE.treeRoot, tree);
    const add = changes[block]!;
    return {
      ...changes,
      [block]: (view) => {
        add(view);
        for (let at = 184; at + 4 <= view.byteLength - INFO_BYTES; at++) {
          if (view.getUint32(at, true) === wanted) return view.setUint32(at, wanted + 1, true);
        }
        assert.fail(`no ${wanted} found`);
      },
    };
  };
  const cases: readonly [tree: number, wanted: number, message: RegExp][] = [
    [TYPE.extentTree, FILE.start, /30000 is in no extent record/],
    [TYPE.fileTree, FILE.start, /30006 is in no extent record/],
  ];
  for (const [tree, wanted, message] of cases) {
    assert.match((await prove(await open(base, wordOf(tree, wanted)), "full")).refusal!.message, message);
  }
});

test("H3: a Mac that sleeps in its sleepimage; one that woke up does not", async (t) => {
  const base = container(t);
  if (base === undefined) return;
  const reason = async (role: number, signature: number, name = "sleepimage") => {
    const { refusal } = await open(base, {
      ...withFile(base, name),
      [base.youngest(TYPE.volumeSuperblock)]: (view) => view.setUint16(VolumeLayout.at.role, role, true),
      [FILE.start]: (view) => view.setUint32(88, signature, true),
    });
    return refusal?.code;
  };
  assert.equal(await reason(8, 0x73696d65), "hibernated");
  assert.equal(await reason(8, 0x7a7a7a7a), undefined);
  assert.equal(await reason(8, 0x73696d65, "other"), undefined);
  assert.equal(await reason(1, 0x73696d65), undefined);
});

test("what an earlier checkpoint calls used is kept as long as it is whole", async (t) => {
  const base = container(t);
  if (base === undefined) return;
  const [manager, info] = [base.youngest(TYPE.spaceManager), base.youngest(TYPE.chunkInfo)];
  const bitmap = Number(viewOf(base.blocks.get(info)!).getBigUint64(64, true));
  const made = withFile(base);
  const earlier = { [manager]: made[manager]!, [info]: made[info]!, [bitmap]: made[bitmap]! };
  const next = nextCheckpoint(base, { info, bitmap });
  const file = { start: FILE.start * 4096, end: (FILE.start + FILE.blocks) * 4096 };

  const [before] = await (await open(base, {})).free();
  const filesystem = await open(base, { ...earlier, ...next });
  const [free] = await filesystem.free();
  assert.equal(filesystem.refusal, undefined);
  assert.match(filesystem.notes.join(), /not shut down in order/);
  assert.deepEqual([...free!], [...before!.subtract(ExtentSet.of(file))]);

  const lost = { ...earlier, [info]: (view: DataView) => view.setBigUint64(16, 3n, true) };
  const [without] = await (await open(base, { ...lost, ...next })).free();
  assert.deepEqual(
    [...without!],
    [...before!],
    "its chunk-info block was replaced: nobody can go back to it",
  );
});

/** A second transaction with the same content: copies of all that a checkpoint is made of, bitmaps included. */
function nextCheckpoint(base: ContainerBlocks, { info, bitmap }: { info: number; bitmap: number }): Changes {
  const [map, superblock] = [base.youngest(TYPE.checkpointMap), base.youngest(TYPE.containerSuperblock)];
  const manager = viewOf(base.blocks.get(base.youngest(TYPE.spaceManager))!);
  const pool = Number(manager.getBigUint64(176, true));
  const copyOf = (block: number, change: (view: DataView) => void) => (view: DataView) => {
    new Uint8Array(view.buffer).set(base.blocks.get(block)!);
    view.setBigUint64(16, 2n, true);
    change(view);
  };
  const changes: Record<number, (view: DataView) => void> = {
    [superblock + 2]: copyOf(superblock, (view) =>
      view.setUint32(SuperblockLayout.at.descriptorIndex, 2, true),
    ),
    [map + 2]: copyOf(map, (view) => {
      for (let entry = 0; entry < view.getUint32(36, true); entry++) {
        const at = 40 + entry * 40 + 32;
        view.setBigUint64(at, view.getBigUint64(at, true) + 8n, true);
      }
    }),
    [pool + 10]: copyOf(info, (view) => {
      view.setBigUint64(8, BigInt(pool + 10), true);
      view.setBigUint64(64, BigInt(pool + 11), true);
    }),
    [pool + 11]: (view) => new Uint8Array(view.buffer).set(base.blocks.get(bitmap)!),
  };
  const entries = viewOf(base.blocks.get(map)!);
  for (let entry = 0; entry < entries.getUint32(36, true); entry++) {
    const block = Number(entries.getBigUint64(40 + entry * 40 + 32, true));
    const isManager = block === base.youngest(TYPE.spaceManager);
    changes[block + 8] = copyOf(block, (view) => {
      if (isManager) view.setBigUint64(view.getUint32(80, true), BigInt(pool + 10), true);
    });
  }
  return changes;
}
