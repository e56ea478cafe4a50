/**
 * Every parser of bytes that a guest or a stranger wrote.
 */
import type { FuzzTarget } from "../../src/testing/fuzz.ts";
import { ext } from "./ext.ts";
import { journal } from "./journal.ts";
import { qcow2 } from "./qcow2.ts";
import { vdi } from "./vdi.ts";
import { vhd } from "./vhd.ts";
import { vhdx } from "./vhdx.ts";
import { volumes } from "./volumes.ts";

export const TARGETS: readonly FuzzTarget[] = [qcow2, vdi, vhd, vhdx, volumes, ext, journal];
