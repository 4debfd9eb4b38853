/**
 * Operations as parts that threads can take: each runs units [from, to) of one operation, a unit being a panel of
 * columns, a few rows, or a few queries. Units are independent of one another, and the kernels see a part as a smaller
 * operation, so any split gives the same bits.
 *
 * Arguments are plain numbers: addresses in bytes, strides in elements, as the kernels of `wasm/src` take them.
 */

import { GROUP, PANEL, roundUp } from "./layout.ts";
import type { Kernels } from "./wasm_kernels.ts";

/** Columns that a product of several rows takes at once: two panels, a line of the cache in a row of the result. */
export const PAIR = 2 * PANEL;
/** Columns of weights of bytes that are unpacked or copied at once. */
export const QUAD = 2 * PAIR;
/** Columns that a product of one row takes at once: panels in as many streams as `wasm/src/gemv.c` reads. */
export const STREAMS = 4 * PANEL;
/** Rows of a tile of packed activations; with int8 weights and in `attention_int8` the kernel tells, at most `MOST_ROWS`. */
export const TILE = 5;
export const [TALL_TILE, MOST_ROWS] = [6, 12];
/** Bytes of the scales of an int4 group as it is in a file, and where each takes one, as `wasm/src/dots.h` says. */
export const [WIDE, NARROW] = [2 * PANEL, PANEL];
/** Rows of an attention that go together at least: the kernel takes eight queries at once. */
const QUERY_ROWS = 8;
/** Query heads that the attention of one row takes at once. */
const QUERY_HEADS = 4;

/** Runs units [from, to); `thread` chooses the scratch, where there is one for each. */
export type Part = (
  kernels: Kernels,
  args: readonly number[],
  from: number,
  to: number,
  thread: number,
) => void;

/** An address moved on, where there is one. */
function move(address: number, bytes: number): number {
  return address && address + bytes;
}

/**
 * Products of the same rows with several matrices: how many, then the arguments of one after the other, its columns the first.
 * A unit is so many columns of each of them, as far as it has them.
 */
function products(columns: number, part: Part): Part {
  return (kernels, [of, ...args], from, end, thread) => {
    const count = args.length / of;
    for (let i = 0; i < args.length; i += count) {
      if (from * columns < args[i]) part(kernels, args.slice(i, i + count), from, end, thread);
    }
  };
}

/** Bytes of a packed activation: in tiles as the kernels have them, in a row alone one. */
function bytesOf(kernels: Kernels, lanes: number): number {
  return lanes > 1 ? kernels.tile_bytes() : 1;
}

/** Bytes of a row of 8 bits in a tile with its presets: those of twins stand with the values. */
export function rowBytes(padded: number, lanes: number, bytes: number): number {
  return padded * bytes + (lanes === MOST_ROWS ? padded / GROUP * 4 : 0);
}

/** Bytes of a group of int4 weights whose scales take `head` bytes. */
export function groupBytes(head: number): number {
  return head + PANEL * GROUP / 2;
}

/** Bytes of a panel of such groups. */
export function panelBytes(padded: number, head: number): number {
  return padded / GROUP * groupBytes(head);
}

/** Bytes of a pair of panels of int4 weights, unpacked: values of so many bytes, and the scales of groups. */
export function pairBytes(padded: number, bytes: number): number {
  return PAIR * (padded * bytes + padded / GROUP * 4);
}

/** How a product of several rows ends, from the number of its columns on: the same of pairs of panels [from, end). */
function pairs(
  n: number,
  [out, outStride, bias, residual, residualStride, ...rest]: readonly number[],
  from: number,
  end: number,
): number[] {
  const [col, at] = [from * PAIR, from * PAIR * 4];
  const moved = [out + at, outStride, move(bias, at), move(residual, at), residualStride];
  return [Math.min(n, end * PAIR) - col, ...moved, ...rest];
}

