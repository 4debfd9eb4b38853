/**
 * The operations in C kernels (`wasm/src`), in one growing memory that this file owns. On one thread, unless
 * `threads.ts` lends more.
 *
 * Every operation runs when it is issued. Weights are packed in panels of 8 columns when they are taken in, so the
 * kernels read them as one stream; activations stay row-major, and a product packs the rows it needs as it goes.
 */

import type {
  AttentionOptions,
  Backend,
  EachAttentionOptions,
  FullAttentionOptions,
  Linear,
  LinearOptions,
  Matrix,
  StoredMatrix,
  Tensor,
} from "./backend.ts";
import { alone, type Crew, TICKETS_EACH } from "./crew.ts";
import { checkStored } from "./layout.ts";
import * as shapes from "./shapes.ts";
import type { Piece } from "./pieces.ts";
import { Arena, WasmTensor } from "./wasm_arena.ts";
import {
  type Builds,
  chooseKernels,
  FINISH,
  instantiate,
  type Kernels,
  STACK_BYTES,
  TWIN,
  type Ways,
  waysOf,
} from "./wasm_kernels.ts";
import { attentionInt8Scratch, attentionScratch, attentionUnits } from "./wasm_parts.ts";
import { embedRows, multiply, takeMatrix, WasmMatrix } from "./wasm_product.ts";

export interface WasmOptions extends Partial<Ways> {
  /** The memory never grows beyond this; at most, and by default, 4 GiB less one page. */
  readonly maxBytes?: number;
}

/** A backend with its memory in the open, for those who count it. */
export interface WasmBackend extends Backend {
  readonly name: "wasm";
  /** Bytes of WASM memory held: weights, activations, scratch, and gaps. Never shrinks. */
  readonly memoryBytes: number;
  /** Bytes of operands copied for products of many rows: among the engine's objects, one set a thread. Never shrink. */
  readonly copiesBytes: number;
}

/**
 * Makes a backend from the kernels that the door imported: both builds, of which `chooseKernels` takes the faster
 * one that works here, or one module that was chosen already.
 *
 * Operations throw `RangeError` when the memory cannot hold what they need, before they compute anything.
 */
export function createWasmBackend(
  kernels: Builds | WebAssembly.Module,
  options: WasmOptions = {},
): WasmBackend {
  return new Wasm(kernels instanceof WebAssembly.Module ? kernels : chooseKernels(kernels), options);
}

/** Threads to be had: how many, the leader included, and what makes them a crew once the memory is there. */
export interface Hands {
  readonly threads: number;
  /** As `createSharedMemory` makes it. */
  readonly memory: WebAssembly.Memory;
  /** `stacks`: where the stack of each thread but the leader's begins. */
  hire(kernels: Kernels, stacks: readonly number[]): Crew;
}

/** What a value costs on one thread in nanoseconds, roughly: in a norm or a rotation, and in an addition. */
const [ROW_NS, ADD_NS] = [0.5, 0.1];
/** The same for a query's value times a key's, and its weight times a value's. */
const ATTEND_NS = 0.07;
/** Tickets for each thread of an attention of floats: keys and values are packed for every one anew. */
const ATTEND_TICKETS = 3;

/** The backend itself; with `hands`, the module is one for a shared memory. */
export class Wasm implements WasmBackend {
  readonly name = "wasm";
  readonly #arena: Arena;
  readonly #kernels: Kernels;
  readonly #crew: Crew;
  readonly #stacksBytes: number;
  readonly #ways: Ways;
  #scratch: Piece | undefined;
  #rotation: { key: string; piece: Piece } | undefined;

  constructor(module: WebAssembly.Module, { maxBytes = 2 ** 32, ...ways }: WasmOptions, hands?: Hands) {
    this.#arena = new Arena(maxBytes, hands?.memory);
    this.#kernels = instantiate(module, this.#arena.memory);
    this.#arena.reserve(this.#kernels.__heap_base.value);
    this.#ways = waysOf(this.#kernels, ways);
    const stacks = Array.from({ length: (hands?.threads ?? 1) - 1 }, () => {
      const { start, size } = this.#arena.allocate(STACK_BYTES, "the stack of a thread");
      return start + size;
    });
    this.#stacksBytes = this.#arena.usedBytes;
    this.#crew = hands?.hire(this.#kernels, stacks) ?? alone(this.#kernels);
  }

