// Attention of one row, as a token is decoded: four query heads at a time, one lane each, keys and values read as they
// lie. See attention.c for the many rows of a prefix.
#include "simd.h"

enum { KEYS = 128 };  // keys summed in f32 before the sum moves on, so that long contexts lose nothing

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

// weights [keys][4] · values for 4·vectors columns (1 or 2 vectors), into y[query][vector].
INLINE void mix(const float *weights, const float *v, uint32_t v_stride, uint32_t keys, uint32_t vectors,
                v128_t y[8]) {
  for (uint32_t i = 0; i < 8; i++) y[i] = wasm_f32x4_const_splat(0);
  for (uint32_t s = 0; s < keys;) {
    uint32_t end = keys - s < KEYS ? keys : s + KEYS;
    v128_t zero = wasm_f32x4_const_splat(0);
    v128_t a0 = zero, a1 = zero, b0 = zero, b1 = zero, c0 = zero, c1 = zero, d0 = zero, d1 = zero;
    for (; s < end; s++, v += v_stride, weights += 4) {
      KEEP(v);
      v128_t p = wasm_v128_load(weights), v0 = wasm_v128_load(v);
      v128_t p0 = LANES(p, p, 0, 0, 0, 0), p1 = LANES(p, p, 1, 1, 1, 1);
      v128_t p2 = LANES(p, p, 2, 2, 2, 2), p3 = LANES(p, p, 3, 3, 3, 3);
      a0 = madd(p0, v0, a0), b0 = madd(p1, v0, b0), c0 = madd(p2, v0, c0), d0 = madd(p3, v0, d0);
      if (vectors == 2) {
        v128_t v1 = wasm_v128_load(v + 4);
        a1 = madd(p0, v1, a1), b1 = madd(p1, v1, b1), c1 = madd(p2, v1, c1), d1 = madd(p3, v1, d1);
      }
    }
    y[0] = wasm_f32x4_add(y[0], a0), y[1] = wasm_f32x4_add(y[1], a1);
    y[2] = wasm_f32x4_add(y[2], b0), y[3] = wasm_f32x4_add(y[3], b1);
    y[4] = wasm_f32x4_add(y[4], c0), y[5] = wasm_f32x4_add(y[5], c1);
    y[6] = wasm_f32x4_add(y[6], d0), y[7] = wasm_f32x4_add(y[7], d1);
  }
}

// Arguments as for `attention`.
// scratch: 4 · keys floats.
EXPORT(attention_row)
void attention_row(float *out, const float *q, const float *k, uint32_t k_stride, const float *v, uint32_t v_stride,
                   uint32_t keys, uint32_t group, uint32_t dim, float scale, float softcap, uint32_t start,
                   uint32_t prefix, uint32_t window, float *scratch) {
  if (prefix > keys) prefix = keys;
  uint32_t begin = start < prefix || start < window ? 0 : start - window + 1;
  uint32_t end = start < prefix ? prefix : start + 1;
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
    for (uint32_t s = begin; s < end; s += 2) {
      const float *key = k + (uint64_t)s * k_stride;
      v128_t x[2];
      dots(from, key, s + 1 < end ? key + k_stride : key, dim, x);
      for (uint32_t i = 0; i < 2 && s + i < end; i++) {
        x[i] = wasm_f32x4_mul(x[i], wasm_f32x4_splat(scale));
        if (softcap) {
          v128_t cap = wasm_f32x4_splat(softcap);
          x[i] = wasm_f32x4_mul(tanh_f32(wasm_f32x4_div(x[i], cap)), cap);
        }
        most = wasm_f32x4_pmax(most, x[i]);
        wasm_v128_store(scratch + 4 * (s + i - begin), x[i]);
      }
    }
    v128_t sum = wasm_f32x4_const_splat(0);
    for (uint32_t s = begin; s < end;) {
      v128_t part = wasm_f32x4_const_splat(0);
      for (uint32_t stop = end - s < KEYS ? end : s + KEYS; s < stop; s++) {
        v128_t x = wasm_v128_load(scratch + 4 * (s - begin));
        x = weight_f32(wasm_f32x4_sub(x, most));
        part = wasm_f32x4_add(part, x);
        wasm_v128_store(scratch + 4 * (s - begin), x);
      }
      sum = wasm_f32x4_add(sum, part);
    }
    float sums[4];
    wasm_v128_store(sums, sum);
    const float *values = v + (uint64_t)begin * v_stride;
    for (uint32_t c = 0; c < dim;) {
      v128_t y[8];
      uint32_t vectors = c + 8 <= dim ? 2 : 1;
      if (c + 4 <= dim) {
        if (vectors == 2) mix(scratch, values + c, v_stride, end - begin, 2, y);
        else mix(scratch, values + c, v_stride, end - begin, 1, y);
        for (uint32_t i = 0; i < count; i++) {
          v128_t s = wasm_f32x4_splat(sums[i]);
          wasm_v128_store(to[i] + c, wasm_f32x4_div(y[2 * i], s));
          if (vectors == 2) wasm_v128_store(to[i] + c + 4, wasm_f32x4_div(y[2 * i + 1], s));
        }
        c += 4 * vectors;
      } else {
        for (uint32_t i = 0; i < count; i++) {
          double y = 0;
          for (uint32_t s = 0; s < end - begin; s++) y += scratch[4 * s + i] * values[(uint64_t)s * v_stride + c];
          to[i][c] = (float)(y / sums[i]);
        }
        c++;
      }
    }
  }
}
