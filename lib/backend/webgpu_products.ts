/** Products with matrices on the GPU: which kernel multiplies what, and activations rounded once for all that read them. */

import type { GpuArena, GpuMatrix, GpuTensor } from "./webgpu_memory.ts";
import { type Bound, Float, NONE, type Queue, USAGE } from "./webgpu_queue.ts";
import { FEW_ROWS, type Kernels } from "./webgpu_kernels.ts";
import { roundUp } from "./layout.ts";

/** What a product does with its result. */
export interface Finish {
  readonly bias?: GpuTensor;
  readonly residual?: GpuTensor;
  readonly mode: "plain" | "gelu" | "multiply";
}

const MODES = { plain: 0, gelu: 1, multiply: 2 } as const;

/** A norm of rows. */
interface Norm {
  readonly out: GpuTensor;
  readonly x: GpuTensor;
  readonly weight: GpuTensor;
  /** Of a norm that is centred. */
  readonly bias?: GpuTensor;
  readonly eps: number;
}

/** Products of one backend. */
export class Products {
  #side: Bound | undefined;
  /** What `side` holds: the activations rounded last, until something is written over them or it. */
  #rounded: { readonly key: string; readonly from: number; readonly to: number } | undefined;

  /** A norm that is put off, so that what it writes can be rounded with it. */
  #norm: Norm | undefined;

  constructor(
    private readonly queue: Queue,
    private readonly arena: GpuArena,
    private readonly kernels: Kernels,
  ) {}

  /** Scratch that the next operation may overwrite, of at least so many words. */
  scratch(words: number): Bound {
    this.queue.settle();
    this.#rounded = undefined;
    if (!this.#side || this.#side.buffer.size < words * 4) {
      if (this.#side) this.queue.drop(this.#side);
      this.#side = this.queue.buffer(Math.max(words * 4, 2 * (this.#side?.buffer.size ?? 0)), USAGE.storage);
    }
    return this.#side;
  }

  /** Tells that activations were written, by anything but {@link multiply}. */
  wrote(out: GpuTensor): void {
    const { from, to } = extent(out);
    if (this.#rounded && from < this.#rounded.to && to > this.#rounded.from) this.#rounded = undefined;
  }

  /** out = x · Wᵀ; the shapes are checked. */
  multiply(out: GpuTensor, x: GpuTensor, w: GpuMatrix, { bias, residual, mode }: Finish): void {
    const few = x.rows <= FEW_ROWS;
    const tile = x.rows > 1 ? 4 : 1;
    const rounded = w.scheme === "f32" ? undefined : this.#round(x, w, tile);
    const kernel = few ? this.kernels.matvec(w.scheme, x.rows) : this.kernels.gemm(w.scheme);
    for (const { bound, first, n, scales } of w.chunks) {
      this.queue.dispatch(this.arena.bound, {
        kernel,
        side: rounded?.side,
        weights: bound,
        parameters: [
          x.at,
          x.stride,
          x.rows,
          w.steps,
          n,
          first,
          out.at,
          out.stride,
          bias?.at ?? NONE,
          residual?.at ?? NONE,
          residual?.stride ?? 0,
          MODES[mode],
          rounded?.scales ?? 0,
          scales,
        ],
        groups: few ? [Math.ceil(n / 8)] : [Math.ceil(n / 64), Math.ceil(x.rows / 64)],
      });
    }
    this.wrote(out);
  }

  /** A norm; the shapes are checked. */
  norm(norm: Norm): void {
    const { out, bias } = norm;
    this.queue.defer(() => {
      this.#norm = undefined;
      this.queue.dispatch(this.arena.bound, {
        kernel: this.kernels.norm(bias !== undefined),
        parameters: parametersOf(norm, 0, 0),
        groups: [out.rows],
      });
    });
    this.#norm = norm;
    this.wrote(out);
  }

  embed(out: GpuTensor, ids: Uint32Array, table: GpuMatrix, scale: number): void {
    const kernel = this.kernels.embed(table.scheme);
    for (let row = 0; row < ids.length; row += this.queue.maxWords) {
      const part = ids.subarray(row, row + this.queue.maxWords);
      for (const { bound, first, n, scales } of table.chunks) {
        const at = this.queue.words(part);
        this.queue.dispatch(this.arena.bound, {
          kernel,
          weights: bound,
          parameters: [
            at,
            table.k,
            table.steps,
            first,
            n,
            out.at + row * out.stride,
            out.stride,
            scales,
            new Float(scale),
          ],
          groups: [part.length],
        });
      }
    }
    this.wrote(out);
  }

  /** Activations as integer weights take them. */
  #round(x: GpuTensor, { scheme, steps }: GpuMatrix, tile: number): { side: Bound; scales: number } {
    const scales = roundUp(x.rows, tile) * steps;
    const key = [scheme, x.at, x.stride, x.rows, x.cols].join();
    if (this.#rounded?.key !== key) {
      const norm = this.#norm;
      const both = norm && norm.out.at === x.at && norm.out.stride === x.stride && norm.out.rows === x.rows &&
        norm.out.cols === x.cols;
      if (both) {
        this.#norm = undefined;
        this.queue.takeBack();
      }
      const side = this.scratch(scales + x.rows);
      this.queue.dispatch(this.arena.bound, {
        kernel: both
          ? this.kernels.normQuantise(norm.bias !== undefined, scheme, tile)
          : this.kernels.quantise(scheme, tile),
        side,
        parameters: parametersOf(both ? norm : { out: x, x }, steps, scales),
        groups: [x.rows],
      });
      this.#rounded = { key, ...extent(x) };
    }
    return { side: this.#side!, scales };
  }
}

/** Parameters of a row's kernel; without a norm, `out` is what is rounded. */
function parametersOf(
  { out, x, weight, bias, eps = 0 }: Pick<Norm, "out" | "x"> & Partial<Norm>,
  steps: number,
  scales: number,
): (number | Float)[] {
  const { cols } = out;
  const last = [weight?.at ?? NONE, bias?.at ?? NONE, new Float(eps), steps, scales];
  return [x.at, x.stride, cols, out.at, out.stride, ...last];
}

/** From the first to after the last of its values. */
function extent({ at, rows, cols, stride }: GpuTensor): { from: number; to: number } {
  return { from: at, to: at + (rows - 1) * stride + cols };
}
