// softmax(q · kᵀ · scale) · v where every query sees every key, in integers: queries in 7 bits, keys and values in 8,
// weights in 14, the softmax in f32. lib/backend/backend.ts tells what is rounded to what.
//
// As many queries at a time as a tile has rows; keys are the columns of the first product, the head's columns those of
// the second. With dot-add the 14 bits are two operands of seven, and the second adds to 128 times the sums of the
// first. Without it weights and values are words of 16 bits, which is as fast there and gives the same integers.
#include "quantize.h"

enum {
  ONE = 16383,  // a weight of 1
  KEYS = 1024,  // 1024 · 16,383 · 127 < 2³¹
};

// Where things lie; bytes of scratch as lib/backend/wasm_parts.ts counts them.
typedef struct {
  int8_t *keys, *values;            // panels of the first product, and of the second: of bytes or words
  float *key_scale, *value_scale;   // [keys], [dim]
  int32_t *key_sums;                // [keys]
  float *scores;                    // [keys/4][rows of a tile][4]; of twins [keys/16][rows][16]
  int8_t *queries;                  // a tile
  int8_t *weights;                  // a tile of words, or two of bytes
  uint32_t all, dim;                // keys padded to 16, columns of a head
  uint32_t copies;                  // whether it pays to copy tiles, and they can be
} Head;

// Chunks of a tile of queries or a panel of keys, and of a tile of weights or a panel of values. Copies of queries and of
// keys begin with chunk 0; of the weights' upper bits, of the others and of the values they follow.
INLINE uint32_t query_chunks(const Head *h) { return chunks_of(h->dim / 4); }
INLINE uint32_t weight_chunks(const Head *h) { return chunks_of(h->all / 4); }
INLINE uint32_t value_chunk(const Head *h) { return h->all / 8 * query_chunks(h); }

// Whether 14 bits are two operands of seven.
INLINE int split(uint32_t kernel) {
#ifdef __wasm_relaxed_simd__
  return (kernel & ~TWIN) == VNNI;
#else
  return (void)kernel, 0;
#endif
}

// Whether tiles are multiplied from copies: words and twins are not.
INLINE int copies(const Head *h, uint32_t kernel) { return split(kernel) && !(kernel & TWIN) && h->copies; }

INLINE v128_t round_i32(v128_t x, v128_t large) { return wasm_i32x4_sub(wasm_f32x4_add(x, large), large); }

// Bytes of four whole numbers of four rows, lane by lane: [lane][4 rows].
INLINE v128_t weave(v128_t a, v128_t b, v128_t c, v128_t d) {
  v128_t byte = wasm_i32x4_const_splat(255);
  a = wasm_v128_or(wasm_v128_and(a, byte), wasm_i32x4_shl(wasm_v128_and(b, byte), 8));
  c = wasm_v128_or(wasm_i32x4_shl(wasm_v128_and(c, byte), 16), wasm_i32x4_shl(d, 24));
  return wasm_v128_or(a, c);
}

// Means of `cols` columns, at most 16, whole vectors of four.
INLINE void means(float *mean, const float *x, uint32_t stride, uint32_t rows, uint32_t vectors) {
  v128_t sums[8], n = wasm_f64x2_splat(rows);
  for (uint32_t i = 0; i < 8; i++) sums[i] = wasm_f64x2_const_splat(0);
  for (uint32_t s = rows; s; s--, x += stride) {
    KEEP(x);
    for (uint32_t i = 0; i < vectors; i++) {
      v128_t v = wasm_v128_load(x + 4 * i);
      sums[2 * i] = wasm_f64x2_add(sums[2 * i], wasm_f64x2_promote_low_f32x4(v));
      sums[2 * i + 1] = wasm_f64x2_add(sums[2 * i + 1], high_f64(v));
    }
  }
  for (uint32_t i = 0; i < vectors; i++) {
    wasm_v128_store(mean + 4 * i, narrow_f64(wasm_f64x2_div(sums[2 * i], n), wasm_f64x2_div(sums[2 * i + 1], n)));
  }
}

