// Rows of activations to integers; lib/backend/layout.ts tells how and why.
//
// Rows lie in tiles, [k/4][rows][4] or, in the plain build, words [k/2][rows][2]; or alone, [k/4][4]. `lanes` is 12, 6, 5
// or 1. The values of four rows come together
// by a transposition of 32-bit lanes, the others are stored lane by lane. k is rounded up to 16 values.
#pragma once

#include "dots.h"

INLINE float least(v128_t v) {
  v = wasm_f32x4_pmin(v, LANES(v, v, 2, 3, 0, 1));
  v = wasm_f32x4_pmin(v, LANES(v, v, 1, 0, 3, 2));
  return wasm_f32x4_extract_lane(v, 0);
}

// The least and the greatest of zero and k values.
INLINE void range(const float *x, uint32_t k, float *low, float *high) {
  v128_t lows[4], highs[4];
  for (uint32_t j = 0; j < 4; j++) lows[j] = highs[j] = wasm_f32x4_const_splat(0);
  uint32_t i = 0;
  for (; i + 16 <= k; i += 16) {
    for (uint32_t j = 0; j < 4; j++) {
      v128_t v = wasm_v128_load(x + i + 4 * j);
      lows[j] = wasm_f32x4_pmin(lows[j], v);
      highs[j] = wasm_f32x4_pmax(highs[j], v);
    }
  }
  *low = least(wasm_f32x4_pmin(wasm_f32x4_pmin(lows[0], lows[1]), wasm_f32x4_pmin(lows[2], lows[3])));
  v128_t most = wasm_f32x4_pmax(wasm_f32x4_pmax(highs[0], highs[1]), wasm_f32x4_pmax(highs[2], highs[3]));
  *high = -least(wasm_f32x4_neg(most));
  for (; i < k; i++) {
    if (x[i] < *low) *low = x[i];
    if (x[i] > *high) *high = x[i];
  }
}

// Bytes of so many values of each row of a tile.
INLINE uint32_t bytes_of(uint32_t lanes, uint32_t values) { return lanes * values << (WORDS && lanes > 1); }

// Four lanes of each row to their places.
INLINE void place_lanes(uint8_t *out, v128_t x[], uint32_t lanes) {
  for (uint32_t r = 0; r + 4 <= lanes; r += 4) {
    transpose(x + r);
    for (uint32_t j = 0; j < 4; j++) wasm_v128_store(out + 4 * lanes * j + 4 * r, x[r + j]);
  }
  if (lanes % 4 == 0) return;
  if (lanes == TALL) {
    v128_t low = LANES(x[4], x[5], 0, 4, 1, 5), high = LANES(x[4], x[5], 2, 6, 3, 7);
    wasm_v128_store64_lane(out + 16, low, 0);
    wasm_v128_store64_lane(out + STEP_TALL + 16, low, 1);
    wasm_v128_store64_lane(out + 2 * STEP_TALL + 16, high, 0);
    wasm_v128_store64_lane(out + 3 * STEP_TALL + 16, high, 1);
    return;
  }
  wasm_v128_store32_lane(out + 16, x[4], 0);
  wasm_v128_store32_lane(out + STEP_ROWS + 16, x[4], 1);
  wasm_v128_store32_lane(out + 2 * STEP_ROWS + 16, x[4], 2);
  wasm_v128_store32_lane(out + 3 * STEP_ROWS + 16, x[4], 3);
}

// Sixteen bytes of each row to their places.
INLINE void place(uint8_t *out, v128_t bytes[], uint32_t lanes) {
  if (lanes == 1) {
    wasm_v128_store(out, bytes[0]);
    return;
  }
  if (!WORDS) return place_lanes(out, bytes, lanes);
  v128_t low[TWIN_ROWS], high[TWIN_ROWS];
  for (uint32_t r = 0; r < lanes; r++) {
    low[r] = wasm_i16x8_extend_low_i8x16(bytes[r]);
    high[r] = wasm_i16x8_extend_high_i8x16(bytes[r]);
  }
  place_lanes(out, low, lanes);
  place_lanes(out + 16 * lanes, high, lanes);
}

