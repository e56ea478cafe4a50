/**
 * The contract of `device.ts`, enforced once, at the seam: every offset lies inside, every map is ascending and
 * gapless, nothing is used after it was closed. A breach is a bug of ours.
 */
import type { Extent } from "../bytes/extents.ts";
import { assert } from "../error.ts";
import type { BlockDevice, Run } from "./device.ts";
import { replace } from "./replace.ts";

export function checked<D extends BlockDevice>(device: D): D {
  let isOpen = true;
  const mustLieInside = ({ start, end }: Extent): void => {
    assert(isOpen, "the device is open");
    assert(Number.isSafeInteger(start) && Number.isSafeInteger(end), `${start}-${end} are whole numbers`);
    assert(
      start >= 0 && start <= end && end <= device.bytes,
      `${start}-${end} lies in ${device.bytes} bytes`,
    );
  };
  const guard: Readonly<Record<string, ((first: never, second: never) => void) | undefined>> = {
    read: (at: number, into: Uint8Array) => mustLieInside({ start: at, end: at + into.length }),
    // Only a file may grow by a write.
    write: (at: number, from: Uint8Array) =>
      mustLieInside({ start: at, end: "truncate" in device ? at : at + from.length }),
    zero: mustLieInside,
    discard: mustLieInside,
    punch: mustLieInside,
    truncate: (bytes: number) => assert(isOpen && Number.isSafeInteger(bytes) && bytes >= 0, "a length"),
    flush: () => assert(isOpen, "the device is open"),
  };
  return replace(device, (operation, method) => {
    if (operation === "map") {
      return (range: Extent) => {
        mustLieInside(range);
        return gapless(device.map(range), range);
      };
    }
    if (operation === Symbol.asyncDispose) {
      return () => {
        isOpen = false;
        return method();
      };
    }
    const check = guard[String(operation)];
    if (!check) return undefined;
    return (...args: never[]) => {
      check(...(args as [never, never]));
      return method(...args);
    };
  });
}

async function* gapless(
  batches: AsyncIterable<readonly Run[]>,
  range: Extent,
): AsyncIterable<readonly Run[]> {
  let at = range.start;
  for await (const runs of batches) {
    for (const { start, end, kind, place } of runs) {
      assert(start === at && end > start, `a run begins at ${at}, not ${start}-${end}`);
      assert(place === undefined || place.bytes === end - start, `a place is as long as its run at ${start}`);
      assert(kind !== "compressed" || place === undefined, "compressed bytes have no place");
      at = end;
    }
    yield runs;
  }
  assert(at === range.end, `the map ends at ${range.end}, not ${at}`);
}
