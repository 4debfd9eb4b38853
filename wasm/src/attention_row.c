// Attention of one row, as a token is decoded: four query heads at a time, one lane each, keys and values read as they
// lie. See attention.c for the many rows of a prefix.
//
// They come from memory, where a processor fetches ahead what is read in order, and only that: two keys are looked at, and
// four values mixed, that lie a half or a quarter of them all apart, so that each is the next in a stream of its own. (Two
// neighbours, and the values column by column, took 119 µs where this takes 70, and 80 and 40 with half the heads: 280 keys of
// 256 from memory, EPYC of family 26, model 2.)
#include "simd.h"

enum {
  STREAMS = 4,
  KEYS = 128,  // keys summed in f32 before the sum moves on, so that long contexts lose nothing
};

// The four lane sums of four vectors.
INLINE v128_t totals(v128_t a, v128_t b, v128_t c, v128_t d) {
  v128_t ab = wasm_f32x4_add(LANES(a, b, 0, 4, 1, 5), LANES(a, b, 2, 6, 3, 7));
  v128_t cd = wasm_f32x4_add(LANES(c, d, 0, 4, 1, 5), LANES(c, d, 2, 6, 3, 7));
  return wasm_f32x4_add(LANES(ab, cd, 0, 1, 4, 5), LANES(ab, cd, 2, 3, 6, 7));
}

// Dot products of four queries with two keys, one vector of four for each key.
INLINE void dots(const float *const q[4], const float *key, const float *next, uint32_t dim, v128_t sums[2]) {
  v128_t zero = wasm_f32x4_const_splat(0);
  v128_t a0 = zero, b0 = zero, c0 = zero, d0 = zero, a1 = zero, b1 = zero, c1 = zero, d1 = zero;
  const float *q0 = q[0], *q1 = q[1], *q2 = q[2], *q3 = q[3];
  uint32_t i = 0;
  for (; i + 4 <= dim; i += 4) {
    KEEP(i);
    v128_t k0 = wasm_v128_load(key + i), k1 = wasm_v128_load(next + i), x;
    x = wasm_v128_load(q0 + i), a0 = madd(x, k0, a0), a1 = madd(x, k1, a1);
    x = wasm_v128_load(q1 + i), b0 = madd(x, k0, b0), b1 = madd(x, k1, b1);
    x = wasm_v128_load(q2 + i), c0 = madd(x, k0, c0), c1 = madd(x, k1, c1);
    x = wasm_v128_load(q3 + i), d0 = madd(x, k0, d0), d1 = madd(x, k1, d1);
  }
  sums[0] = totals(a0, b0, c0, d0);
  sums[1] = totals(a1, b1, c1, d1);
  for (; i < dim; i++) {
    v128_t x = wasm_f32x4_make(q0[i], q1[i], q2[i], q3[i]);
    sums[0] = madd(x, wasm_v128_load32_splat(key + i), sums[0]);
    sums[1] = madd(x, wasm_v128_load32_splat(next + i), sums[1]);
  }
}

// Adds the weights [keys][4] times the values of each of `streams` times `keys` keys, the streams `apart` keys from one another,
// to sums [columns / 8][4][8].
INLINE void mix(float *sums, const float *weights, const float *v, uint32_t v_stride, uint32_t keys, uint32_t apart,
                uint32_t columns, uint32_t streams) {
  for (; keys; keys--, weights += 4, v += v_stride) {
    float *to = sums;
    for (uint32_t c = 0; c < columns; c += 8, to += 32) {
      KEEP(c);
      v128_t y[8];
      for (uint32_t i = 0; i < 8; i++) y[i] = wasm_v128_load(to + 4 * i);
#pragma clang loop unroll(full)
      for (uint32_t i = 0; i < streams; i++) {
        const float *from = v + (uint64_t)i * apart * v_stride + c;
        v128_t p = wasm_v128_load(weights + 4 * i * apart), v0 = wasm_v128_load(from), v1 = wasm_v128_load(from + 4), x;
        x = LANES(p, p, 0, 0, 0, 0), y[0] = madd(x, v0, y[0]), y[1] = madd(x, v1, y[1]);
        x = LANES(p, p, 1, 1, 1, 1), y[2] = madd(x, v0, y[2]), y[3] = madd(x, v1, y[3]);
        x = LANES(p, p, 2, 2, 2, 2), y[4] = madd(x, v0, y[4]), y[5] = madd(x, v1, y[5]);
        x = LANES(p, p, 3, 3, 3, 3), y[6] = madd(x, v0, y[6]), y[7] = madd(x, v1, y[7]);
      }
      for (uint32_t i = 0; i < 8; i++) wasm_v128_store(to + 4 * i, y[i]);
    }
  }
}

