/**
 * Matrices in WASM memory and products with them: which kernel multiplies what, and what it needs beside the
 * operands. Products and the packing of activations are in `wasm/src/f32.c`, `int8.c` and `int4.c`.
 */

import type { Matrix, Scheme, StoredMatrix } from "./backend.ts";
import { GROUP, packedBytes, paddedK, PANEL, roundUp } from "./layout.ts";
import type { Arena, Piece, WasmTensor } from "./wasm_arena.ts";
import type { Kernels, Multiplier } from "./wasm_kernels.ts";

/** Rows multiplied at once: their packed form stays within the second-level cache at the model's widths. */
const BLOCK_ROWS = 320;
/** Rows of a tile. */
const TILE = 4;

/** A matrix and what the kernels read beside it; all in one piece. */
export class WasmMatrix implements Matrix {
  constructor(
    readonly scheme: Scheme,
    readonly n: number,
    readonly k: number,
    readonly piece: Piece,
    /** K as it lies in memory. */
    readonly padded: number,
    /** Address of the scales per column; quantised only. */
    readonly scale: number,
    /** Address of the i32 sums of the columns; int8 only. */
    readonly sums: number,
    /** The kernel's number: 0 is the dot product with addition, otherwise the steps summed in 16 bits. */
    readonly kernel: number,
  ) {}
}

/** What a product does with its result. */
export interface Finish {
  /** Address, or 0. */
  readonly bias: number;
  readonly residual: WasmTensor | undefined;
  /** One of `FINISH`. */
  readonly mode: number;
}

/** Address of scratch that the next call may overwrite. */
export type Scratch = (bytes: number) => number;

/** Takes a checked matrix into the arena. */
export function takeMatrix(
  arena: Arena,
  kernels: Kernels,
  stored: StoredMatrix,
  multiplier: Multiplier,
): WasmMatrix {
  const { scheme, n, k } = stored;
  const rows = roundUp(n, PANEL);
  const padded = paddedK(scheme, k);
  const bytes = packedBytes(scheme, rows, k);
  const beside = scheme === "f32" ? 0 : rows * (scheme === "int8-p8-s4" ? 8 : 4);
  const piece = arena.allocate(bytes + beside, `a matrix [${n}, ${k}] of scheme ${scheme}`);
  if (scheme === "f32") {
    packPanels(stored, new Float32Array(arena.memory.buffer, piece.start, rows * k));
    return new WasmMatrix(scheme, n, k, piece, padded, 0, 0, 0);
  }
  new Uint8Array(arena.memory.buffer, piece.start, bytes).set(stored.data as Uint8Array);
  const scale = piece.start + bytes;
  const scales = new Float32Array(arena.memory.buffer, scale, rows);
  scales.set(stored.scale!);
  scales.fill(0, n);
  if (scheme === "int4-g32-p8") {
    return new WasmMatrix(scheme, n, k, piece, padded, scale, 0, multiplier === "dot" ? 0 : 8);
  }
  const sums = scale + rows * 4;
  kernels.columns_int8(sums, piece.start, padded, rows / PANEL);
  const kernel = multiplier === "dot" ? 0 : kernels.bound_int8(piece.start, padded, rows / PANEL);
  return new WasmMatrix(scheme, n, k, piece, padded, scale, sums, kernel);
}

/** f32 [N, K] to [N/8][K][8], zeros for the columns that are not there. */
function packPanels({ n, k, data }: StoredMatrix, panels: Float32Array): void {
  for (let row = 0; row < panels.length / k; row++) {
    let to = (row - row % PANEL) * k + row % PANEL;
    const from = row * k;
    for (let i = 0; i < k; i++, to += PANEL) panels[to] = row < n ? data[from + i] : 0;
  }
}

/** out = x · Wᵀ for one matrix after the other, each finished in its own way; the shapes are checked. */
export function multiply(
  kernels: Kernels,
  scratch: Scratch,
  out: WasmTensor,
  x: WasmTensor,
  steps: readonly { readonly w: WasmMatrix; readonly finish: Finish }[],
): void {
  const blocks = Math.ceil(x.rows / BLOCK_ROWS);
  const most = roundUp(Math.ceil(x.rows / blocks), TILE);
  for (let row = 0; row < x.rows; row += most) {
    const rows = Math.min(most, x.rows - row);
    const [from, to] = [x.slice(row, rows), out.slice(row, rows)];
    let packed: Packed | undefined;
    for (const { w, finish } of steps) {
      const { residual } = finish;
      const added = residual ? residual.start + row * residual.stride * 4 : 0;
      // Activations are packed once for matrices that read them the same way.
      if (packed?.scheme !== w.scheme) packed = pack(kernels, scratch, from, w);
      product(kernels, packed, to, w, finish, added);
    }
  }
}

