/**
 * The operations a model is made of, on buffers that only the backend can look into.
 *
 * Operations are issued in order and may return before they are done; `read` waits for everything issued before
 * it. So the same model code drives plain loops, WASM kernels and, with a queue in between, a GPU.
 *
 * Shape letters: T tokens or image patches (rows), S keys, N output width, K input width, H heads, C head width.
 */

import type { Sampling } from "../types.ts";

/** Activations: f32 [rows, cols], rows `stride` elements apart. A slice shares the memory of what it was cut from. */
export interface Tensor {
  readonly rows: number;
  readonly cols: number;
}

/**
 * How the numbers of a matrix lie in memory; the packing and its inverse are in `lib/weights/quantize.ts`.
 * - `f32`: row-major [N, K].
 * - `int8-p8-s4`: panels of 8 columns, one f32 scale per column.
 * - `int4-g32-p8`: panels of 8 columns, groups of 32 with a 10-bit integer scale in line, one f32 scale per column.
 */
export type Scheme = "f32" | "int8-p8-s4" | "int4-g32-p8";

/** A weight matrix as it is stored: out = x · Wᵀ with W [N, K]. */
export interface StoredMatrix {
  readonly scheme: Scheme;
  readonly n: number;
  readonly k: number;
  /** f32: Float32Array of N·K. Otherwise the packed bytes. */
  readonly data: Float32Array | Uint8Array;
  /** Per output column, length N; absent for f32. */
  readonly scale?: Float32Array;
}

/** A weight matrix in the backend's hands. */
export interface Matrix {
  readonly n: number;
  readonly k: number;
  readonly scheme: Scheme;
}

export interface LinearOptions {
  /** [1, N], added to every row. */
  readonly bias?: Tensor;
  /** Applied after the bias: 0.5x(1 + tanh(√(2/π)(x + 0.044715x³))). */
  readonly activation?: "gelu";
  /** [T, N], added last; may be `out` itself. */
  readonly residual?: Tensor;
}

/** What `linear` is called with. */
export type Linear = readonly [out: Tensor, x: Tensor, w: Matrix, options?: LinearOptions];

export interface AttentionOptions {
  readonly heads: number;
  /** Divides heads; query head h reads key-value head ⌊h / (heads / kvHeads)⌋. */
  readonly kvHeads: number;
  readonly headDim: number;
  readonly scale: number;
  /** Scores become softcap · tanh(score / softcap) before the mask; absent: no cap. */
  readonly softcap?: number;
  /** Index of the first query row among the S keys. */
  readonly start: number;
  /** The first `prefix` rows see one another in full; later rows see what lies before them. */
  readonly prefix: number;
  /** A query sees only the last `window` keys, itself included (full inside the prefix); absent: all. */
  readonly window?: number;
}

/** How the next id of one row is chosen. */
export interface RowSampling extends Omit<Sampling, "seed"> {
  /** From 0 to below 1; not looked at where the temperature is 0. */
  readonly random: number;
}

/** Every query is the last of its own keys. */
export type EachAttentionOptions = Omit<AttentionOptions, "start" | "prefix">;

/** Every query sees every key; as many key-value heads as heads. */
export type FullAttentionOptions = Pick<AttentionOptions, "heads" | "headDim" | "scale">;

/** Broken shapes are `RangeError`s with the numbers in them. */
export interface Backend {
  /** `reference`, `wasm`, `webgpu` … */
  readonly name: string;

  /** Bytes the backend holds now: weights and activations. */
  readonly sizeBytes: number;

  /** Bytes that it can still take; Infinity where nobody knows. */
  readonly availableBytes: number;

  /** Settles, with the reason, when nothing can be computed any more; absent where that does not happen. */
  readonly lost?: Promise<string>;

  /** New activations; the contents are unspecified until written. */
  tensor(rows: number, cols: number): Tensor;
  /** Rows [row, row + rows) and columns [col, col + cols) of `t`, sharing its memory; columns default to all. */
  slice(t: Tensor, row: number, rows: number, col?: number, cols?: number): Tensor;
  /** Takes a matrix into the backend, packed as its kernels read it. The stored bytes may be dropped afterwards. */
  matrix(stored: StoredMatrix): Matrix;
  /** Gives memory back. Slices are not freed; what they were cut from is. */
  free(...what: (Tensor | Matrix)[]): void;

