// Products with int4 weights, scheme int4-g32-p8.
//
// Activations are rounded row by row to -127…127. A group of 32 is summed in 16 bits: 16 products a lane, at most
// 15 · 127 · 16 = 30,480. Nibbles stand 8 too high; the sums start at -8 times the activations of the lane (`presets`)
// instead, and 16-bit addition wraps, so only the end must fit. Times the group's scale the sums go to 32 bits. In the
// plain build, whose products are of words, the scales go into the weights.
#include "dots.h"

#ifdef __wasm_relaxed_simd__
#define ADD_DOT(w, x, sum) \
  (kernel == VNNI ? DOT32(x, w, sum) : wasm_i16x8_add(sum, DOT16(x, w)))

// Adds a group's eight steps, written out: a loop of eight ends before the processor has seen it begin. Sums in 16
// bits wrap, so only the final ones need to fit.
INLINE void steps_int4(const int8_t *a, const int8_t *b, uint32_t kernel, v128_t c[10]) {
#pragma clang loop unroll(full)
  for (uint32_t i = 0; i < 8; i++) {
    v128_t b0 = wasm_v128_load(b), b1 = wasm_v128_load(b + 16), va = wasm_v128_load(a);
    for (uint32_t r = 0; r < 4; r++) {
      if (r) va = ROTATE(va, 1);
      c[r] = ADD_DOT(b0, va, c[r]);
      c[r + 4] = ADD_DOT(b1, va, c[r + 4]);
    }
    va = wasm_v128_load32_splat(a + 16);
    c[8] = ADD_DOT(b0, va, c[8]);
    c[9] = ADD_DOT(b1, va, c[9]);
    a += STEP_ROWS;
    b += STEP;
    KEEP(a);
    KEEP(b);
  }
}
#endif

#ifdef __wasm_relaxed_simd__
// One group of a tile: c += sums · scales, both as `straighten` takes them.
INLINE void group_int4(const int8_t *a, const int16_t *presets, const int8_t *b, const int8_t *w, uint32_t head,
                       uint32_t kernel, v128_t c[10]) {
  v128_t p = wasm_v128_load(presets), fifth = wasm_v128_load32_splat(presets + 8);
  if (kernel == VNNI) {
    p = wasm_i32x4_extadd_pairwise_i16x8(p);
    fifth = wasm_i32x4_extadd_pairwise_i16x8(fifth);
  }
  v128_t p1 = ROTATE(p, 1), p2 = ROTATE(p, 2), p3 = ROTATE(p, 3);
  v128_t s[10] = {p, p1, p2, p3, p, p1, p2, p3, fifth, fifth};
  if (kernel == VNNI) steps_int4(a, b, VNNI, s);
  else steps_int4(a, b, 8, s);
  KEEP(w);  // loaded before the loop, the scales would cost it a register
  v128_t scales = scales_of(w, head);
  // With dot-add the sums fit 16 bits, so the low halves times the scales, the high ones times 0, are the whole product;
  // faster than i32x4.mul, which is two slow operations on many processors.
  v128_t low = kernel == VNNI ? wasm_u32x4_extend_low_u16x8(scales) : TWICE_LOW(scales);
  v128_t high = kernel == VNNI ? wasm_u32x4_extend_high_u16x8(scales) : TWICE_HIGH(scales);
  for (uint32_t i = 0; i < 10; i++) {
    c[i] = wasm_i32x4_add(c[i], wasm_i32x4_dot_i16x8(s[i], i < 4 || i == 8 ? low : high));
  }
}
#endif