/** Activations as a kernel reads them; addresses. */
interface Packed {
  readonly scheme: Scheme;
  readonly rows: number;
  readonly values: number;
  readonly scales: number;
  /** int8: zero points, int4: presets. */
  readonly zeros: number;
  /** int4: room for one unpacked panel. */
  readonly panel: number;
}

function pack(kernels: Kernels, scratch: Scratch, x: WasmTensor, w: WasmMatrix): Packed {
  const { scheme, padded } = w;
  const { rows, stride } = x;
  const tiled = rows > 1 ? roundUp(rows, TILE) : 1;
  if (scheme === "f32") {
    const values = rows > 1 ? scratch(tiled * padded * 4) : x.start;
    if (rows > 1) kernels.pack_f32(values, x.start, stride, rows, padded);
    return { scheme, rows, values, scales: 0, zeros: 0, panel: 0 };
  }
  // A row alone lies straight; in a tile, four bytes of each row in turn.
  const step = rows > 1 ? 16 : 4;
  const size = roundUp(tiled * padded, 16);
  const zerosSize = scheme === "int8-p8-s4" ? tiled * 4 : tiled * (padded / GROUP) * 4 + 4;
  const values = scratch(size + roundUp(zerosSize, 16) + roundUp(tiled * 4, 16) + padded * PANEL);
  const zeros = values + size;
  const scales = zeros + roundUp(zerosSize, 16);
  const panel = scales + roundUp(tiled * 4, 16);
  for (let row = 0; row < rows; row++) {
    const [tile, lane] = [row - row % TILE, row % TILE];
    const from = x.start + row * stride * 4;
    const to = values + tile * padded + lane * 4;
    if (scheme === "int8-p8-s4") {
      kernels.quantize7(to, step, from, x.cols, padded, zeros + row * 4, scales + row * 4);
    } else {
      const presets = zeros + tile * (padded / GROUP) * 4 + lane * 4;
      kernels.quantize8(to, presets, step, from, x.cols, padded, scales + row * 4);
    }
  }
  return { scheme, rows, values, scales, zeros, panel };
}

function product(
  kernels: Kernels,
  { rows, values, scales, zeros, panel }: Packed,
  out: WasmTensor,
  w: WasmMatrix,
  { bias, residual, mode }: Finish,
  added: number,
): void {
  const { n, padded, scale, sums, kernel, piece: { start } } = w;
  const finish = rows > 1
    ? [out.start, out.stride, bias, added, residual?.stride ?? 0, mode]
    : [out.start, bias, added, mode];
  switch (w.scheme) {
    case "f32":
      if (rows > 1) kernels.gemm_f32(values, start, rows, padded, n, ...finish);
      else kernels.gemv_f32(values, start, padded, n, ...finish);
      break;
    case "int8-p8-s4":
      if (rows > 1) {
        kernels.gemm_int8(values, zeros, scales, start, scale, sums, rows, padded, n, ...finish, kernel);
      } else kernels.gemv_int8(values, zeros, scales, start, scale, sums, padded, n, ...finish, kernel);
      break;
    case "int4-g32-p8":
      if (rows > 1) {
        kernels.gemm_int4(values, zeros, scales, start, scale, panel, rows, padded, n, ...finish, kernel);
      } else kernels.gemv_int4(values, zeros, scales, start, scale, padded, n, ...finish);
  }
}

/** out: rows of the table times `factor`, for `count` ids at address `ids`. */
export function embedRows(
  kernels: Kernels,
  { start, stride }: WasmTensor,
  ids: number,
  count: number,
  table: WasmMatrix,
  factor: number,
): void {
  const { scheme, k, padded, scale, piece } = table;
  if (scheme === "f32") kernels.embed_f32(start, stride, ids, count, piece.start, k, factor);
  else {
    const embed = scheme === "int8-p8-s4" ? kernels.embed_int8 : kernels.embed_int4;
    embed(start, stride, ids, count, piece.start, scale, k, padded, factor);
  }
}
