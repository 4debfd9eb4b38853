/**
 * Matrices in WASM memory and products with them: which kernel multiplies what, and what it needs beside the
 * operands. Products and the packing of activations are in `wasm/src/f32.c`, `int8.c` and `int4.c`.
 */

import type { Matrix, Scheme, StoredMatrix } from "./backend.ts";
import type { Crew } from "./crew.ts";
import { GROUP, packedBytes, packPanels, paddedK, PANEL, roundUp } from "./layout.ts";
import type { Piece } from "./pieces.ts";
import type { Arena, WasmTensor } from "./wasm_arena.ts";
import { bytesZero, type Kernels, TWIN, UNSIGNED, type Ways } from "./wasm_kernels.ts";
import {
  MOST_ROWS,
  NARROW,
  PAIR,
  pairBytes,
  panelBytes,
  QUAD,
  rowBytes,
  STREAMS,
  TALL_TILE,
  TILE,
} from "./wasm_parts.ts";

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

/**
 * Tickets for each thread of a product of one row. Each begins its streams of weights anew: of 3, 4, 6 and 8 for two threads,
 * 4 gave tokens 1.05, 1.04 and 1.07 times as fast as the others (Gemma-2B, EPYC of family 26, model 2). Logits, which take
 * twenty times as long as the others, have more, one for so many nanoseconds: threads end together.
 */
const [ROW_TICKETS, MOST_ROW_TICKETS, ROW_TICKET_NS] = [4, 16, 500_000];

/** K of floats that twins multiply is a multiple of this. */
const FLOATS_K = 4;

/** Steps that are shared out together at most: a crew is told no more than so many arguments. */
const MOST_STEPS = 3;

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
    /** Bytes of the scales of an int4 group: fewer than in a file, where they all fit. */
    readonly head = 0,
    /** Whether rows that are more than one tile are multiplied as twins. */
    readonly twin = false,
  ) {}

  /** Number of the kernel for so many rows. */
  kernelFor(rows: number): number {
    return this.twin && rows > TILE ? this.kernel | TWIN : this.kernel;
  }

  /** Bytes of a panel as it lies in memory. */
  get panelBytes(): number {
    const { scheme, k, padded, head } = this;
    return scheme === "int4-g32-p8" ? panelBytes(padded, head) : packedBytes(scheme, PANEL, k);
  }
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
  readonly out: WasmTensor;
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
  ways: Ways,
): WasmMatrix {
  const { multiplier, twins } = ways;
  const { scheme, n, k } = stored;
  const rows = roundUp(n, PANEL);
  const padded = paddedK(scheme, k);
  const bytes = packedBytes(scheme, rows, k);
  const piece = arena.allocate(matrixBytes(scheme, n, k), `a matrix [${n}, ${k}] of scheme ${scheme}`);
  if (scheme === "f32") {
    const panels = new Float32Array(arena.memory.buffer, piece.start, rows * k);
    packPanels(panels, stored.data as Float32Array, k, 0, n);
    return new WasmMatrix(
      scheme,
      n,
      k,
      piece,
      padded,
      0,
      0,
      0,
      TILE,
      4,
      0,
      0,
      twins && k % FLOATS_K === 0,
    );
  }
  new Uint8Array(arena.memory.buffer, piece.start, bytes).set(stored.data as Uint8Array);
  const scale = piece.start + bytes;
  const scales = new Float32Array(arena.memory.buffer, scale, rows);
  scales.set(stored.scale!);
  scales.fill(0, n);
  const tileBytes = kernels.tile_bytes();
  const sums = scale + rows * 4;
  if (scheme === "int4-g32-p8") {
    const zero = bytesZero(kernels, ways);
    const head = kernels.narrow_int4(piece.start, rows / PANEL * (padded / GROUP));
    const asBytes = zero !== undefined && padded <= MOST_BYTES_K && head === NARROW &&
      kernels.columns_int4(sums, piece.start, padded, rows / PANEL);
    const [kernel, own] = [multiplier === "words" ? 8 : 0, asBytes ? sums : 0];
    return new WasmMatrix(
      scheme,
      n,
      k,
      piece,
      padded,
      scale,
      own,
      kernel,
      TILE,
      tileBytes,
      zero,
      head,
      twins && (tileBytes === 1 || own > 0),
    );
  }
  kernels.columns_int8(sums, piece.start, padded, rows / PANEL);
  const kernel = multiplier === "words" ? kernels.bound_int8(piece.start, padded, rows / PANEL) : 0;
  const tile = kernels.tile_rows(kernel);
  return new WasmMatrix(scheme, n, k, piece, padded, scale, sums, kernel, tile, tileBytes, 0, 0, twins);
}