// Four values of a key to its panel, from `bytes` or from `words`, lanes 2 · i and on; returns where the next go.
#define PLACE_FOUR(i)                                                              \
  if (WORDS) {                                                                     \
    wasm_v128_store32_lane(to, words[i / 2], 2 * (i % 2));                         \
    wasm_v128_store32_lane(to + STEP, words[i / 2], 2 * (i % 2) + 1);              \
  } else {                                                                         \
    wasm_v128_store32_lane(to, bytes, i);                                          \
  }                                                                                \
  to += STEP << WORDS;

// Whole numbers of 4 · vectors columns of a key to its panel; returns their sums.
INLINE v128_t place_key(int8_t *to, const float *row, v128_t inverse, v128_t large, uint32_t vectors) {
  v128_t q[4], sums = wasm_i32x4_const_splat(0);
  for (uint32_t i = 0; i < 4; i++) {
    q[i] = i < vectors ? round_i32(wasm_f32x4_mul(wasm_v128_load(row + 4 * i), inverse), large) : sums;
    if (i < vectors) sums = wasm_i32x4_add(sums, q[i]);
  }
  v128_t words[2] = {wasm_i16x8_narrow_i32x4(q[0], q[1]), wasm_i16x8_narrow_i32x4(q[2], q[3])};
  v128_t bytes = wasm_i8x16_narrow_i16x8(words[0], words[1]);
  PLACE_FOUR(0)
  if (vectors == 1) return sums;
  PLACE_FOUR(1)
  PLACE_FOUR(2)
  PLACE_FOUR(3)
  return sums;
}

// Keys less their mean, which no softmax notices and which takes out what they have in common.
static void pack_keys(const Head *h, const float *k, uint32_t stride, uint32_t keys) {
  float row[512];
  v128_t large = wasm_v128_load(LARGE);
  uint32_t fours = h->dim / 16 * 16;
  for (uint32_t c = 0; c < fours; c += 16) means(h->scores + c, k + c, stride, keys, 4);
  for (uint32_t c = fours; c < h->dim; c += 4) means(h->scores + c, k + c, stride, keys, 1);
  for (uint32_t s = 0; s < h->all; s++) {
    int8_t *to = h->keys + ((uint64_t)(s / 8 * 8) * h->dim << WORDS) + s % 8 * 4;
    if (s >= keys) {
      for (uint32_t i = 0; i < h->dim / 4 << WORDS; i++, to += STEP) *(uint32_t *)to = 0;
      h->key_scale[s] = 0;
      h->key_sums[s] = 0;
      continue;
    }
    const float *from = k + (uint64_t)s * stride;
    v128_t most4 = wasm_f32x4_const_splat(0);
    for (uint32_t c = 0; c < h->dim; c += 4) {
      v128_t v = wasm_f32x4_sub(wasm_v128_load(from + c), wasm_v128_load(h->scores + c));
      most4 = wasm_f32x4_pmax(most4, wasm_f32x4_abs(v));
      wasm_v128_store(row + c, v);
    }
    float most = -least(wasm_f32x4_neg(most4));
    v128_t inverse = wasm_f32x4_splat(most >= 1e-30f ? 127 / most : 0), sums = wasm_i32x4_const_splat(0);
    uint32_t c = 0;
    for (; c < fours; c += 16, to += 4 * STEP << WORDS) {
      sums = wasm_i32x4_add(sums, place_key(to, row + c, inverse, large, 4));
    }
    for (; c < h->dim; c += 4, to += STEP << WORDS) {
      sums = wasm_i32x4_add(sums, place_key(to, row + c, inverse, large, 1));
    }
    h->key_scale[s] = most >= 1e-30f ? most / 127 : 0;
    sums = wasm_i32x4_add(sums, LANES(sums, sums, 2, 3, 0, 1));
    h->key_sums[s] = wasm_i32x4_extract_lane(sums, 0) + wasm_i32x4_extract_lane(sums, 1);
  }
}

// Words of two whole numbers of four rows, lane by lane.
INLINE v128_t weave_words(v128_t a, v128_t b) {
  return wasm_v128_or(wasm_v128_and(a, wasm_i32x4_const_splat(65535)), wasm_i32x4_shl(b, 16));
}

