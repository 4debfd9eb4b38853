// Matrix-vector products of one row with integer weights: a token waits for its weights to come from memory.
//
// Four panels are read together, a quarter of the matrix apart: a processor reads ahead in each stream by itself, and one
// stream alone leaves memory idle (int4 weights 24 GB/s in one stream, 29 in two, 31 in four, 29 in six, 26 in eight, of 36
// that a loop of nothing but reads gets; EPYC of family 26, model 2). Then come the panels that four do not divide, one by one.
//
// Scales of columns and places in `out` come from memory too, and those of one panel alone would keep all weights waiting
// (20 GB/s instead of 26, in eight streams): sums wait until each stream has BLOCK panels of them.
//
// The loop bodies are long and straight. wasm/build.ts compiles this file so that they keep their order.
#include "dots.h"

enum { STREAMS = 4, BLOCK = 32 };

// A row, and panels `apart` bytes from one another. Their sums go to y[2 * stream + half].
typedef struct {
  const int8_t *x;
  const int16_t *presets;  // int4
  const int8_t *w;
  uint32_t apart, padded;
  v128_t mask;             // int4: of a nibble in every byte, in a register for the whole product
} Row;

#ifdef __wasm_relaxed_simd__

// Four steps of each of `streams` panels with int8 weights, added to y; the panels go on.
INLINE void steps_int8_row(const int8_t *x, const int8_t *w[STREAMS], uint32_t kernel, uint32_t streams,
                           v128_t y[2 * STREAMS]) {
  v128_t words[2 * STREAMS];
  for (uint32_t i = 0; i < 4; i++) {
    v128_t four = wasm_v128_load32_splat(x + 4 * i);
    for (uint32_t p = 0; p < 2 * streams; p++) {
      v128_t v = wasm_v128_load(w[p / 2] + STEP * i + p % 2 * 16);
      if (kernel == VNNI) y[p] = DOT32(v, four, y[p]);
      else if (kernel == 1) y[p] = wasm_i32x4_add(y[p], wasm_i32x4_extadd_pairwise_i16x8(DOT16(v, four)));
      else words[p] = i ? wasm_i16x8_add(words[p], DOT16(v, four)) : DOT16(v, four);
    }
  }
  for (uint32_t p = 0; p < 2 * streams; p++) {
    if (kernel > 1) y[p] = wasm_i32x4_add(y[p], wasm_i32x4_extadd_pairwise_i16x8(words[p]));
    if (p % 2) w[p / 2] += 4 * STEP;
  }
  for (uint32_t p = 0; p < streams; p++) KEEP(w[p]);
}

INLINE void panels_int8(const Row *row, uint32_t kernel, uint32_t streams, v128_t y[]) {
  const int8_t *x = row->x, *w[STREAMS];
  v128_t c[2 * STREAMS];
  for (uint32_t p = 0; p < streams; p++) w[p] = row->w + p * row->apart;
  for (uint32_t i = 0; i < 2 * streams; i++) c[i] = wasm_i32x4_const_splat(0);
  for (uint32_t steps = row->padded / 16; steps; steps--, x += 16) {
    steps_int8_row(x, w, kernel, streams, c);
  }
  for (uint32_t i = 0; i < 2 * streams; i++) y[i] = c[i];
}

// What a group's sums begin with: -8 times the activations of a lane, and where that is so 16 times as much, for columns
// 4 … 7, and 17 times, for both.
typedef struct {
  v128_t one, sixteen, both;
} Presets;

