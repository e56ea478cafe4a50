/**
 * Tells what a device is asked to do. With one on every layer, a request reads as a path:
 *
 *   qcow2 read 1048576+4096
 *   file read 327680+4096
 */
import type { Extent } from "../bytes/extents.ts";
import type { BlockDevice } from "./device.ts";
import { replace } from "./replace.ts";

/** @param log takes one line; called before the operation begins */
export function traced<D extends BlockDevice>(device: D, name: string, log: (line: string) => void): D {
  return replace(device, (operation, method) => {
    const describe = OPERATIONS[String(operation)];
    if (!describe) return undefined;
    return (...args: never[]) => {
      log(`${name} ${String(operation)}${describe(...(args as [never, never]))}`);
      return method(...args);
    };
  });
}

const bytes = (at: number, data: Uint8Array): string => ` ${at}+${data.length}`;
const range = ({ start, end }: Extent): string => ` ${start}+${end - start}`;

const OPERATIONS: Readonly<Record<string, ((first: never, second: never) => string) | undefined>> = {
  read: bytes,
  write: bytes,
  map: range,
  zero: range,
  discard: range,
  punch: range,
  truncate: (length: number) => ` ${length}`,
  flush: () => "",
};
