/**
 * The attributes of a file record: every property of a file, its content among them, is one.
 *
 *   | type, length, name, flags, id | resident: the value                                  |
 *   |                               | else: VCN range, sizes, and where its clusters lie    |
 *
 * An attribute whose run list is too long for one record goes on in extension records, a range of VCNs each; only the
 * piece that begins with VCN 0 states the sizes.
 *
 * libyal/libfsntfs documentation, "The MFT attributes"; ntfs-3g layout.h, ATTR_RECORD.
 */
import { printable } from "../../bytes/text.ts";
import type { FileRecord } from "./record.ts";
import { damaged } from "./refused.ts";
import { Refused } from "../refused.ts";

export const TYPE = {
  standardInformation: 0x10,
  attributeList: 0x20,
  fileName: 0x30,
  objectId: 0x40,
  securityDescriptor: 0x50,
  volumeName: 0x60,
  volumeInformation: 0x70,
  data: 0x80,
  indexRoot: 0x90,
  indexAllocation: 0xa0,
  bitmap: 0xb0,
  reparsePoint: 0xc0,
  eaInformation: 0xd0,
  ea: 0xe0,
  propertySet: 0xf0,
  loggedUtilityStream: 0x100,
} as const;
const TYPES: ReadonlySet<number> = new Set(Object.values(TYPE));
const TYPE_END = 0xffffffff;

export const ATTRIBUTE_FLAG = { compressed: 0x0001, encrypted: 0x4000, sparse: 0x8000 };
const FLAGS_KNOWN = ATTRIBUTE_FLAG.compressed | ATTRIBUTE_FLAG.encrypted | ATTRIBUTE_FLAG.sparse;

const RESIDENT_BYTES = 24;
const RUNS_BYTES = 64;
const HEADER_BYTES = 16;

export interface Attribute {
  readonly record: FileRecord;
  readonly type: number;
  readonly name: string;
  readonly flags: number;
  readonly content: Resident | Runs;
}

interface Resident {
  readonly kind: "resident";
  /** Where the value lies in the record's view. */
  readonly at: number;
  readonly bytes: number;
}

export interface Runs {
  readonly kind: "runs";
  readonly firstVcn: number;
  readonly endVcn: number;
  /** Where the mapping pairs lie in the record's view. */
  readonly at: number;
  readonly end: number;
  /** Undefined in a piece that does not begin with VCN 0. */
  readonly sizes:
    { readonly allocated: number; readonly data: number; readonly initialised: number } | undefined;
}

/** Calls `visit` for each attribute of the record. @throws Refused for what cannot be */
export function eachAttribute(record: FileRecord, visit: (attribute: Attribute) => void): void {
  const { view, attributesEnd } = record;
  for (let at = record.attributesAt; ;) {
    if (at + 4 > attributesEnd) throw damaged(`${nameOf(record)}: its attributes have no end`);
    const type = view.getUint32(at, true);
    if (type === TYPE_END) return;
    const length = at + HEADER_BYTES <= attributesEnd ? view.getUint32(at + 4, true) : 0;
    if (length < RESIDENT_BYTES || length % 8 !== 0 || at + length > attributesEnd) {
      throw damaged(`${nameOf(record)}: attribute of ${length} bytes found with ${attributesEnd - at} left`);
    }
    visit(decodeAttribute(record, type, at, length));
    at += length;
  }
}

/** @throws Refused for what cannot be */
export function attributesOf(record: FileRecord): Attribute[] {
  const attributes: Attribute[] = [];
  eachAttribute(record, (attribute) => attributes.push(attribute));
  return attributes;
}

export function attributeName(attribute: Attribute): string {
  const { type, name, record } = attribute;
  return `${nameOf(record)}, attribute 0x${type.toString(16)}${name === "" ? "" : ` "${printable(name)}"`}`;
}

function nameOf(record: FileRecord): string {
  return `file record ${record.number}`;
}

function decodeAttribute(record: FileRecord, type: number, at: number, length: number): Attribute {
  const { view } = record;
  const flags = view.getUint16(at + 12, true);
  if (!TYPES.has(type)) throw unknown(`${nameOf(record)}: attribute type 0x${type.toString(16)}`);
  if ((flags & ~FLAGS_KNOWN) !== 0) {
    throw unknown(`${nameOf(record)}, attribute 0x${type.toString(16)}: flags 0x${flags.toString(16)}`);
  }
  const nameLength = view.getUint8(at + 9);
  const nameAt = view.getUint16(at + 10, true);
  if (nameLength > 0 && nameAt + nameLength * 2 > length) {
    throw damaged(`${nameOf(record)}: name of an attribute at ${nameAt} found, inside ${length} expected`);
  }
  const name = nameLength === 0 ? "" : textAt(view, at + nameAt, nameLength);
  const form = view.getUint8(at + 8);
  if (form > 1) throw damaged(`${nameOf(record)}: attribute form ${form} found, 0 or 1 expected`);
  const content = form === 0 ? decodeResident(record, at, length) : decodeRuns(record, at, length);
  return { record, type, name, flags, content };
}

function decodeResident(record: FileRecord, at: number, length: number): Resident {
  const bytes = record.view.getUint32(at + 16, true);
  const valueAt = record.view.getUint16(at + 20, true);
  if (valueAt + bytes > length) {
    throw damaged(
      `${nameOf(record)}: value of ${bytes} bytes at ${valueAt} found, inside ${length} expected`,
    );
  }
  return { kind: "resident", at: at + valueAt, bytes };
}

function decodeRuns(record: FileRecord, at: number, length: number): Runs {
  const { view } = record;
  const runsAt = view.getUint16(at + 32, true);
  if (length < RUNS_BYTES || runsAt < RUNS_BYTES || runsAt >= length) {
    throw damaged(`${nameOf(record)}: run list at ${runsAt} of an attribute of ${length} bytes found`);
  }
  const firstVcn = u64At(record, at + 16);
  const isEmpty =
    view.getUint32(at + 24, true) === 0xffffffff && view.getUint32(at + 28, true) === 0xffffffff;
  const endVcn = isEmpty ? 0 : u64At(record, at + 24) + 1;
  if (endVcn < firstVcn) throw damaged(`${nameOf(record)}: VCNs ${firstVcn} to ${endVcn} found`);
  const sizes =
    firstVcn === 0
      ? {
          allocated: u64At(record, at + 40),
          data: u64At(record, at + 48),
          initialised: u64At(record, at + 56),
        }
      : undefined;
  if (sizes !== undefined && (sizes.initialised > sizes.data || sizes.data > sizes.allocated)) {
    const { allocated, data, initialised } = sizes;
    throw damaged(`${nameOf(record)}: ${initialised} bytes initialised of ${data} of ${allocated} found`);
  }
  return { kind: "runs", firstVcn, endVcn, at: at + runsAt, end: at + length, sizes };
}

/** UTF-16, as it lies on disk. */
export function textAt(view: DataView, at: number, units: number): string {
  let text = "";
  for (let i = 0; i < units; i++) text += String.fromCharCode(view.getUint16(at + i * 2, true));
  return text;
}

function u64At(record: FileRecord, at: number): number {
  const high = record.view.getUint32(at + 4, true);
  if (high > 0x1fffff) throw damaged(`${nameOf(record)}: a size past 8 PiB found`);
  return high * 2 ** 32 + record.view.getUint32(at, true);
}

function unknown(what: string): Refused {
  return new Refused("feature-unknown", `${what} is not known`, "trim inside the guest instead");
}