// Where tiles are of words a group is a chunk, and with `copies` those from `row` and `from` on are multiplied.
INLINE void tile_int4(const int8_t *a, const int16_t *presets, const int8_t *panel, const int8_t *w, uint32_t head,
                      uint32_t groups, uint32_t copies, uint32_t row, uint32_t from, uint32_t kernel, v128_t y[10]) {
  v128_t sums[20] = {0}, c[2 * TALL] = {0};
  // Two loops, so that the inner one does not carry the sums.
  while (groups) {
    uint32_t now = groups < GROUPS ? groups : GROUPS;
    groups -= now;
#ifdef __wasm_relaxed_simd__
    (void)row, (void)from;
    for (; now; now--, presets += 2 * ROWS, w += GROUP_BYTES(head), a += 8 * STEP_ROWS, panel += 8 * STEP) {
      group_int4(a, presets, panel, w, head, kernel, c);
    }
#else
    (void)presets, (void)w, (void)head, (void)kernel;
    if (copies) tile_copied(row, from, CHUNK * now, c);
    else tile_words(a, panel, CHUNK * now, c);
    a += CHUNK * STEP_ROWS * now, panel += CHUNK * STEP * now, row += now, from += now;
#endif
    gather(sums, c, 10);
  }
  for (uint32_t i = 0; i < 10; i++) c[i] = narrow_f64(sums[2 * i], sums[2 * i + 1]);
  if (!WORDS || copies) straighten(c, y, ROWS);
  else for (uint32_t i = 0; i < 10; i++) y[i] = c[i];
}

// A tile of twins by a panel, to its half of a block.
INLINE void block_twins(float *y, const int8_t *tile, const int8_t *panel, uint32_t groups) {
#ifdef __wasm_relaxed_simd__
  int4_twin12(tile, panel, groups, y);
#else
  (void)y, (void)tile, (void)panel, (void)groups;
#endif
}

// Groups of panels to where tiles are multiplied with them: nibbles, each group's followed by its scales where tiles are of
// twins; or where tiles are of words, weights times their scales, ±8 · 1023.
INLINE void unpack(int8_t *to, const int8_t *w, uint32_t head, uint32_t groups, uint32_t twins) {
  v128_t eight = wasm_i8x16_const_splat(WORDS ? 8 : 0);
  for (; groups; groups--, w += head) {
    v128_t scales = scales_of(w, head), low = TWICE_LOW(scales), high = TWICE_HIGH(scales);
    for (uint32_t i = 0; i < 8; i++, w += 16) {
      v128_t v = wasm_v128_load(w + head);
      to = place_step(to, wasm_i8x16_sub(NIBBLES_LOW(v), eight), wasm_i8x16_sub(NIBBLES_HIGH(v), eight));
      for (int8_t *at = to - 2 * STEP; WORDS && at < to; at += STEP) {
        wasm_v128_store(at, wasm_i16x8_mul(wasm_v128_load(at), low));
        wasm_v128_store(at + 16, wasm_i16x8_mul(wasm_v128_load(at + 16), high));
      }
    }
    if (twins) {
      wasm_v128_store(to, low);
      wasm_v128_store(to + 16, high);
      to += STEP;
    }
  }
}

// Sums of `count` rows and a panel times their scales, in place.
INLINE void descale_block(float *y, uint32_t count, const float *scales, const float *w_scale) {
  v128_t low = wasm_v128_load(w_scale), high = wasm_v128_load(w_scale + 4);
  for (uint32_t r = 0; r < count; r++, y += PAIR) {
    v128_t scale = wasm_v128_load32_splat(scales + r);
    wasm_v128_store(y, wasm_f32x4_mul(wasm_f32x4_mul(wasm_v128_load(y), scale), low));
    wasm_v128_store(y + 4, wasm_f32x4_mul(wasm_f32x4_mul(wasm_v128_load(y + 4), scale), high));
  }
}

// Groups as files have them: where all scales are bytes, they become bytes, in place. Returns what a group's scales take then.
EXPORT(narrow_int4)
uint32_t narrow_int4(int8_t *w, uint32_t groups) {
  v128_t over = wasm_i16x8_const_splat(0);
  for (uint32_t g = 0; g < groups; g++) {
    v128_t scales = wasm_v128_load(w + (uint64_t)g * GROUP_BYTES(WIDE));
    over = wasm_v128_or(over, wasm_u16x8_gt(wasm_i16x8_abs(scales), wasm_i16x8_const_splat(127)));
  }
  if (wasm_v128_any_true(over)) return WIDE;
  const int8_t *from = w;
  for (int8_t *to = w; groups; groups--, to += GROUP_BYTES(NARROW), from += GROUP_BYTES(WIDE)) {
    v128_t scales = wasm_v128_load(from);
    wasm_v128_store64_lane(to, wasm_i8x16_narrow_i16x8(scales, scales), 0);
    for (uint32_t i = 0; i < 8; i++) wasm_v128_store(to + NARROW + 16 * i, wasm_v128_load(from + WIDE + 16 * i));
  }
  return NARROW;
}