// A group of each of `streams` panels with int4 weights, added to c; the panels go on to the next. Where the operand of
// nibbles may be of all eight bits, a byte is multiplied as it is, and its upper nibble times 16: the lower one's share is
// the difference, and neither has to be moved.
INLINE void group_int4_row(const int8_t *x, const Presets *preset, v128_t mask, const int8_t *w[STREAMS], uint32_t head,
                           uint32_t kernel, uint32_t streams, v128_t c[2 * STREAMS]) {
  v128_t s[2 * STREAMS];
  for (uint32_t i = 0; i < 2 * streams; i++) s[i] = kernel != UNSIGNED ? preset->one : i % 2 ? preset->sixteen : preset->both;
#pragma clang loop unroll(full)
  for (uint32_t i = 0; i < 8; i++) {
    v128_t four = wasm_v128_load32_splat(x + 4 * i);
    for (uint32_t p = 0; p < streams; p++) {
      v128_t v = wasm_v128_load(w[p] + head + 16 * i), high = wasm_v128_and(v, mask);
      if (kernel == UNSIGNED) {
        s[2 * p] = DOT32(four, v, s[2 * p]);
        s[2 * p + 1] = DOT32(four, high, s[2 * p + 1]);
        continue;
      }
      v128_t low = high;
      high = wasm_v128_and(wasm_u16x8_shr(v, 4), mask);
      if (kernel == VNNI) {
        s[2 * p] = DOT32(four, low, s[2 * p]);
        s[2 * p + 1] = DOT32(four, high, s[2 * p + 1]);
      } else {
        s[2 * p] = wasm_i16x8_add(s[2 * p], DOT16(four, low));
        s[2 * p + 1] = wasm_i16x8_add(s[2 * p + 1], DOT16(four, high));
      }
    }
  }
  for (uint32_t p = 0; p < streams; p++) {
    v128_t scales = scales_of(w[p], head);
    if (kernel == UNSIGNED) {
      s[2 * p] = wasm_i32x4_sub(s[2 * p], s[2 * p + 1]);
      s[2 * p + 1] = wasm_i32x4_shr(s[2 * p + 1], 4);
    }
    // Sums in 32 bits fit 16: the low halves times the scales, the high ones times 0, are the whole product.
    v128_t low = kernel == 8 ? TWICE_LOW(scales) : wasm_u32x4_extend_low_u16x8(scales);
    v128_t high = kernel == 8 ? TWICE_HIGH(scales) : wasm_u32x4_extend_high_u16x8(scales);
    c[2 * p] = wasm_i32x4_add(c[2 * p], wasm_i32x4_dot_i16x8(s[2 * p], low));
    c[2 * p + 1] = wasm_i32x4_add(c[2 * p + 1], wasm_i32x4_dot_i16x8(s[2 * p + 1], high));
    w[p] += GROUP_BYTES(head);
    KEEP(w[p]);
  }
}

// Groups with int4 weights; to floats.
INLINE void panels_int4(const Row *row, uint32_t head, uint32_t kernel, uint32_t streams, v128_t y[]) {
  const int8_t *x = row->x, *w[STREAMS];
  const int16_t *presets = row->presets;
  v128_t sums[4 * STREAMS] = {0}, mask = row->mask;
  for (uint32_t p = 0; p < streams; p++) w[p] = row->w + p * row->apart;
  for (uint32_t left = row->padded / 32; left;) {
    uint32_t now = left < GROUPS ? left : GROUPS;
    left -= now;
    v128_t c[2 * STREAMS];
    for (uint32_t i = 0; i < 2 * streams; i++) c[i] = wasm_i32x4_const_splat(0);
    for (; now; now--, x += 32, presets += 2) {
      Presets preset = {.one = wasm_v128_load32_splat(presets)};
      if (kernel != 8) preset.one = wasm_i32x4_extadd_pairwise_i16x8(preset.one);
      preset.sixteen = wasm_i32x4_shl(preset.one, 4);
      preset.both = wasm_i32x4_add(preset.one, preset.sixteen);
      group_int4_row(x, &preset, mask, w, head, kernel, streams, c);
    }
    gather(sums, c, 2 * streams);
  }
  for (uint32_t i = 0; i < 2 * streams; i++) y[i] = narrow_f64(sums[2 * i], sums[2 * i + 1]);
}

#else

// Two sums of pairs of k, columns 0, 1 and columns 2, 3, to columns 0 … 3.
#define JOIN(x, y) wasm_i32x4_add(LANES(x, y, 0, 2, 4, 6), LANES(x, y, 1, 3, 5, 7))

INLINE void panels_int8(const Row *row, uint32_t kernel, uint32_t streams, v128_t y[]) {
  (void)kernel;
  for (uint32_t p = 0; p < streams; p++) {
    const int8_t *w = row->w + p * row->apart;
    v128_t zero = wasm_i32x4_const_splat(0), c0 = zero, c1 = zero, c2 = zero, c3 = zero;
    for (uint32_t i = 0; i < row->padded; i += 4, w += STEP) {
      KEEP(w);
      v128_t v = wasm_i16x8_extend_low_i8x16(wasm_v128_load32_splat(row->x + i));
      c0 = wasm_i32x4_add(c0, wasm_i32x4_dot_i16x8(wasm_i16x8_load8x8(w), v));
      c1 = wasm_i32x4_add(c1, wasm_i32x4_dot_i16x8(wasm_i16x8_load8x8(w + 8), v));
      c2 = wasm_i32x4_add(c2, wasm_i32x4_dot_i16x8(wasm_i16x8_load8x8(w + 16), v));
      c3 = wasm_i32x4_add(c3, wasm_i32x4_dot_i16x8(wasm_i16x8_load8x8(w + 24), v));
    }
    y[2 * p] = JOIN(c0, c1);
    y[2 * p + 1] = JOIN(c2, c3);
  }
}

