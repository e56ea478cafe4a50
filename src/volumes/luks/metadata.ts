/**
 * The JSON of LUKS2. Only what a plain `cryptsetup open` would map in one piece is vouched for: one segment `crypt`
 * without integrity, no requirements, no reencryption under way.
 *
 *   keyslots   "0": { type, key_size, af, area, kdf }        copies of the volume key
 *   digests    "0": { keyslots, segments, … }                which key fits which segment
 *   segments   "0": { type, offset, size, iv_tweak, encryption, sector_size }
 *   config          { json_size, keyslots_size, flags, requirements }
 *   tokens          ignored: where else a passphrase may come from
 */
import type { Extent } from "../../bytes/extents.ts";
import { printable } from "../../bytes/text.ts";
import { DiskError } from "../../error.ts";
import { rejectOverlaps } from "../table.ts";
import { cipherNamed, IV_UNIT_BYTES } from "./cipher.ts";
import { hashNamed } from "./hash.ts";
import { areaBytes, type Digest, type Header, type Kdf, type Slot, STRIPES } from "./header.ts";
import type { Json } from "./json.ts";

const SLOTS_MAX = 32;
const KEY_BYTES_MAX = 512;
const SALT_BYTES_MAX = 1024;
const UINT32_MAX = 2 ** 32 - 1;

/** What stands around the JSON. */
interface Copy {
  readonly bytes: number;
  readonly jsonBytes: number;
  readonly label: string;
  readonly uuid: string;
}

/** @throws DiskError what is damaged, or not vouched for */
export function headerOf(json: Json, copy: Copy, deviceBytes: number, notes: readonly string[]): Header {
  const config = json.get("config");
  rejectRequirements(config);
  const jsonBytes = config.get("json_size").size();
  if (jsonBytes !== copy.jsonBytes) {
    throw new DiskError("corrupt", `json_size is ${jsonBytes}, its room ${copy.jsonBytes}`);
  }
  const areas = { start: 2 * copy.bytes, end: 2 * copy.bytes + config.get("keyslots_size").size() };
  const segment = onlySegment(json.get("segments"));
  const payloadAt = segment.get("offset").size();
  if (payloadAt !== 0 && payloadAt < areas.end) {
    throw new DiskError(
      "corrupt",
      `the payload begins at ${payloadAt}, before the key slots end at ${areas.end}`,
    );
  }
  const { digest, slotNames } = digestOf(json.get("digests"));
  const found = json.get("keyslots").entries();
  const slots = slotsOf(found, areas, Math.min(areas.end, deviceBytes));
  rejectOverlaps(
    slots.map(({ name, area }) => ({ ...area, name: `LUKS key slot ${name}` })),
    "luks-damaged",
  );
  const usable = slots.filter(({ name }) => slotNames.includes(name));
  const [first] = usable;
  if (first === undefined) {
    throw new DiskError("refused", "no key slot holds the volume's key", { code: "luks-no-slot" });
  }
  const { keyBytes } = first;
  if (usable.some((slot) => slot.keyBytes !== keyBytes)) {
    throw new DiskError("corrupt", "key slots of one volume hold keys of several lengths");
  }
  return {
    version: 2,
    uuid: printable(copy.uuid),
    label: printable(copy.label),
    ...payloadOf(segment, payloadAt, keyBytes),
    keyBytes,
    slots: usable,
    digest,
    regions: [
      { start: 0, end: copy.bytes, name: "LUKS header" },
      { start: copy.bytes, end: areas.start, name: "second LUKS header" },
      ...slots.map(({ name, area }) => ({ ...area, name: `LUKS key slot ${name}` })),
      { ...areas, name: "LUKS key slots" },
    ],
    notes,
  };
}

function rejectRequirements(config: Json): void {
  if (!config.has("requirements")) return;
  for (const [kind, list] of config.get("requirements").entries()) {
    const names = kind === "mandatory" ? list.texts() : [kind];
    const name = names[0];
    if (name === undefined) continue;
    const isChanging = names.some((each) => each.includes("reencrypt"));
    throw new DiskError(
      "unsupported",
      `the header requires ${names.map((each) => JSON.stringify(each)).join(", ")}`,
      {
        code: isChanging ? "luks-reencryption" : "luks-requirement",
        ...(isChanging ? { hint: "finish it in the guest: cryptsetup reencrypt --resume-only" } : {}),
      },
    );
  }
}

/**
 * cryptsetup maps a volume of several segments only while it reencrypts, and heeds `iv_tweak` nowhere else.
 */
function onlySegment(segments: Json): Json {
  const all = segments.entries();
  const [name, segment] = all[0] ?? [];
  if (all.length !== 1 || name !== "0") {
    throw new DiskError("unsupported", `the volume consists of ${all.length} segments, not of one`, {
      code: "luks-segments",
    });
  }
  const type = segment!.get("type").text();
  if (type !== "crypt") {
    throw new DiskError("unsupported", `the segment is of type ${JSON.stringify(type)}, not crypt`, {
      code: "luks-segments",
    });
  }
  if (segment!.has("integrity")) {
    throw new DiskError("unsupported", "the volume is authenticated (dm-integrity), which is not read", {
      code: "luks-integrity",
    });
  }
  if (segment!.get("iv_tweak").size() !== 0) {
    throw new DiskError("unsupported", "the segment's sectors are not counted from 0", {
      code: "luks-segments",
    });
  }
  if (segment!.has("flags") && segment!.get("flags").texts().length > 0) {
    throw new DiskError("unsupported", "the segment has flags of a reencryption", {
      code: "luks-reencryption",
    });
  }
  return segment!;
}

