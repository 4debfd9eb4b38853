// Integer products of a tile: 5 rows of activations, or 6, × 8 columns of weights, exact, the same on every engine.
//
// Activations [k/4][rows][4], weights [k/4][8 columns][4], bytes; in the plain build, which has no product of bytes,
// [k/2][rows][2] and [k/2][8 columns][2], words of 16 bits. Of the two operands of the relaxed dot product
// one may be taken as unsigned or signed as the engine likes: it must lie in 0…127 (`seven`). With int8 weights that
// is the activation, with int4 weights the nibble; the other is `eight`.
#pragma once

#include "tiles.h"

#define STEP 32        // bytes of weights for 4 values of k, or for 2 that are words
#define STEP_ROWS (4 * ROWS)  // the same of activations
#define STEP_TALL (4 * TALL)

// Whether tiles are of words.
#ifdef __wasm_relaxed_simd__
enum { WORDS = 0 };
#else
enum { WORDS = 1 };
#endif

// Which kernel computes a product. In the plain build there is one, and this is not looked at.
// VNNI: dot-add. UNSIGNED, for nibbles beside one row: the same of an engine that takes the operand promised seven bits as
// unsigned bytes. Otherwise the number of steps summed in 16 bits: 1, 4 or 8. TWIN beside one of these, for many rows: two
// vectors at once; in the plain build too.
enum { VNNI = 0, UNSIGNED = 2, TWIN = 16 };

// Rows of a tile of bytes for it; of a product with int4 weights, where every group of them ends all sums, ROWS.
INLINE uint32_t rows_of(uint32_t kernel) {
  if (kernel & TWIN) return TWIN_ROWS;
  return !WORDS && kernel == VNNI ? TALL : ROWS;
}

// Tiles of five rows: the last few of many rows are of four instead, so that no place is empty; of 256 rows, 48 tiles of five
// and four of four. (Of six: what dot-add adds to follows too soon in four, they take as long.) How many are whole.
enum { SHORT = ROWS - 1 };
INLINE uint32_t whole_tiles(uint32_t rows, uint32_t tall) {
  uint32_t tiles = (rows + tall - 1) / tall;
  return rows > COPIED && tall == ROWS ? tiles - (tiles * ROWS - rows) : tiles;
}

// The first row of a tile, where so many are whole.
INLINE uint32_t first_row(uint32_t tile, uint32_t whole, uint32_t tall) {
  return tile < whole ? tile * tall : whole * tall + (tile - whole) * SHORT;
}

// How many of so many rows a tile has.
INLINE uint32_t rows_in(uint32_t tile, uint32_t rows, uint32_t whole, uint32_t tall) {
  uint32_t next = first_row(tile + 1, whole, tall);
  return (next < rows ? next : rows) - first_row(tile, whole, tall);
}

// Steps of so many values of k.
INLINE uint32_t steps_of(uint32_t k) { return WORDS ? k / 2 : k / 4; }

// Whether a product of so many rows copies its operands; sums of one step in 16 bits are too slow for it to matter, and twins
// are none the faster.
INLINE int copied(uint32_t rows, uint32_t kernel) { return rows > COPIED && !(kernel & TWIN) && (WORDS || kernel != 1); }

// Copies tiles for a kernel, one after the other, from chunk `at` on, if they are not there under this key.
INLINE void copy_rows(uint32_t at, const int8_t *tiles, uint32_t count, uint32_t steps, uint32_t kernel, uint32_t key) {
#ifdef __wasm_relaxed_simd__
  if (kernel == VNNI) return stage_rows_six(at, tiles, count, steps, 0, key);
#endif
  (void)kernel;
  stage_rows_five(at, tiles, count, steps, 0, key);
}

// Sums of copies of bytes, or in the plain build of words, ordered as `straighten` takes them.
INLINE void tile_copied(uint32_t row, uint32_t panel, uint32_t steps, v128_t c[2 * TALL]) {
#ifdef __wasm_relaxed_simd__
  sums_dot(row, panel, steps, c);
#else
  sums_words(row, panel, steps, c);
#endif
}

