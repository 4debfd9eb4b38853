// Operations on rows of activations: norms, addition, rotary positions, patches. Sums of a norm run in f64.
#include "simd.h"

// out = (x - mean) / √(variance + eps) · weight + bias per row; out may be x.
EXPORT(layer_norm)
void layer_norm(float *out, uint32_t out_stride, const float *x, uint32_t stride, uint32_t rows, uint32_t k,
                const float *weight, const float *bias, double eps) {
  for (uint32_t t = 0; t < rows; t++, out += out_stride, x += stride) {
    v128_t s = wasm_f64x2_const_splat(0);
    uint32_t i = 0;
    double sum = 0, squares = 0;
    for (; i + 4 <= k; i += 4) {
      v128_t v = wasm_v128_load(x + i);
      s = wasm_f64x2_add(s, wasm_f64x2_add(wasm_f64x2_promote_low_f32x4(v), high_f64(v)));
    }
    for (; i < k; i++) sum += x[i];
    double mean = (sum + wasm_f64x2_extract_lane(s, 0) + wasm_f64x2_extract_lane(s, 1)) / k;
    v128_t m = wasm_f64x2_splat(mean);
    s = wasm_f64x2_const_splat(0);
    for (i = 0; i + 4 <= k; i += 4) {
      v128_t v = wasm_v128_load(x + i);
      v128_t low = wasm_f64x2_sub(wasm_f64x2_promote_low_f32x4(v), m), high = wasm_f64x2_sub(high_f64(v), m);
      s = wasm_f64x2_add(s, wasm_f64x2_add(wasm_f64x2_mul(low, low), wasm_f64x2_mul(high, high)));
    }
    for (; i < k; i++) squares += (x[i] - mean) * (x[i] - mean);
    squares += wasm_f64x2_extract_lane(s, 0) + wasm_f64x2_extract_lane(s, 1);
    double scale = 1 / __builtin_sqrt(squares / k + eps);
    // x - mean is taken in f64: where the mean is large beside the deviation, f32 would lose the difference.
    v128_t r = wasm_f64x2_splat(scale);
    for (i = 0; i + 4 <= k; i += 4) {
      v128_t v = wasm_v128_load(x + i);
      v128_t low = wasm_f64x2_mul(wasm_f64x2_sub(wasm_f64x2_promote_low_f32x4(v), m), r);
      v128_t high = wasm_f64x2_mul(wasm_f64x2_sub(high_f64(v), m), r);
      wasm_v128_store(out + i, madd(narrow_f64(low, high), wasm_v128_load(weight + i), wasm_v128_load(bias + i)));
    }
    for (; i < k; i++) out[i] = (float)((x[i] - mean) * scale) * weight[i] + bias[i];
  }
}

// out = x / √(mean(x²) + eps) · (1 + weight) per row; out may be x.
EXPORT(rms_norm)
void rms_norm(float *out, uint32_t out_stride, const float *x, uint32_t stride, uint32_t rows, uint32_t k,
              const float *weight, double eps) {
  for (uint32_t t = 0; t < rows; t++, out += out_stride, x += stride) {
    v128_t s = wasm_f64x2_const_splat(0);
    uint32_t i = 0;
    double squares = 0;
    for (; i + 4 <= k; i += 4) {
      v128_t v = wasm_v128_load(x + i);
      v128_t low = wasm_f64x2_promote_low_f32x4(v), high = high_f64(v);
      s = wasm_f64x2_add(s, wasm_f64x2_add(wasm_f64x2_mul(low, low), wasm_f64x2_mul(high, high)));
    }
    for (; i < k; i++) squares += (double)x[i] * x[i];
    squares += wasm_f64x2_extract_lane(s, 0) + wasm_f64x2_extract_lane(s, 1);
    float scale = (float)(1 / __builtin_sqrt(squares / k + eps));
    v128_t r = wasm_f32x4_splat(scale);
    for (i = 0; i + 4 <= k; i += 4) {
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
