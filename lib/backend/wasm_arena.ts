/**
 * Memory of the WASM backend: one growing buffer, handed out in pieces, and the tensors that lie in them.
 *
 * Growing replaces `memory.buffer`, so nobody keeps a view of it across an allocation.
 */

import type { Tensor } from "./backend.ts";

const ALIGN = 64;
const PAGE = 65_536;
/** Pages added at a time, so that a run of small pieces does not grow the memory for each. */
const GROW_PAGES = 16;
/** One page less than 2³², so that no end of a piece wraps to address zero. */
const MAX_BYTES = 2 ** 32 - PAGE;

/**
 * A memory for several threads, as the shared builds of the kernels import it: of its full size from the start, since
 * the engine looks up the size of one that may grow in every turn of every loop, which costs a third of the speed. The
 * system gives it pages only when they are written to.
 *
 * @throws {RangeError} when the system refuses so many addresses.
 */
export function createSharedMemory(): WebAssembly.Memory {
  const pages = MAX_BYTES / PAGE;
  return new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
}

/** A piece of the memory, [start, start + size) bytes; `live` until freed. */
export interface Piece {
  readonly start: number;
  readonly size: number;
  live: boolean;
}

/** Activations in a piece: `start` is the address of the first value, `stride` counts elements. */
export class WasmTensor implements Tensor {
  constructor(
    readonly piece: Piece,
    readonly start: number,
    readonly rows: number,
    readonly cols: number,
    readonly stride: number,
    /** Slices share a piece that only its owner frees. */
    readonly owner: boolean,
  ) {}

  /** Rows [row, row + rows) and columns [col, col + cols), unchecked. */
  slice(row: number, rows: number, col = 0, cols = this.cols): WasmTensor {
    return new WasmTensor(
      this.piece,
      this.start + (row * this.stride + col) * 4,
      rows,
      cols,
      this.stride,
      false,
    );
  }
}

interface Gap {
  start: number;
  size: number;
}

/** Hands out 64-byte aligned pieces, first fit; neighbouring gaps are joined. */
export class Arena {
  readonly memory: WebAssembly.Memory;
  /** Bytes in live pieces. */
  usedBytes = 0;
  #gaps: Gap[] = [];
  /** First byte that no piece ever covered. */
  #top = 0;
  /** Of a shared memory, whose size does not change: bytes that count as held. */
  #held: number | undefined;
  readonly #maxBytes: number;

  /** Hands out at most `maxBytes`, themselves at most 4 GiB less one page, of a memory of its own or one that is shared. */
  constructor(maxBytes: number, shared?: WebAssembly.Memory) {
    this.#maxBytes = Math.min(maxBytes, MAX_BYTES);
    const maximum = Math.floor(this.#maxBytes / PAGE);
    if (maximum < 2) {
      throw new RangeError(`Cannot make a memory of ${maxBytes} bytes: expected ${2 * PAGE} or more`);
    }
    this.memory = shared ?? new WebAssembly.Memory({ initial: 2, maximum });
    if (shared) this.#held = 2 * PAGE;
  }

  /** Bytes not in live pieces, up to the limit; the largest gap may be smaller. */
  get availableBytes(): number {
    return Math.floor(this.#maxBytes / PAGE) * PAGE - this.usedBytes;
  }

  /** Bytes held, whole pages; never shrinks. */
  get heldBytes(): number {
    return this.#held ?? this.memory.buffer.byteLength;
  }

  /** Keeps [0, bytes) for the stacks and constants of the module's instances. Once, before the first allocation. */
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
      this.#grow(start + size, bytes, what);
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

  #grow(end: number, bytes: number, what: string): void {
    const found = this.heldBytes;
    if (end <= found) return;
    const limit = Math.floor(this.#maxBytes / PAGE) * PAGE;
    const need = Math.ceil((end - found) / PAGE);
    if (end <= limit) {
      const room = (limit - found) / PAGE;
      // An engine may refuse what the limit allows: it has less memory than we were promised.
      for (const pages of [Math.min(Math.max(need, GROW_PAGES), room), need]) {
        try {
          if (this.#held === undefined) this.memory.grow(pages);
          else this.#held += pages * PAGE;
          return;
        } catch (error) {
          if (!(error instanceof RangeError)) throw error;
        }
      }
    }
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
