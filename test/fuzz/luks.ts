/**
 * Fuzzing of LUKS and BitLocker headers. What opens must lie on the disk; keys are derived only where a mutant asks
 * for little work, and what asks for too much must be refused.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { readBytes } from "../../src/device/device.ts";
import { assert } from "../../src/error.ts";
import {
  chunksOf,
  type FuzzTarget,
  fuzzDevice,
  outcome,
  type Sample,
  spotOf,
} from "../../src/testing/fuzz.ts";
import { keysOf } from "../../src/testing/keys.ts";
import { COPY_BYTES, fixChecksum, keyFile, PASSPHRASE, PBKDF2, SMALL } from "../../src/testing/luks.ts";
import { run } from "../../src/testing/tools.ts";
import { bitlocker } from "../../src/volumes/bitlocker.ts";
import { luks as scheme } from "../../src/volumes/luks.ts";
import type { Header } from "../../src/volumes/luks/header.ts";
import { Luks1Layout, readLuks1, SlotLayout } from "../../src/volumes/luks/luks1.ts";
import { Luks2Layout, readLuks2 } from "../../src/volumes/luks/luks2.ts";

const KiB = 1024;
/** More than that is not tried, so that a case takes milliseconds. */
const ITERATIONS_MAX = 20_000;
const FILLED_KIB_MAX = 4096;

export const luks: FuzzTarget = {
  name: "luks",
  needs: ["cryptsetup"],

  async samples(folder) {
    const argon2 = ["--pbkdf", "argon2id", "--pbkdf-memory", "32", "--pbkdf-force-iterations", "4"];
    return [
      luks1Sample(folder),
      luks2Sample(folder, "luks2", PBKDF2),
      luks2Sample(folder, "luks2, argon2", argon2),
      bitlockerSample(),
    ];
  },

  run(bytes, random, { deviceBytes }) {
    return outcome(async () => {
      const disk = fuzzDevice(bytes, random.oneIn(4) ? bytes.length : deviceBytes);
      if (await bitlocker.probe(disk)) {
        const { refusal, volumes } = await bitlocker.open([disk]);
        assert(refusal !== undefined && volumes.length === 0, "BitLocker is not read");
        return `bitlocker ${refusal.code}`;
      }
      if (!(await scheme.probe(disk))) return "";
      const header = await headerOf(disk, bytes);
      const options = header && isCheap(header) ? { keys: keysOf(PASSPHRASE) } : {};
      const { volumes, refusal } = await scheme.open([disk], options);
      assert(refusal === undefined || volumes.length === 0, "a refused table has no volumes");
      for (const volume of volumes) {
        const { device } = volume;
        const [place, ...others] = volume.places({ start: 0, end: device.bytes });
        assert(others.length === 0 && place!.bytes === device.bytes, "a volume is one piece");
        assert(place!.at >= 0 && place!.at + place!.bytes <= disk.bytes, "a volume lies on the disk");
        assert(volume.find(0, place!.at) === 0, "find undoes places");
        await readBytes(device, Math.max(0, device.bytes - 700), Math.min(700, device.bytes));
      }
      return `luks ${refusal?.code ?? volumes[0]!.refusal?.code ?? "opened"}`;
    });
  },
};

async function headerOf(disk: ReturnType<typeof fuzzDevice>, bytes: Uint8Array): Promise<Header | undefined> {
  let header: Header | undefined;
  const read = bytes[7] === 1 ? readLuks1 : readLuks2;
  await outcome(async () => {
    header = await read(disk);
    return "";
  });
  return header;
}

function isCheap({ slots, digest }: Header): boolean {
  return slots.every(({ kdf }) =>
    kdf.type === "pbkdf2"
      ? kdf.iterations + digest.iterations < ITERATIONS_MAX
      : kdf.passes * kdf.memoryKiB < FILLED_KIB_MAX && digest.iterations < ITERATIONS_MAX,
  );
}

function formatted(folder: string, options: readonly string[], bytes: number): Uint8Array {
  const path = join(folder, "luks.img");
  writeFileSync(path, new Uint8Array(bytes));
  run("cryptsetup", ["-q", "luksFormat", "--key-file", keyFile(folder), ...options, path]);
  return new Uint8Array(readFileSync(path));
}

function luks1Sample(folder: string): Sample {
  const bytes = formatted(
    folder,
    ["--type", "luks1", "--key-size", "128", "--cipher", "aes-cbc-plain64", ...PBKDF2],
    1100 * KiB,
  );
  const slots = [0, 1, 7].map((i) => spotOf(SlotLayout, Luks1Layout.bytes + i * SlotLayout.bytes));
  return { name: "luks1", bytes, spots: [spotOf(Luks1Layout, 0), ...slots] };
}

function luks2Sample(folder: string, name: string, options: readonly string[]): Sample {
  const bytes = formatted(folder, ["--type", "luks2", ...SMALL, ...options], 1024 * KiB).slice(0, 600 * KiB);
  const json = chunksOf(bytes.subarray(0, 2 * COPY_BYTES), () => false).filter(
    ({ at }) => at % COPY_BYTES >= 4096,
  );
  const copies = [0, COPY_BYTES].map((at) => spotOf(Luks2Layout, at));
  const spots = [...json, ...Array.from({ length: json.length }, (_, i) => copies[i % 2]!)];
  return { name, bytes, spots, deviceBytes: 4 * 1024 * KiB, fix };
}

function fix(bytes: Uint8Array): void {
  for (const at of [0, COPY_BYTES]) fixChecksum(bytes, at);
}

function bitlockerSample(): Sample {
  const boot = Buffer.alloc(8 * KiB);
  boot.write("\xeb\x58\x90-FVE-FS-", "latin1");
  boot.write("3bd66749292ed84a8399f6a339e3d001", 160, "hex");
  boot.writeBigUInt64LE(4096n, 176);
  boot.write("-FVE-FS-", 4096, "latin1");
  // A copy: what is cut from a Buffer shares its bytes.
  const bytes = new Uint8Array(boot);
  const spots = [0, 160, 176, 4096, 4192].map((at) => ({ at, bytes: 16 }));
  return { name: "bitlocker", bytes, spots };
}
