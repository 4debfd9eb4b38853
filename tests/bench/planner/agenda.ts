/** Events in the order of their times: a binary heap. */
export class Agenda<W, T> {
  readonly #heap: { readonly at: number; readonly what: W; readonly whom: T }[] = [];

  /** Time of the next event; infinite when there is none. */
  get nextAt(): number {
    return this.#heap.length ? this.#heap[0].at : Infinity;
  }

  push(at: number, what: W, whom: T): void {
    const heap = this.#heap;
    const event = { at, what, whom };
    let i = heap.length;
    for (let up; i > 0 && heap[up = (i - 1) >> 1].at > at; i = up) heap[i] = heap[up];
    heap[i] = event;
  }

  /** Takes the next event. */
  pop(): { readonly at: number; readonly what: W; readonly whom: T } | undefined {
    const heap = this.#heap;
    const [first] = heap;
    const last = heap.pop();
    if (!last || !heap.length) return first;
    let i = 0;
    for (let down; (down = 2 * i + 1) < heap.length; i = down) {
      if (down + 1 < heap.length && heap[down + 1].at < heap[down].at) down++;
      if (heap[down].at >= last.at) break;
      heap[i] = heap[down];
    }
    heap[i] = last;
    return first;
  }
}