// Values of 4 · vectors columns from c, a multiple of 8; as words, or as bytes.
INLINE void place_values(const Head *h, const float *v, uint32_t stride, uint32_t keys, uint32_t c, uint32_t vectors,
                         uint32_t words) {
  v128_t large = wasm_v128_load(LARGE), zero = wasm_i32x4_const_splat(0), most[4], inverse[4];
  const float *from = v + c;
  for (uint32_t i = 0; i < 4; i++) most[i] = zero;
  for (uint32_t s = keys; s; s--, from += stride) {
    KEEP(from);
    for (uint32_t i = 0; i < vectors; i++) {
      most[i] = wasm_f32x4_pmax(most[i], wasm_f32x4_abs(wasm_v128_load(from + 4 * i)));
    }
  }
  for (uint32_t i = 0; i < vectors; i++) {
    v128_t some = wasm_f32x4_ge(most[i], wasm_f32x4_const_splat(1e-30f)), limit = wasm_f32x4_const_splat(127);
    wasm_v128_store(h->value_scale + c + 4 * i, wasm_v128_and(wasm_f32x4_div(most[i], limit), some));
    inverse[i] = wasm_v128_and(wasm_f32x4_div(limit, most[i]), some);
  }
  int8_t *to = h->values + ((uint64_t)c * h->all << words);
  from = v + c;
  for (uint32_t s = 0; s < h->all; s += 4, to += STEP << words, from += 4 * stride) {
    for (uint32_t i = 0; i < vectors; i++) {
      v128_t q[4];
      for (uint32_t j = 0; j < 4; j++) {
        q[j] = zero;
        if (s + j < keys) q[j] = round_i32(wasm_f32x4_mul(wasm_v128_load(from + j * stride + 4 * i), inverse[i]), large);
      }
      int8_t *at = to + (i / 2 * 8 * (uint64_t)h->all << words) + i % 2 * 16;
      wasm_v128_store(at, words ? weave_words(q[0], q[1]) : weave(q[0], q[1], q[2], q[3]));
      if (words) wasm_v128_store(at + STEP, weave_words(q[2], q[3]));
    }
    // The last panel may be half a panel.
    if (vectors == 1) wasm_v128_store(to + 16, zero);
    if (vectors == 1 && words) wasm_v128_store(to + STEP + 16, zero);
  }
}

INLINE void pack_values(const Head *h, const float *v, uint32_t stride, uint32_t keys, uint32_t kernel) {
  uint32_t c = 0, words = !split(kernel);
  for (; c + 16 <= h->dim; c += 16) place_values(h, v, stride, keys, c, 4, words);
  for (; c + 8 <= h->dim; c += 8) place_values(h, v, stride, keys, c, 2, words);
  if (c < h->dim) place_values(h, v, stride, keys, c, 1, words);
}

