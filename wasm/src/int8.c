// Products with int8 weights, scheme int8-p8-s4: panels [n/8][k/4][8][4] of s8, k padded to 16.
//
// Activations are rounded row by row to 0…127 with a zero point (lib/backend/layout.ts tells how and why); the
// products are summed exactly, the zero point is taken out by the sum of each column, and only then come floats.
#include "dots.h"

// One row to 7 bits, four bytes every `step` bytes. Writes zero point and scale.
EXPORT(quantize7)
void quantize7(uint8_t *out, uint32_t step, const float *x, uint32_t k, uint32_t padded, int32_t *zero,
               float *scale) {
  v128_t low4 = wasm_f32x4_const_splat(0), high4 = low4;
  float low = 0, high = 0;
  uint32_t i = 0;
  for (; i + 4 <= k; i += 4) {
    v128_t v = wasm_v128_load(x + i);
    low4 = wasm_f32x4_pmin(low4, v);
    high4 = wasm_f32x4_pmax(high4, v);
  }
  for (; i < k; i++) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
  }
  float lows[4], highs[4];
  wasm_v128_store(lows, low4);
  wasm_v128_store(highs, high4);
  for (i = 0; i < 4; i++) {
    if (lows[i] < low) low = lows[i];
    if (highs[i] > high) high = highs[i];
  }
  float range = high - low;
  if (!(range >= 1e-30f)) {
    for (i = 0; i < padded; i += 4, out += step) *(uint32_t *)out = 0;
    *zero = 0;
    *scale = 0;
    return;
  }
  float inverse = 127 / range;
  int32_t z = (int32_t)__builtin_rintf(-low * inverse);
  v128_t inverses = wasm_f32x4_splat(inverse), zeros = wasm_i32x4_splat(z), limit = wasm_i8x16_const_splat(127);
  for (i = 0; i < padded; i += 16, x += 16, out += 4 * step) {
    float rest[16];
    const float *from = x;
    if (k - i < 16) {
      for (uint32_t j = 0; j < 16; j++) rest[j] = j < k - i ? x[j] : 0;
      from = rest;
    }
    v128_t q[4];
    for (uint32_t j = 0; j < 4; j++) {
      q[j] = wasm_i32x4_add(round_i32(wasm_f32x4_mul(wasm_v128_load(from + 4 * j), inverses)), zeros);
    }
    v128_t low = wasm_i16x8_narrow_i32x4(q[0], q[1]), high = wasm_i16x8_narrow_i32x4(q[2], q[3]);
    spread(out, step, wasm_u8x16_min(wasm_u8x16_narrow_i16x8(low, high), limit));
  }
  *zero = z;
  *scale = range / 127;
}

// Sum of every column, for the zero point.
EXPORT(columns_int8)
void columns_int8(int32_t *sums, const int8_t *w, uint32_t padded, uint32_t panels) {
  for (uint32_t p = 0; p < panels; p++, sums += 8) {
    v128_t low = wasm_i32x4_const_splat(0), high = low;
    for (uint32_t i = 0; i < padded; i += 4, w += STEP) {
      low = wasm_i32x4_add(low, wasm_i32x4_extadd_pairwise_i16x8(wasm_i16x8_extadd_pairwise_i8x16(wasm_v128_load(w))));
      high = wasm_i32x4_add(
          high, wasm_i32x4_extadd_pairwise_i16x8(wasm_i16x8_extadd_pairwise_i8x16(wasm_v128_load(w + 16))));
    }
    wasm_v128_store(sums, low);
    wasm_v128_store(sums + 4, high);
  }
}

