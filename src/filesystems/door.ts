/**
 * What the doors of all readers have in common: the first refusal is kept, and questions about owners go to the room
 * that knows.
 */
import type { Refusal } from "../error.ts";
import type { FileSystem, FoundFile, ListedFile, OwnerDescription } from "./filesystem.ts";
import { refusalOf } from "./refused.ts";

export abstract class Door {
  readonly notes: string[] = [];
  refusal: Refusal | undefined;
  /** Undefined where the volume cannot be read that far. */
  protected owners: Pick<FileSystem, "describe" | "find" | "list"> | undefined;

  /** Runs `work`; what the guest's bytes made it throw becomes the refusal, unless there is one already. */
  protected async guarded<T>(work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work();
    } catch (error) {
      this.refusal ??= refusalOf(error);
      return undefined;
    }
  }

  async describe(owner: number): Promise<OwnerDescription> {
    return (await this.owners?.describe(owner)) ?? { kind: "unknown", name: `owner ${owner}` };
  }

  async find(path: string): Promise<FoundFile | undefined> {
    return this.owners?.find(path);
  }

  async list(path: string, atMost?: number): Promise<readonly ListedFile[] | undefined> {
    return this.owners?.list(path, atMost);
  }
}
