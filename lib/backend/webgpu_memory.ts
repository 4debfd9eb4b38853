/**
 * What lies on the GPU: activations in one growing buffer, so that a kernel may read and write any of them, and
 * matrices in buffers of their own, cut where a binding would become too large.
 */

import type { Matrix, Scheme, StoredMatrix, Tensor } from "./backend.ts";
import { packedBytes, packPanels, paddedK, PANEL, roundUp } from "./layout.ts";
import { type Piece, Pieces } from "./pieces.ts";
import { type Bound, type Queue, USAGE } from "./webgpu_queue.ts";

/** Bytes of the first buffer of activations, doubled as needed. */
const FIRST_BYTES = 1 << 20;
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

/** Some columns of a matrix in one buffer: panels as in `layout.ts`, then f32 scales. */
export interface Chunk {
  readonly bound: Bound;
  /** The first column. */
  readonly first: number;
  readonly n: number;
  /** Word where the scales begin. */
  readonly scales: number;
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

/** Brings a checked matrix to the GPU, so many bytes at most in a buffer. */
export function takeMatrix(queue: Queue, stored: StoredMatrix, maxBytes: number): GpuMatrix {
  const { scheme, n, k, data, scale } = stored;
  const panelBytes = packedBytes(scheme, PANEL, k);
  const perPanel = panelBytes + (scale ? PANEL * 4 : 0);
  const most = Math.floor(maxBytes / perPanel) * PANEL;
  if (!most) {
    throw new RangeError(
      `Cannot hold a matrix [${n}, ${k}]: ${perPanel} bytes of ${PANEL} columns needed, ${maxBytes} available`,
    );
  }
  const chunks: Chunk[] = [];
  let sizeBytes = 0;
  for (let first = 0; first < n; first += most) {
    const columns = Math.min(most, n - first);
    const panels = roundUp(columns, PANEL) / PANEL;
    const bytes = panels * panelBytes;
    const bound = queue.buffer(panels * perPanel, USAGE.storage | USAGE.copyTarget);
    const packed = data instanceof Float32Array
      ? panelsOf(data, k, first, columns)
      : data.subarray(first / PANEL * panelBytes, first / PANEL * panelBytes + bytes);
    for (let at = 0; at < bytes; at += WRITE_BYTES) {
      queue.write(bound, at, packed.subarray(at, at + WRITE_BYTES));
      if (bytes > WRITE_BYTES) queue.device.queue.submit([]);
    }
    if (scale) queue.write(bound, bytes, scale.subarray(first, first + columns));
    chunks.push({ bound, first, n: columns, scales: bytes / 4 });
    sizeBytes += panels * perPanel;
  }
  return new GpuMatrix(scheme, n, k, chunks, sizeBytes);
}

function panelsOf(data: Float32Array, k: number, first: number, n: number): Uint8Array {
  const panels = new Float32Array(roundUp(n, PANEL) * k);
  packPanels(panels, data, k, first, n);
  return new Uint8Array(panels.buffer);
}