INLINE void panels_int4(const Row *row, uint32_t head, uint32_t kernel, uint32_t streams, v128_t y[]) {
  (void)kernel;
  for (uint32_t p = 0; p < streams; p++) {
    const int8_t *w = row->w + p * row->apart;
    v128_t sums[4] = {0}, c[2] = {0};
    for (uint32_t g = 0; g < row->padded / 32; g++, w += GROUP_BYTES(head)) {
      KEEP(w);
      v128_t scales = scales_of(w, head);
      // One k of four a lane: eight products of at most 15 · 127 fit 16 bits.
      v128_t zero = wasm_i16x8_const_splat(0), s0 = zero, s1 = zero, s2 = zero, s3 = zero;
      for (uint32_t i = 0; i < 8; i++) {
        v128_t v = wasm_v128_load(w + head + 16 * i);
        v128_t low = wasm_v128_and(v, row->mask), high = wasm_v128_and(wasm_u16x8_shr(v, 4), row->mask);
        v128_t four = wasm_i16x8_extend_low_i8x16(wasm_v128_load32_splat(row->x + 32 * g + 4 * i));
        s0 = wasm_i16x8_add(s0, wasm_i16x8_mul(four, wasm_i16x8_extend_low_i8x16(low)));
        s1 = wasm_i16x8_add(s1, wasm_i16x8_mul(four, wasm_i16x8_extend_high_i8x16(low)));
        s2 = wasm_i16x8_add(s2, wasm_i16x8_mul(four, wasm_i16x8_extend_low_i8x16(high)));
        s3 = wasm_i16x8_add(s3, wasm_i16x8_mul(four, wasm_i16x8_extend_high_i8x16(high)));
      }
      // The presets split by pairs of k, the lanes by single k: the preset goes into the first lane of each pair.
      v128_t preset = wasm_u32x4_load16x4(row->presets + 2 * g);
      preset = LANES(preset, preset, 0, 1, 0, 1);
      s0 = wasm_i16x8_add(s0, preset);
      s1 = wasm_i16x8_add(s1, preset);
      s2 = wasm_i16x8_add(s2, preset);
      s3 = wasm_i16x8_add(s3, preset);
#define SCALED(s, i, j) wasm_i32x4_dot_i16x8(s, wasm_i16x8_shuffle(scales, scales, i, i, i, i, j, j, j, j))
      v128_t d0 = SCALED(s0, 0, 1), d1 = SCALED(s1, 2, 3), d2 = SCALED(s2, 4, 5), d3 = SCALED(s3, 6, 7);
#undef SCALED
      c[0] = wasm_i32x4_add(c[0], JOIN(d0, d1));
      c[1] = wasm_i32x4_add(c[1], JOIN(d2, d3));
      if (g % GROUPS == GROUPS - 1) gather(sums, c, 2);
    }
    gather(sums, c, 2);
    y[2 * p] = narrow_f64(sums[0], sums[1]);
    y[2 * p + 1] = narrow_f64(sums[2], sums[3]);
  }
}

#endif

// What turns the sums into floats.
typedef struct {
  v128_t zero, scale;     // of the row; zero: int8
  const float *w_scale;
  const int32_t *w_sums;  // int8
} Descale;

// Columns [col, col + 8), as far as they are below n.
INLINE void end_int8(const Finish *f, const Descale *d, uint32_t col, uint32_t n, const v128_t y[2]) {
  const float *scale = d->w_scale + col;
  const int32_t *sums = d->w_sums + col;
  v128_t low = descale_int8(y[0], d->zero, wasm_v128_load(sums), d->scale, wasm_v128_load(scale));
  v128_t high = descale_int8(y[1], d->zero, wasm_v128_load(sums + 4), d->scale, wasm_v128_load(scale + 4));
  finish8(f, col, n, low, high);
}

INLINE void end_int4(const Finish *f, const Descale *d, uint32_t col, uint32_t n, const v128_t y[2]) {
  const float *scale = d->w_scale + col;
  v128_t low = wasm_f32x4_mul(wasm_f32x4_mul(y[0], d->scale), wasm_v128_load(scale));
  v128_t high = wasm_f32x4_mul(wasm_f32x4_mul(y[1], d->scale), wasm_v128_load(scale + 4));
  finish8(f, col, n, low, high);
}