// A step of a panel, columns 0 … 3 and 4 … 7, to its place in a tile; returns the place of the next.
INLINE int8_t *place_step(int8_t *to, v128_t b0, v128_t b1) {
  if (!WORDS) {
    wasm_v128_store(to, b0);
    wasm_v128_store(to + 16, b1);
    return to + STEP;
  }
  v128_t low0 = wasm_i16x8_extend_low_i8x16(b0), high0 = wasm_i16x8_extend_high_i8x16(b0);
  v128_t low1 = wasm_i16x8_extend_low_i8x16(b1), high1 = wasm_i16x8_extend_high_i8x16(b1);
  wasm_v128_store(to, LANES(low0, high0, 0, 2, 4, 6));
  wasm_v128_store(to + 16, LANES(low1, high1, 0, 2, 4, 6));
  wasm_v128_store(to + STEP, LANES(low0, high0, 1, 3, 5, 7));
  wasm_v128_store(to + STEP + 16, LANES(low1, high1, 1, 3, 5, 7));
  return to + 2 * STEP;
}

// One step of the sums of five rows of words. Each row is spread by a load: products, sums and rotations would wait for
// the same units of the processor, loads do not.
#define ADD_WORDS(low, high, at)                                      \
  va = wasm_v128_load32_splat(a + at);                                \
  low = wasm_i32x4_add(low, wasm_i32x4_dot_i16x8(b0, va));            \
  high = wasm_i32x4_add(high, wasm_i32x4_dot_i16x8(b1, va));
#define STEP_WORDS                                        \
  b0 = wasm_v128_load(b), b1 = wasm_v128_load(b + 16);    \
  ADD_WORDS(c0, c1, 0)                                    \
  ADD_WORDS(c2, c3, 4)                                    \
  ADD_WORDS(c4, c5, 8)                                    \
  ADD_WORDS(c6, c7, 12)                                   \
  ADD_WORDS(c8, c9, 16)                                   \
  a += STEP_ROWS, b += STEP;                              \
  KEEP(a);                                                \
  KEEP(b);

// Adds `steps` steps of words to the sums of five rows, y[2 * row + half].
INLINE void tile_words(const int8_t *a, const int8_t *b, uint32_t steps, v128_t y[2 * ROWS]) {
  v128_t c0 = y[0], c1 = y[1], c2 = y[2], c3 = y[3], c4 = y[4], c5 = y[5], c6 = y[6], c7 = y[7], c8 = y[8], c9 = y[9];
  v128_t b0, b1, va;
  for (uint32_t rest = steps % 4; rest; rest--) {
    STEP_WORDS
    KEEP(rest);
  }
  for (uint32_t turns = steps / 4; turns; turns--) {
    STEP_WORDS
    STEP_WORDS
    STEP_WORDS
    STEP_WORDS
    KEEP(turns);
  }
  y[0] = c0, y[1] = c1, y[2] = c2, y[3] = c3, y[4] = c4, y[5] = c5, y[6] = c6, y[7] = c7, y[8] = c8, y[9] = c9;
}

// Sums of bytes to floats: the activations' zero point is taken out by the sums of the columns.
INLINE v128_t descale_int8(v128_t sum, v128_t zero, v128_t w_sums, v128_t scale, v128_t w_scale) {
  sum = wasm_i32x4_sub(sum, wasm_i32x4_mul(zero, w_sums));
  return wasm_f32x4_mul(wasm_f32x4_mul(wasm_f32x4_convert_i32x4(sum), scale), w_scale);
}

// Panels of int4 weights: [k/32] groups of 8 scales and 8 × 16 bytes, of which the low nibbles belong to columns
// 0…3 and the high ones to columns 4…7, four k each. GROUPS of them are summed in 32 bits, which cannot overflow
// (64 · 8 · 127 · 32 · 1023 < 2³¹), and then in f64, exact all the way.
//
// Scales take `head` bytes: WIDE, of 16 bits, as files have them, or NARROW, of 8, where narrow_int4 found room enough in
// these. A token waits for its weights, and reads one byte in eighteen less.
enum { NARROW = 8, WIDE = 16, GROUPS = 64 };

