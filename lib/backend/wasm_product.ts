/**
 * Matrices in WASM memory and products with them: which kernel multiplies what, and what it needs beside the
 * operands. Products and the packing of activations are in `wasm/src/f32.c`, `int8.c` and `int4.c`.
 */

import type { Matrix, Scheme, StoredMatrix } from "./backend.ts";
import type { Crew } from "./crew.ts";
import { GROUP, packedBytes, packPanels, paddedK, PANEL, roundUp } from "./layout.ts";
import type { Piece } from "./pieces.ts";
import type { Arena, WasmTensor } from "./wasm_arena.ts";
import { type Kernels, type Multiplier, probeZero, UNSIGNED } from "./wasm_kernels.ts";
import { MOST_ROWS, PAIR, QUAD, STREAMS, TILE } from "./wasm_parts.ts";

/** Rows multiplied at once: their packed form stays within the second-level cache at the model's widths. */
const BLOCK_ROWS = 320;

/** Rows up to which each goes by itself: a tile takes as long as five or six, however many it holds. */
const FEW_ROWS = 4;
/** Bytes of weights, about, that are still in the second-level cache when the next row reads them. */
const CACHED_BYTES = 2 ** 19;

/** Rows above which operands are copied, as `wasm/src/tiles.h` says, and steps of a struct of them (`wasm/tiles.ts`). */
const [COPIED, STRUCT_STEPS] = [30, 16];
/** Of a struct of rows, at most, and its head. */
const STRUCT_BYTES: Record<Scheme, number> = { f32: 336, "int8-p8-s4": 784, "int4-g32-p8": 784 };

/** K up to which sums of such bytes certainly fit 32 bits: 255 · 120 · K < 2³¹. */
const MOST_BYTES_K = 65_536;

/** What a value costs on one thread in nanoseconds, roughly: to pack, to multiply with, to read for one row. */
const PACK_NS = 0.3;
const MULTIPLY_NS: Record<Scheme, number> = { f32: 0.04, "int8-p8-s4": 0.01, "int4-g32-p8": 0.011 };
const READ_NS: Record<Scheme, number> = { f32: 0.16, "int8-p8-s4": 0.04, "int4-g32-p8": 0.022 };

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
    /** Address of the i32 sums of the columns: of int8 weights, and of int4 weights that may be multiplied as bytes; or 0. */
    readonly sums: number,
    /** The kernel's number: 0 is the dot product with addition, otherwise the steps summed in 16 bits. */
    readonly kernel: number,
    /** Rows of a tile of activations for it. */
    readonly tile: number,
    /** Bytes of a value in such a tile. */
    readonly tileBytes: number,
    /** Zero point of activations beside int4 weights that are multiplied as bytes: 128 where bytes are unsigned. */
    readonly zero = 0,
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

/** A matrix to multiply with, and what to do with the product. */
export interface Step {
  readonly w: WasmMatrix;
  readonly finish: Finish;
}

/** Address of scratch that the next call may overwrite. */
export type Scratch = (bytes: number) => number;

/** Bytes of a matrix [N, K] and what the kernels read beside it. */
export function matrixBytes(scheme: Scheme, n: number, k: number): number {
  const rows = roundUp(n, PANEL);
  return packedBytes(scheme, rows, k) + (scheme === "f32" ? 0 : rows * 8);
}

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
  const piece = arena.allocate(matrixBytes(scheme, n, k), `a matrix [${n}, ${k}] of scheme ${scheme}`);
  if (scheme === "f32") {
    const panels = new Float32Array(arena.memory.buffer, piece.start, rows * k);
    packPanels(panels, stored.data as Float32Array, k, 0, n);
    return new WasmMatrix(scheme, n, k, piece, padded, 0, 0, 0, TILE, 4);
  }
  new Uint8Array(arena.memory.buffer, piece.start, bytes).set(stored.data as Uint8Array);
  const scale = piece.start + bytes;
  const scales = new Float32Array(arena.memory.buffer, scale, rows);
  scales.set(stored.scale!);
  scales.fill(0, n);
  const tileBytes = kernels.tile_bytes();
  const sums = scale + rows * 4;
  if (scheme === "int4-g32-p8") {
    const zero = multiplier === "dot" ? probeZero(kernels) : undefined;
    const asBytes = zero !== undefined && padded <= MOST_BYTES_K &&
      kernels.columns_int4(sums, piece.start, padded, rows / PANEL);
    const [kernel, own] = [multiplier === "dot" ? 0 : 8, asBytes ? sums : 0];
    return new WasmMatrix(scheme, n, k, piece, padded, scale, own, kernel, TILE, tileBytes, zero);
  }
  kernels.columns_int8(sums, piece.start, padded, rows / PANEL);
  const kernel = multiplier === "dot" ? 0 : kernels.bound_int8(piece.start, padded, rows / PANEL);
  const tile = kernels.tile_rows(kernel);
  return new WasmMatrix(scheme, n, k, piece, padded, scale, sums, kernel, tile, tileBytes);
}