// out [rows, n] = a · Wᵀ; a and presets in tiles of 5 rows, or a of 12, as quantize8 leaves them. Each panel is unpacked once
// for all rows: `room` holds two of them, 16 · padded bytes, or twice as many where tiles are of words, or 18 of twins.
EXPORT(gemm_int4)
void gemm_int4(const int8_t *a, const int16_t *presets, const float *scales, const int8_t *w, const float *w_scale,
               int8_t *room, uint32_t key, uint32_t rows, uint32_t padded, uint32_t n, float *out, uint32_t out_stride,
               const float *bias, const float *residual, uint32_t residual_stride, uint32_t mode, uint32_t kernel,
               uint32_t head) {
  const Finish f = {out, out_stride, bias, residual, residual_stride, mode};
  uint32_t groups = padded / 32, copies = WORDS && copied(rows, kernel), tall = rows_of(kernel & TWIN ? TWIN : 1);
  if (copies) copy_rows(0, a, (rows + ROWS - 1) / ROWS, CHUNK * groups, kernel, key);
  for (uint32_t col = 0; col < n; col += PAIR, w += 2 * GROUP_BYTES(head) * groups) {
    uint32_t cols = n - col < PAIR ? n - col : PAIR;
    unpack(room, w, head, (cols + 7) / 8 * groups, kernel & TWIN);
    if (copies) stage_panels(0, room, (cols + 7) / 8, CHUNK * groups, 0, 0);
    for (uint32_t row = 0; row < rows; row += tall) {
      float y[PAIR * TWIN_ROWS];
      uint32_t count = rows - row < tall ? rows - row : tall;
      for (uint32_t half = 0; half < cols; half += 8) {
        if (kernel & TWIN) {
          block_twins(y + half, a + (uint64_t)row * 4 * TWIN_STEPS * groups,
                      room + half / 8 * TWIN_STEPS * STEP * groups, groups);
        } else {
          v128_t sums[10];
          const int8_t *panel = room + (half * padded << WORDS), *from = w + half / 8 * GROUP_BYTES(head) * groups;
          const int8_t *tile = a + ((uint64_t)row * padded << WORDS);
          const int16_t *preset = presets + (uint64_t)row * groups * 2;
          uint32_t at = row / ROWS * groups, other = half / 8 * groups;
          if (kernel == VNNI) tile_int4(tile, preset, panel, from, head, groups, copies, at, other, VNNI, sums);
          else tile_int4(tile, preset, panel, from, head, groups, copies, at, other, 8, sums);
          keep_tile(y + half, sums, ROWS);
        }
        descale_block(y + half, count, scales + row, w_scale + col + half);
      }
      finish(&f, row, count, col, cols, y);
    }
  }
}

// out [count, k]: rows ids[i] of the table, times scale.
EXPORT(embed_int4)
void embed_int4(float *out, uint32_t out_stride, const uint32_t *ids, uint32_t count, const uint8_t *w,
                const float *w_scale, uint32_t k, uint32_t padded, float scale, uint32_t head) {
  for (uint32_t t = 0; t < count; t++, out += out_stride) {
    uint32_t n = ids[t];
    const uint8_t *from = w + (uint64_t)(n / 8) * (padded / 32) * GROUP_BYTES(head);
    float step = w_scale[n] * scale;
    for (uint32_t i = 0; i < k; i++) {
      const uint8_t *group = from + i / 32 * GROUP_BYTES(head);
      uint8_t byte = group[head + i % 32 / 4 * 16 + n % 4 * 4 + i % 4];
      int32_t value = (n & 4 ? byte >> 4 : byte & 15) - 8;
      int32_t times = head == WIDE ? ((const int16_t *)group)[n % 8] : ((const int8_t *)group)[n % 8];
      out[i] = value * times * step;
    }
  }
}