/**
 * out = x · Wᵀ for each step, finished in its own way; the shapes are checked. Steps go together, some columns of one, then
 * the same of the next: a step may use what the one before it left in the columns it computes, and no more than that.
 */
export function multiply(crew: Crew, scratch: Scratch, x: WasmTensor, steps: readonly Step[]): void {
  if (x.rows > 1 && x.rows <= FEW_ROWS) return multiplyFew(crew, scratch, x, steps);
  const most = rowsAtOnce(x.rows, Math.max(...steps.map(({ w }) => formOf(w, x.rows).tile)));
  for (let row = 0; row < x.rows; row += most) {
    const rows = Math.min(most, x.rows - row);
    for (const [form, alike] of byForm(steps, rows)) {
      const packed = pack(crew, scratch, x.slice(row, rows), form);
      product(crew, packed, alike.map((it) => columnsOf(it, row, rows, 0, it.w.n)));
    }
  }
}

/** Steps that follow one another and whose kernels read rows in the same form. */
function byForm(steps: readonly Step[], rows: number): [Form, Step[]][] {
  const found: [Form, Step[]][] = [];
  for (const step of steps) {
    const form = formOf(step.w, rows);
    const last = found.at(-1);
    const same = last?.[0].kind === form.kind && last[0].tile === form.tile;
    if (same && last[1].length < MOST_STEPS) last[1].push(step);
    else found.push([form, [step]]);
  }
  return found;
}

/** The same, some columns at a time, row after row: only the first reads their weights from memory. */
function multiplyFew(crew: Crew, scratch: Scratch, x: WasmTensor, steps: readonly Step[]): void {
  const rows = [...Array(x.rows).keys()];
  for (const [form, alike] of byForm(steps, 1)) {
    const { values, zeros, scales } = packedSizes(form, 1, crew.threads);
    const each = values + zeros + scales;
    const base = each && scratch(each * x.rows);
    const packed = rows.map((r) => pack(crew, () => base + r * each, x.slice(r, 1), form));
    const bytes = alike.reduce((sum, { w }) => sum + w.panelBytes, 0);
    const most = roundUp(Math.max(1, Math.floor(CACHED_BYTES / bytes)) * PANEL, STREAMS);
    for (let col = 0; alike.some(({ w }) => col < w.n); col += most) {
      const here = alike.filter(({ w }) => col < w.n);
      for (const r of rows) {
        product(crew, packed[r], here.map((it) => columnsOf(it, r, 1, col, Math.min(most, it.w.n - col))));
      }
    }
  }
}

/** What a product reads of a matrix, and how it ends: some columns, from the first of a panel on; addresses. */
interface Columns
  extends Pick<WasmMatrix, "scheme" | "n" | "padded" | "scale" | "sums" | "kernel" | "zero" | "head"> {
  readonly start: number;
  readonly out: WasmTensor;
  readonly bias: number;
  readonly residual: number;
  readonly residualStride: number;
  readonly mode: number;
}