  get sizeBytes(): number {
    const scratch = (this.#scratch?.size ?? 0) + (this.#rotation?.piece.size ?? 0);
    return this.#arena.usedBytes - this.#stacksBytes - scratch;
  }

  get availableBytes(): number {
    return this.#arena.availableBytes;
  }

  get memoryBytes(): number {
    return this.#arena.heldBytes;
  }

  get copiesBytes(): number {
    return this.#kernels.copies_bytes() * this.#crew.threads;
  }

  tensor(rows: number, cols: number): Tensor {
    shapes.checkTensor(rows, cols);
    const piece = this.#arena.allocate(rows * cols * 4, `activations [${rows}, ${cols}]`);
    return new WasmTensor(piece, piece.start, rows, cols, cols, true);
  }

  slice(t: Tensor, row: number, rows: number, col = 0, cols = t.cols - col): Tensor {
    shapes.checkSlice(t, row, rows, col, cols);
    return inside(t).slice(row, rows, col, cols);
  }

  matrix(stored: StoredMatrix): Matrix {
    checkStored(stored);
    return takeMatrix(this.#arena, this.#kernels, stored, this.#ways);
  }

  free(...what: (Tensor | Matrix)[]): void {
    for (const it of what) {
      if (it instanceof WasmTensor && !it.owner) {
        throw new TypeError("Cannot free a slice: free what it was cut from");
      }
      this.#arena.free((it as WasmTensor | WasmMatrix).piece);
    }
  }

  write(t: Tensor, values: Float32Array): void {
    shapes.same("write", values.length, t.rows * t.cols);
    const { start, rows, cols, stride } = inside(t);
    if (cols === stride) return this.#floats(start, rows * cols).set(values);
    for (let r = 0; r < rows; r++) {
      this.#floats(start + r * stride * 4, cols).set(values.subarray(r * cols, (r + 1) * cols));
    }
  }

  read(t: Tensor, room?: Float32Array): Promise<Float32Array> {
    const { start, rows, cols, stride } = inside(t);
    if (room) shapes.same("read", room.length, rows * cols);
    const values = room ?? new Float32Array(rows * cols);
    for (let r = 0; r < rows; r++) values.set(this.#floats(start + r * stride * 4, cols), r * cols);
    return Promise.resolve(values);
  }

  linear(out: Tensor, x: Tensor, w: Matrix, options?: LinearOptions): void {
    this.linearEach([[out, x, w, options]]);
  }

  linearEach(of: readonly Linear[]): void {
    const products = of.map(([out, x, w, options = {}]) => {
      shapes.checkLinear(out, x, w, options);
      const [to, from] = [inside(out), inside(x)];
      notAliased("linear", to, from);
      const { bias, activation, residual } = options;
      const finish = {
        bias: bias ? inside(bias).start : 0,
        residual: residual && inside(residual),
        mode: activation === "gelu" ? FINISH.gelu : FINISH.plain,
      };
      return { x: from, step: { out: to, w: whole(w), finish } };
    });
    for (let first = 0, i = 0; first < products.length; first = i) {
      const { x } = products[first];
      while (i < products.length && sameRows(products[i].x, x)) i++;
      multiply(this.#crew, this.#reserve, x, products.slice(first, i).map((it) => it.step));
    }
  }

  gated(out: Tensor, x: Tensor, gate: Matrix, up: Matrix): void {
    shapes.checkGated(out, x, gate, up);
    const [to, from] = [inside(out), inside(x)];
    notAliased("gated", to, from);
    const finish = { bias: 0, residual: undefined };
    multiply(this.#crew, this.#reserve, from, [
      { out: to, w: whole(gate), finish: { ...finish, mode: FINISH.gelu } },
      { out: to, w: whole(up), finish: { ...finish, mode: FINISH.multiply } },
    ]);
  }

  layerNorm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: number): void {
    shapes.checkNorm("layerNorm", out, x, weight, bias);
    const [o, i] = [inside(out), inside(x)];
    const [w, b] = [inside(weight), inside(bias)];
    const args = [o.start, o.stride, i.start, i.stride, i.cols, w.start, b.start, eps];
    this.#crew.run("layer_norm", args, i.rows, i.rows * i.cols * ROW_NS);
  }

  rmsNorm(out: Tensor, x: Tensor, weight: Tensor, eps: number): void {
    shapes.checkNorm("rmsNorm", out, x, weight);
    const [o, i] = [inside(out), inside(x)];
    const args = [o.start, o.stride, i.start, i.stride, i.cols, inside(weight).start, eps];
    this.#crew.run("rms_norm", args, i.rows, i.rows * i.cols * ROW_NS);
  }

  add(out: Tensor, x: Tensor): void {
    shapes.checkAdd(out, x);
    const [o, i] = [inside(out), inside(x)];
    const args = [o.start, o.stride, i.start, i.stride, i.cols];
    this.#crew.run("add", args, i.rows, i.rows * i.cols * ADD_NS);
  }

  place(outs: readonly Tensor[], x: Tensor): void {
    shapes.checkPlace(outs, x);
    const { start, cols, stride } = inside(x);
    outs.forEach((it, t) => {
      this.#floats(inside(it).start, cols).set(this.#floats(start + t * stride * 4, cols));
    });
  }

  rope(x: Tensor, headDim: number, position: number | readonly number[], theta: number): void {
    const positions = shapes.checkRope(x, headDim, position);
    const { start, rows, cols, stride } = inside(x);
    const half = headDim / 2;
    const table = this.#angles(`${position} ${rows} ${half} ${theta}`, positions, half, theta);
    const args = [start, stride, cols / headDim, half, table, table + rows * half * 4];
    this.#crew.run("rope", args, rows, rows * cols * ROW_NS);
  }

  attention(out: Tensor, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): void {
    shapes.checkAttention(out, q, k, v, options);
    const { heads, kvHeads, headDim, scale, softcap = 0, start, prefix } = options;
    const window = Math.min(options.window ?? Infinity, 2 ** 31);
    const [o, qs, ks, vs] = [inside(out), inside(q), inside(k), inside(v)];
    const scratchBytes = attentionScratch(qs.rows, ks.rows, headDim);
    const scratch = this.#reserve(scratchBytes * this.#crew.threads);
    const group = heads / kvHeads;
    const args = [
      ...[o.start, o.stride, qs.start, qs.stride, ks.start, ks.stride, vs.start, vs.stride],
      ...[qs.rows, ks.rows, kvHeads, group, headDim, scale, softcap, start, Math.max(prefix, 0), window],
      ...[scratch, scratchBytes, this.#ways.twins ? TWIN : 0],
    ];
    const units = attentionUnits(qs.rows, kvHeads, group);
    this.#crew.run("attention", args, units, qs.rows * ks.rows * heads * headDim * ATTEND_NS, ATTEND_TICKETS);
  }

  attentionEach(
    out: Tensor,
    q: Tensor,
    keys: readonly Tensor[],
    values: readonly Tensor[],
    options: EachAttentionOptions,
  ): void {
    shapes.checkEachAttention(out, q, keys, values, options).forEach((it, t) => {
      this.attention(this.slice(out, t, 1), this.slice(q, t, 1), keys[t], values[t], it);
    });
  }

  attentionInt8(out: Tensor, q: Tensor, k: Tensor, v: Tensor, options: FullAttentionOptions): void {
    shapes.checkFullAttention(out, q, k, v, options);
    const { heads, headDim, scale } = options;
    const [o, qs, ks, vs] = [inside(out), inside(q), inside(k), inside(v)];
    const rows = qs.rows;
    const scratchBytes = attentionInt8Scratch(rows, headDim);
    const scratch = this.#reserve(scratchBytes * this.#crew.threads);
    const { multiplier, twins } = this.#ways;
    const kernel = { dot: 0, words: 1 }[multiplier] | (twins ? TWIN : 0);
    const tile = this.#kernels.tile_rows(kernel);
    const tiles = Math.ceil(rows / tile);
    // A head's keys and values are packed for every unit anew: as few of them as leave each thread its tickets.
    const units = Math.min(tiles, Math.ceil(this.#crew.threads * TICKETS_EACH / heads));
    const most = Math.ceil(tiles / units) * tile;
    const args = [
      ...[o.start, o.stride, qs.start, qs.stride, ks.start, ks.stride, vs.start, vs.stride],
      ...[rows, heads, headDim, scale, scratch, scratchBytes, kernel, most],
    ];
    this.#crew.run(
      "attention_int8",
      args,
      heads * Math.ceil(rows / most),
      rows * rows * heads * headDim * ATTEND_NS,
    );
  }

  embed(out: Tensor, ids: readonly (number | Tensor)[], table: Matrix, scale: number): void {
    shapes.checkEmbed(out, ids, table);
    const known = ids.map((it) => typeof it === "number" ? it : this.#floats(inside(it).start, 1)[0]);
    shapes.checkEmbed(out, known, table); // kernels read whatever they are told to
    const list = this.#reserve(known.length * 4);
    new Uint32Array(this.#arena.memory.buffer, list, known.length).set(known);
    embedRows(this.#kernels, inside(out), list, ids.length, whole(table), scale);
  }

  patches(out: Tensor, pixels: Tensor, size: number, patch: number): void {
    shapes.checkPatches(out, pixels, size, patch);
    const [o, p] = [inside(out), inside(pixels)];
    this.#kernels.patches(o.start, o.stride, o.cols, p.start, size, patch);
  }

  /** Address of cosines, then sines, [T, half] each, in f32 from f64 angles. Kept for the calls that follow. */
  #angles(key: string, positions: readonly number[], half: number, theta: number): number {
    const rows = positions.length;
    if (this.#rotation?.key === key) return this.#rotation.piece.start;
    if (this.#rotation) this.#arena.free(this.#rotation.piece);
    this.#rotation = undefined;
    const piece = this.#arena.allocate(rows * half * 8, "the table of angles");
    this.#rotation = { key, piece };
    const table = this.#floats(piece.start, rows * half * 2);
    for (let i = 0; i < half; i++) {
      const frequency = theta ** (-i / half);
      for (let t = 0; t < rows; t++) {
        table[t * half + i] = Math.cos(positions[t] * frequency);
        table[(rows + t) * half + i] = Math.sin(positions[t] * frequency);
      }
    }
    return piece.start;
  }

  /** Address of scratch for one operation; the next one may overwrite it. */
  #reserve = (bytes: number): number => {
    if (!this.#scratch || this.#scratch.size < bytes) {
      if (this.#scratch) this.#arena.free(this.#scratch);
      this.#scratch = undefined;
      this.#scratch = this.#arena.allocate(Math.ceil(bytes / 4096) * 4096, "scratch");
    }
    return this.#scratch.start;
  };

  #floats(start: number, length: number): Float32Array {
    return new Float32Array(this.#arena.memory.buffer, start, length);
  }
}

function inside(t: Tensor): WasmTensor {
  if (!(t instanceof WasmTensor)) throw new TypeError("Cannot use a tensor of another backend");
  if (!t.piece.live) throw new TypeError(`Cannot use a [${t.rows}, ${t.cols}] tensor: its memory was freed`);
  return t;
}

function whole(w: Matrix): WasmMatrix {
  if (!(w instanceof WasmMatrix)) throw new TypeError("Cannot use a matrix of another backend");
  if (!w.piece.live) throw new TypeError(`Cannot use a [${w.n}, ${w.k}] matrix: its memory was freed`);
  return w;
}

function sameRows(a: WasmTensor, b: WasmTensor): boolean {
  return a.start === b.start && a.stride === b.stride && a.rows === b.rows && a.cols === b.cols;
}

function notAliased(what: string, out: WasmTensor, x: WasmTensor): void {
  if (out.start === x.start) throw new RangeError(`Broken call, ${what}: out and x are the same memory`);
}
