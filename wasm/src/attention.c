// softmax(mask(q · kᵀ · scale)) · v for the query heads that share one key-value head.
//
// Eight queries at a time, one lane each: neighbouring query heads of one row, then the next row. Both products run
// in tiles of five keys or five columns of the values by eight queries, of twins of twelve, so that everything between them
// (scale, cap, mask, softmax) is a matter of whole vectors. What a query may see is one range of keys: the whole prefix from inside
// it, otherwise the last `window` keys up to itself.
#include "floats.h"
#include "tiles.h"

enum {
  KEYS = 128,   // keys summed before the sum moves on, counted from the first of all, whatever range is looked at
  BLOCK = 128,  // the same for columns of a key
  QUERIES = 8,
};

#define UNSEEN wasm_f32x4_const_splat(-3.4e38f)

// Adds up a tile over `steps` in blocks, the first of `first` steps, the others of `block`. tall: its rows, ROWS or TWIN_ROWS.
INLINE void sum_tile(const float *a, const float *b, uint32_t steps, uint32_t first, uint32_t block, uint32_t tall,
                     v128_t y[]) {
  if (tall == TWIN_ROWS) return blocks_f32_twin12(a, b, steps, first, block, y);
  v128_t sums[10] = {0}, c[10];
  for (uint32_t now = first; steps; steps -= now, a += ROWS * now, b += QUERIES * now, now = block) {
    if (now > steps) now = steps;
    tile_f32(a, b, now, c);
    for (uint32_t i = 0; i < 10; i++) sums[i] = wasm_f32x4_add(sums[i], c[i]);
  }
  straighten(sums, y, ROWS);
}

// v [keys, dim] as [dim/tall][keys][tall], zeros past the last column.
INLINE void pack_values(float *out, const float *v, uint32_t stride, uint32_t keys, uint32_t dim, uint32_t tall) {
  for (uint32_t col = 0; col < dim; col += tall, v += tall) {
    const float *from = v;
    for (uint32_t s = 0; s < keys; s++, from += stride, out += tall) {
      if (dim - col >= tall) {
        for (uint32_t i = 0; i + 4 <= tall; i += 4) wasm_v128_store(out + i, wasm_v128_load(from + i));
        if (tall % 4) out[4] = from[4];
      } else {
        for (uint32_t i = 0; i < tall; i++) out[i] = col + i < dim ? from[i] : 0;
      }
    }
  }
}

// Columns of eight rows, times `scale`, as [dim][8].
INLINE void pack_queries(float *out, const float *const from[QUERIES], uint32_t dim, float scale) {
  v128_t scales = wasm_f32x4_splat(scale);
  uint32_t c = 0;
  for (; c + 4 <= dim; c += 4) {
    for (uint32_t half = 0; half < QUERIES; half += 4) {
      v128_t x[4];
      for (uint32_t i = 0; i < 4; i++) x[i] = wasm_v128_load(from[half + i] + c);
      transpose(x);
      for (uint32_t i = 0; i < 4; i++) wasm_v128_store(out + QUERIES * (c + i) + half, wasm_f32x4_mul(x[i], scales));
    }
  }
  for (; c < dim; c++) {
    for (uint32_t i = 0; i < QUERIES; i++) out[QUERIES * c + i] = from[i][c] * scale;
  }
}

// [dim][8] to the first columns of `count` rows.
INLINE void unpack_queries(float *const to[QUERIES], uint32_t count, const float *from, uint32_t dim) {
  uint32_t c = 0;
  for (; c + 4 <= dim; c += 4) {
    for (uint32_t half = 0; half < count; half += 4) {
      v128_t x[4];
      for (uint32_t i = 0; i < 4; i++) x[i] = wasm_v128_load(from + QUERIES * (c + i) + half);
      transpose(x);
      for (uint32_t i = 0; i < 4 && half + i < count; i++) wasm_v128_store(to[half + i] + c, x[i]);
    }
  }
  for (; c < dim; c++) {
    for (uint32_t i = 0; i < count; i++) to[i][c] = from[QUERIES * c + i];
  }
}