export const PARTS = {
  /** Tiles of rows, f32. */
  pack_f32(kernels, [to, x, stride, rows, k, lanes], from, end) {
    const row = from * lanes;
    const count = Math.min(rows, end * lanes) - row;
    kernels.pack_f32(to + row * k * 4, x + row * stride * 4, stride, count, k, lanes);
  },

  /** Tiles of rows to 7 bits, of which the kernel tells what rows they have. */
  quantize7(kernels, args, from, end) {
    kernels.quantize7(...args, from, end);
  },

  /** Tiles of rows to 8 bits, with their presets; `lanes` is the rows of a tile, or 1 for a row alone. */
  quantize8(kernels, [values, presets, scales, x, stride, rows, k, padded, lanes], from, end) {
    const row = from * lanes;
    const [count, of] = [Math.min(rows, end * lanes) - row, x + row * stride * 4];
    const to = values + row * rowBytes(padded, lanes, bytesOf(kernels, lanes));
    const preset = presets + row * (padded / GROUP) * 4;
    kernels.quantize8(to, preset, scales + row * 4, of, stride, count, k, padded, lanes);
  },

  /** Tiles of six rows or more to 8 bits with a zero point. */
  quantize8_tall(kernels, [values, zeros, scales, x, stride, rows, k, padded, zero, lanes], from, end) {
    const row = from * lanes;
    const [count, of] = [Math.min(rows, end * lanes) - row, x + row * stride * 4];
    kernels.quantize8_tall(
      values + row * padded * kernels.tile_bytes(),
      zeros + row * 4,
      scales + row * 4,
      of,
      stride,
      count,
      k,
      padded,
      zero,
      lanes,
    );
  },

  /** Pairs of panels. */
  gemm_f32: products(PAIR, (kernels, [n, a, w, key, rows, k, ...ends], from, end) => {
    kernels.gemm_f32(a, w + from * PAIR * k * 4, key, rows, k, ...pairs(n, ends, from, end));
  }),

  gemv_f32: products(STREAMS, (kernels, [n, x, w, k, out, bias, residual, mode], from, end) => {
    const [col, at] = [from * STREAMS, from * STREAMS * 4];
    const count = Math.min(n, end * STREAMS) - col;
    kernels.gemv_f32(x, w + col * k * 4, k, count, out + at, move(bias, at), move(residual, at), mode);
  }),

  /** Pairs of panels; room to unpack two, where tiles are of words, is at `room` for the first thread, then for the others. */
  gemm_int8: products(PAIR, (
    kernels,
    [n, a, zeros, scales, w, wScale, sums, room, key, rows, padded, ...ends],
    from,
    end,
    thread,
  ) => {
    const [col, at] = [from * PAIR, from * PAIR * 4];
    const own = room + thread * QUAD * padded * kernels.tile_bytes();
    const operands = [a, zeros, scales, w + col * padded, wScale + at, sums + at];
    kernels.gemm_int8(...operands, own, key, rows, padded, ...pairs(n, ends, from, end));
  }),

  gemv_int8: products(STREAMS, (kernels, args, from, end) => {
    const [n, x, zero, scale, w, wScale, sums, padded, out, bias, residual, mode, kernel] = args;
    const [col, at] = [from * STREAMS, from * STREAMS * 4];
    kernels.gemv_int8(
      x,
      zero,
      scale,
      w + col * padded,
      wScale + at,
      sums + at,
      padded,
      Math.min(n, end * STREAMS) - col,
      out + at,
      move(bias, at),
      move(residual, at),
      mode,
      kernel,
    );
  }),

  /** Pairs of panels; room to unpack them is at `room` for the first thread, then for the others. */
  gemm_int4: products(
    PAIR,
    (
      kernels,
      [n, a, presets, scales, w, wScale, room, key, rows, padded, head, ...ends],
      from,
      end,
      thread,
    ) => {
      const own = room + thread * pairBytes(padded, kernels.tile_bytes());
      const panels = w + from * PAIR / PANEL * panelBytes(padded, head);
      const operands = [a, presets, scales, panels, wScale + from * PAIR * 4];
      kernels.gemm_int4(...operands, own, key, rows, padded, ...pairs(n, ends, from, end), head);
    },
  ),

  /** The same where weights are multiplied as bytes. */
  gemm_int4_bytes: products(PAIR, (
    kernels,
    [n, a, zeros, scales, w, wScale, sums, room, key, rows, padded, ...ends],
    from,
    end,
    thread,
  ) => {
    const at = from * PAIR * 4;
    const own = room + thread * QUAD * padded * kernels.tile_bytes();
    const panels = w + from * PAIR / PANEL * panelBytes(padded, NARROW);
    const operands = [a, zeros, scales, panels, wScale + at, sums + at];
    kernels.gemm_int4_bytes(...operands, own, key, rows, padded, ...pairs(n, ends, from, end));
  }),

  gemv_int4: products(STREAMS, (kernels, args, from, end) => {
    const [n, x, presets, scale, w, wScale, padded, head, out, bias, residual, mode, kernel] = args;
    const [col, at] = [from * STREAMS, from * STREAMS * 4];
    const gemv = head === NARROW ? kernels.gemv_int4 : kernels.gemv_int4_wide;
    gemv(
      x,
      presets,
      scale,
      w + col / PANEL * panelBytes(padded, head),
      wScale + at,
      padded,
      Math.min(n, end * STREAMS) - col,
      out + at,
      move(bias, at),
      move(residual, at),
      mode,
      kernel,
    );
  }),

  /** Rows. */
  layer_norm(kernels, [out, outStride, x, stride, k, weight, bias, eps], from, end) {
    const [to, of] = [out + from * outStride * 4, x + from * stride * 4];
    kernels.layer_norm(to, outStride, of, stride, end - from, k, weight, bias, eps);
  },

  rms_norm(kernels, [out, outStride, x, stride, k, weight, eps], from, end) {
    const [to, of] = [out + from * outStride * 4, x + from * stride * 4];
    kernels.rms_norm(to, outStride, of, stride, end - from, k, weight, eps);
  },

  add(kernels, [out, outStride, x, stride, k], from, end) {
    const [to, of] = [out + from * outStride * 4, x + from * stride * 4];
    kernels.add(to, outStride, of, stride, end - from, k);
  },

  rope(kernels, [x, stride, heads, half, cosines, sines], from, end) {
    const [of, angles] = [x + from * stride * 4, from * half * 4];
    kernels.rope(of, stride, end - from, heads, half, cosines + angles, sines + angles);
  },

  /**
   * Blocks of queries, as `attentionUnits` counts them: of one key-value head, then of the next. `scratch` has
   * `scratchBytes` for every thread.
   */
  attention(kernels, args, from, end, thread) {
    const [out, outStride, q, qStride, k, kStride, v, vStride, rows, keys, heads, group, dim] = args;
    const [scale, softcap, start, prefix, window, scratch, scratchBytes, kernel] = args.slice(13);
    const blocks = attentionUnits(rows, 1, group);
    const stop = Math.min(end, heads * blocks);
    for (let unit = from; unit < stop;) {
      // All blocks of one head that are ours: one call.
      const head = Math.floor(unit / blocks);
      const [first, last] = [unit - head * blocks, Math.min(stop - head * blocks, blocks)];
      unit = head * blocks + last;
      const [row, sub] = rows > 1 ? [first * QUERY_ROWS, 0] : [0, first * QUERY_HEADS];
      const col = (head * group + sub) * dim;
      const [to, of] = [out + (row * outStride + col) * 4, q + (row * qStride + col) * 4];
      const [key, value] = [k + head * dim * 4, v + head * dim * 4];
      const own = scratch + thread * scratchBytes;
      const how = [dim, scale, softcap, start + row, prefix, window, own];
      if (rows > 1) {
        const count = Math.min(rows, last * QUERY_ROWS) - row;
        kernels.attention(
          to,
          outStride,
          of,
          qStride,
          key,
          kStride,
          value,
          vStride,
          count,
          keys,
          group,
          ...how,
          kernel,
        );
      } else {
        const queries = Math.min(group, last * QUERY_HEADS) - sub;
        kernels.attention_row(to, of, key, kStride, value, vStride, keys, queries, ...how);
      }
    }
  },

  /** At most `most` queries of one head, then of the next; scratch as above. */
  attention_int8(kernels, args, from, end, thread) {
    const [out, outStride, q, qStride, k, kStride, v, vStride, rows, heads, dim, scale] = args;
    const [scratch, scratchBytes, kernel, most] = args.slice(12);
    const units = Math.ceil(rows / most);
    for (let unit = from; unit < Math.min(end, heads * units);) {
      const head = Math.floor(unit / units);
      const [first, last] = [unit - head * units, Math.min(end - head * units, units)];
      unit = head * units + last;
      const [row, col] = [first * most, head * dim * 4];
      kernels.attention_int8(
        out + row * outStride * 4 + col,
        outStride,
        q + row * qStride * 4 + col,
        qStride,
        k + col,
        kStride,
        v + col,
        vStride,
        Math.min(rows, last * most) - row,
        rows,
        dim,
        scale,
        scratch + thread * scratchBytes,
        kernel,
      );
    }
  },
} satisfies Record<string, Part>;

