/**
 * Memory of the WASM backend: one growing buffer, handed out in pieces, and the tensors that lie in them.
 *
 * Growing replaces `memory.buffer`, so nobody keeps a view of it across an allocation.
 */

import type { Tensor } from "./backend.ts";
import { type Piece, Pieces } from "./pieces.ts";

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

/** Hands out pieces of one growing memory. */
export class Arena extends Pieces {
  readonly memory: WebAssembly.Memory;
  /** Of a shared memory, whose size does not change: bytes that count as held. */
  #held: number | undefined;
  readonly #maxBytes: number;

  /** Hands out at most `maxBytes`, themselves at most 4 GiB less one page, of a memory of its own or one that is shared. */
  constructor(maxBytes: number, shared?: WebAssembly.Memory) {
    super();
    this.#maxBytes = Math.min(maxBytes, MAX_BYTES);
    const maximum = Math.floor(this.#maxBytes / PAGE);
    if (maximum < 2) {
      throw new RangeError(`Cannot make a memory of ${maxBytes} bytes: expected ${2 * PAGE} or more`);
    }
    this.memory = shared ?? new WebAssembly.Memory({ initial: 2, maximum });
    if (shared) this.#held = 2 * PAGE;
  }

  protected override get limitBytes(): number {
    return Math.floor(this.#maxBytes / PAGE) * PAGE;
  }

  /** Bytes held, whole pages; never shrinks. */
  override get heldBytes(): number {
    return this.#held ?? this.memory.buffer.byteLength;
  }

  protected override grow(end: number): boolean {
    const need = Math.ceil((end - this.heldBytes) / PAGE);
    const room = (this.limitBytes - this.heldBytes) / PAGE;
    // An engine may refuse what the limit allows: it has less memory than we were promised.
    for (const pages of [Math.min(Math.max(need, GROW_PAGES), room), need]) {
      try {
        if (this.#held === undefined) this.memory.grow(pages);
        else this.#held += pages * PAGE;
        return true;
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
      }
    }
    return false;
  }
}