// Steps of a group where tiles are of twins: the presets of the rows before their values, the scales of the columns, each
// twice, after theirs.
enum { TWIN_STEPS = 9 };
#define GROUP_BYTES(head) ((head) + 8 * 16)

INLINE v128_t scales_of(const int8_t *group, uint32_t head) {
  return head == WIDE ? wasm_v128_load(group) : wasm_i16x8_load8x8(group);
}

// Scales of columns 0…3 or 4…7, each twice, for sums in 16 bits, of which two make a column.
#define TWICE_LOW(s) wasm_i16x8_shuffle(s, s, 0, 0, 1, 1, 2, 2, 3, 3)
#define TWICE_HIGH(s) wasm_i16x8_shuffle(s, s, 4, 4, 5, 5, 6, 6, 7, 7)

// Nibbles of a step: of columns 0…3 and of columns 4…7.
#define NIBBLES_LOW(v) wasm_v128_and(v, wasm_i8x16_const_splat(15))
#define NIBBLES_HIGH(v) wasm_v128_and(wasm_u16x8_shr(v, 4), wasm_i8x16_const_splat(15))

// Adds sums in 32 bits to those in f64, and clears them.
INLINE void gather(v128_t sums[], v128_t c[], uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    sums[2 * i] = wasm_f64x2_add(sums[2 * i], wasm_f64x2_convert_low_i32x4(c[i]));
    sums[2 * i + 1] = wasm_f64x2_add(sums[2 * i + 1], wasm_f64x2_convert_low_i32x4(LANES(c[i], c[i], 2, 3, 2, 3)));
    c[i] = wasm_i32x4_const_splat(0);
  }
}

#ifdef __wasm_relaxed_simd__
#define DOT16(eight, seven) wasm_i16x8_relaxed_dot_i8x16_i7x16(eight, seven)
#define DOT32(eight, seven, sum) wasm_i32x4_relaxed_dot_i8x16_i7x16_add(eight, seven, sum)

// One step of the sums of six rows, c0 … c11, and on to the next. An engine that has to look whether an address is in
// the memory works the bound out once for all steps of a turn, if it is the pointers that move.
#define STEP_VNNI                                           \
  b0 = wasm_v128_load(b), b1 = wasm_v128_load(b + 16);      \
  va = wasm_v128_load(a);                                   \
  c0 = DOT32(b0, va, c0), c4 = DOT32(b1, va, c4);           \
  va = ROTATE(va, 1);                                       \
  c1 = DOT32(b0, va, c1), c5 = DOT32(b1, va, c5);           \
  va = ROTATE(va, 1);                                       \
  c2 = DOT32(b0, va, c2), c6 = DOT32(b1, va, c6);           \
  va = ROTATE(va, 1);                                       \
  c3 = DOT32(b0, va, c3), c7 = DOT32(b1, va, c7);           \
  va = wasm_v128_load64_splat(a + 16);                      \
  c8 = DOT32(b0, va, c8), c9 = DOT32(b1, va, c9);           \
  va = ROTATE(va, 1);                                       \
  c10 = DOT32(b0, va, c10), c11 = DOT32(b1, va, c11);       \
  a += STEP_TALL, b += STEP;                                \
  KEEP(a);                                                  \
  KEEP(b);

// Adds `steps` steps of int8 weights to the sums c of six rows, 32 bits, ordered as `straighten` takes them.
INLINE void tile_vnni(const int8_t *a, const int8_t *b, uint32_t steps, v128_t c[2 * TALL]) {
  v128_t c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3], c4 = c[4], c5 = c[5], c6 = c[6], c7 = c[7], c8 = c[8], c9 = c[9];
  v128_t c10 = c[10], c11 = c[11], b0, b1, va;
  for (uint32_t rest = steps % 4; rest; rest--) {
    STEP_VNNI
    KEEP(rest);
  }
  for (uint32_t turns = steps / 4; turns; turns--) {
    STEP_VNNI
    STEP_VNNI
    STEP_VNNI
    STEP_VNNI
    KEEP(turns);
  }
  c[0] = c0, c[1] = c1, c[2] = c2, c[3] = c3, c[4] = c4, c[5] = c5, c[6] = c6, c[7] = c7, c[8] = c8, c[9] = c9;
  c[10] = c10, c[11] = c11;
}

