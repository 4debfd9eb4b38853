// f32 matrix products. W lies in panels of 8 columns, [n/8][k][8], columns past n zero.
//
// Sums: f32 within a block of k, f64 from block to block, so the error of a product stays near one rounding
// whatever k is.
#include "simd.h"

enum { BLOCK = 64 };

// x [rows, k] as tiles [rows/4][k][4]; rows past the end are zero.
EXPORT(pack_f32)
void pack_f32(float *out, const float *x, uint32_t stride, uint32_t rows, uint32_t k) {
  for (uint32_t row = 0; row < rows; row += 4) {
    const float *r0 = x + (uint64_t)row * stride, *r1 = r0 + stride, *r2 = r1 + stride, *r3 = r2 + stride;
    uint32_t left = rows - row, i = 0;
    if (left >= 4) {
      for (; i + 4 <= k; i += 4, out += 16) {
        v128_t a = wasm_v128_load(r0 + i), b = wasm_v128_load(r1 + i);
        v128_t c = wasm_v128_load(r2 + i), d = wasm_v128_load(r3 + i);
        v128_t ab = LANES(a, b, 0, 4, 1, 5), AB = LANES(a, b, 2, 6, 3, 7);
        v128_t cd = LANES(c, d, 0, 4, 1, 5), CD = LANES(c, d, 2, 6, 3, 7);
        wasm_v128_store(out, LANES(ab, cd, 0, 1, 4, 5));
        wasm_v128_store(out + 4, LANES(ab, cd, 2, 3, 6, 7));
        wasm_v128_store(out + 8, LANES(AB, CD, 0, 1, 4, 5));
        wasm_v128_store(out + 12, LANES(AB, CD, 2, 3, 6, 7));
      }
    }
    for (; i < k; i++, out += 4) {
      out[0] = r0[i];
      out[1] = left > 1 ? r1[i] : 0;
      out[2] = left > 2 ? r2[i] : 0;
      out[3] = left > 3 ? r3[i] : 0;
    }
  }
}

// 4 rows × 8 columns over `steps` values of k; c[0..3] are the diagonals of columns 0..3, c[4..7] of 4..7.
INLINE void tile_f32(const float *a, const float *b, uint32_t steps, v128_t c[8]) {
  v128_t va = wasm_v128_load(a), b0 = wasm_v128_load(b), b1 = wasm_v128_load(b + 4);
  v128_t a1 = ROTATE(va, 1), a2 = ROTATE(va, 2), a3 = ROTATE(va, 3);
  v128_t c0 = wasm_f32x4_mul(va, b0), c4 = wasm_f32x4_mul(va, b1);
  v128_t c1 = wasm_f32x4_mul(a1, b0), c5 = wasm_f32x4_mul(a1, b1);
  v128_t c2 = wasm_f32x4_mul(a2, b0), c6 = wasm_f32x4_mul(a2, b1);
  v128_t c3 = wasm_f32x4_mul(a3, b0), c7 = wasm_f32x4_mul(a3, b1);
  while (--steps) {
    a += 4;
    b += 8;
    KEEP(a);
    KEEP(b);
    KEEP(steps);
    va = wasm_v128_load(a);
    b0 = wasm_v128_load(b);
    b1 = wasm_v128_load(b + 4);
    a1 = ROTATE(va, 1);
    a2 = ROTATE(va, 2);
    a3 = ROTATE(va, 3);
    c0 = madd(va, b0, c0);
    c4 = madd(va, b1, c4);
    c1 = madd(a1, b0, c1);
    c5 = madd(a1, b1, c5);
    c2 = madd(a2, b0, c2);
    c6 = madd(a2, b1, c6);
    c3 = madd(a3, b0, c3);
    c7 = madd(a3, b1, c7);
  }
  c[0] = c0, c[1] = c1, c[2] = c2, c[3] = c3, c[4] = c4, c[5] = c5, c[6] = c6, c[7] = c7;
}

INLINE void gather_f64(v128_t sums[], const v128_t c[], uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    sums[2 * i] = wasm_f64x2_add(sums[2 * i], wasm_f64x2_promote_low_f32x4(c[i]));
    sums[2 * i + 1] = wasm_f64x2_add(sums[2 * i + 1], high_f64(c[i]));
  }
}

