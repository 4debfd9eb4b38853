// The f32 product of a tile: 5 rows [k][5] × 8 columns [k][8].
#pragma once

#include "simd.h"

// Sums over `steps` values of k, at least one, ordered as `straighten` takes them.
INLINE void tile_f32(const float *a, const float *b, uint32_t steps, v128_t c[10]) {
  v128_t b0 = wasm_v128_load(b), b1 = wasm_v128_load(b + 4), va = wasm_v128_load(a);
  v128_t c0 = wasm_f32x4_mul(va, b0);
  v128_t c4 = wasm_f32x4_mul(va, b1);
  va = ROTATE(va, 1);
  v128_t c1 = wasm_f32x4_mul(va, b0);
  v128_t c5 = wasm_f32x4_mul(va, b1);
  va = ROTATE(va, 1);
  v128_t c2 = wasm_f32x4_mul(va, b0);
  v128_t c6 = wasm_f32x4_mul(va, b1);
  va = ROTATE(va, 1);
  v128_t c3 = wasm_f32x4_mul(va, b0);
  v128_t c7 = wasm_f32x4_mul(va, b1);
  va = wasm_v128_load32_splat(a + 4);
  v128_t c8 = wasm_f32x4_mul(va, b0);
  v128_t c9 = wasm_f32x4_mul(va, b1);
  while (--steps) {
    a += ROWS;
    b += 8;
    KEEP(a);
    KEEP(b);
    KEEP(steps);
    b0 = wasm_v128_load(b);
    b1 = wasm_v128_load(b + 4);
    va = wasm_v128_load(a);
    c0 = madd(va, b0, c0);
    c4 = madd(va, b1, c4);
    va = ROTATE(va, 1);
    c1 = madd(va, b0, c1);
    c5 = madd(va, b1, c5);
    va = ROTATE(va, 1);
    c2 = madd(va, b0, c2);
    c6 = madd(va, b1, c6);
    va = ROTATE(va, 1);
    c3 = madd(va, b0, c3);
    c7 = madd(va, b1, c7);
    va = wasm_v128_load32_splat(a + 4);
    c8 = madd(va, b0, c8);
    c9 = madd(va, b1, c9);
  }
  c[0] = c0, c[1] = c1, c[2] = c2, c[3] = c3, c[4] = c4, c[5] = c5, c[6] = c6, c[7] = c7, c[8] = c8, c[9] = c9;
}

// x [rows, k] as tiles [rows/5][k][5]; rows past the end are zero.
void pack_f32(float *out, const float *x, uint32_t stride, uint32_t rows, uint32_t k, uint32_t lanes);