// q and out point at the first of `group` heads of `dim` columns, k and v at the shared head. softcap 0 is none.
// scratch: floats for keys and values packed, [⌈keys/tall⌉·tall, dim] and [⌈dim/tall⌉·tall, keys], and 8 each for dim,
// ⌈keys/tall⌉·tall and ⌈dim/tall⌉·tall.
INLINE void attend(float *out, uint32_t out_stride, const float *q, uint32_t q_stride, const float *k, uint32_t k_stride,
                   const float *v, uint32_t v_stride, uint32_t rows, uint32_t keys, uint32_t group, uint32_t dim,
                   float scale, float softcap, uint32_t start, uint32_t prefix, uint32_t window, float *scratch,
                   uint32_t tall) {
  uint32_t all_keys = (keys + tall - 1) / tall * tall, all_dim = (dim + tall - 1) / tall * tall;
  float *packed_keys = scratch, *packed_values = packed_keys + (uint64_t)all_keys * dim;
  float *panel = packed_values + (uint64_t)all_dim * keys, *weights = panel + QUERIES * dim;
  float *mixed = weights + QUERIES * all_keys;
  pack_f32(packed_keys, k, k_stride, keys, dim, tall);
  pack_values(packed_values, v, v_stride, keys, dim, tall);
  uint32_t queries = rows * group;
  if (prefix > keys) prefix = keys;
  for (uint32_t first = 0; first < queries; first += QUERIES) {
    const float *from[QUERIES];
    float *to[QUERIES];
    uint32_t low[QUERIES], high[QUERIES], count = queries - first < QUERIES ? queries - first : QUERIES;
    uint32_t begin = keys, end = 0, from_all = 0, to_all = keys;  // seen by some query, seen by every one
    for (uint32_t i = 0; i < QUERIES; i++) {
      uint32_t query = first + (i < count ? i : count - 1), row = query / group, head = query % group;
      uint32_t index = start + row;
      from[i] = q + (uint64_t)row * q_stride + head * dim;
      to[i] = out + (uint64_t)row * out_stride + head * dim;
      low[i] = index < prefix || index < window ? 0 : index - window + 1;
      high[i] = index < prefix ? prefix : index + 1;
      if (low[i] < begin) begin = low[i];
      if (low[i] > from_all) from_all = low[i];
      if (high[i] > end) end = high[i];
      if (high[i] < to_all) to_all = high[i];
    }
    pack_queries(panel, from, dim, scale);
    uint32_t base = begin / tall * tall;

    v128_t most[2] = {UNSEEN, UNSEEN};
    for (uint32_t s = base; s < end; s += tall) {
      v128_t y[2 * TWIN_ROWS];
      sum_tile(packed_keys + (uint64_t)s * dim, panel, dim, BLOCK, BLOCK, tall, y);
      if (softcap) {
        v128_t cap = wasm_f32x4_splat(softcap);
        for (uint32_t i = 0; i < 2 * tall; i++) y[i] = wasm_f32x4_mul(tanh_f32(wasm_f32x4_div(y[i], cap)), cap);
      }
      if (s < from_all || s + tall > to_all) {
        for (uint32_t i = 0; i < 2 * tall; i++) {
          v128_t index = wasm_i32x4_splat(s + i / 2);
          v128_t after = wasm_u32x4_ge(index, wasm_v128_load(low + i % 2 * 4));
          v128_t before = wasm_u32x4_lt(index, wasm_v128_load(high + i % 2 * 4));
          y[i] = wasm_v128_bitselect(y[i], UNSEEN, wasm_v128_and(after, before));
        }
      }
      for (uint32_t i = 0; i < 2 * tall; i++) {
        most[i % 2] = wasm_f32x4_pmax(most[i % 2], y[i]);
        wasm_v128_store(weights + QUERIES * (s - base) + 4 * i, y[i]);
      }
    }

    v128_t sums[2] = {wasm_f32x4_const_splat(0), wasm_f32x4_const_splat(0)};
    for (uint32_t s = begin; s < end;) {
      uint32_t stop = s / KEYS * KEYS + KEYS;
      v128_t part0 = wasm_f32x4_const_splat(0), part1 = part0;
      if (stop > end) stop = end;
      for (; s < stop; s++) {
        float *at = weights + QUERIES * (s - base);
        v128_t x0 = wasm_v128_load(at), x1 = wasm_v128_load(at + 4);
        x0 = weight_f32(wasm_f32x4_sub(x0, most[0]));
        x1 = weight_f32(wasm_f32x4_sub(x1, most[1]));
        part0 = wasm_f32x4_add(part0, x0);
        part1 = wasm_f32x4_add(part1, x1);
        wasm_v128_store(at, x0);
        wasm_v128_store(at + 4, x1);
      }
      sums[0] = wasm_f32x4_add(sums[0], part0);
      sums[1] = wasm_f32x4_add(sums[1], part1);
    }

    v128_t shares[2];
    for (uint32_t i = 0; i < 2; i++) shares[i] = wasm_f32x4_div(wasm_f32x4_const_splat(1), sums[i]);
    uint32_t chunk = KEYS - begin % KEYS;
    for (uint32_t c = 0; c < dim; c += tall) {
      v128_t y[2 * TWIN_ROWS];
      const float *values = packed_values + (uint64_t)c * keys + tall * begin;
      sum_tile(values, weights + QUERIES * (begin - base), end - begin, chunk, KEYS, tall, y);
      for (uint32_t i = 0; i < 2 * tall; i++) {
        wasm_v128_store(mixed + QUERIES * c + 4 * i, wasm_f32x4_mul(y[i], shares[i % 2]));
      }
    }
    unpack_queries(to, count, mixed, dim);
  }
}

// kernel: 0 or TWIN.
EXPORT(attention)
void attention(float *out, uint32_t out_stride, const float *q, uint32_t q_stride, const float *k, uint32_t k_stride,
               const float *v, uint32_t v_stride, uint32_t rows, uint32_t keys, uint32_t group, uint32_t dim,
               float scale, float softcap, uint32_t start, uint32_t prefix, uint32_t window, float *scratch,
               uint32_t kernel) {
#define ATTEND(tall)                                                                                                 \
  attend(out, out_stride, q, q_stride, k, k_stride, v, v_stride, rows, keys, group, dim, scale, softcap, start, prefix, \
         window, scratch, tall)
  if (kernel) ATTEND(TWIN_ROWS);
  else ATTEND(ROWS);
}
