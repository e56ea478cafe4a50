/**
 * One command over many images: it goes on after a failure, and the exit code is the first failure's.
 *
 *   --json    { "schema": 1, "images": [ ... ] }, one entry an image, in the order given
 */
import { DiskError } from "../error.ts";
import { EXIT, type Failure, failureOf, renderFailure } from "./failure.ts";
import type { Face } from "./terminal.ts";
import { printableJson } from "./text.ts";

export const SCHEMA = 1;

export interface Work<R> {
  run(path: string): Promise<R>;
  /** What people read; "" when it was shown already. */
  render(result: R): string;
  /** What scripts read. */
  json(result: R): object;
}

/** @returns the exit code */
export async function batch<R>(paths: readonly string[], face: Face, work: Work<R>): Promise<number> {
  const images: object[] = [];
  let exit = 0;
  let interrupted = false;
  let shown = false;
  for (const path of paths) {
    try {
      if (interrupted) throw new DiskError("interrupted", "not begun");
      const result = await work.run(path);
      images.push(work.json(result));
      const text = face.json ? "" : work.render(result);
      if (text !== "") face.out(shown ? `\n${text}` : text);
      shown = true;
    } catch (error) {
      const failure = failureOf(error);
      images.push({ path, error: failureJson(failure) });
      if (!face.json && !interrupted) face.note(renderFailure(failure, path, face.screen));
      exit ||= EXIT[failure.kind];
      interrupted ||= failure.kind === "interrupted";
    }
  }
  if (face.json) face.out(printableJson({ schema: SCHEMA, images }));
  return interrupted ? EXIT.interrupted : exit;
}

function failureJson({ kind, message, hint, code }: Failure): object {
  return { kind, message, hint, code };
}
