/**
 * The door to everything: open an image, find out what its guest uses, plan, act, explain.
 *
 *   open → image → volumes → usage → plan → act
 *
 * The command line, the library and (later) the page are faces of these functions and hold no logic of their own.
 */
export { open, type Disk } from "./disk/open.ts";
export { survey, plan } from "./disk/survey.ts";
export { reclaim } from "./disk/reclaim.ts";
export { erase } from "./disk/erase.ts";
export { convert } from "./disk/convert.ts";
export { explain } from "./disk/explain.ts";
export { undo, type Burst, type Undone, type UndoOptions } from "./disk/undo.ts";
export { check, create, info } from "./disk/image.ts";
export * from "./disk/results.ts";
