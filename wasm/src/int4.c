// Products with int4 weights, scheme int4-g32-p8: [n/8][k/32] groups of 8 × i16 scales and 8 × 16 bytes, of which
// the low nibbles belong to columns 0…3 and the high ones to columns 4…7, four k each.
//
// Activations are rounded row by row to -127…127. A group of 32 is summed in 16 bits: 16 products a lane, at most
// 15 · 127 · 16 = 30,480. Nibbles stand 8 too high; the sums start at -8 times the activations of the lane (`presets`)
// instead, and 16-bit addition wraps, so only the end must fit. Times the group's scale the sums go to 32 bits, which
// 64 groups cannot overflow (64 · 8 · 127 · 32 · 1023 < 2³¹), and after 64 groups to f64, exact all the way.
#include "dots.h"

enum { GROUP_BYTES = 144, GROUPS = 64 };

// One row to 8 bits, four bytes every `step` bytes, and its presets: per group two sums, of k mod 4 below 2 and of
// the others, every `step` bytes too. Writes the scale.
EXPORT(quantize8)
void quantize8(int8_t *out, int16_t *presets, uint32_t step, const float *x, uint32_t k, uint32_t padded,
               float *scale) {
  v128_t most4 = wasm_f32x4_const_splat(0);
  float most = 0;
  uint32_t i = 0;
  for (; i + 4 <= k; i += 4) most4 = wasm_f32x4_pmax(most4, wasm_f32x4_abs(wasm_v128_load(x + i)));
  for (; i < k; i++) {
    float size = x[i] < 0 ? -x[i] : x[i];
    if (size > most) most = size;
  }
  float mosts[4];
  wasm_v128_store(mosts, most4);
  for (i = 0; i < 4; i++) {
    if (mosts[i] > most) most = mosts[i];
  }
  float inverse = most >= 1e-30f ? 127 / most : 0;
  *scale = most >= 1e-30f ? most / 127 : 0;
  v128_t inverses = wasm_f32x4_splat(inverse);
  for (i = 0; i < padded; i += 32, x += 32, presets += step / 2) {
    v128_t sums = wasm_i32x4_const_splat(0);
    float rest[32];
    const float *from = x;
    if (k - i < 32) {
      for (uint32_t j = 0; j < 32; j++) rest[j] = j < k - i ? x[j] : 0;
      from = rest;
    }
    for (uint32_t half = 0; half < 32; half += 16, from += 16, out += 4 * step) {
      v128_t q[4];
      for (uint32_t j = 0; j < 4; j++) {
        q[j] = round_i32(wasm_f32x4_mul(wasm_v128_load(from + 4 * j), inverses));
        sums = wasm_i32x4_add(sums, q[j]);
      }
      v128_t low = wasm_i16x8_narrow_i32x4(q[0], q[1]), high = wasm_i16x8_narrow_i32x4(q[2], q[3]);
      spread((uint8_t *)out, step, wasm_i8x16_narrow_i16x8(low, high));
    }
    presets[0] = -8 * (wasm_i32x4_extract_lane(sums, 0) + wasm_i32x4_extract_lane(sums, 1));
    presets[1] = -8 * (wasm_i32x4_extract_lane(sums, 2) + wasm_i32x4_extract_lane(sums, 3));
  }
}

INLINE v128_t low_nibbles(v128_t v) { return wasm_v128_and(v, wasm_i8x16_const_splat(15)); }
INLINE v128_t high_nibbles(v128_t v) { return wasm_v128_and(wasm_u16x8_shr(v, 4), wasm_i8x16_const_splat(15)); }

// Scales of columns 0…3 or 4…7, each twice.
#define TWICE_LOW(s) wasm_i16x8_shuffle(s, s, 0, 0, 1, 1, 2, 2, 3, 3)
#define TWICE_HIGH(s) wasm_i16x8_shuffle(s, s, 4, 4, 5, 5, 6, 6, 7, 7)

INLINE void gather(v128_t sums[], v128_t c[], uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    sums[2 * i] = wasm_f64x2_add(sums[2 * i], wasm_f64x2_convert_low_i32x4(c[i]));
    sums[2 * i + 1] = wasm_f64x2_add(sums[2 * i + 1], wasm_f64x2_convert_low_i32x4(LANES(c[i], c[i], 2, 3, 2, 3)));
    c[i] = wasm_i32x4_const_splat(0);
  }
}