// Weights of four keys and the queries of a tile, from 0 to 2¹⁴ - 1, to their places.
INLINE void place_weights(const Head *h, uint32_t step, v128_t q[], uint32_t kernel) {
  if (kernel & TWIN) {
    v128_t low = wasm_u16x8_extend_low_u8x16(wasm_v128_load(SEVEN_BITS));
    int8_t *to = h->weights + (4 * TWIN_ROWS * step << !split(kernel)), *rest = to + TWIN_ROWS * h->all;
    for (uint32_t r = 0; r < TWIN_ROWS; r += 4) {
      v128_t ab = wasm_i16x8_narrow_i32x4(q[r], q[r + 1]), cd = wasm_i16x8_narrow_i32x4(q[r + 2], q[r + 3]);
      if (!split(kernel)) {
        wasm_v128_store(to + 4 * r, LANES(ab, cd, 0, 2, 4, 6));
        wasm_v128_store(to + 4 * TWIN_ROWS + 4 * r, LANES(ab, cd, 1, 3, 5, 7));
        continue;
      }
      wasm_v128_store(to + 4 * r, wasm_u8x16_narrow_i16x8(wasm_u16x8_shr(ab, 7), wasm_u16x8_shr(cd, 7)));
      wasm_v128_store(rest + 4 * r, wasm_u8x16_narrow_i16x8(wasm_v128_and(ab, low), wasm_v128_and(cd, low)));
    }
    return;
  }
  v128_t ab = wasm_i16x8_narrow_i32x4(q[0], q[1]), cd = wasm_i16x8_narrow_i32x4(q[2], q[3]);
  v128_t ef = wasm_i16x8_narrow_i32x4(q[4], q[rows_of(kernel) - 1]);
  if (!split(kernel)) {
    int8_t *to = h->weights + 2 * STEP_ROWS * step;
    wasm_v128_store(to, LANES(ab, cd, 0, 2, 4, 6));
    wasm_v128_store32_lane(to + 16, ef, 0);
    wasm_v128_store(to + STEP_ROWS, LANES(ab, cd, 1, 3, 5, 7));
    wasm_v128_store32_lane(to + STEP_ROWS + 16, ef, 1);
    return;
  }
  v128_t low = wasm_u16x8_extend_low_u8x16(wasm_v128_load(SEVEN_BITS));
  int8_t *to = h->weights + STEP_TALL * step, *rest = to + STEP_TALL * (h->all / 4);
  wasm_v128_store(to, wasm_u8x16_narrow_i16x8(wasm_u16x8_shr(ab, 7), wasm_u16x8_shr(cd, 7)));
  wasm_v128_store64_lane(to + 16, wasm_u8x16_narrow_i16x8(wasm_u16x8_shr(ef, 7), ef), 0);
  wasm_v128_store(rest, wasm_u8x16_narrow_i16x8(wasm_v128_and(ab, low), wasm_v128_and(cd, low)));
  wasm_v128_store64_lane(rest + 16, wasm_u8x16_narrow_i16x8(wasm_v128_and(ef, low), ef), 0);
}

// Weights of keys [4 · from, 4 · (from + count)) by a panel of their values, of columns c … c + 7.
INLINE void tile_weights(const Head *h, uint32_t c, uint32_t from, uint32_t count, uint32_t kernel,
                         v128_t y[]) {
  const int8_t *panel = h->values + ((uint64_t)c * h->all << !split(kernel));
  if (copies(h, kernel)) {
    v128_t high[2 * TALL], low[2 * TALL];
    uint32_t row = query_chunks(h) + from / CHUNK, at = value_chunk(h) + c / 8 * weight_chunks(h) + from / CHUNK;
    tile_copied(row, at, count, high);
    tile_copied(row + weight_chunks(h), at, count, low);
    for (uint32_t i = 0; i < 2 * TALL; i++) low[i] = wasm_i32x4_add(low[i], wasm_i32x4_shl(high[i], 7));
    straighten(low, y, TALL);
    return;
  }
  if ((kernel & TWIN) && !split(kernel)) {
    return sums_words_twin12(h->weights + 8 * TWIN_ROWS * from, panel + 2 * STEP * from, 2 * count, y);
  }
#ifdef __wasm_relaxed_simd__
  if (kernel & TWIN) {
    const int8_t *tile = h->weights + 4 * TWIN_ROWS * from;
    return halves_dot_twin12(tile, panel + STEP * from, count, y, tile + TWIN_ROWS * h->all);
  }
  if (split(kernel)) {
    v128_t c[2 * TALL];
    for (uint32_t i = 0; i < 2 * TALL; i++) c[i] = wasm_i32x4_const_splat(0);
    tile_vnni(h->weights + STEP_TALL * from, panel + STEP * from, count, c);
    for (uint32_t i = 0; i < 2 * TALL; i++) c[i] = wasm_i32x4_shl(c[i], 7);
    tile_vnni(h->weights + STEP_TALL * (h->all / 4 + from), panel + STEP * from, count, c);
    straighten(c, y, TALL);
    return;
  }
#endif
  (void)kernel;
  for (uint32_t i = 0; i < 2 * ROWS; i++) y[i] = wasm_i32x4_const_splat(0);
  tile_words(h->weights + 2 * STEP_ROWS * from, panel + 2 * STEP * from, 2 * count, y);
}