// How many steps may be summed in 16 bits, from the weights themselves: 8, 4 or 1. The same rule as boundedSteps
// in lib/weights/quantize.ts: no lane of the steps has more than 258 of either sign.
EXPORT(bound_int8)
uint32_t bound_int8(const int8_t *w, uint32_t padded, uint32_t panels) {
  const v128_t limit = wasm_i16x8_const_splat(258), zero = wasm_i8x16_const_splat(0);
  v128_t over4 = zero, over8 = zero;
  for (uint32_t p = 0; p < panels; p++) {
    for (uint32_t half = 0; half < 2; half++) {
      const int8_t *from = w + 16 * half;
      v128_t before_up = zero, before_down = zero;
      for (uint32_t step = 0; step < padded / 4; step += 4) {
        v128_t up = zero, down = zero;
        for (uint32_t i = 0; i < 4; i++, from += STEP) {
          v128_t v = wasm_v128_load(from);
          up = wasm_i16x8_add(up, wasm_i16x8_extadd_pairwise_i8x16(wasm_i8x16_max(v, zero)));
          down = wasm_i16x8_sub(down, wasm_i16x8_extadd_pairwise_i8x16(wasm_i8x16_min(v, zero)));
        }
        over4 = wasm_v128_or(over4, wasm_v128_or(wasm_i16x8_gt(up, limit), wasm_i16x8_gt(down, limit)));
        if (step % 8) {
          over8 = wasm_v128_or(over8, wasm_v128_or(wasm_i16x8_gt(wasm_i16x8_add(up, before_up), limit),
                                                   wasm_i16x8_gt(wasm_i16x8_add(down, before_down), limit)));
        }
        before_up = up;
        before_down = down;
      }
    }
    w += 8 * padded;
  }
  if (wasm_v128_any_true(over4)) return 1;
  return wasm_v128_any_true(over8) ? 4 : 8;
}

typedef struct {
  const float *scale;    // per column
  const int32_t *sums;   // per column
} Columns;

// 8 sums of one row, zero point taken out, to floats and out.
INLINE void finish_int8(const Finish *f, const Columns *w, uint32_t row, uint32_t col, uint32_t cols, int32_t zero,
                        float scale, v128_t low, v128_t high) {
  v128_t z = wasm_i32x4_splat(zero), s = wasm_f32x4_splat(scale);
  low = wasm_i32x4_sub(low, wasm_i32x4_mul(z, wasm_v128_load(w->sums + col)));
  high = wasm_i32x4_sub(high, wasm_i32x4_mul(z, wasm_v128_load(w->sums + col + 4)));
  low = wasm_f32x4_mul(wasm_f32x4_mul(wasm_f32x4_convert_i32x4(low), s), wasm_v128_load(w->scale + col));
  high = wasm_f32x4_mul(wasm_f32x4_mul(wasm_f32x4_convert_i32x4(high), s), wasm_v128_load(w->scale + col + 4));
  finish_row(f, row, col, cols, low, high);
}

// Sums of a tile over the whole of k.
INLINE void tile_int8(const int8_t *a, const int8_t *b, uint32_t padded, uint32_t kernel, v128_t y[10]) {
  uint32_t steps = padded / 4;
#ifdef __wasm_relaxed_simd__
  v128_t c[10] = {0};
  if (kernel == VNNI) {
    tile_vnni(a, b, steps, 0, c);
  } else {
    for (uint32_t done = 0; done < steps; done += kernel) {
      v128_t s[10];
      tile_words_int8(a + STEP_ROWS * done, b + STEP * done, steps - done < kernel ? steps - done : kernel, s);
      for (uint32_t i = 0; i < 10; i++) c[i] = wasm_i32x4_add(c[i], wasm_i32x4_extadd_pairwise_i16x8(s[i]));
    }
  }
  straighten(c, y);
#else
  (void)kernel;
  tile_plain(a, b, steps, y);
#endif
}

