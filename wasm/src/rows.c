// Operations on rows of activations: norms, addition, rotary positions, patches.
#include "simd.h"

enum { CHUNK = 256 };  // values summed in f32 before the sum moves on in f64

INLINE double sum_f32(const v128_t s[4]) {
  v128_t v = wasm_f32x4_add(wasm_f32x4_add(s[0], s[1]), wasm_f32x4_add(s[2], s[3]));
  v = wasm_f64x2_add(wasm_f64x2_promote_low_f32x4(v), high_f64(v));
  return wasm_f64x2_extract_lane(v, 0) + wasm_f64x2_extract_lane(v, 1);
}

// Sums over k values of x - pivot and of its square. The difference is rounded as itself, however large the pivot is.
INLINE void moments(const float *x, uint32_t k, float pivot, double *sum, double *squares) {
  v128_t from = wasm_f32x4_splat(pivot);
  *sum = *squares = 0;
  uint32_t i = 0;
  while (i + 16 <= k) {
    v128_t ones[4], twos[4];
    for (uint32_t j = 0; j < 4; j++) ones[j] = twos[j] = wasm_f32x4_const_splat(0);
    for (uint32_t end = k - i < CHUNK ? k : i + CHUNK; i + 16 <= end; i += 16) {
      for (uint32_t j = 0; j < 4; j++) {
        v128_t d = wasm_f32x4_sub(wasm_v128_load(x + i + 4 * j), from);
        ones[j] = wasm_f32x4_add(ones[j], d);
        twos[j] = madd(d, d, twos[j]);
      }
    }
    *sum += sum_f32(ones);
    *squares += sum_f32(twos);
  }
  for (; i < k; i++) {
    float d = x[i] - pivot;
    *sum += d;
    *squares += (double)d * d;
  }
}

// out = (x - mean) / √(variance + eps) · weight + bias per row; out may be x.
EXPORT(layer_norm)
void layer_norm(float *out, uint32_t out_stride, const float *x, uint32_t stride, uint32_t rows, uint32_t k,
                const float *weight, const float *bias, double eps) {
  for (uint32_t t = 0; t < rows; t++, out += out_stride, x += stride) {
    double sum, squares;
    moments(x, k, 0, &sum, &squares);
    // About a pivot near the mean nothing cancels, and what is left of the mean is small.
    float pivot = (float)(sum / k);
    moments(x, k, pivot, &sum, &squares);
    double rest = sum / k, variance = squares / k - rest * rest;
    float scale = (float)(1 / __builtin_sqrt((variance > 0 ? variance : 0) + eps)), shift = (float)rest;
    v128_t p = wasm_f32x4_splat(pivot), d = wasm_f32x4_splat(shift), r = wasm_f32x4_splat(scale);
    uint32_t i = 0;
    for (; i + 4 <= k; i += 4) {
      v128_t v = wasm_f32x4_sub(wasm_f32x4_sub(wasm_v128_load(x + i), p), d);
      wasm_v128_store(out + i, madd(wasm_f32x4_mul(v, r), wasm_v128_load(weight + i), wasm_v128_load(bias + i)));
    }
    for (; i < k; i++) out[i] = (x[i] - pivot - shift) * scale * weight[i] + bias[i];
  }
}

// out = x / √(mean(x²) + eps) · (1 + weight) per row; out may be x.
EXPORT(rms_norm)
void rms_norm(float *out, uint32_t out_stride, const float *x, uint32_t stride, uint32_t rows, uint32_t k,
              const float *weight, double eps) {
  for (uint32_t t = 0; t < rows; t++, out += out_stride, x += stride) {
    double sum, squares;
    moments(x, k, 0, &sum, &squares);
    float scale = (float)(1 / __builtin_sqrt(squares / k + eps));
    v128_t r = wasm_f32x4_splat(scale);
    uint32_t i = 0;
    for (; i + 4 <= k; i += 4) {
      v128_t g = wasm_f32x4_add(wasm_v128_load(weight + i), wasm_f32x4_const_splat(1));
      wasm_v128_store(out + i, wasm_f32x4_mul(wasm_f32x4_mul(wasm_v128_load(x + i), r), g));
    }
    for (; i < k; i++) out[i] = x[i] * scale * (1 + weight[i]);
  }
}

// out += x.
EXPORT(add)
void add(float *out, uint32_t out_stride, const float *x, uint32_t stride, uint32_t rows, uint32_t k) {
  for (uint32_t t = 0; t < rows; t++, out += out_stride, x += stride) {
    uint32_t i = 0;
    for (; i + 4 <= k; i += 4) {
      wasm_v128_store(out + i, wasm_f32x4_add(wasm_v128_load(out + i), wasm_v128_load(x + i)));
    }
    for (; i < k; i++) out[i] += x[i];
  }
}

// Rotates each head of x in place. cosines and sines [rows, half] come from outside, where f64 is at hand.
EXPORT(rope)
void rope(float *x, uint32_t stride, uint32_t rows, uint32_t heads, uint32_t half, const float *cosines,
          const float *sines) {
  for (uint32_t t = 0; t < rows; t++, x += stride, cosines += half, sines += half) {
    float *a = x;
    for (uint32_t h = 0; h < heads; h++, a += 2 * half) {
      float *b = a + half;
      uint32_t i = 0;
      for (; i + 4 <= half; i += 4) {
        v128_t c = wasm_v128_load(cosines + i), s = wasm_v128_load(sines + i);
        v128_t va = wasm_v128_load(a + i), vb = wasm_v128_load(b + i);
        wasm_v128_store(a + i, wasm_f32x4_sub(wasm_f32x4_mul(va, c), wasm_f32x4_mul(vb, s)));
        wasm_v128_store(b + i, wasm_f32x4_add(wasm_f32x4_mul(vb, c), wasm_f32x4_mul(va, s)));
      }
      for (; i < half; i++) {
        float p = a[i], q = b[i];
        a[i] = p * cosines[i] - q * sines[i];
        b[i] = q * cosines[i] + p * sines[i];
      }
    }
  }
}

// pixels [size, size, 3] as rows of patches, flattened (c, dy, dx), zero up to k.
EXPORT(patches)
void patches(float *out, uint32_t out_stride, uint32_t k, const float *pixels, uint32_t size, uint32_t patch) {
  uint32_t grid = size / patch;
  for (uint32_t row = 0; row < grid * grid; row++, out += out_stride) {
    const float *corner = pixels + ((row / grid) * patch * size + row % grid * patch) * 3;
    float *to = out;
    for (uint32_t c = 0; c < 3; c++) {
      for (uint32_t dy = 0; dy < patch; dy++) {
        for (uint32_t dx = 0; dx < patch; dx++) *to++ = corner[(dy * size + dx) * 3 + c];
      }
    }
    for (uint32_t i = 3 * patch * patch; i < k; i++) *to++ = 0;
  }
}
