/**
 * What lies on the GPU: activations in one growing buffer, so that a kernel may read and write any of them, and matrices
 * in a few large ones.
 */

import type { Matrix, Scheme, StoredMatrix, Tensor } from "./backend.ts";
import { packedBytes, packPanels, paddedK, PANEL, roundUp } from "./layout.ts";
import { type Piece, Pieces } from "./pieces.ts";
import { type Bound, type Queue, USAGE } from "./webgpu_queue.ts";

/** Bytes of the first buffer of weights; later ones hold as much as all before them, but no more than the second. */
const [FIRST_SLAB_BYTES, MOST_SLAB_BYTES] = [4 << 20, 256 << 20];
/** Bytes of the first buffer of activations, doubled as needed. */
const FIRST_BYTES = 1 << 20;
/** K of a matrix in int4, at most: sums of longer rows are no two terms that are exact in f32, as the kernels have them. */
const MOST_INT4_K = 65_536;
/** Bytes written in one go: some runtimes hold a copy of all until the next submission. */
const WRITE_BYTES = 16 << 20;

/** Activations in a piece of the arena; `at` and `stride` count f32. */
export class GpuTensor implements Tensor {
  constructor(
    readonly piece: Piece,
    readonly at: number,
    readonly rows: number,
    readonly cols: number,
    readonly stride: number,
    /** Slices share a piece that only its owner frees. */
    readonly owner: boolean,
  ) {}

  slice(row: number, rows: number, col: number, cols: number): GpuTensor {
    return new GpuTensor(this.piece, this.at + row * this.stride + col, rows, cols, this.stride, false);
  }
}

/** All activations. */
export class GpuArena extends Pieces {
  #bound: Bound;
  #size = FIRST_BYTES;

  constructor(private readonly queue: Queue, private readonly maxBytes: number) {
    super();
    this.#bound = this.#make(FIRST_BYTES);
  }

  /** The buffer now; another one after an allocation. */
  get bound(): Bound {
    return this.#bound;
  }

  override get heldBytes(): number {
    return this.#size;
  }

  protected override get limitBytes(): number {
    return this.maxBytes;
  }