// out [rows, n] = a · Wᵀ; a in tiles of 5 rows, as quantize7 leaves them with a step of 20.
EXPORT(gemm_int8)
void gemm_int8(const int8_t *a, const int32_t *zeros, const float *scales, const int8_t *w, const float *w_scale,
               const int32_t *w_sums, uint32_t rows, uint32_t padded, uint32_t n, float *out, uint32_t out_stride,
               const float *bias, const float *residual, uint32_t residual_stride, uint32_t mode, uint32_t kernel) {
  const Finish f = {out, out_stride, bias, residual, residual_stride, mode};
  const Columns columns = {w_scale, w_sums};
  for (uint32_t col = 0; col < n; col += 8, w += 8 * padded) {
    uint32_t cols = n - col < 8 ? n - col : 8;
    for (uint32_t row = 0; row < rows; row += ROWS) {
      v128_t y[10];
      const int8_t *tile = a + (uint64_t)row * padded;
      if (kernel == VNNI) tile_int8(tile, w, padded, VNNI, y);
      else if (kernel == 4) tile_int8(tile, w, padded, 4, y);
      else if (kernel == 8) tile_int8(tile, w, padded, 8, y);
      else tile_int8(tile, w, padded, 1, y);
      for (uint32_t r = 0; r < ROWS && row + r < rows; r++) {
        finish_int8(&f, &columns, row + r, col, cols, zeros[row + r], scales[row + r], y[2 * r], y[2 * r + 1]);
      }
    }
    if (mode & GELU) activate(&f, rows, col, cols);
  }
}

// Sums of one row and one panel, 16 values of k at a time.
INLINE void row_int8(const int8_t *x, const int8_t *w, uint32_t padded, uint32_t kernel, v128_t sums[2]) {
  v128_t zero = wasm_i32x4_const_splat(0), c0 = zero, c1 = zero;
#ifdef __wasm_relaxed_simd__
  v128_t c2 = zero, c3 = zero, c4 = zero, c5 = zero, c6 = zero, c7 = zero;
  for (uint32_t i = 0; i < padded; i += 16, w += 4 * STEP) {
    KEEP(w);
    v128_t v = wasm_v128_load(x + i);
    v128_t x0 = LANES(v, v, 0, 0, 0, 0), x1 = LANES(v, v, 1, 1, 1, 1);
    v128_t x2 = LANES(v, v, 2, 2, 2, 2), x3 = LANES(v, v, 3, 3, 3, 3);
    if (kernel == VNNI) {
      c0 = DOT32(wasm_v128_load(w), x0, c0);
      c1 = DOT32(wasm_v128_load(w + 16), x0, c1);
      c2 = DOT32(wasm_v128_load(w + 32), x1, c2);
      c3 = DOT32(wasm_v128_load(w + 48), x1, c3);
      c4 = DOT32(wasm_v128_load(w + 64), x2, c4);
      c5 = DOT32(wasm_v128_load(w + 80), x2, c5);
      c6 = DOT32(wasm_v128_load(w + 96), x3, c6);
      c7 = DOT32(wasm_v128_load(w + 112), x3, c7);
    } else if (kernel == 1) {
#define WIDE(w, x) wasm_i32x4_extadd_pairwise_i16x8(DOT16(wasm_v128_load(w), x))
      c0 = wasm_i32x4_add(c0, wasm_i32x4_add(WIDE(w, x0), WIDE(w + 32, x1)));
      c1 = wasm_i32x4_add(c1, wasm_i32x4_add(WIDE(w + 16, x0), WIDE(w + 48, x1)));
      c2 = wasm_i32x4_add(c2, wasm_i32x4_add(WIDE(w + 64, x2), WIDE(w + 96, x3)));
      c3 = wasm_i32x4_add(c3, wasm_i32x4_add(WIDE(w + 80, x2), WIDE(w + 112, x3)));
#undef WIDE
    } else {
      v128_t s0 = wasm_i16x8_add(DOT16(wasm_v128_load(w), x0), DOT16(wasm_v128_load(w + 32), x1));
      v128_t s1 = wasm_i16x8_add(DOT16(wasm_v128_load(w + 16), x0), DOT16(wasm_v128_load(w + 48), x1));
      v128_t s2 = wasm_i16x8_add(DOT16(wasm_v128_load(w + 64), x2), DOT16(wasm_v128_load(w + 96), x3));
      v128_t s3 = wasm_i16x8_add(DOT16(wasm_v128_load(w + 80), x2), DOT16(wasm_v128_load(w + 112), x3));
      c0 = wasm_i32x4_add(c0, wasm_i32x4_extadd_pairwise_i16x8(wasm_i16x8_add(s0, s2)));
      c1 = wasm_i32x4_add(c1, wasm_i32x4_extadd_pairwise_i16x8(wasm_i16x8_add(s1, s3)));
    }
  }
  sums[0] = wasm_i32x4_add(wasm_i32x4_add(c0, c2), wasm_i32x4_add(c4, c6));
  sums[1] = wasm_i32x4_add(wasm_i32x4_add(c1, c3), wasm_i32x4_add(c5, c7));
#else
  (void)kernel;
  v128_t c2 = zero, c3 = zero;
  for (uint32_t i = 0; i < padded; i += 4, w += STEP) {
    KEEP(w);
    v128_t v = wasm_i16x8_extend_low_i8x16(wasm_v128_load32_splat(x + i));
    c0 = wasm_i32x4_add(c0, wasm_i32x4_dot_i16x8(wasm_i16x8_load8x8(w), v));
    c1 = wasm_i32x4_add(c1, wasm_i32x4_dot_i16x8(wasm_i16x8_load8x8(w + 8), v));
    c2 = wasm_i32x4_add(c2, wasm_i32x4_dot_i16x8(wasm_i16x8_load8x8(w + 16), v));
    c3 = wasm_i32x4_add(c3, wasm_i32x4_dot_i16x8(wasm_i16x8_load8x8(w + 24), v));
  }
  sums[0] = wasm_i32x4_add(LANES(c0, c1, 0, 2, 4, 6), LANES(c0, c1, 1, 3, 5, 7));
  sums[1] = wasm_i32x4_add(LANES(c2, c3, 0, 2, 4, 6), LANES(c2, c3, 1, 3, 5, 7));
#endif
}