function payloadOf(
  segment: Json,
  payloadAt: number,
  keyBytes: number,
): Pick<Header, "cipher" | "sectorBytes" | "payloadAt" | "payloadBytes"> {
  const sectorBytes = segment.get("sector_size").number(512, 4096);
  if ((sectorBytes & (sectorBytes - 1)) !== 0) {
    throw new DiskError("corrupt", `sectors of ${sectorBytes} bytes`);
  }
  const isDynamic = segment.get("size").text() === "dynamic";
  const payloadBytes = isDynamic ? undefined : segment.get("size").size();
  if (payloadAt % IV_UNIT_BYTES !== 0 || (payloadBytes ?? 0) % sectorBytes !== 0) {
    throw new DiskError("corrupt", `the segment has ${payloadBytes ?? "all"} bytes from ${payloadAt}`);
  }
  const cipher = cipherNamed(segment.get("encryption").text(), keyBytes);
  if (cipher.mode === "cbc" && sectorBytes > IV_UNIT_BYTES) {
    // What is free in a filesystem of smaller blocks may end inside a sector, and CBC needs what is before a block.
    throw new DiskError("unsupported", `${cipher.name} in sectors of ${sectorBytes} bytes`, {
      code: "luks-cipher",
    });
  }
  return { cipher, sectorBytes, payloadAt, payloadBytes };
}

/** The digest of the only segment, and the slots whose key it knows. */
function digestOf(digests: Json): { digest: Digest; slotNames: readonly string[] } {
  const all = digests.entries().filter(([, digest]) => digest.get("segments").texts().includes("0"));
  const found = all[0]?.[1];
  if (found === undefined || all.length > 1) {
    throw new DiskError("corrupt", `${all.length} digests belong to the segment`);
  }
  const type = found.get("type").text();
  if (type !== "pbkdf2") {
    throw new DiskError("unsupported", `a digest of type ${JSON.stringify(type)}`, { code: "luks-digest" });
  }
  const value = found.get("digest").base64();
  if (value.length < 16) throw new DiskError("corrupt", `a digest of ${value.length} bytes`);
  return {
    digest: {
      hash: hashNamed(found.get("hash").text()),
      iterations: found.get("iterations").number(1, UINT32_MAX),
      salt: saltOf(found),
      value,
    },
    slotNames: found.get("keyslots").texts(),
  };
}

type FoundSlot = Slot & { readonly keyBytes: number };

function slotsOf(found: readonly (readonly [string, Json])[], areas: Extent, end: number): FoundSlot[] {
  if (found.length > SLOTS_MAX)
    throw new DiskError("corrupt", `${found.length} key slots, at most ${SLOTS_MAX}`);
  return found.map(([name, slot]) => {
    if (!/^\d{1,9}$/.test(name))
      throw new DiskError("corrupt", `a key slot is called ${JSON.stringify(name)}`);
    const type = slot.get("type").text();
    if (type !== "luks2") {
      throw new DiskError("unsupported", `key slot ${name} is of type ${JSON.stringify(type)}`, {
        code: type === "reencrypt" ? "luks-reencryption" : "luks-slot",
      });
    }
    const keyBytes = slot.get("key_size").number(1, KEY_BYTES_MAX);
    const af = slot.get("af");
    const area = slot.get("area");
    if (af.get("type").text() !== "luks1" || area.get("type").text() !== "raw") {
      throw new DiskError("unsupported", `key slot ${name} is stored in an unknown way`, {
        code: "luks-slot",
      });
    }
    af.get("stripes").number(STRIPES, STRIPES);
    const start = area.get("offset").size();
    const extent = { start, end: start + area.get("size").size() };
    if (start < areas.start || extent.end > end || extent.end - start < areaBytes(keyBytes)) {
      throw new DiskError(
        "corrupt",
        `key slot ${name} lies at ${start}-${extent.end}, not in ${areas.start}-${end}`,
      );
    }
    const areaKeyBytes = area.get("key_size").number(1, KEY_BYTES_MAX);
    const cipher = cipherNamed(area.get("encryption").text(), areaKeyBytes);
    const stripesHash = hashNamed(af.get("hash").text());
    const kdf = kdfOf(slot.get("kdf"));
    return { name, area: extent, cipher, areaKeyBytes, stripesHash, kdf, keyBytes };
  });
}

function kdfOf(kdf: Json): Kdf {
  const type = kdf.get("type").text();
  const salt = saltOf(kdf);
  switch (type) {
    case "pbkdf2": {
      const hash = hashNamed(kdf.get("hash").text());
      return { type, hash, iterations: kdf.get("iterations").number(1, UINT32_MAX), salt };
    }
    case "argon2i":
    case "argon2id":
      return {
        type,
        passes: kdf.get("time").number(1, UINT32_MAX),
        memoryKiB: kdf.get("memory").number(1, UINT32_MAX),
        lanes: kdf.get("cpus").number(1, UINT32_MAX),
        salt,
      };
    default:
      throw new DiskError("unsupported", `the key derivation ${JSON.stringify(type)} is not known`, {
        code: "luks-kdf",
      });
  }
}

function saltOf(json: Json): Uint8Array {
  const salt = json.get("salt").base64();
  if (salt.length > SALT_BYTES_MAX) throw new DiskError("corrupt", `a salt of ${salt.length} bytes`);
  return salt;
}