// 8 sums of one row, as f64, to floats and out.
INLINE void finish_int4(const Finish *f, const float *w_scale, uint32_t row, uint32_t col, uint32_t cols, float scale,
                        v128_t low, v128_t high) {
  v128_t s = wasm_f32x4_splat(scale);
  low = wasm_f32x4_mul(wasm_f32x4_mul(low, s), wasm_v128_load(w_scale + col));
  high = wasm_f32x4_mul(wasm_f32x4_mul(high, s), wasm_v128_load(w_scale + col + 4));
  finish_row(f, row, col, cols, low, high);
}

// One group of a tile: c += sums · scales, both as `straighten` takes them; in the plain build, as it leaves them.
INLINE void group_int4(const int8_t *a, const int16_t *presets, const int8_t *b, const int8_t *w, uint32_t kernel,
                       v128_t c[10]) {
#ifdef __wasm_relaxed_simd__
  v128_t p = wasm_v128_load(presets), fifth = wasm_v128_load32_splat(presets + 8);
  if (kernel == VNNI) {
    p = wasm_i32x4_extadd_pairwise_i16x8(p);
    fifth = wasm_i32x4_extadd_pairwise_i16x8(fifth);
  }
  v128_t p1 = ROTATE(p, 1), p2 = ROTATE(p, 2), p3 = ROTATE(p, 3);
  v128_t s[10] = {p, p1, p2, p3, p, p1, p2, p3, fifth, fifth};
  if (kernel == VNNI) tile_vnni(a, b, 8, 1, s);
  else tile_words_int4(a, b, 8, s);
  KEEP(w);  // loaded before the loop, the scales would cost it a register
  v128_t scales = wasm_v128_load(w);
  if (kernel == VNNI) {
    // The sums fit 16 bits, so the low halves times the scales, the high ones times 0, are the whole product; faster
    // than i32x4.mul, which is two slow operations on many processors.
    v128_t low = wasm_u32x4_extend_low_u16x8(scales), high = wasm_u32x4_extend_high_u16x8(scales);
    for (uint32_t i = 0; i < 10; i++) {
      c[i] = wasm_i32x4_add(c[i], wasm_i32x4_dot_i16x8(s[i], i < 4 || i == 8 ? low : high));
    }
  } else {
    v128_t low = TWICE_LOW(scales), high = TWICE_HIGH(scales);
    for (uint32_t i = 0; i < 10; i++) {
      c[i] = wasm_i32x4_add(c[i], wasm_i32x4_dot_i16x8(s[i], i < 4 || i == 8 ? low : high));
    }
  }
#else
  (void)kernel;
  v128_t s[10];
  tile_plain(a, b, 8, s);
  v128_t scales = wasm_v128_load(w);
  v128_t low = wasm_i32x4_extend_low_i16x8(scales), high = wasm_i32x4_extend_high_i16x8(scales);
  for (uint32_t r = 0; r < ROWS; r++) {
    v128_t preset = wasm_i32x4_splat(presets[2 * r] + presets[2 * r + 1]);
    c[2 * r] = wasm_i32x4_add(c[2 * r], wasm_i32x4_mul(wasm_i32x4_add(s[2 * r], preset), low));
    c[2 * r + 1] = wasm_i32x4_add(c[2 * r + 1], wasm_i32x4_mul(wasm_i32x4_add(s[2 * r + 1], preset), high));
  }
#endif
}

INLINE void tile_int4(const int8_t *a, const int16_t *presets, const int8_t *panel, const int8_t *w, uint32_t groups,
                      uint32_t kernel, v128_t y[10]) {
  v128_t sums[20] = {0}, c[10] = {0};
  for (uint32_t g = 0; g < groups; g++) {
    group_int4(a + 8 * STEP_ROWS * g, presets + 2 * ROWS * g, panel + 8 * STEP * g, w + GROUP_BYTES * g, kernel, c);
    if (g % GROUPS == GROUPS - 1) gather(sums, c, 10);
  }
  gather(sums, c, 10);
  for (uint32_t i = 0; i < 10; i++) c[i] = narrow_f64(sums[2 * i], sums[2 * i + 1]);
#ifdef __wasm_relaxed_simd__
  straighten(c, y);
#else
  for (uint32_t i = 0; i < 10; i++) y[i] = c[i];
#endif
}