// out [rows, n] = a · Wᵀ with a as pack_f32 leaves it.
EXPORT(gemm_f32)
void gemm_f32(const float *a, const float *w, uint32_t rows, uint32_t k, uint32_t n, float *out, uint32_t out_stride,
              const float *bias, const float *residual, uint32_t residual_stride, uint32_t mode) {
  const Finish f = {out, out_stride, bias, residual, residual_stride, mode};
  for (uint32_t col = 0; col < n; col += 8, w += (uint64_t)8 * k) {
    uint32_t cols = n - col < 8 ? n - col : 8;
    for (uint32_t row = 0; row < rows; row += 4) {
      const float *tile = a + (uint64_t)row * k;
      v128_t sums[16] = {0}, c[8];
      for (uint32_t i = 0; i < k; i += BLOCK) {
        tile_f32(tile + 4 * i, w + 8 * i, k - i < BLOCK ? k - i : BLOCK, c);
        gather_f64(sums, c, 8);
      }
      for (uint32_t i = 0; i < 8; i++) c[i] = narrow_f64(sums[2 * i], sums[2 * i + 1]);
      for (uint32_t r = 0; r < 4 && row + r < rows; r++) {
        finish_row(&f, row + r, col, cols, undiagonal(c[r], c[(r + 3) & 3], c[(r + 2) & 3], c[(r + 1) & 3]),
                   undiagonal(c[4 + r], c[4 + ((r + 3) & 3)], c[4 + ((r + 2) & 3)], c[4 + ((r + 1) & 3)]));
      }
    }
  }
}

// out [1, n] = x · Wᵀ for one row, unpacked.
EXPORT(gemv_f32)
void gemv_f32(const float *x, const float *w, uint32_t k, uint32_t n, float *out, const float *bias,
              const float *residual, uint32_t mode) {
  const Finish f = {out, 0, bias, residual, 0, mode};
  for (uint32_t col = 0; col < n; col += 8) {
    v128_t sums[4] = {0}, c[2];
    for (uint32_t i = 0; i < k;) {
      uint32_t end = k - i < 2 * BLOCK ? k : i + 2 * BLOCK;
      v128_t zero = wasm_f32x4_const_splat(0);
      v128_t c0 = zero, c1 = zero, c2 = zero, c3 = zero, c4 = zero, c5 = zero, c6 = zero, c7 = zero;
      for (; i + 4 <= end; i += 4, w += 32) {
        KEEP(w);
        v128_t vx = wasm_v128_load(x + i);
        v128_t x0 = LANES(vx, vx, 0, 0, 0, 0), x1 = LANES(vx, vx, 1, 1, 1, 1);
        v128_t x2 = LANES(vx, vx, 2, 2, 2, 2), x3 = LANES(vx, vx, 3, 3, 3, 3);
        c0 = madd(x0, wasm_v128_load(w), c0);
        c1 = madd(x0, wasm_v128_load(w + 4), c1);
        c2 = madd(x1, wasm_v128_load(w + 8), c2);
        c3 = madd(x1, wasm_v128_load(w + 12), c3);
        c4 = madd(x2, wasm_v128_load(w + 16), c4);
        c5 = madd(x2, wasm_v128_load(w + 20), c5);
        c6 = madd(x3, wasm_v128_load(w + 24), c6);
        c7 = madd(x3, wasm_v128_load(w + 28), c7);
      }
      for (; i < end; i++, w += 8) {
        c0 = madd(wasm_v128_load32_splat(x + i), wasm_v128_load(w), c0);
        c1 = madd(wasm_v128_load32_splat(x + i), wasm_v128_load(w + 4), c1);
      }
      c[0] = wasm_f32x4_add(wasm_f32x4_add(c0, c2), wasm_f32x4_add(c4, c6));
      c[1] = wasm_f32x4_add(wasm_f32x4_add(c1, c3), wasm_f32x4_add(c5, c7));
      gather_f64(sums, c, 2);
    }
    finish_row(&f, 0, col, n - col < 8 ? n - col : 8, narrow_f64(sums[0], sums[1]), narrow_f64(sums[2], sums[3]));
  }
}

// out [count, k]: rows ids[i] of the table, times scale.
EXPORT(embed_f32)
void embed_f32(float *out, uint32_t out_stride, const uint32_t *ids, uint32_t count, const float *w, uint32_t k,
               float scale) {
  for (uint32_t t = 0; t < count; t++, out += out_stride) {
    const float *from = w + (uint64_t)(ids[t] / 8) * 8 * k + ids[t] % 8;
    for (uint32_t i = 0; i < k; i++) out[i] = from[8 * i] * scale;
  }
}