/** Columns [col, col + n) of a step, and rows [row, row + rows) of what it writes. */
function columnsOf({ w, out, finish }: Step, row: number, rows: number, col: number, n: number): Columns {
  const { scheme, padded, zero, head, piece, scale, sums } = w;
  const { bias, residual, mode } = finish;
  const at = col * 4;
  return {
    ...{ scheme, n, padded, kernel: w.kernelFor(rows), zero, head, mode },
    start: piece.start + col / PANEL * w.panelBytes,
    scale: scale + at,
    sums: sums && sums + at,
    out: out.slice(row, rows, col, n),
    bias: bias && bias + at,
    residual: residual ? residual.start + (row * residual.stride + col) * 4 : 0,
    residualStride: residual?.stride ?? 0,
  };
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

function formOf({ scheme, tile, tileBytes, padded, sums, zero, twin }: WasmMatrix, rows: number): Form {
  if (rows === 1) return { kind: scheme, tile: 1, bytes: scheme === "f32" ? 4 : 1, padded, zero };
  const many = twin && rows > TILE;
  const tall = many ? MOST_ROWS : TALL_TILE;
  // Bytes are made more slowly than nibbles are unpacked, and pay where their tiles are fewer.
  if (scheme === "int4-g32-p8" && sums && Math.ceil(rows / tall) < Math.ceil(rows / tile)) {
    return { kind: "int4-bytes", tile: tall, bytes: tileBytes, padded, zero };
  }
  return { kind: scheme, tile: many ? tall : tile, bytes: tileBytes, padded, zero };
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
      return Math.max(most(scheme, TILE), most(scheme, MOST_ROWS));
    case "int8-p8-s4":
      return most(scheme, MOST_ROWS);
    case "int4-g32-p8":
      return Math.max(
        ...[TILE, MOST_ROWS].map((it) => most(scheme, it)),
        rows > 1 ? most("int4-bytes", MOST_ROWS) : 0,
      );
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
  const values = tiled * (kind === "int4-g32-p8" ? rowBytes(padded, tile, bytes) : padded * bytes);
  if (kind === "f32") return { values: tile > 1 ? values : 0, zeros: 0, scales: 0, rooms: 0 };
  const unpacks = tile > 1 && (kind !== "int8-p8-s4" || bytes > 1);
  const zeros = kind === "int4-g32-p8" ? tiled * (padded / GROUP) * 4 + 4 : tiled * 4;
  return {
    values: roundUp(values, 16),
    zeros: roundUp(zeros, 16),
    scales: roundUp(tiled * 4, 16),
    rooms: unpacks
      ? threads * (kind === "int4-g32-p8" ? pairBytes(padded, bytes) : QUAD * padded * bytes)
      : 0,
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
    if (tile > 1) crew.run("pack_f32", [values, x.start, stride, rows, padded, tile], tiles, cost);
    return { kind, tile, rows, values, scales: 0, zeros: 0, room: 0, key: crew.runs };
  }
  const values = scratch(total(sizes));
  const zeros = values + sizes.values;
  const scales = zeros + sizes.zeros;
  const room = scales + sizes.scales;
  const from = [values, zeros, scales, x.start, stride, rows, x.cols, padded];
  if (kind === "int4-bytes") crew.run("quantize8_tall", [...from, zero, tile], tiles, cost);
  else crew.run(kind === "int8-p8-s4" ? "quantize7" : "quantize8", [...from, tile], tiles, cost);
  return { kind, tile, rows, values, scales, zeros, room, key: crew.runs };
}

/** The products of the same rows with some columns of each of several matrices, of one kind. */
function product(crew: Crew, packed: Packed, of: readonly Columns[]): void {
  const { kind, rows } = packed;
  const alone = rows === 1;
  const part = alone ? GEMV[kind as Scheme] : GEMM[kind];
  const units = Math.max(...of.map(({ n }) => Math.ceil(n / (alone ? STREAMS : PAIR))));
  // A row alone waits for its weights, which come as bytes.
  const each = ({ scheme, n, padded }: Columns) =>
    n * padded * (alone ? READ_NS[scheme] : rows * MULTIPLY_NS[scheme]);
  const cost = of.reduce((sum, it) => sum + each(it), 0);
  const args = [of.length, ...of.flatMap((it) => [it.n, ...operands(packed, it)])];
  crew.run(part, args, units, cost, alone ? rowTickets(cost / crew.threads) : undefined);
}

function rowTickets(cost: number): number {
  return Math.max(ROW_TICKETS, Math.min(MOST_ROW_TICKETS, Math.floor(cost / ROW_TICKET_NS)));
}

/** Parts that multiply rows, and a row alone. */
const GEMM = {
  "f32": "gemm_f32",
  "int8-p8-s4": "gemm_int8",
  "int4-g32-p8": "gemm_int4",
  "int4-bytes": "gemm_int4_bytes",
} as const;
const GEMV = { "f32": "gemv_f32", "int8-p8-s4": "gemv_int8", "int4-g32-p8": "gemv_int4" } as const;

/** What such a part is called with for one matrix, after the number of its columns. */
function operands({ kind, rows, values, scales, zeros, room, key }: Packed, w: Columns): number[] {
  const { padded, start, scale, sums, zero, head, out, bias, residual, residualStride, mode } = w;
  const alone = rows === 1;
  const end = alone
    ? [out.start, bias, residual, mode]
    : [out.start, out.stride, bias, residual, residualStride, mode];
  const shape = alone ? [padded] : [room, key, rows, padded];
  const kernel = alone && zero === 128 ? UNSIGNED : w.kernel;
  switch (kind) {
    case "f32":
      return alone ? [values, start, padded, ...end] : [values, start, key, rows, padded, ...end, w.kernel];
    case "int8-p8-s4":
      return [values, zeros, scales, start, scale, sums, ...shape, ...end, kernel];
    case "int4-g32-p8":
      return [values, zeros, scales, start, scale, ...shape, head, ...end, kernel];
    case "int4-bytes":
      return [values, zeros, scales, start, scale, sums, ...shape, ...end, kernel];
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
  const { scheme, k, padded, scale, head, piece } = table;
  if (scheme === "f32") kernels.embed_f32(start, stride, ids, count, piece.start, k, factor);
  else {
    const args = [start, stride, ids, count, piece.start, scale, k, padded, factor];
    if (scheme === "int8-p8-s4") kernels.embed_int8(...args);
    else kernels.embed_int4(...args, head);
  }
}
