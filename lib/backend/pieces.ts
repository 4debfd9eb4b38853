/** One memory handed out in pieces, wherever it lies. */

const ALIGN = 64;

/** A piece of a memory, [start, start + size) bytes; `live` until freed. */
export interface Piece {
  readonly start: number;
  readonly size: number;
  live: boolean;
}

interface Gap {
  start: number;
  size: number;
}

/** Hands out 64-byte aligned pieces, first fit; neighbouring gaps are joined. What the memory is, subclasses say. */
export abstract class Pieces {
  /** Bytes in live pieces. */
  usedBytes = 0;
  #gaps: Gap[] = [];
  /** First byte that no piece ever covered. */
  #top = 0;

  /** Bytes that the memory has now. */
  abstract get heldBytes(): number;
  /** Bytes that it never grows beyond. */
  protected abstract get limitBytes(): number;
  /** Makes it hold `end` bytes or more, which is within the limit; tells whether that worked. */
  protected abstract grow(end: number): boolean;

  /** Bytes not in live pieces, up to the limit; the largest gap may be smaller. */
  get availableBytes(): number {
    return this.limitBytes - this.usedBytes;
  }

  /** Keeps [0, bytes) from being handed out. Once, before the first allocation. */
  reserve(bytes: number): void {
    this.#top = align(bytes);
  }

  /** @throws {RangeError} when the memory cannot hold it, with needed and available bytes. */
  allocate(bytes: number, what: string): Piece {
    const size = align(Math.max(bytes, 1));
    const index = this.#gaps.findIndex((it) => it.size >= size);
    let start: number;
    if (index >= 0) {
      const gap = this.#gaps[index];
      start = gap.start;
      gap.start += size;
      gap.size -= size;
      if (!gap.size) this.#gaps.splice(index, 1);
    } else {
      const last = this.#gaps.at(-1);
      const touchesTop = last !== undefined && last.start + last.size === this.#top;
      start = touchesTop ? last.start : this.#top;
      this.#reach(start + size, bytes, what);
      if (touchesTop) this.#gaps.pop();
      this.#top = start + size;
    }
    this.usedBytes += size;
    return { start, size, live: true };
  }

  free(piece: Piece): void {
    if (!piece.live) {
      throw new TypeError(`Cannot free the ${piece.size} bytes at ${piece.start}: freed before`);
    }
    piece.live = false;
    this.usedBytes -= piece.size;
    let at = this.#gaps.findIndex((it) => it.start > piece.start);
    if (at < 0) at = this.#gaps.length;
    this.#gaps.splice(at, 0, { start: piece.start, size: piece.size });
    const join = (i: number) => {
      const [a, b] = [this.#gaps[i], this.#gaps[i + 1]];
      if (!a || !b || a.start + a.size !== b.start) return;
      a.size += b.size;
      this.#gaps.splice(i + 1, 1);
    };
    join(at);
    join(at - 1);
  }

  #reach(end: number, bytes: number, what: string): void {
    const found = this.heldBytes;
    const limit = this.limitBytes;
    if (end <= found || (end <= limit && this.grow(end))) return;
    const gap = this.#gaps.reduce((most, it) => Math.max(most, it.size), 0);
    const available = Math.max(gap, end <= limit ? found - this.#top : limit - this.#top);
    throw new RangeError(
      `Cannot hold ${what}: ${bytes} bytes needed, ${available} available (${this.usedBytes} in use, limit ${limit})`,
    );
  }
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGN) * ALIGN;
}