  protected override grow(end: number): boolean {
    const size = Math.min(this.maxBytes, Math.max(end, this.#size * 2));
    const [before, after] = [this.#bound, this.#make(size)];
    this.queue.copy(before, 0, after, 0, this.#size);
    this.queue.drop(before);
    [this.#bound, this.#size] = [after, size];
    return true;
  }

  #make(size: number): Bound {
    return this.queue.buffer(size, USAGE.storage | USAGE.copySource | USAGE.copyTarget);
  }
}

/** A buffer that holds several matrices. */
class Slab extends Pieces {
  constructor(readonly bound: Bound, readonly heldBytes: number) {
    super();
  }

  protected override get limitBytes(): number {
    return this.heldBytes;
  }

  protected override grow(): boolean {
    return false;
  }

  /** A piece, or undefined where it does not fit. */
  take(bytes: number): Piece | undefined {
    try {
      return this.allocate(bytes, "weights");
    } catch (error) {
      if (error instanceof RangeError) return undefined;
      throw error;
    }
  }
}

/** Some columns of a matrix in one buffer: panels as in `layout.ts`, then f32 scales. */
export interface Chunk {
  readonly bound: Bound;
  /** Bytes of the buffer before them, a multiple of 64. */
  readonly start: number;
  /** The first column. */
  readonly first: number;
  readonly n: number;
  /** Word of the buffer where the scales begin. */
  readonly scales: number;
  readonly slab: Slab;
  readonly piece: Piece;
}

/** A matrix on the GPU. */
export class GpuMatrix implements Matrix {
  live = true;
  constructor(
    readonly scheme: Scheme,
    readonly n: number,
    readonly k: number,
    readonly chunks: readonly Chunk[],
    readonly sizeBytes: number,
  ) {}

  /** Steps along K: of one for f32, of four for integers. */
  get steps(): number {
    return this.scheme === "f32" ? this.k : paddedK(this.scheme, this.k) / 4;
  }
}

/**
 * All weights. Matrices that are taken one after another lie in one buffer where there is room, so that a kernel can read
 * several of them.
 */
export class GpuWeights {
  /** The last is where new matrices go. */
  readonly #slabs: Slab[] = [];
  /** Of live matrices. */
  usedBytes = 0;

  /** @param maxBytes no buffer is larger. */
  constructor(private readonly queue: Queue, private readonly maxBytes: number) {}

  /** Brings a checked matrix to the GPU, cut where a buffer would become too large. */
  take(stored: StoredMatrix): GpuMatrix {
    const { scheme, n, k, data, scale } = stored;
    const { queue } = this;
    if (scheme === "int4-g32-p8" && k > MOST_INT4_K) {
      throw new RangeError(
        `Cannot hold a matrix [${n}, ${k}]: expected K of at most ${MOST_INT4_K} in int4, found ${k}`,
      );
    }
    const panelBytes = packedBytes(scheme, PANEL, k);
    const perPanel = panelBytes + (scale ? PANEL * 4 : 0);
    const most = Math.floor(this.maxBytes / perPanel) * PANEL;
    if (!most) {
      throw new RangeError(
        `Cannot hold a matrix [${n}, ${k}]: ${perPanel} bytes of ${PANEL} columns needed, ${this.maxBytes} available`,
      );
    }
    const chunks: Chunk[] = [];
    let sizeBytes = 0;
    for (let first = 0; first < n; first += most) {
      const columns = Math.min(most, n - first);
      const panels = roundUp(columns, PANEL) / PANEL;
      const bytes = panels * panelBytes;
      const { slab, piece } = this.#room(panels * perPanel);
      const { bound } = slab;
      const { start } = piece;
      const packed = data instanceof Float32Array
        ? panelsOf(data, k, first, columns)
        : data.subarray(first / PANEL * panelBytes, first / PANEL * panelBytes + bytes);
      for (let at = 0; at < bytes; at += WRITE_BYTES) {
        queue.write(bound, start + at, packed.subarray(at, at + WRITE_BYTES));
        if (bytes > WRITE_BYTES) queue.device.queue.submit([]);
      }
      if (scale) queue.write(bound, start + bytes, scale.subarray(first, first + columns));
      chunks.push({ bound, start, first, n: columns, scales: (start + bytes) / 4, slab, piece });
      sizeBytes += panels * perPanel;
    }
    this.usedBytes += sizeBytes;
    return new GpuMatrix(scheme, n, k, chunks, sizeBytes);
  }

  free(matrix: GpuMatrix): void {
    matrix.live = false;
    this.usedBytes -= matrix.sizeBytes;
    for (const { slab, piece } of matrix.chunks) {
      slab.free(piece);
      if (slab.usedBytes || slab === this.#slabs.at(-1)) continue;
      this.#slabs.splice(this.#slabs.indexOf(slab), 1);
      this.queue.drop(slab.bound);
    }
  }

  #room(bytes: number): { slab: Slab; piece: Piece } {
    const last = this.#slabs.at(-1);
    const piece = last?.take(bytes);
    if (piece) return { slab: last!, piece };
    const size = Math.min(
      this.maxBytes,
      Math.max(bytes, Math.min(MOST_SLAB_BYTES, Math.max(this.usedBytes, 4 * bytes, FIRST_SLAB_BYTES))),
    );
    const held = Math.max(size, roundUp(bytes, 64));
    const slab = new Slab(this.queue.buffer(held, USAGE.storage | USAGE.copyTarget), held);
    if (last && !last.usedBytes) {
      this.#slabs.pop();
      this.queue.drop(last.bound);
    }
    this.#slabs.push(slab);
    return { slab, piece: slab.take(bytes)! };
  }
}

function panelsOf(data: Float32Array, k: number, first: number, n: number): Uint8Array {
  const panels = new Float32Array(roundUp(n, PANEL) * k);
  packPanels(panels, data, k, first, n);
  return new Uint8Array(panels.buffer);
}