export type PartName = keyof typeof PARTS;

/** Blocks into which the queries of an attention may be cut: of a few rows, or of the one row a few heads. */
export function attentionUnits(rows: number, heads: number, group: number): number {
  return heads * Math.ceil(rows > 1 ? rows / QUERY_ROWS : group / QUERY_HEADS);
}

/** Bytes of scratch that the attention needs for every thread. */
export function attentionScratch(rows: number, keys: number, dim: number): number {
  if (rows === 1) return (keys + dim) * 16;
  const [tiledKeys, tiledDim] = [keys, dim].map((it) => Math.max(roundUp(it, TILE), roundUp(it, MOST_ROWS)));
  return 4 * (tiledKeys * dim + tiledDim * keys + 8 * (dim + tiledKeys + tiledDim));
}

/** The same for `attention_int8`, which divides it as `wasm/src/attention_int8.c` says. */
export function attentionInt8Scratch(keys: number, dim: number): number {
  const [all, wide] = [roundUp(keys, 16), roundUp(dim, PANEL)];
  const tiles = 2 * MOST_ROWS * all + roundUp(2 * MOST_ROWS * (dim + 12), 16);
  return roundUp(2 * all * (dim + wide) + tiles + 4 * (2 * all + wide + Math.max(MOST_ROWS * all, dim)), 16);
}