// out [rows, n] = a · Wᵀ; a and presets in tiles of 5 rows, as quantize8 leaves them with a step of 20. Each panel is
// unpacked once, to bytes in `panel` (8 · padded of them), for all rows.
EXPORT(gemm_int4)
void gemm_int4(const int8_t *a, const int16_t *presets, const float *scales, const int8_t *w, const float *w_scale,
               int8_t *panel, uint32_t rows, uint32_t padded, uint32_t n, float *out, uint32_t out_stride,
               const float *bias, const float *residual, uint32_t residual_stride, uint32_t mode, uint32_t kernel) {
  const Finish f = {out, out_stride, bias, residual, residual_stride, mode};
  uint32_t groups = padded / 32;
  for (uint32_t col = 0; col < n; col += 8, w += GROUP_BYTES * groups) {
    uint32_t cols = n - col < 8 ? n - col : 8;
    int8_t *to = panel;
    for (uint32_t g = 0; g < groups; g++) {
      const int8_t *from = w + GROUP_BYTES * g + 16;
      for (uint32_t i = 0; i < 8; i++, from += 16, to += STEP) {
        v128_t v = wasm_v128_load(from);
        wasm_v128_store(to, low_nibbles(v));
        wasm_v128_store(to + 16, high_nibbles(v));
      }
    }
    for (uint32_t row = 0; row < rows; row += ROWS) {
      v128_t y[10];
      const int8_t *tile = a + (uint64_t)row * padded;
      const int16_t *preset = presets + (uint64_t)row * groups * 2;
      if (kernel == VNNI) tile_int4(tile, preset, panel, w, groups, VNNI, y);
      else tile_int4(tile, preset, panel, w, groups, 8, y);
      for (uint32_t r = 0; r < ROWS && row + r < rows; r++) {
        finish_int4(&f, w_scale, row + r, col, cols, scales[row + r], y[2 * r], y[2 * r + 1]);
      }
    }
    if (mode & GELU) activate(&f, rows, col, cols);
  }
}

