// Products with weights of bytes. Scheme int8-p8-s4: panels [n/8][k/4][8][4] of s8, k padded to 16; and int4-g32-p8 where
// no scale of a group is beyond ±15, so that weights times these scales are bytes, and a group need not end its sums; these
// scales are NARROW.
//
// Activations are rounded row by row to 0…127 with a zero point (lib/backend/layout.ts tells how and why); the
// products are summed exactly, the zero point is taken out by the sum of each column, and only then come floats.
#include "dots.h"

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

// The same of int4 weights times their groups' scales, which are NARROW; returns whether all products are bytes.
EXPORT(columns_int4)
uint32_t columns_int4(int32_t *sums, const int8_t *w, uint32_t padded, uint32_t panels) {
  v128_t over = wasm_i16x8_const_splat(0);
  for (uint32_t p = 0; p < panels; p++, sums += 8) {
    v128_t low = wasm_i32x4_const_splat(0), high = low;
    for (uint32_t group = 0; group < padded / 32; group++, w += GROUP_BYTES(NARROW)) {
      v128_t scales = scales_of(w, NARROW), eight = wasm_i32x4_const_splat(8 * 32), c0 = wasm_i32x4_const_splat(0), c1 = c0;
      for (uint32_t i = 0; i < 8; i++) {
        v128_t v = wasm_v128_load(w + NARROW + 16 * i);
        c0 = wasm_i32x4_add(c0, wasm_i32x4_extadd_pairwise_i16x8(wasm_u16x8_extadd_pairwise_u8x16(NIBBLES_LOW(v))));
        c1 = wasm_i32x4_add(c1, wasm_i32x4_extadd_pairwise_i16x8(wasm_u16x8_extadd_pairwise_u8x16(NIBBLES_HIGH(v))));
      }
      over = wasm_v128_or(over, wasm_u16x8_gt(wasm_i16x8_abs(scales), wasm_i16x8_const_splat(15)));
      low = wasm_i32x4_add(low, wasm_i32x4_mul(wasm_i32x4_sub(c0, eight), wasm_i32x4_extend_low_i16x8(scales)));
      high = wasm_i32x4_add(high, wasm_i32x4_mul(wasm_i32x4_sub(c1, eight), wasm_i32x4_extend_high_i16x8(scales)));
    }
    wasm_v128_store(sums, low);
    wasm_v128_store(sums + 4, high);
  }
  return !wasm_v128_any_true(over);
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

// What sums of a tile and a panel are made floats with.
typedef struct {
  const int32_t *zeros;  // of each row
  const float *scales;
  const float *w_scale;  // of each column
  const int32_t *w_sums;
} Scales;

// Sums of a tile, as `straighten` leaves them, to their place in a block.
INLINE void descale_tile(float *y, const v128_t sums[2 * TALL], const Scales *s, uint32_t rows) {
  v128_t low_scale = wasm_v128_load(s->w_scale), high_scale = wasm_v128_load(s->w_scale + 4);
  v128_t low_sums = wasm_v128_load(s->w_sums), high_sums = wasm_v128_load(s->w_sums + 4);
  for (uint32_t r = 0; r < rows; r++, y += PAIR) {
    v128_t zero = wasm_v128_load32_splat(s->zeros + r), scale = wasm_v128_load32_splat(s->scales + r);
    wasm_v128_store(y, descale_int8(sums[2 * r], zero, low_sums, scale, low_scale));
    wasm_v128_store(y + 4, descale_int8(sums[2 * r + 1], zero, high_sums, scale, high_scale));
  }
}

// Rows of a tile of packed activations, of the attention too.
EXPORT(tile_rows)
uint32_t tile_rows(uint32_t kernel) { return rows_of(kernel); }

// Bytes of a value in a tile.
EXPORT(tile_bytes)
uint32_t tile_bytes(void) { return 1 << WORDS; }

// Steps of panels to where tiles are multiplied with them.
INLINE void unpack(int8_t *to, const int8_t *w, uint32_t steps) {
  for (; steps; steps--, w += STEP) to = place_step(to, wasm_v128_load(w), wasm_v128_load(w + 16));
}

// Sixteen nibbles of four columns times the scales of each, low those of the first two.
INLINE v128_t scaled_int4(v128_t nibbles, v128_t low, v128_t high) {
  nibbles = wasm_i8x16_sub(nibbles, wasm_i8x16_const_splat(8));
  return wasm_i8x16_narrow_i16x8(wasm_i16x8_mul(wasm_i16x8_extend_low_i8x16(nibbles), low),
                                 wasm_i16x8_mul(wasm_i16x8_extend_high_i8x16(nibbles), high));
}

// Groups of int4 weights, as bytes, to where tiles are multiplied with them.
INLINE void unpack_int4(int8_t *to, const int8_t *w, uint32_t groups) {
  for (; groups; groups--, w += NARROW) {
    v128_t s = scales_of(w, NARROW);
    v128_t s01 = wasm_i16x8_shuffle(s, s, 0, 0, 0, 0, 1, 1, 1, 1), s23 = wasm_i16x8_shuffle(s, s, 2, 2, 2, 2, 3, 3, 3, 3);
    v128_t s45 = wasm_i16x8_shuffle(s, s, 4, 4, 4, 4, 5, 5, 5, 5), s67 = wasm_i16x8_shuffle(s, s, 6, 6, 6, 6, 7, 7, 7, 7);
    for (uint32_t i = 0; i < 8; i++, w += 16) {
      v128_t v = wasm_v128_load(w + NARROW);
      to = place_step(to, scaled_int4(NIBBLES_LOW(v), s01, s23), scaled_int4(NIBBLES_HIGH(v), s45, s67));
    }
  }
}

// A tile by a panel, to its half of a block.
INLINE void block_int8(float *y, const int8_t *tile, const int8_t *panel, uint32_t padded, const Scales *s,
                       uint32_t kernel) {
  v128_t sums[2 * TALL];
  tile_int8(tile, panel, padded, kernel, sums);
  descale_tile(y, sums, s, rows_of(kernel));
}

// The same of copies.
#define COPIED_BY(name)                                                                              \
  (whole ? scaled_##name(row, panel, steps, y, s->zeros, s->scales, s->w_scale, s->w_sums)           \
         : scaled_##name##_short(row, panel, steps, y, s->zeros, s->scales, s->w_scale, s->w_sums))
INLINE void block_copied(float *y, uint32_t row, uint32_t panel, uint32_t steps, const Scales *s, int whole,
                         uint32_t kernel) {
#ifdef __wasm_relaxed_simd__
  if (kernel == VNNI) scaled_dot(row, panel, steps, y, s->zeros, s->scales, s->w_scale, s->w_sums);
  else if (kernel == 4) COPIED_BY(words4);
  else COPIED_BY(words8);
#else
  (void)kernel;
  COPIED_BY(words);
#endif
}

// The same of the first `rows` rows of a tile of twins.
#define TWINS_BY(name)                                                                                              \
  (rows > 8   ? scaled_##name##_twin12(tile, panel, steps, y, s->zeros, s->scales, s->w_scale, s->w_sums)           \
   : rows > 4 ? scaled_##name##_twin8(tile, panel, steps, y, s->zeros, s->scales, s->w_scale, s->w_sums)            \
              : scaled_##name##_twin4(tile, panel, steps, y, s->zeros, s->scales, s->w_scale, s->w_sums))
INLINE void block_twins(float *y, const int8_t *tile, const int8_t *panel, uint32_t steps, const Scales *s, uint32_t rows,
                        uint32_t kernel) {
#ifdef __wasm_relaxed_simd__
  if (kernel == (TWIN | VNNI)) TWINS_BY(dot);
  else if (kernel == (TWIN | 1)) TWINS_BY(words1);
  else if (kernel == (TWIN | 4)) TWINS_BY(words4);
  else TWINS_BY(words8);
#else
  (void)kernel;
  TWINS_BY(words);
#endif
}

// out [rows, n] = a · Wᵀ; a in tiles, with a zero point. Panels are unpacked once for all rows, but where weights lie as
// they are multiplied: `room` holds four of them, 32 · padded bytes, or twice as many where tiles are of words. Four, so
// that rows too many for the cache are read once for two pairs.
INLINE void gemm(const int8_t *a, const int32_t *zeros, const float *scales, const int8_t *w, const float *w_scale,
                 const int32_t *w_sums, int8_t *room, uint32_t key, uint32_t rows, uint32_t padded, uint32_t n,
                 const Finish *f, uint32_t int4, uint32_t kernel) {
  uint32_t tall = rows_of(kernel), tiles = (rows + tall - 1) / tall, whole = whole_tiles(rows, tall);
  uint32_t panel_bytes = int4 ? padded / 32 * GROUP_BYTES(NARROW) : 8 * padded;
  uint32_t steps = steps_of(padded), chunks = chunks_of(steps), copies = copied(rows, kernel);
  if (copies) copy_rows(0, a, tiles, steps, kernel, key);
  for (uint32_t first = 0; first < n; first += QUAD) {
    uint32_t wide = n - first < QUAD ? n - first : QUAD, panels = (wide + 7) / 8;
    const int8_t *here = WORDS || int4 ? room : w;
    if (int4) unpack_int4(room, w, panels * (padded / 32));
    else if (WORDS) unpack(room, w, panels * (padded / 4));
    if (copies) stage_panels(0, here, panels, steps, 0, 0);
    w += panels * panel_bytes;
    for (uint32_t t = 0; t < tiles; t++) {
      uint32_t row = first_row(t, whole, tall), count = rows_in(t, rows, whole, tall);
      const int8_t *tile = a + ((uint64_t)t * tall * padded << WORDS);
      for (uint32_t col = first; col < first + wide; col += PAIR) {
        float y[PAIR * TWIN_ROWS];
        uint32_t cols = first + wide - col < PAIR ? first + wide - col : PAIR;
        for (uint32_t half = 0; half < cols; half += 8) {
          uint32_t at = col - first + half;
          const int8_t *panel = here + (at * padded << WORDS);
          const Scales s = {zeros + row, scales + row, w_scale + col + half, w_sums + col + half};
          if (kernel & TWIN) block_twins(y + half, tile, panel, steps, &s, count, kernel);
          else if (copies) block_copied(y + half, t * chunks, at / 8 * chunks, steps, &s, t < whole, kernel);
          else if (kernel == VNNI) block_int8(y + half, tile, panel, padded, &s, VNNI);
          else if (kernel == 4) block_int8(y + half, tile, panel, padded, &s, 4);
          else if (kernel == 8) block_int8(y + half, tile, panel, padded, &s, 8);
          else block_int8(y + half, tile, panel, padded, &s, 1);
        }
        finish(f, row, count, col, cols, y);
      }
    }
  }
}

// a as quantize7 leaves it.
EXPORT(gemm_int8)
void gemm_int8(const int8_t *a, const int32_t *zeros, const float *scales, const int8_t *w, const float *w_scale,
               const int32_t *w_sums, int8_t *room, uint32_t key, uint32_t rows, uint32_t padded, uint32_t n,
               float *out, uint32_t out_stride, const float *bias, const float *residual, uint32_t residual_stride,
               uint32_t mode, uint32_t kernel) {
  const Finish f = {out, out_stride, bias, residual, residual_stride, mode};
  gemm(a, zeros, scales, w, w_scale, w_sums, room, key, rows, padded, n, &f, 0, kernel);
}

// Where one instruction multiplies and adds, or words are multiplied. a as quantize8_tall leaves it: of all eight bits, which
// these take beside weights of any.
EXPORT(gemm_int4_bytes)
void gemm_int4_bytes(const int8_t *a, const int32_t *zeros, const float *scales, const int8_t *w, const float *w_scale,
                     const int32_t *w_sums, int8_t *room, uint32_t key, uint32_t rows, uint32_t padded, uint32_t n,
                     float *out, uint32_t out_stride, const float *bias, const float *residual,
                     uint32_t residual_stride, uint32_t mode, uint32_t kernel) {
  const Finish f = {out, out_stride, bias, residual, residual_stride, mode};
  gemm(a, zeros, scales, w, w_scale, w_sums, room, key, rows, padded, n, &f, 1, VNNI | (kernel & TWIN));
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
