/**
 * A count for every cluster of a file, in pages that exist only where something was counted, each as narrow as its
 * largest count: a sparse file of any length costs what is in it.
 *
 *   cluster → page (cluster / 65536) → Uint8Array, later Uint16Array, later Float64Array
 */
type Page = Uint8Array | Uint16Array | Float64Array;

const PAGE_CLUSTERS = 65536;

export class ClusterCounts {
  readonly #pages = new Map<number, Page>();
  #lastNumber = -1;
  #lastPage: Page | undefined;

  get(cluster: number): number {
    const page = this.#page(Math.floor(cluster / PAGE_CLUSTERS));
    return page === undefined ? 0 : page[cluster % PAGE_CLUSTERS]!;
  }

  set(cluster: number, count: number): void {
    const number = Math.floor(cluster / PAGE_CLUSTERS);
    let page = this.#page(number);
    const room = page instanceof Uint8Array ? 0xff : page instanceof Uint16Array ? 0xffff : Infinity;
    if (page === undefined || count > room) page = this.#widen(number, page, count);
    page[cluster % PAGE_CLUSTERS] = count;
  }

  /** Adds `times`, up to `max`. Returns how many found no room. */
  add(cluster: number, times: number, max = Infinity): number {
    const wanted = this.get(cluster) + times;
    this.set(cluster, Math.min(wanted, max));
    return Math.max(0, wanted - max);
  }

  /** As `add`, where that is quickly done; false: it was not done. */
  addNarrow(cluster: number, times: number, max: number): boolean {
    const page = this.#page(Math.floor(cluster / PAGE_CLUSTERS));
    if (!(page instanceof Uint8Array)) return false;
    const index = cluster % PAGE_CLUSTERS;
    const count = page[index]! + times;
    if (count > 0xff || count > max) return false;
    page[index] = count;
    return true;
  }

  /** Whether any cluster of `[start, end)` may have a count: false is certain. */
  mayHave(start: number, end: number): boolean {
    for (let number = Math.floor(start / PAGE_CLUSTERS); number * PAGE_CLUSTERS < end; number++) {
      if (this.#pages.has(number)) return true;
    }
    return false;
  }

  /** The clusters that have a count, ascending. */
  *clusters(): Generator<number> {
    for (const number of [...this.#pages.keys()].sort((a, b) => a - b)) {
      const page = this.#pages.get(number)!;
      for (let i = 0; i < PAGE_CLUSTERS; i++) if (page[i] !== 0) yield number * PAGE_CLUSTERS + i;
    }
  }

  #page(number: number): Page | undefined {
    if (number !== this.#lastNumber) {
      this.#lastNumber = number;
      this.#lastPage = this.#pages.get(number);
    }
    return this.#lastPage;
  }

  #widen(number: number, page: Page | undefined, count: number): Page {
    const wider =
      count <= 0xff
        ? new Uint8Array(PAGE_CLUSTERS)
        : count <= 0xffff
          ? new Uint16Array(PAGE_CLUSTERS)
          : new Float64Array(PAGE_CLUSTERS);
    if (page !== undefined) wider.set(page);
    this.#pages.set(number, wider);
    this.#lastNumber = number;
    this.#lastPage = wider;
    return wider;
  }
}
