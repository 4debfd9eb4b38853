/**
 * The shapes every operation asks for, checked the same way by every backend. What does not fit is a `RangeError`
 * with the numbers in it.
 */

import type {
  AttentionOptions,
  EachAttentionOptions,
  FullAttentionOptions,
  LinearOptions,
  Matrix,
  Tensor,
} from "./backend.ts";

/** Fails unless `found` is `expected`. */
export function same(what: string, found: number, expected: number): void {
  if (found !== expected) throw new RangeError(`Broken shape, ${what}: expected ${expected}, found ${found}`);
}

export function checkTensor(rows: number, cols: number): void {
  if (!Number.isSafeInteger(rows) || !Number.isSafeInteger(cols) || rows < 0 || cols < 0) {
    throw new RangeError(`Cannot make a tensor of [${rows}, ${cols}]: expected whole numbers from 0`);
  }
}

export function checkSlice(t: Tensor, row: number, rows: number, col: number, cols: number): void {
  const whole = [row, rows, col, cols].every((it) => Number.isSafeInteger(it) && it >= 0);
  if (!whole || row + rows > t.rows || col + cols > t.cols) {
    throw new RangeError(
      `Cannot slice rows ${row}+${rows}, columns ${col}+${cols} of a [${t.rows}, ${t.cols}] tensor`,
    );
  }
}

export function checkLinear(out: Tensor, x: Tensor, w: Matrix, { bias, residual }: LinearOptions): void {
  same("linear input width", x.cols, w.k);
  same("linear output width", out.cols, w.n);
  same("linear rows", out.rows, x.rows);
  if (bias) checkRow("linear bias", bias, w.n);
  if (residual) {
    same("linear residual rows", residual.rows, out.rows);
    same("linear residual columns", residual.cols, out.cols);
  }
}

export function checkGated(out: Tensor, x: Tensor, gate: Matrix, up: Matrix): void {
  same("gated input width", x.cols, gate.k);
  same("gated output width", out.cols, gate.n);
  same("gated rows", out.rows, x.rows);
  same("gated up columns", up.n, gate.n);
  same("gated up input width", up.k, gate.k);
}

/** A norm; `bias` only where the norm has one. */
export function checkNorm(name: string, out: Tensor, x: Tensor, weight: Tensor, bias?: Tensor): void {
  same(`${name} rows`, out.rows, x.rows);
  same(`${name} columns`, out.cols, x.cols);
  checkRow(`${name} weight`, weight, x.cols);
  if (bias) checkRow(`${name} bias`, bias, x.cols);
}

export function checkAdd(out: Tensor, x: Tensor): void {
  same("add rows", x.rows, out.rows);
  same("add columns", x.cols, out.cols);
}

export function checkPlace(outs: readonly Tensor[], x: Tensor): void {
  same("place rows", outs.length, x.rows);
  for (const it of outs) checkRow("place", it, x.cols);
}

/** Positions of the rows of x, one by one. */
export function checkRope(
  x: Tensor,
  headDim: number,
  position: number | readonly number[],
): readonly number[] {
  if (!(headDim > 0) || headDim % 2 || x.cols % headDim) {
    throw new RangeError(`Cannot rotate heads of ${headDim} in a row of ${x.cols}`);
  }
  if (typeof position === "number") return Array.from({ length: x.rows }, (_, t) => position + t);
  same("rope positions", position.length, x.rows);
  return position;
}

export function checkAttention(
  out: Tensor,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions,
): void {
  const { heads, kvHeads, headDim, start, window } = options;
  if (!(kvHeads > 0) || heads % kvHeads) {
    throw new RangeError(`Cannot attend: ${kvHeads} key-value heads do not divide ${heads} heads`);
  }
  same("attention query width", q.cols, heads * headDim);
  same("attention output width", out.cols, heads * headDim);
  same("attention output rows", out.rows, q.rows);
  same("attention key width", k.cols, kvHeads * headDim);
  same("attention value width", v.cols, kvHeads * headDim);
  same("attention value rows", v.rows, k.rows);
  if (!(start >= 0) || start + q.rows > k.rows) {
    throw new RangeError(
      `Cannot attend: queries run from ${start} to ${start + q.rows}, keys end at ${k.rows}`,
    );
  }
  if (window !== undefined && !(window >= 1)) {
    throw new RangeError(`Cannot attend: expected a window of at least 1, found ${window}`);
  }
}

/** Gives the options for each row alone. */
export function checkEachAttention(
  out: Tensor,
  q: Tensor,
  keys: readonly Tensor[],
  values: readonly Tensor[],
  options: EachAttentionOptions,
): readonly AttentionOptions[] {
  same("attention sequences", keys.length, q.rows);
  same("attention sequences of values", values.length, q.rows);
  same("attention output rows", out.rows, q.rows);
  return keys.map((k, t) => {
    const all = { ...options, start: k.rows - 1, prefix: 0 };
    const row = { rows: 1, cols: q.cols };
    checkAttention({ rows: 1, cols: out.cols }, row, k, values[t], all);
    return all;
  });
}

/** Whether `attentionInt8` takes heads of so many columns. */
export function fitsInt8(headDim: number): boolean {
  return headDim % 4 === 0 && headDim <= 512;
}

export function checkFullAttention(
  out: Tensor,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  { heads, headDim, scale }: FullAttentionOptions,
): void {
  same("attention query rows", q.rows, k.rows);
  if (!fitsInt8(headDim)) {
    throw new RangeError(
      `Cannot attend: expected a multiple of 4 columns a head, at most 512, found ${headDim}`,
    );
  }
  checkAttention(out, q, k, v, { heads, kvHeads: heads, headDim, scale, start: 0, prefix: k.rows });
}

export function checkEmbed(out: Tensor, ids: readonly (number | Tensor)[], table: Matrix): void {
  same("embed rows", out.rows, ids.length);
  same("embed width", out.cols, table.k);
  for (const id of ids) {
    if (typeof id !== "number") same("embed id", id.rows * id.cols, 1);
    else if (!(id >= 0 && id < table.n)) {
      throw new RangeError(`Cannot embed id ${id}: the table has ${table.n} rows`);
    }
  }
}

/** Ids up to here are exact in f32. */
const MOST_IDS = 2 ** 24;

export function checkSample(
  out: Tensor,
  logits: Tensor,
  rows: readonly unknown[],
  limit: number,
  never: readonly number[],
): void {
  same("sample rows", rows.length, logits.rows);
  same("sample output rows", out.rows, logits.rows);
  same("sample output width", out.cols, 2);
  const most = Math.min(logits.cols, MOST_IDS);
  if (!(limit >= 1 && limit <= most) || never.length > 4) {
    throw new RangeError(
      `Cannot sample: expected a limit from 1 to ${most} and at most 4 ids that take no part, found ${limit} ` +
        `and ${never.length}`,
    );
  }
}

/** Returns the number of patches along one side. */
export function checkPatches(out: Tensor, pixels: Tensor, size: number, patch: number): number {
  const grid = Math.floor(size / patch);
  same("patches rows", out.rows, grid * grid);
  same("patches input rows", pixels.rows, 1);
  same("patches input", pixels.cols, size * size * 3);
  if (out.cols < 3 * patch * patch) {
    throw new RangeError(`Cannot cut patches of ${3 * patch * patch} values into rows of ${out.cols}`);
  }
  return grid;
}

function checkRow(what: string, t: Tensor, cols: number): void {
  same(`${what} rows`, t.rows, 1);
  same(`${what} columns`, t.cols, cols);
}
