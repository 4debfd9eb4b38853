// Activations to integers, for products with integer weights.
#include "quantize.h"

// A group of every row to 8 bits, and its presets; of the last group only `count` values are there.
INLINE void step8(uint8_t *out, int16_t *presets, const Tile *tile, uint32_t i, uint32_t count, uint32_t lanes) {
  v128_t sums[TWIN_ROWS];
  for (uint32_t half = 0; half < 32; half += 16, out += bytes_of(lanes, 16)) {
    v128_t bytes[TWIN_ROWS];
    for (uint32_t r = 0; r < lanes; r++) {
      v128_t q[4];
      whole16(tile, r, i + half, count > half ? count - half : 0, q);
      v128_t sum = wasm_i32x4_add(wasm_i32x4_add(q[0], q[1]), wasm_i32x4_add(q[2], q[3]));
      sums[r] = half ? wasm_i32x4_add(sums[r], sum) : sum;
      v128_t low = wasm_i16x8_narrow_i32x4(q[0], q[1]), high = wasm_i16x8_narrow_i32x4(q[2], q[3]);
      bytes[r] = wasm_i8x16_narrow_i16x8(low, high);
    }
    place(out, bytes, lanes);
  }
  for (uint32_t r = 0; r < lanes; r++) {
    // Pairs of lanes, times -8.
    v128_t sum = wasm_i32x4_shl(wasm_i32x4_add(sums[r], LANES(sums[r], sums[r], 1, 1, 3, 3)), 3);
    sum = wasm_i32x4_neg(sum);
    presets[2 * r] = wasm_i32x4_extract_lane(sum, 0);
    presets[2 * r + 1] = wasm_i32x4_extract_lane(sum, 2);
  }
}

// How row r is rounded to -127…127.
INLINE void set_scale8(Tile *tile, uint32_t r, float *scale, uint32_t k) {
  float low, high;
  range(tile->from[r], k, &low, &high);
  float most = high > -low ? high : -low;
  *scale = most >= 1e-30f ? most / 127 : 0;
  if (most >= 1e-30f) tile->inverse[r] = wasm_f32x4_splat(127 / most);
}

// A tile to -127…127, with its presets: per group two sums, of k mod 4 below 2 and of the others. Those of twins stand before
// the group.
INLINE void tile8(uint8_t *out, int16_t *presets, float *scales, const float *x, uint32_t stride, uint32_t rows,
                  uint32_t k, uint32_t lanes) {
  Tile tile = tile_of(x, lanes);
  for (uint32_t r = 0; r < lanes; r++) {
    if (r >= rows) break;
    tile.from[r] = x + (uint64_t)r * stride;
    set_scale8(&tile, r, scales + r, k);
  }
  for (uint32_t i = 0; i < k; i += 32, out += bytes_of(lanes, 32), presets += 2 * lanes) {
    if (lanes == TWIN_ROWS) presets = (int16_t *)out, out += 4 * TWIN_ROWS;
    if (i + 32 <= k) step8(out, presets, &tile, i, 32, lanes);
    else step8(out, presets, &tile, i, k - i, lanes);
  }
}

// Sixteen values of every row to their places, 128 too high, or flipped to what they are.
INLINE void step8_tall(uint8_t *out, const Tile *tile, uint32_t i, uint32_t count, v128_t flip, uint32_t lanes) {
  v128_t bytes[TWIN_ROWS];
  for (uint32_t r = 0; r < lanes; r++) bytes[r] = wasm_v128_xor(bytes16(tile, r, i, count), flip);
  place(out, bytes, lanes);
}

// Rows to 8 bits in tiles of `lanes`.
INLINE void tiles8_tall(uint8_t *out, int32_t *zeros, float *scales, const float *x, uint32_t stride, uint32_t rows,
                        uint32_t k, uint32_t padded, uint32_t zero, uint32_t lanes) {
  v128_t flip = wasm_i8x16_splat(zero ? 0 : -128);
  for (uint32_t row = 0; row < rows; row += lanes, x += (uint64_t)lanes * stride) {
    Tile tile = tile_of(x, lanes);
    for (uint32_t r = 0; r < lanes; r++) {
      tile.offset[r] = wasm_i32x4_sub(tile.large, wasm_i32x4_splat(128));
      if (row + r >= rows) continue;
      tile.from[r] = x + (uint64_t)r * stride;
      zeros[row + r] = zero;
      set_scale8(&tile, r, scales + row + r, k);
    }
    uint32_t i = 0;
    for (; i + 16 <= k; i += 16, out += bytes_of(lanes, 16)) step8_tall(out, &tile, i, 16, flip, lanes);
    for (; i < padded; i += 16, out += bytes_of(lanes, 16)) step8_tall(out, &tile, i, i < k ? k - i : 0, flip, lanes);
  }
}

// Rows to 8 bits in tiles of six or twelve, with a zero point of 128, or of 0 where bytes are signed.
EXPORT(quantize8_tall)
void quantize8_tall(uint8_t *out, int32_t *zeros, float *scales, const float *x, uint32_t stride, uint32_t rows,
                    uint32_t k, uint32_t padded, uint32_t zero, uint32_t lanes) {
  if (!WORDS && lanes == TALL) tiles8_tall(out, zeros, scales, x, stride, rows, k, padded, zero, TALL);
  else tiles8_tall(out, zeros, scales, x, stride, rows, k, padded, zero, TWIN_ROWS);
}

// Tiles [from, end) of all those that `rows` rows take.
EXPORT(quantize7)
void quantize7(uint8_t *out, int32_t *zeros, float *scales, const float *x, uint32_t stride, uint32_t rows, uint32_t k,
               uint32_t padded, uint32_t lanes, uint32_t from, uint32_t end) {
  if (lanes == 1) return tile7(out, zeros, scales, x, stride, 1, k, 1);
  uint32_t whole = whole_tiles(rows, lanes);
  for (uint32_t t = from; t < end; t++) {
    uint32_t r = first_row(t, whole, lanes), count = rows_in(t, rows, whole, lanes);
    uint8_t *to = out + (uint64_t)t * bytes_of(lanes, padded);
    const float *row = x + (uint64_t)r * stride;
    if (lanes == TWIN_ROWS) tile7(to, zeros + r, scales + r, row, stride, count, k, TWIN_ROWS);
    else if (!WORDS && lanes == TALL) tile7(to, zeros + r, scales + r, row, stride, count, k, TALL);
    else tile7(to, zeros + r, scales + r, row, stride, count, k, ROWS);
  }
}

EXPORT(quantize8)
void quantize8(uint8_t *out, int16_t *presets, float *scales, const float *x, uint32_t stride, uint32_t rows,
               uint32_t k, uint32_t padded, uint32_t lanes) {
  if (lanes == 1) return tile8(out, presets, scales, x, stride, 1, k, 1);
  uint32_t groups = padded / 32, twins = !WORDS && lanes == TWIN_ROWS;
  uint32_t bytes = twins ? TWIN_STEPS * 4 * TWIN_ROWS * groups : bytes_of(ROWS, padded);
  for (uint32_t r = 0; r < rows; r += lanes, x += (uint64_t)lanes * stride, out += bytes, presets += groups * 2 * lanes) {
    if (twins) tile8(out, presets, scales + r, x, stride, rows - r, k, TWIN_ROWS);
    else tile8(out, presets, scales + r, x, stride, rows - r, k, ROWS);
  }
}