  /** Row-major values into `t`; length rows · cols. */
  write(t: Tensor, values: Float32Array): void;
  /**
   * Row-major copy of `t`, when all that was issued before is done. What is issued afterwards does not change it: `t` may
   * be written over, or freed, at once.
   *
   * @param room of as many values: may be what is filled and returned, where a new array is not wanted.
   */
  read(t: Tensor, room?: Float32Array): Promise<Float32Array>;

  /** out [T, N] = x [T, K] · Wᵀ, the weights being read once for up to 16 rows; then bias, activation, residual. `out` may be `residual`, never `x`. */
  linear(out: Tensor, x: Tensor, w: Matrix, options?: LinearOptions): void;
  /** `linear` for each, together where they read the same rows. None may read what another one writes. */
  linearEach(of: readonly Linear[]): void;
  /** GeGLU: out [T, F] = gelu(x · gateᵀ) ⊙ (x · upᵀ). */
  gated(out: Tensor, x: Tensor, gate: Matrix, up: Matrix): void;
  /** out = (x − mean) / √(variance + eps) · weight + bias per row; weight and bias [1, K]. `out` may be `x`. */
  layerNorm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: number): void;
  /** out = x / √(mean(x²) + eps) · (1 + weight) per row; weight [1, K]. `out` may be `x`. */
  rmsNorm(out: Tensor, x: Tensor, weight: Tensor, eps: number): void;
  /** out += x. */
  add(out: Tensor, x: Tensor): void;
  /** outs[t] [1, K] = row t of x [T, K]: rows of one pass go to where their sequences are kept. */
  place(outs: readonly Tensor[], x: Tensor): void;
  /**
   * Rotates each head of x [T, H·C] in place: pair (i, i + C/2) by angle position · theta^(−2i/C), where row t has
   * position `position` + t, or the t-th of several. Half-split, as Gemma does it.
   */
  rope(x: Tensor, headDim: number, position: number | readonly number[], theta: number): void;
  /** out [T, H·C] = softmax(mask(q · kᵀ · scale)) · v with q [T, H·C], k and v [S, Hkv·C]. */
  attention(out: Tensor, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): void;
  /**
   * The same for one more row of each of T sequences: row t of q [T, H·C] stands at the end of keys[t] and values[t]
   * [S of the sequence, Hkv·C].
   */
  attentionEach(
    out: Tensor,
    q: Tensor,
    keys: readonly Tensor[],
    values: readonly Tensor[],
    options: EachAttentionOptions,
  ): void;
  /**
   * `attention` where every query sees every key, in integers, as products with int8 weights are: per head, keys, less
   * their mean, are rounded to 8 bits row by row, values to 8 bits column by column, queries to 7 bits row by row;
   * the softmax is f32, its weights 0 to 16,383. q, k, v [T, H·C]; C a multiple of 4, at most 512. Smoothing the keys
   * so is SageAttention's (arXiv 2410.02367, §4.2); it changes no softmax.
   */
  attentionInt8(out: Tensor, q: Tensor, k: Tensor, v: Tensor, options: FullAttentionOptions): void;
  /**
   * out [T, K]: row t is row ids[t] of the table [N, K], times `scale`. An id is known, or stands in a tensor [1, 1], as
   * `sample` left it; a row whose tensor holds none of the table's ids has no defined contents.
   */
  embed(out: Tensor, ids: readonly (number | Tensor)[], table: Matrix, scale: number): void;
  /**
   * out [T, 2]: the next id for every row of logits [T, V], as `choose` of `lib/decode/sampler.ts` finds it, but for sums
   * in f32, and the natural logarithm of its probability at temperature 1 among those that take part. Ids from `limit`
   * on, which is at most 2²⁴, and the `never` ones, four at most, do not. Absent where logits might as well be read.
   */
  sample?(
    out: Tensor,
    logits: Tensor,
    rows: readonly RowSampling[],
    limit: number,
    never: readonly number[],
  ): void;
  /**
   * Cuts a picture into patches: pixels [size, size, 3] as x [1, size·size·3], out [g·g, K] with g = size / patch,
   * each row flattened (c, dy, dx) as the patch embedding's weights are; columns from 3·patch² to K are zero.
   */
  patches(out: Tensor, pixels: Tensor, size: number, patch: number): void;
}
