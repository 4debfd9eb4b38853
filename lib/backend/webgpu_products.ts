/** Products with matrices on the GPU: which kernel multiplies what, and activations rounded once for all that read them. */

import type { Chunk, GpuArena, GpuMatrix, GpuTensor } from "./webgpu_memory.ts";
import { type Bound, Float, NONE, type Queue, USAGE } from "./webgpu_queue.ts";
import { FEW_ROWS, type Kernels, type RowMaker } from "./webgpu_kernels.ts";
import { PANEL, roundUp } from "./layout.ts";

/** What a product does with its result. */
export interface Finish {
  readonly bias?: GpuTensor;
  readonly residual?: GpuTensor;
  readonly mode: "plain" | "gelu" | "multiply";
}

const MODES = { plain: 0, gelu: 1, multiply: 2, gated: 0 } as const;

/** Matrices of one dispatch, as in `wgsl/product.wgsl`. */
const MOST_SEGMENTS = 3;
/** Rows, and columns, of a workgroup of many rows. */
const GEMM_TILE = 64;

/** What one matrix of a dispatch gives. */
interface Result {
  readonly chunk: Chunk;
  readonly out: GpuTensor;
  readonly bias?: GpuTensor;
}

/** Rounded activations, and after how many words their scales begin. */
interface Rounded {
  readonly side: Bound;
  readonly scales: number;
}

/** Rows that are made of others: by a norm, or of the parts of attention. */
interface Made {
  readonly out: GpuTensor;
  readonly x: GpuTensor;
  readonly by: RowMaker;
  /** Of a norm, and the bias of one that is centred. */
  readonly weight?: GpuTensor;
  readonly bias?: GpuTensor;
  readonly eps?: number;
  /** Of each head, and its columns. */
  readonly parts?: number;
  readonly headDim?: number;
}

/** Products of one backend. */
export class Products {
  #side: Bound | undefined;
  /** What `side` holds: the activations rounded last, until something is written over them or it. */
  #rounded: { readonly key: string; readonly from: number; readonly to: number } | undefined;