// Arguments as for `attention`.
// scratch: 4 · (keys + dim) floats.
EXPORT(attention_row)
void attention_row(float *out, const float *q, const float *k, uint32_t k_stride, const float *v, uint32_t v_stride,
                   uint32_t keys, uint32_t group, uint32_t dim, float scale, float softcap, uint32_t start,
                   uint32_t prefix, uint32_t window, float *scratch) {
  if (prefix > keys) prefix = keys;
  uint32_t begin = start < prefix || start < window ? 0 : start - window + 1;
  uint32_t seen = (start < prefix ? prefix : start + 1) - begin;
  uint32_t half = (seen + 1) / 2, part = seen / STREAMS, columns = dim / 8 * 8;
  float *weights = scratch, *sums = scratch + 4 * seen;
  k += (uint64_t)begin * k_stride;
  v += (uint64_t)begin * v_stride;
  for (uint32_t first = 0; first < group; first += 4) {
    const float *from[4];
    float *to[4];
    uint32_t count = group - first < 4 ? group - first : 4;
    for (uint32_t i = 0; i < 4; i++) {
      uint32_t head = first + (i < count ? i : count - 1);
      from[i] = q + head * dim;
      to[i] = out + head * dim;
    }
    v128_t most = wasm_f32x4_const_splat(-3.4e38f);
    for (uint32_t s = 0; s < half; s++) {
      const float *key = k + (uint64_t)s * k_stride;
      v128_t x[2];
      dots(from, key, s + half < seen ? key + (uint64_t)half * k_stride : key, dim, x);
      for (uint32_t i = 0; i < 2 && s + i * half < seen; i++) {
        v128_t y = wasm_f32x4_mul(x[i], wasm_f32x4_splat(scale));
        if (softcap) {
          v128_t cap = wasm_f32x4_splat(softcap);
          y = wasm_f32x4_mul(tanh_f32(wasm_f32x4_div(y, cap)), cap);
        }
        most = wasm_f32x4_pmax(most, y);
        wasm_v128_store(weights + 4 * (s + i * half), y);
      }
    }
    v128_t sum = wasm_f32x4_const_splat(0);
    for (uint32_t s = 0; s < seen;) {
      v128_t some = wasm_f32x4_const_splat(0);
      for (uint32_t stop = seen - s < KEYS ? seen : s + KEYS; s < stop; s++) {
        v128_t x = wasm_v128_load(weights + 4 * s);
        x = weight_f32(wasm_f32x4_sub(x, most));
        some = wasm_f32x4_add(some, x);
        wasm_v128_store(weights + 4 * s, x);
      }
      sum = wasm_f32x4_add(sum, some);
    }
    float total[4];
    wasm_v128_store(total, sum);
    uint32_t done = 0;
    do {
      uint32_t now = part - done < KEYS / STREAMS ? part - done : KEYS / STREAMS;
      for (uint32_t c = 0; c < 4 * columns; c += 4) wasm_v128_store(sums + c, wasm_f32x4_const_splat(0));
      mix(sums, weights + 4 * done, v + (uint64_t)done * v_stride, v_stride, now, part, columns, STREAMS);
      if (done + now == part) {
        uint32_t last = STREAMS * part;
        mix(sums, weights + 4 * last, v + (uint64_t)last * v_stride, v_stride, seen - last, 0, columns, 1);
      }
      for (uint32_t i = 0; i < count; i++) {
        for (uint32_t c = 0; c < columns; c += 4) {
          v128_t y = wasm_v128_load(sums + 4 * (c & ~7u) + 8 * i + (c & 4));
          wasm_v128_store(to[i] + c, done ? wasm_f32x4_add(wasm_v128_load(to[i] + c), y) : y);
        }
      }
      done += now;
    } while (done < part);
    for (uint32_t i = 0; i < count; i++) {
      v128_t by = wasm_f32x4_splat(total[i]);
      for (uint32_t c = 0; c < columns; c += 4) wasm_v128_store(to[i] + c, wasm_f32x4_div(wasm_v128_load(to[i] + c), by));
      for (uint32_t c = columns; c < dim; c++) {
        double y = 0;
        for (uint32_t s = 0; s < seen; s++) y += weights[4 * s + i] * v[(uint64_t)s * v_stride + c];
        to[i][c] = (float)(y / total[i]);
      }
    }
  }
}
