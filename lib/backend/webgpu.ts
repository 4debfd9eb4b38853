/**
 * The operations in WGSL, on whatever `GPU` a door hands in: Dawn through npm `webgpu`, Deno's `navigator.gpu`, a
 * browser's.
 *
 * Operations are collected and go to the GPU in one submission when something is read, or when too many have come
 * together. Weights keep the layout of their file (`layout.ts`); products with integer weights are exact, as on the
 * other backends.
 */

import type {
  AttentionOptions,
  Backend,
  EachAttentionOptions,
  FullAttentionOptions,
  Linear,
  LinearOptions,
  Matrix,
  RowSampling,
  StoredMatrix,
  Tensor,
} from "./backend.ts";
import { checkStored } from "./layout.ts";
import * as shapes from "./shapes.ts";
import { type Features, type Kernel, Kernels, MOST_PARTS } from "./webgpu_kernels.ts";
import { GpuArena, GpuMatrix, GpuTensor, GpuWeights } from "./webgpu_memory.ts";
import { Products } from "./webgpu_products.ts";
import { type Bound, type Dispatch, Float, NONE, Queue, type Submitting, USAGE } from "./webgpu_queue.ts";

export interface WebgpuOptions {
  /** What kernels may use where the device has it; all by default. The results are the same. */
  readonly features?: Partial<Features>;
  /** No buffer is bound that is larger, as if the device could not; by default what it can. */
  readonly maxBindingBytes?: number;
  /**
   * Dispatches of one submission, at most, so that a GPU begins while the next are issued; by default 40, where a program
   * stands in for one all that are issued between two reads.
   */
  readonly maxDispatches?: number;
  /** Whether lanes are many, as a GPU wants them, or few; by default as the adapter is. */
  readonly manyLanes?: boolean;
}

/** A backend on a device of its own. */
export interface WebgpuBackend extends Backend {
  /** What computes, in the runtime's words. */
  readonly adapter: string;
  /** Whether that is no GPU but a program that stands in for one. */
  readonly software: boolean;
  readonly features: Features;
  readonly queue: Submitting;
  /** Settles when the device is lost or closed. */
  readonly lost: Promise<string>;
  close(): void;
}

/**
 * Opens the fastest adapter that the runtime offers. What a program offers where there is no GPU is taken, and `software`
 * says so.
 *
 * Operations throw `RangeError` for activations beyond what one buffer of the device holds; reads reject with the reason
 * when something before them failed on the GPU.
 *
 * @throws {Error} where there is no adapter.
 */
export async function createWebgpuBackend(gpu: GPU, options: WebgpuOptions = {}): Promise<WebgpuBackend> {
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new Error("Cannot open a GPU: expected an adapter, found none");
  const { info, limits } = adapter;
  const { subgroups = true, dot4 = true } = options.features ?? {};
  const features: Features = {
    // The kernels' lanes come in 32 and 64, which whole subgroups must fill.
    subgroups: subgroups && adapter.features.has("subgroups") && info.subgroupMinSize >= 4 &&
      info.subgroupMaxSize <= 32,
    dot4: dot4 && gpu.wgslLanguageFeatures.has("packed_4x8_integer_dot_product"),
  };
  const maxBindingBytes = Math.min(
    options.maxBindingBytes ?? Infinity,
    limits.maxStorageBufferBindingSize,
    limits.maxBufferSize,
    2 ** 32 - 16,
  );
  const device = await adapter.requestDevice({
    requiredFeatures: [
      ...(features.subgroups ? ["subgroups"] as const : []),
      ...(adapter.features.has("timestamp-query") ? ["timestamp-query"] as const : []),
    ],
    requiredLimits: {
      maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize,
      maxBufferSize: limits.maxBufferSize,
    },
  });
  const name = info.description || [info.vendor, info.architecture, info.device].filter(Boolean).join(" ");
  const software = info.isFallbackAdapter || /llvmpipe|swiftshader|lavapipe|basic render/i.test(name);
  return new Webgpu(
    gpu,
    new Queue(device, features, options.maxDispatches ?? (software ? Infinity : MAX_DISPATCHES)),
    name,
    software,
    new Kernels(features, software, options.manyLanes ?? !software),
    Math.floor(maxBindingBytes / 64) * 64,
  );
}