  /** A product that is put off, so that others of the same rows can go with it. */
  #open: { readonly key: string; readonly results: Result[] } | undefined;
  /** Rows that are put off, so that they can be rounded when they are made. */
  #made: Made | undefined;

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
    const [chunk] = w.chunks;
    const alone = w.chunks.length > 1 || residual || mode !== "plain";
    const key = [w.scheme, w.k, chunk.bound.id, x.at, x.stride, x.rows].join();
    const open = this.#open;
    if (
      !alone && open?.key === key && open.results.length < MOST_SEGMENTS &&
      independent(open.results, out, bias)
    ) {
      open.results.push({ chunk, out, bias });
      return this.wrote(out);
    }
    const rounded = this.#round(x, w);
    if (alone) {
      for (const chunk of w.chunks) this.#multiply(x, w, [{ chunk, out, bias }], rounded, { residual, mode });
    } else {
      const results = [{ chunk, out, bias }];
      this.queue.defer(() => {
        this.#open = undefined;
        this.#multiply(x, w, results, rounded, { mode });
      });
      this.#open = { key, results };
    }
    this.wrote(out);
  }

  /** GeGLU; the shapes are checked. */
  gated(out: GpuTensor, x: GpuTensor, gate: GpuMatrix, up: GpuMatrix): void {
    const [[first], [second]] = [gate.chunks, up.chunks];
    const together = gate.chunks.length === 1 && up.chunks.length === 1 && first.bound === second.bound;
    if (!together || x.rows > FEW_ROWS || gate.scheme !== up.scheme) {
      this.multiply(out, x, gate, { mode: "gelu" });
      return this.multiply(out, x, up, { mode: "multiply" });
    }
    const results = [{ chunk: first, out }, { chunk: second, out }];
    this.#multiply(x, gate, results, this.#round(x, gate), { mode: "gated" });
    this.wrote(out);
  }

  #multiply(
    x: GpuTensor,
    { scheme, steps }: GpuMatrix,
    results: readonly Result[],
    rounded: Rounded | undefined,
    { residual, mode }: Pick<Finish, "residual"> & { readonly mode: Finish["mode"] | "gated" },
  ): void {
    const few = x.rows <= FEW_ROWS;
    const columns = few ? PANEL : GEMM_TILE;
    let groups = 0;
    const segments = results.flatMap(({ chunk: { start, first, n, scales }, out, bias }) => {
      const group = groups;
      if (!group || mode !== "gated") groups += Math.ceil(n / columns);
      return [group, start / 16, n, first, scales, out.at, out.stride, bias?.at ?? NONE];
    });
    const absent = Array<number>((MOST_SEGMENTS - results.length) * 8).fill(NONE);
    if (mode === "gated") segments[8] = NONE;
    this.queue.dispatch(this.arena.bound, {
      kernel: few
        ? this.kernels.matvec(scheme, x.rows, steps, groups, mode === "gated")
        : this.kernels.gemm(scheme),
      side: rounded?.side,
      weights: results[0].chunk.bound,
      parameters: [
        ...[x.at, x.stride, x.rows, steps, rounded?.scales ?? 0],
        ...[residual?.at ?? NONE, residual?.stride ?? 0, MODES[mode]],
        ...segments,
        ...absent,
      ],
      groups: [groups, few ? 1 : Math.ceil(x.rows / GEMM_TILE)],
    });
  }

  /** Makes rows; the shapes are checked. */
  make(made: Made): void {
    const { out, by } = made;
    this.queue.defer(() => {
      this.#made = undefined;
      this.queue.dispatch(this.arena.bound, {
        kernel: this.kernels.row(by),
        parameters: parametersOf(made, 0, 0),
        groups: [out.rows],
      });
    });
    this.#made = made;
    this.wrote(out);
  }

  embed(out: GpuTensor, ids: Uint32Array, table: GpuMatrix, scale: number): void {
    const kernel = this.kernels.embed(table.scheme);
    for (let row = 0; row < ids.length; row += this.queue.maxWords) {
      const part = ids.subarray(row, row + this.queue.maxWords);
      for (const { bound, start, first, n, scales } of table.chunks) {
        const at = this.queue.words(part);
        this.queue.dispatch(this.arena.bound, {
          kernel,
          weights: bound,
          parameters: [
            at,
            start / 4,
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
  #round(x: GpuTensor, { scheme, steps }: GpuMatrix): Rounded | undefined {
    if (scheme === "f32") return undefined;
    const tile = x.rows > 1 ? 4 : 1;
    const scales = roundUp(x.rows, tile) * steps;
    const key = [scheme, x.at, x.stride, x.rows, x.cols].join();
    if (this.#rounded?.key !== key) {
      const made = this.#made;
      const both = made && made.out.at === x.at && made.out.stride === x.stride && made.out.rows === x.rows &&
        made.out.cols === x.cols;
      if (both) {
        this.#made = undefined;
        this.queue.takeBack();
      }
      const side = this.scratch(scales + x.rows);
      this.queue.dispatch(this.arena.bound, {
        kernel: this.kernels.row(both ? made.by : undefined, { scheme, tile }),
        side,
        parameters: parametersOf(both ? made : { out: x, x }, steps, scales),
        groups: [x.rows],
      });
      this.#rounded = { key, ...extent(x) };
    }
    return { side: this.#side!, scales };
  }
}

/** Parameters of a row's kernel; where nothing makes it, `out` is what is rounded. */
function parametersOf(
  { out, x, weight, bias, eps = 0, parts = 0, headDim = 0 }: Omit<Made, "by">,
  steps: number,
  scales: number,
): (number | Float)[] {
  const { cols } = out;
  const of = [weight?.at ?? NONE, bias?.at ?? NONE, new Float(eps), steps, scales, parts, headDim];
  return [x.at, x.stride, cols, out.at, out.stride, ...of];
}

/** Whether a product does not touch what others give. */
function independent(results: readonly Result[], out: GpuTensor, bias: GpuTensor | undefined): boolean {
  const apart = (a: GpuTensor, b: GpuTensor) => {
    const [x, y] = [extent(a), extent(b)];
    return x.to <= y.from || x.from >= y.to;
  };
  return results.every((it) =>
    apart(it.out, out) && (!bias || apart(it.out, bias)) && (!it.bias || apart(it.bias, out))
  );
}

/** From the first to after the last of its values. */
function extent({ at, rows, cols, stride }: GpuTensor): { from: number; to: number } {
  return { from: at, to: at + (rows - 1) * stride + cols };
}
