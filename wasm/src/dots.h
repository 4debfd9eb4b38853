// Integer products of a tile: 4 rows of activations × 8 columns of weights, exact, the same on every engine.
//
// Activations [k/4][4 rows][4], weights [k/4][8 columns][4], bytes. Of the two operands of the relaxed dot product
// one may be taken as unsigned or signed as the engine likes: it must lie in 0…127 (`seven`). With int8 weights that
// is the activation, with int4 weights the nibble; the other is `eight`.
#pragma once

#include "simd.h"

#define STEP 32        // bytes of weights for 4 values of k
#define STEP_ROWS 16   // bytes of activations for 4 values of k

// Which kernel computes a product. In the plain build there is one, and this is not looked at.
enum { VNNI = 0 };  // dot-add; otherwise the number of steps summed in 16 bits: 1, 4 or 8

#ifdef __wasm_relaxed_simd__
#define DOT16(eight, seven) wasm_i16x8_relaxed_dot_i8x16_i7x16(eight, seven)
#define DOT32(eight, seven, sum) wasm_i32x4_relaxed_dot_i8x16_i7x16_add(eight, seven, sum)

// The operands come as (weights, rows); `nibbles` tells which of them is `seven`.
INLINE v128_t dot16(v128_t w, v128_t x, int nibbles) { return nibbles ? DOT16(x, w) : DOT16(w, x); }
INLINE v128_t dot32(v128_t w, v128_t x, v128_t sum, int nibbles) {
  return nibbles ? DOT32(x, w, sum) : DOT32(w, x, sum);
}

// Adds `steps` steps to the diagonals c, 32 bits.
INLINE void tile_vnni(const int8_t *a, const int8_t *b, uint32_t steps, int nibbles, v128_t c[8]) {
  v128_t c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3], c4 = c[4], c5 = c[5], c6 = c[6], c7 = c[7];
  do {
    v128_t va = wasm_v128_load(a), b0 = wasm_v128_load(b), b1 = wasm_v128_load(b + 16);
    v128_t a1 = ROTATE(va, 1), a2 = ROTATE(va, 2), a3 = ROTATE(va, 3);
    c0 = dot32(b0, va, c0, nibbles);
    c4 = dot32(b1, va, c4, nibbles);
    c1 = dot32(b0, a1, c1, nibbles);
    c5 = dot32(b1, a1, c5, nibbles);
    c2 = dot32(b0, a2, c2, nibbles);
    c6 = dot32(b1, a2, c6, nibbles);
    c3 = dot32(b0, a3, c3, nibbles);
    c7 = dot32(b1, a3, c7, nibbles);
    a += STEP_ROWS;
    b += STEP;
    KEEP(a);
    KEEP(b);
    KEEP(steps);
  } while (--steps);
  c[0] = c0, c[1] = c1, c[2] = c2, c[3] = c3, c[4] = c4, c[5] = c5, c[6] = c6, c[7] = c7;
}

// Adds `steps` steps to the diagonals c, 16 bits; wraps, so only the final sums need to fit.
INLINE void tile_words(const int8_t *a, const int8_t *b, uint32_t steps, int nibbles, v128_t c[8]) {
  v128_t c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3], c4 = c[4], c5 = c[5], c6 = c[6], c7 = c[7];
  do {
    v128_t va = wasm_v128_load(a), b0 = wasm_v128_load(b), b1 = wasm_v128_load(b + 16);
    v128_t a1 = ROTATE(va, 1), a2 = ROTATE(va, 2), a3 = ROTATE(va, 3);
    c0 = wasm_i16x8_add(c0, dot16(b0, va, nibbles));
    c4 = wasm_i16x8_add(c4, dot16(b1, va, nibbles));
    c1 = wasm_i16x8_add(c1, dot16(b0, a1, nibbles));
    c5 = wasm_i16x8_add(c5, dot16(b1, a1, nibbles));
    c2 = wasm_i16x8_add(c2, dot16(b0, a2, nibbles));
    c6 = wasm_i16x8_add(c6, dot16(b1, a2, nibbles));
    c3 = wasm_i16x8_add(c3, dot16(b0, a3, nibbles));
    c7 = wasm_i16x8_add(c7, dot16(b1, a3, nibbles));
    a += STEP_ROWS;
    b += STEP;
    KEEP(a);
    KEEP(b);
    KEEP(steps);
  } while (--steps);
  c[0] = c0, c[1] = c1, c[2] = c2, c[3] = c3, c[4] = c4, c[5] = c5, c[6] = c6, c[7] = c7;
}

