// The end of a product: what happens to its sums before they are stored.
#include "simd.h"

// One of the ways to finish, known when this is compiled; a bias is always added, if only zeros.
INLINE void finish_block(const Finish *f, uint32_t row, uint32_t rows, uint32_t col, const float *y, uint32_t mode,
                         int added) {
  float *out = f->out + (uint64_t)row * f->out_stride + col;
  const float *residual = f->residual + (uint64_t)row * f->residual_stride + col;
  v128_t bias[4];
  for (uint32_t i = 0; i < 4; i++) bias[i] = f->bias ? wasm_v128_load(f->bias + col + 4 * i) : wasm_f32x4_const_splat(0);
  for (uint32_t r = 0; r < rows; r++, out += f->out_stride, residual += f->residual_stride, y += PAIR) {
    for (uint32_t i = 0; i < 4; i++) {
      v128_t v = wasm_f32x4_add(wasm_v128_load(y + 4 * i), bias[i]);
      wasm_v128_store(out + 4 * i, finish4(v, out + 4 * i, 0, added ? residual + 4 * i : 0, mode));
    }
  }
}

void finish(const Finish *f, uint32_t row, uint32_t rows, uint32_t col, uint32_t cols, const float *y) {
  if (cols == PAIR) {
    if (f->mode & GELU) {
      if (f->residual) finish_block(f, row, rows, col, y, GELU, 1);
      else finish_block(f, row, rows, col, y, GELU, 0);
    } else if (f->mode & MULTIPLY) {
      if (f->residual) finish_block(f, row, rows, col, y, MULTIPLY, 1);
      else finish_block(f, row, rows, col, y, MULTIPLY, 0);
    } else if (f->residual) finish_block(f, row, rows, col, y, 0, 1);
    else finish_block(f, row, rows, col, y, 0, 0);
    return;
  }
  for (uint32_t r = row; r < row + rows; r++, y += PAIR) {
    float *out = f->out + (uint64_t)r * f->out_stride + col;
    for (uint32_t i = 0; i < cols; i++) {
      float bias = f->bias ? f->bias[col + i] : 0;
      v128_t v = wasm_f32x4_splat(y[i] + bias);
      if (f->mode & GELU) v = gelu_f32(v);
      float value = wasm_f32x4_extract_lane(v, 0);
      if (f->mode & MULTIPLY) value *= out[i];
      out[i] = f->residual ? value + f->residual[(uint64_t)r * f->residual_stride + col + i] : value;
    }
  }
}
