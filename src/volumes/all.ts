/**
 * Every partition table and volume manager that is recognised, in the order in which they are tried: what is a part of
 * a set must not be read as if it were alone.
 */
import { apm } from "./apm.ts";
import { bitlocker } from "./bitlocker.ts";
import { bsd } from "./bsd.ts";
import { gpt } from "./gpt.ts";
import { luks } from "./luks.ts";
import { lvm } from "./lvm.ts";
import { mbr } from "./mbr.ts";
import { mdraid } from "./mdraid.ts";
import { raid } from "./raid.ts";
import type { VolumeScheme } from "./volume.ts";

export const SCHEMES: readonly VolumeScheme[] = [raid, bitlocker, apm, gpt, mbr, lvm, luks, mdraid, bsd];
