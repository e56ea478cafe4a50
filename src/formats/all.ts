/** Every image format, in the order in which their contents are probed; raw comes last, because anything is raw. */
import type { ImageFormat } from "./format.ts";
import { parallels, parallelsBundle } from "./parallels.ts";
import { qcow2 } from "./qcow2.ts";
import { raw } from "./raw.ts";
import { sparsebundle } from "./sparsebundle.ts";
import { sparseimage } from "./sparseimage.ts";
import { udif } from "./udif.ts";
import { vdi } from "./vdi.ts";
import { vhd } from "./vhd.ts";
import { vhdx } from "./vhdx.ts";
import { vmdk } from "./vmdk.ts";

export const FORMATS: readonly ImageFormat[] = [
  qcow2,
  vhdx,
  vhd,
  vdi,
  vmdk,
  parallels,
  parallelsBundle,
  sparsebundle,
  sparseimage,
  udif,
  raw,
];