// From diagonals to rows[2 * row + half], 8 columns in two halves.
INLINE void rows_of(const v128_t c[8], v128_t rows[8]) {
  for (uint32_t r = 0; r < 4; r++) {
    rows[2 * r] = undiagonal(c[r], c[(r + 3) & 3], c[(r + 2) & 3], c[(r + 1) & 3]);
    rows[2 * r + 1] = undiagonal(c[4 + r], c[4 + ((r + 3) & 3)], c[4 + ((r + 2) & 3)], c[4 + ((r + 1) & 3)]);
  }
}

#else

// Adds two rows of a tile; sums[2 * j + s] holds columns 2j and 2j + 1, the two rows straight (s = 0) or crossed.
INLINE void pair_plain(const int8_t *a, const int8_t *b, uint32_t steps, v128_t rows[4]) {
  v128_t zero = wasm_i32x4_const_splat(0);
  v128_t c0 = zero, c1 = zero, c2 = zero, c3 = zero, c4 = zero, c5 = zero, c6 = zero, c7 = zero;
  do {
    v128_t straight = wasm_i16x8_load8x8(a), crossed = wasm_i64x2_shuffle(straight, straight, 1, 0);
    v128_t b0 = wasm_i16x8_load8x8(b), b1 = wasm_i16x8_load8x8(b + 8);
    v128_t b2 = wasm_i16x8_load8x8(b + 16), b3 = wasm_i16x8_load8x8(b + 24);
    c0 = wasm_i32x4_add(c0, wasm_i32x4_dot_i16x8(b0, straight));
    c1 = wasm_i32x4_add(c1, wasm_i32x4_dot_i16x8(b0, crossed));
    c2 = wasm_i32x4_add(c2, wasm_i32x4_dot_i16x8(b1, straight));
    c3 = wasm_i32x4_add(c3, wasm_i32x4_dot_i16x8(b1, crossed));
    c4 = wasm_i32x4_add(c4, wasm_i32x4_dot_i16x8(b2, straight));
    c5 = wasm_i32x4_add(c5, wasm_i32x4_dot_i16x8(b2, crossed));
    c6 = wasm_i32x4_add(c6, wasm_i32x4_dot_i16x8(b3, straight));
    c7 = wasm_i32x4_add(c7, wasm_i32x4_dot_i16x8(b3, crossed));
    a += STEP_ROWS;
    b += STEP;
    KEEP(a);
    KEEP(b);
    KEEP(steps);
  } while (--steps);
  // Lanes: the first row's column in the low half of `straight` and the high half of `crossed`, in two parts.
#define JOIN(x, y) wasm_i32x4_add(LANES(x, y, 0, 2, 4, 6), LANES(x, y, 1, 3, 5, 7))
  rows[0] = JOIN(LANES(c0, c1, 0, 1, 6, 7), LANES(c2, c3, 0, 1, 6, 7));
  rows[1] = JOIN(LANES(c4, c5, 0, 1, 6, 7), LANES(c6, c7, 0, 1, 6, 7));
  rows[2] = JOIN(LANES(c1, c0, 0, 1, 6, 7), LANES(c3, c2, 0, 1, 6, 7));
  rows[3] = JOIN(LANES(c5, c4, 0, 1, 6, 7), LANES(c7, c6, 0, 1, 6, 7));
#undef JOIN
}

// rows[2 * row + half] of a tile.
INLINE void tile_plain(const int8_t *a, const int8_t *b, uint32_t steps, v128_t rows[8]) {
  pair_plain(a, b, steps, rows);
  pair_plain(a + 8, b, steps, rows + 4);
}
#endif
