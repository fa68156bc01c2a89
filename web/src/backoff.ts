/** Waiting times that double from first to most (ms), each shortened by chance by up to a quarter. */
export class Backoff {
  #next: number;

  constructor(
    readonly first: number,
    readonly most: number,
    readonly random: () => number = Math.random,
  ) {
    this.#next = first;
  }

  /** How long to wait before the next attempt, in milliseconds. */
  next(): number {
    const wait = this.#next * (1 - this.random() / 4);
    this.#next = Math.min(2 * this.#next, this.most);
    return wait;
  }

  /** Begins again at the shortest wait. */
  reset(): void {
    this.#next = this.first;
  }
}