// out [1, n] = x · Wᵀ; x as quantize7 leaves it with a step of 4.
EXPORT(gemv_int8)
void gemv_int8(const int8_t *x, const int32_t *zero, const float *scale, const int8_t *w, const float *w_scale,
               const int32_t *w_sums, uint32_t padded, uint32_t n, float *out, const float *bias,
               const float *residual, uint32_t mode, uint32_t kernel) {
  const Finish f = {out, 0, bias, residual, 0, mode};
  const Columns columns = {w_scale, w_sums};
  for (uint32_t col = 0; col < n; col += 8, w += 8 * padded) {
    v128_t sums[2];
    if (kernel == VNNI) row_int8(x, w, padded, VNNI, sums);
    else if (kernel == 1) row_int8(x, w, padded, 1, sums);
    else row_int8(x, w, padded, 4, sums);
    finish_int8(&f, &columns, 0, col, n - col < 8 ? n - col : 8, *zero, *scale, sums[0], sums[1]);
  }
  if (mode & GELU) activate(&f, 1, 0, n);
}

// out [count, k]: rows ids[i] of the table, times scale.
EXPORT(embed_int8)
void embed_int8(float *out, uint32_t out_stride, const uint32_t *ids, uint32_t count, const int8_t *w,
                const float *w_scale, uint32_t k, uint32_t padded, float scale) {
  for (uint32_t t = 0; t < count; t++, out += out_stride) {
    const int8_t *from = w + (uint64_t)(ids[t] / 8) * 8 * padded + ids[t] % 8 * 4;
    float step = w_scale[ids[t]] * scale;
    for (uint32_t i = 0; i < k; i++) out[i] = from[i / 4 * STEP + i % 4] * step;
  }
}

// i32x4.relaxed_dot_i8x16_i7x16_add_s of sixteen a and sixteen b, first lane: out of range on purpose, it tells what
// the engine makes of it. 0 in the plain build.
EXPORT(probe_dot)
int32_t probe_dot(int32_t a, int32_t b) {
#ifdef __wasm_relaxed_simd__
  return wasm_i32x4_extract_lane(DOT32(wasm_i8x16_splat(a), wasm_i8x16_splat(b), wasm_i32x4_splat(0)), 0);
#else
  (void)a, (void)b;
  return 0;
#endif
}