/** On an NVIDIA H100 a pass of 186 dispatches took 9.5 ms so, 9.8 at once; of 222 for 16 answers 10.2 and 15.6. */
const MAX_DISPATCHES = 40;

/** Angles of RoPE for the positions from 0. */
interface Angles {
  readonly bound: Bound;
  readonly positions: number;
}

/** Ids of one workgroup in `sample`, and words that it keeps of them, as in the kernel. */
const [SAMPLE_BLOCK, SAMPLE_WORDS] = [4096, 6 + 16];
/** Marks an id that stands in the arena, as in `wgsl/embed.wgsl`. */
const ELSEWHERE = 2 ** 31;
/** Rows of the attention kernels' workgroups, where there are enough of them. */
const ATTENTION_ROWS = 8;
/** Fewer rows than this get a workgroup each. */
const FEW_ATTENTION_ROWS = 64;

class Webgpu implements WebgpuBackend {
  readonly availableBytes = Infinity;
  readonly lost: Promise<string>;
  readonly features: Features;
  readonly #arena: GpuArena;
  readonly #weights: GpuWeights;
  readonly #products: Products;
  readonly #angles = new Map<string, Angles>();
  /** A rotation that is put off, so that another of the same positions can go with it. */
  #turned: { readonly key: string; readonly tensors: GpuTensor[] } | undefined;

  constructor(
    /** Dawn ends when its entrance is collected as garbage. */
    readonly gpu: GPU,
    readonly queue: Queue,
    readonly adapter: string,
    readonly software: boolean,
    private readonly kernels: Kernels,
    maxBindingBytes: number,
  ) {
    this.features = queue.features;
    this.lost = queue.device.lost.then(({ message }) => message);
    this.#arena = new GpuArena(queue, maxBindingBytes);
    this.#weights = new GpuWeights(queue, maxBindingBytes);
    this.#products = new Products(queue, this.#arena, kernels);
  }

  get name(): string {
    return this.software ? `webgpu in software (${this.adapter})` : "webgpu";
  }

  get sizeBytes(): number {
    return this.#arena.usedBytes + this.#weights.usedBytes;
  }

  close(): void {
    this.queue.close();
  }

  tensor(rows: number, cols: number): Tensor {
    shapes.checkTensor(rows, cols);
    const piece = this.#arena.allocate(rows * cols * 4, `activations [${rows}, ${cols}]`);
    return new GpuTensor(piece, piece.start / 4, rows, cols, cols, true);
  }

  slice(t: Tensor, row: number, rows: number, col = 0, cols = t.cols - col): Tensor {
    shapes.checkSlice(t, row, rows, col, cols);
    return inside(t).slice(row, rows, col, cols);
  }

  matrix(stored: StoredMatrix): Matrix {
    checkStored(stored);
    return this.#weights.take(stored);
  }

  free(...what: (Tensor | Matrix)[]): void {
    for (const it of what) {
      if (it instanceof GpuMatrix) {
        if (!it.live) throw new TypeError(`Cannot free a [${it.n}, ${it.k}] matrix: freed before`);
        this.#weights.free(it);
        continue;
      }
      const { owner, piece } = it as GpuTensor;
      if (!owner) throw new TypeError("Cannot free a slice: free what it was cut from");
      this.#arena.free(piece);
    }
  }

  write(t: Tensor, values: Float32Array): void {
    shapes.same("write", values.length, t.rows * t.cols);
    const to = inside(t);
    const { at, rows, cols, stride } = to;
    const together = cols === stride ? rows : 1;
    for (let r = 0; r < rows; r += together) {
      const part = values.subarray(r * cols, (r + together) * cols);
      this.queue.write(this.#arena.bound, (at + r * stride) * 4, part);
    }
    this.#products.wrote(to);
  }

  async read(t: Tensor): Promise<Float32Array> {
    const { at, rows, cols, stride } = inside(t);
    return new Float32Array(
      await this.queue.read(this.#arena.bound, at * 4, rows, cols * 4, rows > 1 ? stride * 4 : cols * 4),
    );
  }

  linear(out: Tensor, x: Tensor, w: Matrix, options: LinearOptions = {}): void {
    shapes.checkLinear(out, x, w, options);
    const [to, from] = [inside(out), inside(x)];
    notAliased("linear", to, from);
    const { bias, activation, residual } = options;
    this.#products.multiply(to, from, whole(w), {
      bias: bias && inside(bias),
      residual: residual && inside(residual),
      mode: activation ?? "plain",
    });
  }