// Sums in 16 bits of `steps` steps of int8 weights of five rows, at least one; the first needs no addition.
INLINE void tile_words_int8(const int8_t *a, const int8_t *b, uint32_t steps, v128_t c[10]) {
  v128_t b0 = wasm_v128_load(b), b1 = wasm_v128_load(b + 16), va = wasm_v128_load(a);
  v128_t c0 = DOT16(b0, va);
  v128_t c4 = DOT16(b1, va);
  va = ROTATE(va, 1);
  v128_t c1 = DOT16(b0, va);
  v128_t c5 = DOT16(b1, va);
  va = ROTATE(va, 1);
  v128_t c2 = DOT16(b0, va);
  v128_t c6 = DOT16(b1, va);
  va = ROTATE(va, 1);
  v128_t c3 = DOT16(b0, va);
  v128_t c7 = DOT16(b1, va);
  va = wasm_v128_load32_splat(a + 16);
  v128_t c8 = DOT16(b0, va);
  v128_t c9 = DOT16(b1, va);
  while (--steps) {
    a += STEP_ROWS;
    b += STEP;
    KEEP(a);
    KEEP(b);
    KEEP(steps);
    b0 = wasm_v128_load(b);
    b1 = wasm_v128_load(b + 16);
    va = wasm_v128_load(a);
    c0 = wasm_i16x8_add(c0, DOT16(b0, va));
    c4 = wasm_i16x8_add(c4, DOT16(b1, va));
    va = ROTATE(va, 1);
    c1 = wasm_i16x8_add(c1, DOT16(b0, va));
    c5 = wasm_i16x8_add(c5, DOT16(b1, va));
    va = ROTATE(va, 1);
    c2 = wasm_i16x8_add(c2, DOT16(b0, va));
    c6 = wasm_i16x8_add(c6, DOT16(b1, va));
    va = ROTATE(va, 1);
    c3 = wasm_i16x8_add(c3, DOT16(b0, va));
    c7 = wasm_i16x8_add(c7, DOT16(b1, va));
    va = wasm_v128_load32_splat(a + 16);
    c8 = wasm_i16x8_add(c8, DOT16(b0, va));
    c9 = wasm_i16x8_add(c9, DOT16(b1, va));
  }
  c[0] = c0, c[1] = c1, c[2] = c2, c[3] = c3, c[4] = c4, c[5] = c5, c[6] = c6, c[7] = c7, c[8] = c8, c[9] = c9;
}

#endif

// Sums of a tile over the whole of k, a multiple of 4: y[2 * row + half].
INLINE void tile_int8(const int8_t *a, const int8_t *b, uint32_t padded, uint32_t kernel, v128_t y[2 * TALL]) {
#ifdef __wasm_relaxed_simd__
  uint32_t steps = padded / 4;
  v128_t c[2 * TALL] = {0};
  if (kernel == VNNI) {
    tile_vnni(a, b, steps, c);
  } else {
    for (uint32_t done = 0; done < steps; done += kernel) {
      v128_t s[10];
      tile_words_int8(a + STEP_ROWS * done, b + STEP * done, steps - done < kernel ? steps - done : kernel, s);
      for (uint32_t i = 0; i < 10; i++) c[i] = wasm_i32x4_add(c[i], wasm_i32x4_extadd_pairwise_i16x8(s[i]));
    }
  }
  straighten(c, y, rows_of(kernel));
#else
  (void)kernel;
  for (uint32_t i = 0; i < 2 * ROWS; i++) y[i] = wasm_i32x4_const_splat(0);
  tile_words(a, b, padded / 2, y);
#endif
}
