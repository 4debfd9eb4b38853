// Constants and the part of a product's end that is not worth repeating in every kernel.
#include "simd.h"

#define FOUR(x) {x, x, x, x}
const float EXP[10][4] = {
    FOUR(-87.33f), FOUR(88.0f), FOUR(1.44269504088896341f), FOUR(12582912.0f), FOUR(-0.693359375f),
    FOUR(2.12194440e-4f), FOUR(4.999923110e-01f), FOUR(1.666711420e-01f), FOUR(4.189015925e-02f),
    FOUR(8.312520571e-03f),
};
// -2√(2/π), and that times 0.044715
const float GELU_POWERS[2][4] = {FOUR(-1.5957691216057308f), FOUR(-0.07135481282553f)};

void activate(const Finish *f, uint32_t rows, uint32_t col, uint32_t cols) {
  for (uint32_t t = 0; t < rows; t++) {
    float *out = f->out + (uint64_t)t * f->out_stride + col;
    const float *residual = f->residual ? f->residual + (uint64_t)t * f->residual_stride + col : 0;
    uint32_t i = 0;
    for (; i + 8 <= cols; i += 8) {
      v128_t low = gelu_f32(wasm_v128_load(out + i)), high = gelu_f32(wasm_v128_load(out + i + 4));
      if (residual) {
        low = wasm_f32x4_add(low, wasm_v128_load(residual + i));
        high = wasm_f32x4_add(high, wasm_v128_load(residual + i + 4));
      }
      wasm_v128_store(out + i, low);
      wasm_v128_store(out + i + 4, high);
    }
    for (; i < cols; i++) {
      float y = wasm_f32x4_extract_lane(gelu_f32(wasm_f32x4_splat(out[i])), 0);
      out[i] = residual ? y + residual[i] : y;
    }
  }
}