  linearEach(of: readonly Linear[]): void {
    for (const it of of) this.linear(...it);
  }

  gated(out: Tensor, x: Tensor, gate: Matrix, up: Matrix): void {
    shapes.checkGated(out, x, gate, up);
    const [to, from] = [inside(out), inside(x)];
    notAliased("gated", to, from);
    this.#products.gated(to, from, whole(gate), whole(up));
  }

  layerNorm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: number): void {
    shapes.checkNorm("layerNorm", out, x, weight, bias);
    this.#norm(out, x, weight, bias, eps);
  }

  rmsNorm(out: Tensor, x: Tensor, weight: Tensor, eps: number): void {
    shapes.checkNorm("rmsNorm", out, x, weight);
    this.#norm(out, x, weight, undefined, eps);
  }

  #norm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | undefined, eps: number): void {
    if (!out.rows || !out.cols) return;
    const [o, i, w] = [inside(out), inside(x), inside(weight)];
    const by = { norm: bias !== undefined };
    this.#products.make({ out: o, x: i, by, weight: w, bias: bias && inside(bias), eps });
  }

  add(out: Tensor, x: Tensor): void {
    shapes.checkAdd(out, x);
    const [o, i] = [inside(out), inside(x)];
    const parameters = [i.at, i.stride, i.cols, o.at, o.stride];
    this.#run(o, this.kernels.add, parameters, [Math.ceil(i.cols / 64), i.rows]);
  }

  place(outs: readonly Tensor[], x: Tensor): void {
    shapes.checkPlace(outs, x);
    const from = inside(x);
    const targets = outs.map(inside);
    const at = this.queue.words(Uint32Array.from(targets, (it) => it.at));
    const parameters = [from.at, from.stride, from.cols, at];
    const groups = [Math.ceil(from.cols / 64), from.rows] as const;
    this.queue.dispatch(this.#arena.bound, { kernel: this.kernels.place, parameters, groups });
    targets.forEach((it) => this.#products.wrote(it));
  }

  rope(x: Tensor, headDim: number, position: number | readonly number[], theta: number): void {
    const positions = shapes.checkRope(x, headDim, position);
    const to = inside(x);
    const half = headDim / 2;
    const angles = this.#table(half, theta, Math.max(...positions) + 1);
    const key = [angles.bound.id, half, position].join();
    const turned = this.#turned;
    const joins = turned?.key === key && turned.tensors.length === 1;
    if (joins && turned.tensors[0].rows === to.rows && turned.tensors[0].piece !== to.piece) {
      turned.tensors.push(to);
    } else {
      const tensors = [to];
      this.queue.defer(() => {
        this.#turned = undefined;
        this.#turn(tensors, half, position, angles);
      });
      this.#turned = { key, tensors };
    }
    this.#products.wrote(to);
  }

  #turn(
    tensors: readonly GpuTensor[],
    half: number,
    position: number | readonly number[],
    angles: Angles,
  ): void {
    const [first, own] = typeof position === "number"
      ? [position, NONE]
      : [0, this.queue.words(Uint32Array.from(position))];
    const [x, other = x] = tensors;
    const pairs = tensors.reduce((sum, it) => sum + it.cols / 2, 0);
    this.queue.dispatch(this.#arena.bound, {
      kernel: this.kernels.rope,
      weights: angles.bound,
      parameters: [
        ...[x.at, x.stride, x.cols / 2, other.at, other.stride, pairs],
        ...[half, first, own, angles.positions * half],
      ],
      groups: [Math.ceil(pairs / 64), x.rows],
    });
  }

  attention(out: Tensor, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): void {
    shapes.checkAttention(out, q, k, v, options);
    const { heads, kvHeads, headDim, scale, softcap = 0, start, prefix } = options;
    const window = Math.min(options.window ?? Infinity, 2 ** 31);
    const [o, qs, ks, vs] = [inside(out), inside(q), inside(k), inside(v)];
    const rows = qs.rows * (heads / kvHeads);
    const together = rows * kvHeads >= FEW_ATTENTION_ROWS ? ATTENTION_ROWS : 1;
    const parameters = [
      ...[qs.at, qs.stride, ks.at, ks.stride, vs.at, vs.stride, o.at, o.stride],
      ...[qs.rows, ks.rows, heads / kvHeads, headDim, new Float(scale), new Float(softcap)],
      ...[start, Math.max(prefix, 0), window],
    ];
    const kernel = this.kernels.attention(headDim, together);
    this.#run(o, kernel, parameters, [Math.ceil(rows / together), kvHeads]);
  }

  attentionEach(
    out: Tensor,
    q: Tensor,
    keys: readonly Tensor[],
    values: readonly Tensor[],
    options: EachAttentionOptions,
  ): void {
    shapes.checkEachAttention(out, q, keys, values, options);
    const { heads, kvHeads, headDim, scale, softcap = 0 } = options;
    const window = Math.min(options.window ?? Infinity, 2 ** 31);
    const [o, qs] = [inside(out), inside(q)];
    const [ks, vs] = [keys.map(inside), values.map(inside)];
    const [{ stride: kStride }, { stride: vStride }] = [ks[0], vs[0]];
    for (const it of ks) shapes.same("attention stride of keys", it.stride, kStride);
    for (const it of vs) shapes.same("attention stride of values", it.stride, vStride);
    const at = this.queue.words(Uint32Array.from(ks.flatMap((it, t) => [it.at, vs[t].at, it.rows])));
    if (!o.rows) return;
    const { keysTogether } = this.kernels;
    const most = Math.min(window, Math.max(...ks.map((it) => it.rows)));
    const parts = Math.min(MOST_PARTS, Math.ceil(most / keysTogether));
    const mixed = this.tensor(qs.rows, heads * parts * (headDim + 2)) as GpuTensor;
    const parameters = [
      ...[qs.at, qs.stride, kStride, vStride, mixed.at, parts, heads / kvHeads, headDim],
      ...[new Float(scale), new Float(softcap), window, at],
    ];
    this.#run(mixed, this.kernels.attentionEach(headDim), parameters, [heads, qs.rows, parts]);
    this.#products.make({ out: o, x: mixed, by: { heads }, parts, headDim });
    this.free(mixed); // what comes after this is computed after it
  }

  attentionInt8(out: Tensor, q: Tensor, k: Tensor, v: Tensor, options: FullAttentionOptions): void {
    shapes.checkFullAttention(out, q, k, v, options);
    const { heads, headDim, scale } = options;
    const [o, qs, ks, vs] = [inside(out), inside(q), inside(k), inside(v)];
    const { rows } = qs;
    const width = heads * headDim;
    const side = this.#products.scratch(
      2 * width + 2 * heads * rows + width * rows / 2 + width * Math.ceil(rows / 4),
    );
    const parameters = [
      ...[qs.at, qs.stride, ks.at, ks.stride, vs.at, vs.stride, o.at, o.stride],
      ...[rows, heads, headDim, new Float(scale)],
    ];
    const [means, each, values, mix] = this.kernels.attentionInt8(headDim, 4);
    this.#run(o, means, parameters, [Math.ceil(width / 64)], side);
    this.#run(o, each, parameters, [Math.ceil(rows * heads / 64)], side);
    this.#run(o, values, parameters, [Math.ceil(width / 64)], side);
    this.#run(o, mix, parameters, [Math.ceil(rows / 4), heads], side);
  }

  embed(out: Tensor, ids: readonly (number | Tensor)[], table: Matrix, scale: number): void {
    shapes.checkEmbed(out, ids, table);
    const words = Uint32Array.from(ids, (it) => typeof it === "number" ? it : ELSEWHERE + inside(it).at);
    this.#products.embed(inside(out), words, whole(table), scale);
  }

  sample(
    out: Tensor,
    logits: Tensor,
    rows: readonly RowSampling[],
    limit: number,
    never: readonly number[],
  ): void {
    shapes.checkSample(out, logits, rows, limit, never);
    const [to, from] = [inside(out), inside(logits)];
    const blocks = Math.ceil(limit / SAMPLE_BLOCK);
    const cut = rows.some((it) => it.temperature > 0 && (it.topK > 0 || it.topP < 1));
    const size = blocks * (SAMPLE_WORDS + (cut ? SAMPLE_BLOCK : 0));
    const side = this.#products.scratch(rows.length * size);
    const words = new Uint32Array(rows.length * 4);
    const floats = new Float32Array(words.buffer);
    rows.forEach(({ temperature, topK, topP, random }, t) => {
      floats[t * 4] = temperature;
      words[t * 4 + 1] = Math.min(topK, limit);
      floats[t * 4 + 2] = topP;
      floats[t * 4 + 3] = random;
    });
    for (const kernel of this.kernels.sample) {
      if (!cut && (kernel.entry === "count" || kernel.entry === "gather")) continue;
      const at = this.queue.words(words);
      const parameters = [
        ...[...never, NONE, NONE, NONE, NONE].slice(0, 4),
        ...[limit, from.at, from.stride, to.at, to.stride, at, blocks, size],
      ];
      const groups = kernel.entry === "choose" ? [rows.length] as const : [blocks, rows.length] as const;
      const weights = this.queue.table;
      this.queue.dispatch(this.#arena.bound, { kernel, parameters, side, weights, groups });
    }
    this.#products.wrote(to);
  }

  patches(out: Tensor, pixels: Tensor, size: number, patch: number): void {
    shapes.checkPatches(out, pixels, size, patch);
    const [o, p] = [inside(out), inside(pixels)];
    const parameters = [p.at, size, patch, o.cols, o.at, o.stride];
    this.#run(o, this.kernels.patches, parameters, [Math.ceil(o.cols / 64), o.rows]);
  }

  #run(
    out: GpuTensor,
    kernel: Kernel,
    parameters: readonly (number | Float)[],
    groups: Dispatch["groups"],
    side?: Bound,
  ): void {
    if (!out.rows || !out.cols) return;
    this.queue.dispatch(this.#arena.bound, { kernel, parameters, groups, side });
    this.#products.wrote(out);
  }

  /** Cosines [positions, half], then sines, in f32 from f64 angles. */
  #table(half: number, theta: number, least: number): Angles {
    const key = `${half} ${theta}`;
    const found = this.#angles.get(key);
    if (found && found.positions >= least) return found;
    const positions = 2 ** Math.max(9, Math.ceil(Math.log2(least)));
    const values = new Float32Array(positions * half * 2);
    for (let i = 0; i < half; i++) {
      const frequency = theta ** (-i / half);
      for (let t = 0; t < positions; t++) {
        values[t * half + i] = Math.cos(t * frequency);
        values[(positions + t) * half + i] = Math.sin(t * frequency);
      }
    }
    const bound = this.queue.buffer(values.byteLength, USAGE.storage | USAGE.copyTarget);
    this.queue.write(bound, 0, values);
    if (found) this.queue.drop(found.bound);
    const made = { bound, positions };
    this.#angles.set(key, made);
    return made;
  }
}

function inside(t: Tensor): GpuTensor {
  if (!(t instanceof GpuTensor)) throw new TypeError("Cannot use a tensor of another backend");
  if (!t.piece.live) throw new TypeError(`Cannot use a [${t.rows}, ${t.cols}] tensor: its memory was freed`);
  return t;
}

function whole(w: Matrix): GpuMatrix {
  if (!(w instanceof GpuMatrix)) throw new TypeError("Cannot use a matrix of another backend");
  if (!w.live) throw new TypeError(`Cannot use a [${w.n}, ${w.k}] matrix: its memory was freed`);
  return w;
}

function notAliased(what: string, out: GpuTensor, x: GpuTensor): void {
  if (out.at === x.at) throw new RangeError(`Broken call, ${what}: out and x are the same memory`);
}
