/**
 * Every partition table and volume manager that is read, in the order in which they are tried.
 */
import { gpt } from "./gpt.ts";
import { lvm } from "./lvm.ts";
import { mbr } from "./mbr.ts";
import type { VolumeScheme } from "./volume.ts";

export const SCHEMES: readonly VolumeScheme[] = [gpt, mbr, lvm];