// out [1, n] = x · Wᵀ; x and presets as quantize8 leaves them with a step of 4. One stream of weights.
EXPORT(gemv_int4)
void gemv_int4(const int8_t *x, const int16_t *presets, const float *scale, const int8_t *w, const float *w_scale,
               uint32_t padded, uint32_t n, float *out, const float *bias, const float *residual, uint32_t mode) {
  const Finish f = {out, 0, bias, residual, 0, mode};
  uint32_t groups = padded / 32;
  for (uint32_t col = 0; col < n; col += 8) {
    v128_t sums[4] = {0}, c[2] = {0};
    for (uint32_t g = 0; g < groups;) {
      uint32_t end = groups - g < GROUPS ? groups : g + GROUPS;
      v128_t c0 = wasm_i32x4_const_splat(0), c1 = c0;
      for (; g < end; g++, w += GROUP_BYTES) {
        KEEP(w);
        v128_t scales = wasm_v128_load(w);
#ifdef __wasm_relaxed_simd__
        v128_t s0 = wasm_v128_load32_splat(presets + 2 * g), s1 = s0;
        v128_t xa = wasm_v128_load(x + 32 * g), xb = wasm_v128_load(x + 32 * g + 16);
#define FOUR(i, from, lane)                                                  \
  {                                                                          \
    v128_t v = wasm_v128_load(w + 16 + 16 * (i));                            \
    v128_t four = LANES(from, from, lane, lane, lane, lane);                 \
    s0 = wasm_i16x8_add(s0, DOT16(four, low_nibbles(v)));                    \
    s1 = wasm_i16x8_add(s1, DOT16(four, high_nibbles(v)));                   \
  }
        FOUR(0, xa, 0) FOUR(1, xa, 1) FOUR(2, xa, 2) FOUR(3, xa, 3)
        FOUR(4, xb, 0) FOUR(5, xb, 1) FOUR(6, xb, 2) FOUR(7, xb, 3)
#undef FOUR
        c0 = wasm_i32x4_add(c0, wasm_i32x4_dot_i16x8(s0, TWICE_LOW(scales)));
        c1 = wasm_i32x4_add(c1, wasm_i32x4_dot_i16x8(s1, TWICE_HIGH(scales)));
#else
        // One k of four a lane: eight products of at most 15 · 127 fit 16 bits.
        v128_t zero = wasm_i16x8_const_splat(0), s0 = zero, s1 = zero, s2 = zero, s3 = zero;
        for (uint32_t i = 0; i < 8; i++) {
          v128_t v = wasm_v128_load(w + 16 + 16 * i);
          v128_t low = low_nibbles(v), high = high_nibbles(v);
          v128_t four = wasm_i16x8_extend_low_i8x16(wasm_v128_load32_splat(x + 32 * g + 4 * i));
          s0 = wasm_i16x8_add(s0, wasm_i16x8_mul(four, wasm_i16x8_extend_low_i8x16(low)));
          s1 = wasm_i16x8_add(s1, wasm_i16x8_mul(four, wasm_i16x8_extend_high_i8x16(low)));
          s2 = wasm_i16x8_add(s2, wasm_i16x8_mul(four, wasm_i16x8_extend_low_i8x16(high)));
          s3 = wasm_i16x8_add(s3, wasm_i16x8_mul(four, wasm_i16x8_extend_high_i8x16(high)));
        }
        // The presets split by pairs of k, the lanes by single k: the preset goes into the first lane of each pair.
        v128_t p = wasm_u32x4_load16x4(presets + 2 * g);
        p = LANES(p, p, 0, 1, 0, 1);
        s0 = wasm_i16x8_add(s0, p);
        s1 = wasm_i16x8_add(s1, p);
        s2 = wasm_i16x8_add(s2, p);
        s3 = wasm_i16x8_add(s3, p);
#define SCALED(s, i, j) wasm_i32x4_dot_i16x8(s, wasm_i16x8_shuffle(scales, scales, i, i, i, i, j, j, j, j))
        v128_t d0 = SCALED(s0, 0, 1), d1 = SCALED(s1, 2, 3), d2 = SCALED(s2, 4, 5), d3 = SCALED(s3, 6, 7);
#undef SCALED
        c0 = wasm_i32x4_add(c0, wasm_i32x4_add(LANES(d0, d1, 0, 2, 4, 6), LANES(d0, d1, 1, 3, 5, 7)));
        c1 = wasm_i32x4_add(c1, wasm_i32x4_add(LANES(d2, d3, 0, 2, 4, 6), LANES(d2, d3, 1, 3, 5, 7)));
#endif
      }
      c[0] = c0, c[1] = c1;
      gather(sums, c, 2);
    }
    finish_int4(&f, w_scale, 0, col, n - col < 8 ? n - col : 8, *scale, narrow_f64(sums[0], sums[1]),
                narrow_f64(sums[2], sums[3]));
  }
  if (mode & GELU) activate(&f, 1, 0, n);
}

// out [count, k]: rows ids[i] of the table, times scale.
EXPORT(embed_int4)
void embed_int4(float *out, uint32_t out_stride, const uint32_t *ids, uint32_t count, const uint8_t *w,
                const float *w_scale, uint32_t k, uint32_t padded, float scale) {
  for (uint32_t t = 0; t < count; t++, out += out_stride) {
    uint32_t n = ids[t];
    const uint8_t *from = w + (uint64_t)(n / 8) * (padded / 32) * GROUP_BYTES;
    float step = w_scale[n] * scale;
    for (uint32_t i = 0; i < k; i++) {
      const uint8_t *group = from + i / 32 * GROUP_BYTES;
      uint8_t byte = group[16 + i % 32 / 4 * 16 + n % 4 * 4 + i % 4];
      int32_t value = (n & 4 ? byte >> 4 : byte & 15) - 8;
      out[i] = value * ((const int16_t *)group)[n % 8] * step;
    }
  }
}