// How the rows of a tile are rounded. To the nearest whole number, halves to the even one: added to a number so large
// that nothing is left behind the point, x · inverse stands in the last bits of the sum; minus `offset`, that number's
// bits less the zero point. A row that is not there, or all zeros, has an inverse of 0 and no zero point.
typedef struct {
  const float *from[TWIN_ROWS];
  v128_t inverse[TWIN_ROWS], offset[TWIN_ROWS];
  v128_t large, limit;  // constants: an engine builds one in code from three instructions at every use
} Tile;

INLINE Tile tile_of(const float *x, uint32_t lanes) {
  Tile tile;
  tile.large = wasm_v128_load(LARGE);
  tile.limit = wasm_v128_load(SEVEN_BITS);
  for (uint32_t r = 0; r < lanes; r++) {
    tile.from[r] = x;
    tile.inverse[r] = wasm_f32x4_const_splat(0);
    tile.offset[r] = tile.large;
  }
  return tile;
}

// Sixteen values of row r from i, as whole numbers; those from `count` on are not there, and zero.
INLINE void whole16(const Tile *tile, uint32_t r, uint32_t i, uint32_t count, v128_t q[4]) {
  const float *from = tile->from[r] + i;
  float rest[16];
  if (count < 16) {
    for (uint32_t j = 0; j < 16; j++) rest[j] = j < count ? from[j] : 0;
    from = rest;
  }
  for (uint32_t j = 0; j < 4; j++) {
    v128_t v = wasm_f32x4_mul(wasm_v128_load(from + 4 * j), tile->inverse[r]);
    q[j] = wasm_i32x4_sub(wasm_f32x4_add(v, tile->large), tile->offset[r]);
  }
}

// The same as unsigned bytes.
INLINE v128_t bytes16(const Tile *tile, uint32_t r, uint32_t i, uint32_t count) {
  v128_t q[4];
  whole16(tile, r, i, count, q);
  return wasm_u8x16_narrow_i16x8(wasm_i16x8_narrow_i32x4(q[0], q[1]), wasm_i16x8_narrow_i32x4(q[2], q[3]));
}

// Sixteen values of every row to 7 bits; of the last ones only `count` are there.
INLINE void step7(uint8_t *out, const Tile *tile, uint32_t i, uint32_t count, uint32_t lanes) {
  v128_t bytes[TWIN_ROWS];
  for (uint32_t r = 0; r < lanes; r++) bytes[r] = wasm_u8x16_min(bytes16(tile, r, i, count), tile->limit);
  place(out, bytes, lanes);
}

// A tile to 0…127 with a zero point.
INLINE void tile7(uint8_t *out, int32_t *zeros, float *scales, const float *x, uint32_t stride, uint32_t rows,
                  uint32_t k, uint32_t lanes) {
  Tile tile = tile_of(x, lanes);
  for (uint32_t r = 0; r < lanes; r++) {
    if (r >= rows) break;
    float low, high;
    tile.from[r] = x + (uint64_t)r * stride;
    range(tile.from[r], k, &low, &high);
    zeros[r] = 0;
    scales[r] = 0;
    if (high - low >= 1e-30f) {
      float inverse = 127 / (high - low);
      zeros[r] = (int32_t)__builtin_rintf(-low * inverse);
      scales[r] = (high - low) / 127;
      tile.inverse[r] = wasm_f32x4_splat(inverse);
      tile.offset[r] = wasm_i32x4_sub(tile.large, wasm_i32x4_splat(zeros[r]));
    }
  }
  uint32_t i = 0;
  for (; i + 16 <= k; i += 16, out += bytes_of(lanes, 16)) step7(out, &tile, i, 16, lanes);
  if (i < k) step7(out, &tile, i, k - i, lanes);
}