/** Rows as they were packed last: good for the next product of the same, as long as nothing else has run. */
export interface Kept {
  readonly packed: Packed;
  readonly x: WasmTensor;
  /** Operations that had run when they were last multiplied. */
  runs: number;
}

/**
 * out = x · Wᵀ for one matrix after the other, each finished in its own way; the shapes are checked.
 *
 * @param kept what the product before this one returned, unless anything was written, or scratch taken, since.
 */
export function multiply(
  crew: Crew,
  scratch: Scratch,
  out: WasmTensor,
  x: WasmTensor,
  steps: readonly Step[],
  kept?: Kept,
): Kept | undefined {
  if (x.rows > 1 && x.rows <= FEW_ROWS) return void multiplyFew(crew, scratch, out, x, steps);
  const most = rowsAtOnce(x.rows, Math.max(...steps.map(({ w }) => formOf(w, x.rows).tile)));
  if (kept?.runs !== crew.runs) kept = undefined;
  for (let row = 0; row < x.rows; row += most) {
    const rows = Math.min(most, x.rows - row);
    const [from, to] = [x.slice(row, rows), out.slice(row, rows)];
    for (const { w, finish } of steps) {
      const { residual } = finish;
      const added = residual ? residual.start + row * residual.stride * 4 : 0;
      const form = formOf(w, rows);
      // Activations are packed once for matrices that read them the same way.
      if (!kept || !serves(kept, from, form)) {
        kept = { packed: pack(crew, scratch, from, form), x: from, runs: 0 };
      }
      product(crew, kept.packed, to, columnsOf(w, 0, w.n, 0), finish, added);
    }
  }
  if (!kept || out.piece === x.piece) return;
  kept.runs = crew.runs;
  return kept;
}

function serves({ packed, x }: Kept, { start, stride, rows, cols }: WasmTensor, form: Form): boolean {
  return packed.kind === form.kind && packed.tile === form.tile &&
    x.start === start && x.stride === stride && x.rows === rows && x.cols === cols;
}

/** The same, some columns at a time, row after row: only the first reads their weights from memory. */
function multiplyFew(
  crew: Crew,
  scratch: Scratch,
  out: WasmTensor,
  x: WasmTensor,
  steps: readonly Step[],
): void {
  const rows = [...Array(x.rows).keys()];
  let packed: readonly Packed[] = [];
  for (const { w, finish } of steps) {
    const form = formOf(w, 1);
    if (packed[0]?.kind !== form.kind) {
      const { values, zeros, scales } = packedSizes(form, 1, crew.threads);
      const each = values + zeros + scales;
      const base = each && scratch(each * x.rows);
      packed = rows.map((r) => pack(crew, () => base + r * each, x.slice(r, 1), form));
    }
    const panel = packedBytes(w.scheme, PANEL, w.k);
    const most = roundUp(Math.max(1, Math.floor(CACHED_BYTES / panel)) * PANEL, STREAMS);
    const { bias, residual } = finish;
    for (let col = 0; col < w.n; col += most) {
      const columns = columnsOf(w, col, Math.min(most, w.n - col), panel);
      for (const r of rows) {
        const to = out.slice(r, 1, col, columns.n);
        const added = residual ? residual.start + (r * residual.stride + col) * 4 : 0;
        product(crew, packed[r], to, columns, { ...finish, bias: bias && bias + col * 4 }, added);
      }
    }
  }
}