// Queries to a tile; their zero points, and their scales times `scale`.
INLINE void pack_queries(const Head *h, const float *q, uint32_t stride, uint32_t count, float scale, uint32_t kernel,
                         int32_t zeros[], float scales[]) {
  uint32_t rows = rows_of(kernel);
  tile7((uint8_t *)h->queries, zeros, scales, q, stride, count, h->dim, rows);
  for (uint32_t r = 0; r < rows; r++) {
    if (r < count) scales[r] *= scale;
    else zeros[r] = 0, scales[r] = 0;
  }
}

// Four scores of step i of row 0; those of the next rows follow after `apart`.
INLINE float *score_at(const Head *h, uint32_t i, uint32_t kernel) {
  uint32_t rows = rows_of(kernel);
  return h->scores + (kernel & TWIN ? i / 4 * PAIR * rows + i % 4 * 4 : i * 4 * rows);
}
INLINE uint32_t apart(uint32_t kernel) { return kernel & TWIN ? PAIR : 4; }

// The scores of twins, and the greatest of each.
INLINE void score_twins(const Head *h, uint32_t keys, const int32_t zeros[], const float scales[], uint32_t kernel,
                        v128_t most[]) {
  const v128_t unseen = wasm_f32x4_const_splat(-3.4e38f);
  for (uint32_t s = 0; s < h->all; s += 8) {
    const int8_t *panel = h->keys + ((uint64_t)s * h->dim << WORDS);
#define SCORE(name)                                                                                               \
  scaled_##name##_twin12(h->queries, panel, steps_of(h->dim), score_at(h, s / 4, kernel), zeros, scales, h->key_scale + s, \
                         h->key_sums + s)
#ifdef __wasm_relaxed_simd__
    if (split(kernel)) SCORE(dot);
    else SCORE(words1);
#else
    SCORE(words);
#endif
#undef SCORE
  }
  for (uint32_t s = keys; s < h->all; s++) {
    for (uint32_t r = 0; r < TWIN_ROWS; r++) score_at(h, s / 4, kernel)[PAIR * r + s % 4] = -3.4e38f;
  }
  for (uint32_t r = 0; r < TWIN_ROWS; r++) most[r] = unseen;
  const float *from = h->scores;
  for (uint32_t i = 0; i < h->all / 16; i++) {
    for (uint32_t r = 0; r < TWIN_ROWS; r++, from += PAIR) {
      v128_t low = wasm_f32x4_pmax(wasm_v128_load(from), wasm_v128_load(from + 4));
      v128_t high = wasm_f32x4_pmax(wasm_v128_load(from + 8), wasm_v128_load(from + 12));
      most[r] = wasm_f32x4_pmax(most[r], wasm_f32x4_pmax(low, high));
    }
  }
}

// Scores of the queries of a tile, as `scales` have it; the greatest of each in the lanes of most[r]. All sums are below
// 2²⁴, so that the zero point is taken out of them exactly after they have become floats.
INLINE void score(const Head *h, uint32_t keys, const int32_t zeros[], const float scales[], uint32_t kernel,
                  v128_t most[]) {
  if (kernel & TWIN) return score_twins(h, keys, zeros, scales, kernel, most);
  const v128_t unseen = wasm_f32x4_const_splat(-3.4e38f);
  v128_t offset[TALL], step[TALL];
  uint32_t rows = rows_of(kernel);
  for (uint32_t r = 0; r < rows; r++) {
    most[r] = unseen;
    offset[r] = wasm_f32x4_splat(-(float)zeros[r]);
    step[r] = wasm_f32x4_splat(scales[r]);
  }
  for (uint32_t s = 0; s < h->all; s += 8) {
    v128_t c[2 * TALL], y[2 * TALL];
    const int8_t *panel = h->keys + ((uint64_t)s * h->dim << WORDS);
    if (copies(h, kernel)) {
      tile_copied(0, s / 8 * query_chunks(h), h->dim / 4, c);
      straighten(c, y, rows);
    } else tile_int8(h->queries, panel, h->dim, kernel, y);
    for (uint32_t half = 0; half < 2; half++) {
      uint32_t at = s + 4 * half;
      v128_t scale = wasm_v128_load(h->key_scale + at), sums = wasm_f32x4_convert_i32x4(wasm_v128_load(h->key_sums + at));
      for (uint32_t r = 0; r < rows; r++) {
        v128_t v = madd(offset[r], sums, wasm_f32x4_convert_i32x4(y[2 * r + half]));
        v = wasm_f32x4_mul(wasm_f32x4_mul(v, step[r]), scale);
        if (s + 8 > keys) {
          v128_t lane = wasm_i32x4_add(wasm_i32x4_splat(at), wasm_i32x4_const(0, 1, 2, 3));
          v = wasm_v128_bitselect(v, unseen, wasm_u32x4_lt(lane, wasm_i32x4_splat(keys)));
        }
        most[r] = wasm_f32x4_pmax(most[r], v);
        wasm_v128_store(h->scores + at * rows + 4 * r, v);
      }
    }
  }
}

