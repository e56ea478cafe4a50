/**
 * A file that is put into an empty container by hand, since mkapfs puts none, and the driver needs another kernel.
 *
 *   file-system tree   inode 20, its stream, its extent       extent records   one of `FILE.blocks`
 *   bitmap, chunk-info block, space manager                   that many blocks fewer are free
 */
import { viewOf } from "../bytes/struct.ts";
import { TYPE } from "../filesystems/apfs/objects.ts";
import type { ContainerBlocks } from "./apfs.ts";
import type { Changes } from "./volume-blocks.ts";

export const FILE = { id: 20, start: 30_000, blocks: 6, name: "made.txt" };

const BLOCK_BYTES = 4096;
const TABLE_AT = 56;
const INFO_BYTES = 40;
const KIND = { extent: 2, inode: 3, stream: 6, fileExtent: 8, entry: 9 };
const ROOT_DIRECTORY = 2;
const NEW = 1;

export function withFile(base: ContainerBlocks, called = FILE.name): Changes {
  const manager = base.youngest(TYPE.spaceManager);
  const info = base.youngest(TYPE.chunkInfo);
  const bitmap = Number(viewOf(base.blocks.get(info)!).getBigUint64(64, true));
  const fewer = (view: DataView, at: number) =>
    view.setUint32(at, view.getUint32(at, true) - FILE.blocks, true);
  return {
    [manager]: (view) => fewer(view, 72),
    [info]: (view) => fewer(view, 60),
    [bitmap]: (view) => {
      for (let block = FILE.start; block < FILE.start + FILE.blocks; block++) {
        view.setUint8(block >> 3, view.getUint8(block >> 3) | (1 << (block & 7)));
      }
    },
    [base.youngest(TYPE.treeRoot, TYPE.extentTree)]: (view) => {
      addRecord(view, key(FILE.start, KIND.extent), numbers(FILE.blocks, NEW * 2 ** 28, FILE.id, 0, 1));
    },
    [base.youngest(TYPE.treeRoot, TYPE.fileTree)]: (view) => {
      const length = FILE.blocks * BLOCK_BYTES;
      const name = Buffer.from(`${called}\0`);
      addRecord(view, key(FILE.id, KIND.inode), inode(name, length));
      addRecord(view, key(FILE.id, KIND.stream), numbers(1));
      addRecord(view, key(FILE.id, KIND.fileExtent, 0, 0), numbers(length, 0, FILE.start, 0, 0, 0));
      const entry = Buffer.concat([key(ROOT_DIRECTORY, KIND.entry, name.length), name]);
      addRecord(view, entry, Buffer.concat([numbers(FILE.id, 0, 0, 0), Buffer.from([8, 0])]));
    },
  };
}

/** 32-bit numbers, little-endian. */
function numbers(...words: readonly number[]): Buffer {
  return Buffer.from(Uint32Array.from(words).buffer);
}

/** An id, its kind in the highest bits, and what else belongs to the key. */
function key(id: number, kind: number, ...rest: readonly number[]): Buffer {
  return numbers(id, kind * 2 ** 28, ...rest);
}

function inode(name: Uint8Array, length: number): Buffer {
  const padded = Buffer.alloc(Math.ceil(name.length / 8) * 8);
  padded.set(name);
  const value = Buffer.alloc(92);
  value.writeUInt32LE(ROOT_DIRECTORY, 0);
  value.writeUInt32LE(FILE.id, 8);
  value.writeUInt16LE(0o100644, 80);
  const fields = Buffer.from([2, 0, padded.length + 40, 0, 4, 2, name.length, 0, 8, 32, 40, 0]);
  return Buffer.concat([value, fields, padded, numbers(length, 0, length, 0, 0, 0, 0, 0, 0, 0)]);
}

/** Adds a record of variable length behind the others of a root that is a leaf. */
function addRecord(view: DataView, newKey: Uint8Array, newValue: Uint8Array): void {
  const count = view.getUint32(36, true);
  const keys = TABLE_AT + view.getUint16(42, true);
  let [keysEnd, valuesBytes] = [0, 0];
  for (let index = 0; index < count; index++) {
    const at = TABLE_AT + index * 8;
    keysEnd = Math.max(keysEnd, view.getUint16(at, true) + view.getUint16(at + 2, true));
    valuesBytes = Math.max(valuesBytes, view.getUint16(at + 4, true));
  }
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  bytes.set(newKey, keys + keysEnd);
  bytes.set(newValue, view.byteLength - INFO_BYTES - valuesBytes - newValue.length);
  const entry = [keysEnd, newKey.length, valuesBytes + newValue.length, newValue.length];
  entry.forEach((word, index) => view.setUint16(TABLE_AT + count * 8 + index * 2, word, true));
  view.setUint32(36, count + 1, true);
  view.setUint32(view.byteLength - 16, count + 1, true);
}