/** Whole panels of a matrix, of so many bytes each. */
function columnsOf(w: WasmMatrix, col: number, n: number, panelBytes: number): Columns {
  const { scheme, padded, kernel, zero, piece, scale, sums } = w;
  const start = piece.start + col / PANEL * panelBytes;
  return { scheme, padded, kernel, zero, n, start, scale: scale + col * 4, sums: sums + col * 4 };
}

/** How rows of activations lie for a kernel. */
interface Form {
  /** The scheme of the weights, or int4 that is multiplied as bytes. */
  readonly kind: Scheme | "int4-bytes";
  /** Rows of a tile; 1 for a row alone. */
  readonly tile: number;
  /** Bytes of a value. */
  readonly bytes: number;
  /** K. */
  readonly padded: number;
  /** Zero point beside weights that are multiplied as bytes. */
  readonly zero: number;
}

function formOf({ scheme, tile, tileBytes, padded, sums, zero }: WasmMatrix, rows: number): Form {
  if (rows === 1) return { kind: scheme, tile: 1, bytes: scheme === "f32" ? 4 : 1, padded, zero };
  // Bytes are made more slowly than nibbles are unpacked, and pay where their tiles are fewer.
  if (scheme === "int4-g32-p8" && sums && Math.ceil(rows / MOST_ROWS) < Math.ceil(rows / tile)) {
    return { kind: "int4-bytes", tile: MOST_ROWS, bytes: 1, padded, zero };
  }
  return { kind: scheme, tile, bytes: tileBytes, padded, zero };
}

/** Bytes of scratch that a product with `rows` rows of K values takes at most; in the plain build about twice as many. */
export function productScratch(scheme: Scheme, rows: number, k: number, threads: number): number {
  const padded = paddedK(scheme, k);
  const most = (kind: Form["kind"], tile: number) => {
    const form = { kind, tile: rows > 1 ? tile : 1, bytes: scheme === "f32" ? 4 : 1, padded, zero: 0 };
    return total(packedSizes(form, Math.min(rows, rowsAtOnce(rows, tile)), threads));
  };
  switch (scheme) {
    case "f32":
      return most(scheme, TILE);
    case "int8-p8-s4":
      return most(scheme, MOST_ROWS);
    case "int4-g32-p8":
      return Math.max(most(scheme, TILE), rows > 1 ? most("int4-bytes", MOST_ROWS) : 0);
  }
}

/** Bytes that such a product copies at most, one set a thread; in the plain build about twice as many. */
export function copiesBytes(scheme: Scheme, rows: number, k: number): number {
  if (rows <= COPIED) return 0;
  const structs = Math.ceil(k / (scheme === "f32" ? 1 : 4) / STRUCT_STEPS);
  return (Math.ceil(rowsAtOnce(rows, TILE) / TILE) + QUAD / PANEL) * structs * STRUCT_BYTES[scheme];
}

/** Rows in one block, whole tiles, the blocks being about equal. */
function rowsAtOnce(rows: number, tile: number): number {
  return roundUp(Math.ceil(rows / Math.ceil(rows / BLOCK_ROWS)), tile);
}

/** Bytes of activations as a kernel reads them, in this order; a single f32 row is read where it lies. */
function packedSizes({ kind, tile, bytes, padded }: Form, rows: number, threads: number) {
  const tiled = roundUp(rows, tile);
  const values = tiled * padded * bytes;
  if (kind === "f32") return { values: tile > 1 ? values : 0, zeros: 0, scales: 0, rooms: 0 };
  const unpacks = tile > 1 && (kind !== "int8-p8-s4" || bytes > 1);
  const zeros = kind === "int4-g32-p8" ? tiled * (padded / GROUP) * 4 + 4 : tiled * 4;
  return {
    values: roundUp(values, 16),
    zeros: roundUp(zeros, 16),
    scales: roundUp(tiled * 4, 16),
    rooms: unpacks ? threads * padded * (kind === "int4-g32-p8" ? PAIR : QUAD) * bytes : 0,
  };
}