INLINE void sums_int8(const Row *row, uint32_t kernel, uint32_t streams, v128_t y[]) {
  if (kernel == VNNI) panels_int8(row, VNNI, streams, y);
  else if (kernel == 1) panels_int8(row, 1, streams, y);
  else panels_int8(row, 4, streams, y);
}

INLINE void sums_int4(const Row *row, uint32_t head, uint32_t kernel, uint32_t streams, v128_t y[]) {
  if (kernel == UNSIGNED) panels_int4(row, head, UNSIGNED, streams, y);
  else if (kernel == VNNI) panels_int4(row, head, VNNI, streams, y);
  else panels_int4(row, head, 8, streams, y);
}

// out [1, n] = x · Wᵀ; x as quantize7 leaves it, alone.
EXPORT(gemv_int8)
void gemv_int8(const int8_t *x, const int32_t *zero, const float *scale, const int8_t *w, const float *w_scale,
               const int32_t *w_sums, uint32_t padded, uint32_t n, float *out, const float *bias,
               const float *residual, uint32_t mode, uint32_t kernel) {
  const Finish f = {out, 0, bias, residual, 0, mode};
  uint32_t each = n / 8 / STREAMS, bytes = 8 * padded;
  Row row = {x, 0, w, each * bytes, padded, wasm_i8x16_const_splat(0)};
  Descale d = {wasm_v128_load32_splat(zero), wasm_v128_load32_splat(scale), w_scale, w_sums};
  v128_t y[BLOCK][2 * STREAMS];
  for (uint32_t at = 0; at < each; at += BLOCK) {
    uint32_t now = each - at < BLOCK ? each - at : BLOCK;
    for (uint32_t i = 0; i < now; i++, row.w += bytes) sums_int8(&row, kernel, STREAMS, y[i]);
    for (uint32_t p = 0; p < STREAMS; p++) {
      for (uint32_t i = 0; i < now; i++) end_int8(&f, &d, 8 * (p * each + at + i), n, y[i] + 2 * p);
    }
  }
  row.w = w + STREAMS * each * bytes;
  for (uint32_t at = STREAMS * each; 8 * at < n; at++, row.w += bytes) {
    sums_int8(&row, kernel, 1, y[0]);
    end_int8(&f, &d, 8 * at, n, y[0]);
  }
}

INLINE void row_int4(const int8_t *x, const int16_t *presets, const float *scale, const int8_t *w, const float *w_scale,
                     uint32_t padded, uint32_t n, const Finish *f, uint32_t kernel, uint32_t head) {
  uint32_t each = n / 8 / STREAMS, bytes = GROUP_BYTES(head) * (padded / 32);
  v128_t mask = wasm_v128_load(!WORDS && kernel == UNSIGNED ? HIGH_NIBBLE : LOW_NIBBLE);
  Row row = {x, presets, w, each * bytes, padded, mask};
  Descale d = {mask, wasm_v128_load32_splat(scale), w_scale, 0};
  v128_t y[BLOCK][2 * STREAMS];
  for (uint32_t at = 0; at < each; at += BLOCK) {
    uint32_t now = each - at < BLOCK ? each - at : BLOCK;
    for (uint32_t i = 0; i < now; i++, row.w += bytes) sums_int4(&row, head, kernel, STREAMS, y[i]);
    for (uint32_t p = 0; p < STREAMS; p++) {
      for (uint32_t i = 0; i < now; i++) end_int4(f, &d, 8 * (p * each + at + i), n, y[i] + 2 * p);
    }
  }
  row.w = w + STREAMS * each * bytes;
  for (uint32_t at = STREAMS * each; 8 * at < n; at++, row.w += bytes) {
    sums_int4(&row, head, kernel, 1, y[0]);
    end_int4(f, &d, 8 * at, n, y[0]);
  }
}

// out [1, n] = x · Wᵀ; x and presets as quantize8 leaves them, alone. A function for each head: how far apart weights are is
// known when a loop over them is compiled, and both in one function took 1.02 times as long for a token's weights.
#define GEMV_INT4(name, head)                                                                                       \
  EXPORT(name)                                                                                                      \
  void name(const int8_t *x, const int16_t *presets, const float *scale, const int8_t *w, const float *w_scale,     \
            uint32_t padded, uint32_t n, float *out, const float *bias, const float *residual, uint32_t mode,       \
            uint32_t kernel) {                                                                                      \
    const Finish f = {out, 0, bias, residual, 0, mode};                                                             \
    row_int4(x, presets, scale, w, w_scale, padded, n, &f, kernel, head);                                           \
  }
GEMV_INT4(gemv_int4, NARROW)
GEMV_INT4(gemv_int4_wide, WIDE)