// 2^x times ONE, to about 2e-7 relative, for x up to 0; below -126 it stays at the end. `big`: so large that a sum with it
// is whole, and stands in its last bits.
INLINE v128_t weight(v128_t x, v128_t big) {
  x = wasm_f32x4_pmax(x, wasm_v128_load(POWER_OF_TWO[0]));
  v128_t power = wasm_f32x4_add(x, big), p = wasm_v128_load(POWER_OF_TWO[1]);
  x = wasm_f32x4_sub(x, wasm_f32x4_sub(power, big));
  for (uint32_t i = 2; i < 7; i++) p = madd(p, x, wasm_v128_load(POWER_OF_TWO[i]));
  return wasm_i32x4_add(p, wasm_i32x4_shl(power, 23));
}

// Scores to weights, as a tile; sums of the weights.
INLINE void weigh(const Head *h, uint32_t kernel, const v128_t most[], v128_t sums[]) {
  v128_t large = wasm_v128_load(LARGE), top[TWIN_ROWS];
  uint32_t rows = rows_of(kernel);
  for (uint32_t r = 0; r < rows; r++) {
    v128_t m = wasm_f32x4_pmax(most[r], LANES(most[r], most[r], 2, 3, 0, 1));
    top[r] = wasm_f32x4_pmax(m, LANES(m, m, 1, 0, 3, 2));
    sums[r] = wasm_i32x4_const_splat(0);
  }
  for (uint32_t i = 0; i < h->all / 4; i++) {
    v128_t x[TWIN_ROWS];
    const float *from = score_at(h, i, kernel);
    KEEP(from);
    for (uint32_t r = 0; r < rows; r++) {
      v128_t score = wasm_v128_load(from + apart(kernel) * r);
      x[r] = round_i32(weight(wasm_f32x4_sub(score, top[r]), large), large);
      sums[r] = wasm_i32x4_add(sums[r], x[r]);
    }
    place_weights(h, i, x, kernel);
  }
}

INLINE void mix(const Head *h, float *out, uint32_t stride, uint32_t count, uint32_t kernel, const v128_t sums[]) {
  v128_t shares[TWIN_ROWS];
  uint32_t rows = rows_of(kernel);
  for (uint32_t r = 0; r < rows; r++) {
    v128_t sum = wasm_i32x4_add(sums[r], LANES(sums[r], sums[r], 2, 3, 0, 1));
    sum = wasm_i32x4_add(sum, LANES(sum, sum, 1, 0, 3, 2));
    shares[r] = wasm_f32x4_div(wasm_f32x4_const_splat(1), wasm_f32x4_convert_i32x4(sum));
  }
  uint32_t steps = h->all / 4;
  for (uint32_t c = 0; c < h->dim; c += 8) {
    v128_t total[2 * TWIN_ROWS];
    for (uint32_t i = 0; i < 2 * rows; i++) total[i] = wasm_f32x4_const_splat(0);
    for (uint32_t from = 0; from < steps; from += KEYS / 4) {
      v128_t y[2 * TWIN_ROWS];
      uint32_t now = steps - from < KEYS / 4 ? steps - from : KEYS / 4;
      tile_weights(h, c, from, now, kernel, y);
      for (uint32_t i = 0; i < 2 * rows; i++) total[i] = wasm_f32x4_add(total[i], wasm_f32x4_convert_i32x4(y[i]));
    }
    for (uint32_t r = 0; r < count; r++) {
      float *to = out + (uint64_t)r * stride + c;
      v128_t low = wasm_f32x4_mul(wasm_f32x4_mul(total[2 * r], shares[r]), wasm_v128_load(h->value_scale + c));
      wasm_v128_store(to, low);
      if (h->dim - c < 8) continue;
      v128_t high = wasm_f32x4_mul(wasm_f32x4_mul(total[2 * r + 1], shares[r]), wasm_v128_load(h->value_scale + c + 4));
      wasm_v128_store(to + 4, high);
    }
  }
}