function total({ values, zeros, scales, rooms }: ReturnType<typeof packedSizes>): number {
  return values + zeros + scales + rooms;
}

/** Activations as a kernel reads them; addresses. */
interface Packed extends Pick<Form, "kind" | "tile"> {
  readonly rows: number;
  readonly values: number;
  readonly scales: number;
  /** Zero points; of int4, presets. */
  readonly zeros: number;
  /** Room for unpacked panels, one after the other of each thread, where weights are not multiplied as they lie. */
  readonly room: number;
  /** No other packing has it: a thread that has copied these values need not do it again. */
  readonly key: number;
}

function pack(crew: Crew, scratch: Scratch, x: WasmTensor, form: Form): Packed {
  const { kind, padded, tile, zero } = form;
  const { rows, stride } = x;
  const tiles = Math.ceil(rows / tile);
  const cost = tiles * tile * padded * PACK_NS;
  const sizes = packedSizes(form, rows, crew.threads);
  if (kind === "f32") {
    const values = tile > 1 ? scratch(sizes.values) : x.start;
    if (tile > 1) crew.run("pack_f32", [values, x.start, stride, rows, padded], tiles, cost);
    return { kind, tile, rows, values, scales: 0, zeros: 0, room: 0, key: crew.runs };
  }
  const values = scratch(total(sizes));
  const zeros = values + sizes.values;
  const scales = zeros + sizes.zeros;
  const room = scales + sizes.scales;
  const from = [values, zeros, scales, x.start, stride, rows, x.cols, padded];
  if (kind === "int4-bytes") crew.run("quantize8_tall", [...from, zero], tiles, cost);
  else crew.run(kind === "int8-p8-s4" ? "quantize7" : "quantize8", [...from, tile], tiles, cost);
  return { kind, tile, rows, values, scales, zeros, room, key: crew.runs };
}

/** What a product reads of a matrix; addresses. */
interface Columns extends Pick<WasmMatrix, "scheme" | "n" | "padded" | "scale" | "sums" | "kernel" | "zero"> {
  readonly start: number;
}

function product(
  crew: Crew,
  { kind, rows, values, scales, zeros, room, key }: Packed,
  out: WasmTensor,
  w: Columns,
  { bias, residual, mode }: Finish,
  added: number,
): void {
  const { scheme, n, padded, scale, sums, kernel, zero, start } = w;
  const units = Math.ceil(n / (rows > 1 ? PAIR : STREAMS));
  const finish = rows > 1
    ? [out.start, out.stride, bias, added, residual?.stride ?? 0, mode]
    : [out.start, bias, added, mode];
  // A row alone waits for its weights, which come as bytes.
  const cost = rows > 1 ? rows * n * padded * MULTIPLY_NS[scheme] : n * padded * READ_NS[scheme];
  switch (kind) {
    case "f32":
      if (rows > 1) crew.run("gemm_f32", [values, start, key, rows, padded, n, ...finish], units, cost);
      else crew.run("gemv_f32", [values, start, padded, n, ...finish], units, cost);
      break;
    case "int8-p8-s4": {
      const operands = [values, zeros, scales, start, scale, sums];
      if (rows > 1) {
        crew.run("gemm_int8", [...operands, room, key, rows, padded, n, ...finish, kernel], units, cost);
      } else crew.run("gemv_int8", [...operands, padded, n, ...finish, kernel], units, cost);
      break;
    }
    case "int4-g32-p8": {
      const operands = [values, zeros, scales, start, scale];
      if (rows > 1) {
        crew.run("gemm_int4", [...operands, room, key, rows, padded, n, ...finish, kernel], units, cost);
      } else {
        const alone = zero === 128 ? UNSIGNED : kernel;
        crew.run("gemv_int4", [...operands, padded, n, ...finish, alone], units, cost);
      }
      break;
    }
    case "int4-bytes": {
      const operands = [values, zeros, scales, start, scale, sums, room, key, rows, padded, n];
      crew.run("gemm_int4_bytes", [...operands, ...finish], units, cost);
    }
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
