/**
 * A served disk as its guest sees it: through the filters, which may mask what the image still holds. What is read of the
 * guest's filesystems is read this way.
 */
import { type Extent, ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import { replace } from "../device/replace.ts";
import { allocationOf } from "../disk/allocation.ts";
import { allRegionsOf } from "../disk/layout.ts";
import { Disk } from "../disk/open.ts";
import type { ByteClass } from "../disk/results.ts";
import { usageOf } from "../disk/usage.ts";

export type Regions = ReadonlyMap<ByteClass, ExtentSet>;

export class RunningGuest {
  readonly #disk: Disk;
  #device: BlockDevice;

  /** @param disk that is served; it stays its owner's to close */
  constructor(disk: Disk) {
    this.#disk = disk;
    this.#device = disk.image;
  }

  /** From here on the guest is seen through this. */
  seeThrough(device: BlockDevice): void {
    this.#device = device;
  }

  /** Every byte's class now. Never exact, for the guest runs. @throws DiskError where it cannot be read */
  async regions(): Promise<Regions> {
    const disk = this.#asSeen();
    return (await usageOf(disk, await allocationOf(disk.image), { proof: "bitmap" })).regions;
  }

  /** What of `ranges` the guest's filesystems call used. */
  async used(ranges: ExtentSet): Promise<ExtentSet> {
    const regions = await this.regions();
    const used = [...(regions.get("used") ?? []), ...(regions.get("metadata") ?? [])];
    return ExtentSet.from(used).intersect(ranges);
  }

  /** Where the disk begins and ends, and every partition and volume begins: tables and superblocks. */
  async critical(): Promise<{ readonly name: string; readonly ranges: ExtentSet }[]> {
    const regions = [...allRegionsOf(await this.#asSeen().layout())];
    const hasTable = regions.some(({ name }) => name !== "");
    const starts = regions.filter(({ device }) => device.bytes > HEAD_BYTES);
    const heads = starts.map((region) => {
      const { name } = region;
      const ranges = [...region.places({ start: 0, end: HEAD_BYTES })].filter(({ disk }) => disk === 0);
      return {
        name: `the beginning of ${name === "" ? "the disk" : `volume ${name}`}`,
        ranges: ExtentSet.from(ranges.map(({ at, bytes }) => ({ start: at, end: at + bytes }))),
      };
    });
    return hasTable ? [...heads, { name: "the partition table", ranges: this.#tables() }] : heads;
  }

  #tables(): ExtentSet {
    const { bytes } = this.#disk.image;
    const ends: Extent[] = [
      { start: 0, end: Math.min(TABLE_BYTES, bytes) },
      { start: Math.max(0, bytes - TABLE_BYTES), end: bytes },
    ];
    return ExtentSet.from(ends);
  }

  #asSeen(): Disk {
    const { path, image, source, options } = this.#disk;
    const device = this.#device;
    const seen = replace(image, (name) => {
      if (name === "read") return device.read.bind(device);
      if (name === "map") return device.map.bind(device);
      return name === "locate" ? () => undefined : undefined;
    });
    return new Disk(path, seen, source, true, options);
  }
}

/** Superblocks, boot sectors and labels lie there. */
const HEAD_BYTES = 4096;
/** A GPT of 128 entries of 128 bytes, with its header and the MBR before it, or behind the disk's last partition. */
const TABLE_BYTES = 34 * 512;