// One head as below, by a kernel known when this is compiled.
INLINE void head(const Head *h, float *out, uint32_t out_stride, const float *q, uint32_t q_stride, const float *v,
                 uint32_t v_stride, uint32_t rows, uint32_t keys, float scale, uint32_t kernel) {
  uint32_t tall = rows_of(kernel);
  pack_values(h, v, v_stride, keys, kernel);
  if (copies(h, kernel)) {
    stage_panels(0, h->keys, h->all / 8, h->dim / 4, 0, 0);
    stage_panels(value_chunk(h), h->values, (h->dim + 7) / 8, h->all / 4, 0, 0);
  }
  for (uint32_t row = 0; row < rows; row += tall) {
    int32_t zeros[TWIN_ROWS];
    float scales[TWIN_ROWS];
    v128_t most[TWIN_ROWS], sums[TWIN_ROWS];
    uint32_t count = rows - row < tall ? rows - row : tall;
    // Scores are in units of log 2: their weights are powers of two.
    pack_queries(h, q + (uint64_t)row * q_stride, q_stride, count, scale * 1.44269504f, kernel, zeros, scales);
    if (copies(h, kernel)) copy_rows(0, h->queries, 1, h->dim / 4, kernel, 0);
    score(h, keys, zeros, scales, kernel, most);
    weigh(h, kernel, most, sums);
    if (copies(h, kernel)) copy_rows(query_chunks(h), h->weights, 2, h->all / 4, kernel, 0);
    mix(h, out + (uint64_t)row * out_stride, out_stride, count, kernel, sums);
  }
}

// One head: out and q point at `rows` of its queries, k and v at its keys and values. dim is a multiple of 4, at most
// 512. scratch as attentionInt8Scratch in lib/backend/wasm_parts.ts counts it.
EXPORT(attention_int8)
void attention_int8(float *out, uint32_t out_stride, const float *q, uint32_t q_stride, const float *k,
                    uint32_t k_stride, const float *v, uint32_t v_stride, uint32_t rows, uint32_t keys, uint32_t dim,
                    float scale, int8_t *scratch, uint32_t kernel) {
  Head h = {.all = (keys + 15) / 16 * 16, .dim = dim};
  uint32_t wide = (dim + 7) / 8 * 8;
  h.keys = scratch;
  h.values = h.keys + 2 * h.all * dim;
  h.weights = h.values + 2 * h.all * wide;
  h.queries = h.weights + 2 * TWIN_ROWS * h.all;
  h.key_scale = (float *)(h.queries + (2 * TWIN_ROWS * (dim + 12) + 15) / 16 * 16);
  h.key_sums = (int32_t *)(h.key_scale + h.all);
  h.value_scale = (float *)(h.key_sums + h.all);
  h.scores = h.value_scale + wide;
  h.copies = rows > COPIED && copyable(dim / 4);
  pack_keys(&h, k, k_stride, keys);
#define HEAD(kernel) head(&h, out, out_stride, q, q_stride, v, v_stride, rows, keys, scale, kernel)
  uint32_t twins = (kernel & TWIN) && h.copies;
  if (!split(kernel)) return twins ? HEAD(TWIN | 1) : HEAD(1);
#ifdef __wasm_relaxed_simd__
  if (twins) HEAD(TWIN | VNNI);
  else HEAD(VNNI);
#endif
#undef HEAD
}
